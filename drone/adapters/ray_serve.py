"""Replicas of the model on a Ray cluster, by Ray Serve: they grow and shrink with the requests.

The HTTP app runs in one process, the job's own, and asks the replicas for what takes time: decoding
and the network. So whatever is refused, or fails, is told in the interface's own form, and a
request that is under way at the end is answered.
"""

import contextlib
import logging
import math
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drone.adapters import ray_cluster
from drone.errors import ConfigError, ImageError
from drone.serving.batching import BatchingPredictor
from drone.serving.http import HttpSettings, busy
from drone.serving.predictor import Prediction, Predictor

_METRICS_S = "2"
_LOOK_BACK_S = 15.0
"""Requests in hand are averaged over so long: one burst is no reason to grow."""

_TRIES = 3
"""Replicas that a request is given to while the ones before it are lost."""

_log = logging.getLogger("drone.replicas")


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """How many replicas answer."""

    replicas: int | None = None
    """Answer by so many replicas at most on Ray Serve, which grow and shrink with the requests."""

    min_replicas: int = 1
    """Replicas that stay when nobody asks."""

    replica_cpus: float | None = None
    """Processors that Ray sets aside for a replica, also 0.5; by default one for each engine."""

    replica_load: float = 4.0
    """Requests that a replica should have in hand on average; with more, replicas are added."""

    grow_after_s: float = 5.0
    """Seconds of too many requests after which replicas are added."""

    shrink_after_s: float = 120.0
    """Seconds of fewer requests after which replicas end."""

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas < 1:
            raise ConfigError(f"--replicas is {self.replicas}; it must be at least 1.")
        if not 1 <= self.min_replicas <= (self.replicas or self.min_replicas):
            raise ConfigError(
                f"--min-replicas is {self.min_replicas}; it must be at least 1 and at most "
                f"--replicas, {self.replicas}."
            )
        if self.replica_cpus is not None and not 0 < self.replica_cpus < math.inf:
            raise ConfigError(f"--replica-cpus is {self.replica_cpus}; it must be above 0.")
        if not 0 < self.replica_load < math.inf:
            raise ConfigError(f"--replica-load is {self.replica_load}; it must be above 0.")
        for name in ("grow_after_s", "shrink_after_s"):
            if not 0 <= getattr(self, name) < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is {getattr(self, name)}; it must be at least 0.")


class Replica:
    """What runs on the cluster: the model, and an engine for each of its processors."""

    def __init__(self, model: bytes, engines: int, batch: int) -> None:
        with tempfile.TemporaryDirectory(prefix="drone-serve-") as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(model)
            self._predictor = BatchingPredictor(file, engines, batch)
            self._predictor.start()  # From here on the file is not read any more.

    def predict(self, data: bytes, max_pixels: int | None) -> Prediction | ImageError:
        """The answer to one picture, or why there is none."""
        try:
            return self._predictor.predict(data, max_pixels)
        except ImageError as error:
            return error
        except Exception as error:
            # A defect. Ray logs what is raised, and the message may quote the picture.
            place = "".join(traceback.format_tb(error.__traceback__))
            raise RuntimeError(f"{type(error).__name__} in a replica\n{place}") from None


class ReplicatedPredictor(Predictor):
    """A predictor whose pictures go to the replicas; its facts are read here."""

    def __init__(self, model: Path, handle: Any, retry_after_s: int) -> None:
        """Asks by a handle of Ray Serve; `retry_after_s` is what a refusal says."""
        super().__init__(model, threads=1)
        self._handle = handle
        self._retry_after_s = retry_after_s

    def predict(self, data: bytes, max_pixels: int | None = None) -> Prediction:
        """The answer to one picture.

        Raises:
            ImageError: the bytes give no picture; it says why.
            Refusal: as many requests wait for a replica as may.
        """
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        for attempt in range(_TRIES):
            try:
                found: Prediction | ImageError
                found = self._handle.predict.remote(data, max_pixels).result()
            except BackPressureError as error:
                raise busy(self._retry_after_s) from error
            except RayActorError:
                _log.warning("A replica was lost; another one is asked.")
                if attempt == _TRIES - 1:
                    raise
                continue
            if isinstance(found, ImageError):
                raise found
            return found
        raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def replicated(
    onnx: Path,
    http: HttpSettings,
    settings: ReplicaSettings,
    name: str,
    say: Callable[[str], None],
) -> Iterator[Predictor]:
    """A predictor with replicas behind it, for as long as the block runs.

    Args:
        onnx: exported model.
        http: of each replica: its engines, and the requests that it works on and that may wait.
        settings: how many.
        name: of the application on the cluster; one of that name is replaced.
        say: hears what a person should know.

    Raises:
        ConfigError: not even the fewest replicas have room.
    """
    os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", _METRICS_S)
    with ray_cluster.connected():
        from ray import serve

        engines = http.engines or 1
        cpus = settings.replica_cpus or engines
        most = settings.replicas or settings.min_replicas
        _check_room(settings.min_replicas, most, cpus, say)
        # It tells of a lost replica once for each request.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            Replica,
            ray_actor_options={"num_cpus": cpus},
            max_ongoing_requests=http.threads,
            max_queued_requests=http.waiting,
            autoscaling_config={
                "min_replicas": settings.min_replicas,
                "max_replicas": most,
                "target_ongoing_requests": settings.replica_load,
                "upscale_delay_s": settings.grow_after_s,
                "downscale_delay_s": settings.shrink_after_s,
                "look_back_period_s": _LOOK_BACK_S,
            },
            graceful_shutdown_timeout_s=30,
        )
        try:
            bound = deployment.bind(onnx.read_bytes(), engines, http.batch)
            handle = serve.run(bound, name=name, route_prefix=None)
            yield ReplicatedPredictor(onnx, handle, http.retry_after_s)
        finally:
            _end(name)


def front(http: HttpSettings, settings: ReplicaSettings) -> HttpSettings:
    """Settings of the app before the replicas: enough threads to keep all of them at work."""
    most = settings.replicas or settings.min_replicas
    return replace(http, threads=http.threads * most + http.waiting)


def _check_room(least: int, most: int, cpus: float, say: Callable[[str], None]) -> None:
    """Refuses what would wait for a processor for ever; says what can grow less than asked."""
    _, processors = ray_cluster.room()
    fitting = sum(int(there / cpus + 1e-6) for there in processors)
    if fitting < least:
        raise ConfigError(
            f"There is no room for {least} replicas of {cpus:g} processors each: the machines "
            f"have {', '.join(f'{there:g}' for there in processors)}. Choose a smaller "
            f"--replica-cpus or fewer --engines."
        )
    if fitting < most:
        say(
            f"There is room for {fitting} of {most} replicas, of {cpus:g} processors each; a "
            f"smaller --replica-cpus makes more."
        )


def _end(name: str) -> None:
    """Takes the replicas away; of a local Ray, the rest goes with it."""
    from ray import serve

    serve.delete(name)
    if ray_cluster.on_cluster() and not serve.status().applications:
        serve.shutdown()
