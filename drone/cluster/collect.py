"""Downloads through Ray: each host has one worker at a time, and all share one rate by host."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from drone.collect.download import Outcome, download_host_queue
from drone.collect.provenance import ImageUrl
from drone.collect.rate_limiter import RateLimiter
from drone.collect.raw_folder import host_queues
from drone.collect.settings import FetchSettings

_CPUS_PER_HOST = 0.1
"""Downloads wait more than they compute."""

_AHEAD = 2
"""Images that a worker may have ready before the driver takes them: what bounds the memory."""

_MAX_LOSSES = 2
"""Workers that may die over the same url before it is given up."""


def download_all(
    image_urls: Sequence[ImageUrl], settings: FetchSettings
) -> Iterator[tuple[ImageUrl, Outcome]]:
    """Downloads on every machine of Ray, as a `drone.collect.raw_folder.Downloader`.

    Each host has one worker, which downloads its files one after the other. Redirects lead to the
    hosts of other workers, so a single actor limits the rate for all of them. A url whose workers
    die becomes a failure.
    """
    # Restarts are unlimited: a new limiter has forgotten its waits, which at worst costs a host
    # one burst of requests.
    limiter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RateLimiter).remote(
        settings.requests_per_s
    )
    waiting = deque(deque(queue) for queue in host_queues(image_urls).values())
    losses: dict[ImageUrl, int] = {}
    running: dict[Any, deque[ImageUrl]] = {}
    while waiting or running:
        while waiting and len(running) < settings.max_concurrent_hosts:
            queue = waiting.popleft()
            running[_start(queue, settings, limiter)] = queue
        (ready,), _ = ray.wait(list(running), num_returns=1)
        queue = running[ready]
        try:
            outcome = ray.get(next(ready))
        except StopIteration:
            del running[ready]
            continue
        except RayTaskError:
            raise  # A defect of ours, which another worker would have as well.
        except RayError as error:
            del running[ready]
            # Every result had arrived; only the end of its stream was lost.
            if not queue:
                continue
            # Results arrive in the order of the queue, so its first url is the one the worker died
            # over.
            losses[queue[0]] = losses.get(queue[0], 0) + 1
            if losses[queue[0]] >= _MAX_LOSSES:
                yield queue.popleft(), Outcome(reason="worker-lost", detail=type(error).__name__)
            waiting.append(queue)
            continue
        yield queue.popleft(), outcome


def _start(queue: Sequence[ImageUrl], settings: FetchSettings, limiter: Any) -> Any:
    # No retries by Ray: it would download the whole queue again, what has arrived included.
    task = ray.remote(num_cpus=_CPUS_PER_HOST, max_retries=0, num_returns="streaming")(_download)
    task = task.options(scheduling_strategy="SPREAD", _generator_backpressure_num_objects=_AHEAD)
    return task.remote([image_url.url for image_url in queue], settings, limiter)


def _download(urls: Sequence[str], settings: FetchSettings, limiter: Any) -> Iterator[Outcome]:
    yield from download_host_queue(urls, settings, _SharedLimiter(limiter))


class _SharedLimiter:
    """A worker's access to the limiter in the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def try_acquire(self, host: str) -> float:
        wait_s: float = ray.get(self._actor.try_acquire.remote(host))
        return wait_s

    def block(self, host: str, seconds: float) -> None:
        ray.get(self._actor.block.remote(host, seconds))
