"""Downloads through Ray: each host has one worker at a time, and all share one rate by host."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from drone.data.collect.download import Outcome, RateLimiter, download_lane
from drone.data.collect.provenance import Wanted
from drone.data.collect.raw_set import lanes
from drone.data.collect.settings import FetchSettings

_CPUS_PER_HOST = 0.1
"""Downloads wait more than they compute."""

_AHEAD = 2
"""Pictures that a worker may have ready before the driver takes them: what bounds the memory."""

_MAX_LOSSES = 2
"""Workers that may die over the same url before it is given up."""


def download_all(
    wanted: Sequence[Wanted], settings: FetchSettings
) -> Iterator[tuple[Wanted, Outcome]]:
    """A `drone.data.collect.Downloader` on every machine of Ray.

    One worker asks a host for one file after the other. Redirects lead to hosts of other workers,
    so the rate is kept by one actor that all ask. A url whose workers die becomes a failure.
    """
    limiter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RateLimiter).remote(
        settings.per_host_per_s
    )
    waiting = deque(deque(lane) for lane in lanes(wanted).values())
    losses: dict[Wanted, int] = {}
    running: dict[Any, deque[Wanted]] = {}
    while waiting or running:
        while waiting and len(running) < settings.parallel_hosts:
            lane = waiting.popleft()
            running[_start(lane, settings, limiter)] = lane
        (ready,), _ = ray.wait(list(running), num_returns=1)
        lane = running[ready]
        try:
            outcome = ray.get(next(ready))
        except StopIteration:
            del running[ready]
            continue
        except RayTaskError:
            raise  # A defect of ours, which another worker would have as well.
        except RayError as error:
            del running[ready]
            if not lane:
                continue
            losses[lane[0]] = losses.get(lane[0], 0) + 1
            if losses[lane[0]] >= _MAX_LOSSES:
                yield lane.popleft(), Outcome(reason="worker-lost", detail=type(error).__name__)
            waiting.append(lane)
            continue
        yield lane.popleft(), outcome


def _start(lane: Sequence[Wanted], settings: FetchSettings, limiter: Any) -> Any:
    task = ray.remote(num_cpus=_CPUS_PER_HOST, max_retries=0, num_returns="streaming")(_download)
    task = task.options(scheduling_strategy="SPREAD", _generator_backpressure_num_objects=_AHEAD)
    return task.remote([one.url for one in lane], settings, limiter)


def _download(urls: Sequence[str], settings: FetchSettings, limiter: Any) -> Iterator[Outcome]:
    yield from download_lane(urls, settings, _SharedLimiter(limiter))


class _SharedLimiter:
    """The actor's limiter, as a worker asks it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def reserve(self, host: str) -> float:
        wait_s: float = ray.get(self._actor.reserve.remote(host))
        return wait_s

    def hold(self, host: str, seconds: float) -> None:
        ray.get(self._actor.hold.remote(host, seconds))
