"""Replicas of a model on a Ray cluster, by Ray Serve: they scale with the requests.

With `replicated` the HTTP app runs in one process, the job's own, and passes the expensive part
(decoding and inference) to the replicas. Errors are therefore reported in the interface's own form,
and requests in flight at a shutdown are still answered.

With `application` each replica has the HTTP app as well, behind Ray Serve's proxies. No job has to
keep running: Kubernetes, for one, starts a service from its description.
"""

import contextlib
import logging
import math
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drone.cluster import connection
from drone.errors import ConfigError, ImageError
from drone.serving.api import Api, ApiSettings
from drone.serving.http import HttpApp, HttpSettings, overloaded
from drone.serving.memory import limit_kept_memory
from drone.serving.predictor import Prediction, Predictor

# Ray Serve's default of 10 s would notice a burst later than `upscale_delay_s` asks for.
_METRICS_INTERVAL_S = "2"
_LOOK_BACK_S = 15.0
"""Window over which ongoing requests are averaged: one burst is no reason to add replicas."""

_MAX_ATTEMPTS = 3
"""Replicas that a request is sent to while the previous ones are lost."""

_log = logging.getLogger("drone.replicas")


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """Autoscaling of the replicas on Ray Serve."""

    replicas: int | None = None
    """Maximum number of replicas on Ray Serve (default: the server runs without Ray)."""

    min_replicas: int = 1
    """Minimum number of replicas, also without any requests."""

    replica_cpus: float | None = None
    """CPUs that Ray reserves for a replica, fractions allowed (default: one for each engine)."""

    target_ongoing_requests: float = 4.0
    """Average number of ongoing requests per replica above which replicas are added."""

    upscale_delay_s: float = 5.0
    """Seconds of too many requests after which replicas are added."""

    downscale_delay_s: float = 120.0
    """Seconds of too few requests after which replicas are removed."""

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas < 1:
            raise ConfigError(f"--replicas is {self.replicas}; it must be at least 1.")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"--min-replicas is {self.min_replicas}; it must be at least 1 and at most "
                f"--replicas, {self.replicas}."
            )
        for name in ("replica_cpus", "target_ongoing_requests"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{_flag(name)} is {value}; it must be above 0.")
        for name in ("upscale_delay_s", "downscale_delay_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{_flag(name)} is {value}; it must be at least 0.")

    @property
    def max_replicas(self) -> int:
        """Maximum number of replicas; `min_replicas` where `replicas` is not set."""
        return self.min_replicas if self.replicas is None else self.replicas


class Replica:
    """The Ray Serve deployment: a model on a worker of the cluster."""

    def __init__(self, model: bytes, engines: int) -> None:
        self._predictor = _start_predictor(model, engines)

    def predict(
        self, data: bytes, max_pixels: int | None, evidence: bool
    ) -> Prediction | ImageError:
        """Classifies one image, or returns the error; a raised one would be logged by Ray."""
        try:
            return self._predictor.predict(data, max_pixels, evidence=evidence)
        except ImageError as error:
            return error
        except Exception as error:
            # Ray logs what is raised, and the message of a defect may quote the image.
            frames = "".join(traceback.format_tb(error.__traceback__))
            raise RuntimeError(f"{type(error).__name__} in a replica\n{frames}") from None


class Service:
    """The Ray Serve deployment that answers HTTP itself: a model, and the interface to it."""

    def __init__(self, model: bytes, api: ApiSettings, http: HttpSettings, page: Path) -> None:
        predictor = _start_predictor(model, _engines(http))
        # The page's folder may be on the machine that built the application only.
        self._app = HttpApp(Api(predictor, api), http, page if page.is_dir() else None)

    def __serve_build_asgi_app__(self) -> HttpApp:
        """Returns the app that Ray Serve passes the requests to."""
        return self._app


class ReplicatedPredictor(Predictor):
    """A predictor that sends images to the replicas; the model's info is read locally."""

    def __init__(self, model: Path, content: bytes, handle: Any, retry_after_s: int) -> None:
        """Creates the predictor.

        Args:
            model: Exported model.
            content: Its content, the same as in the replicas.
            handle: Ray Serve's deployment handle.
            retry_after_s: Seconds that an overload error tells the client to wait.
        """
        super().__init__(model, threads=1, content=content)
        self._handle = handle
        self._retry_after_s = retry_after_s

    @property
    def is_ready(self) -> bool:
        """Whether a replica has loaded the model: Ray Serve has waited for the first one."""
        return True

    def predict(
        self, data: bytes, max_pixels: int | None = None, *, evidence: bool = False
    ) -> Prediction:
        """Classifies one image on a replica, retrying on another if the replica is lost.

        Raises:
            ImageError: The bytes are not an image that the model accepts.
            ApiError: The queue of the replicas is full.
        """
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        # A prediction has no side effects, so sending it twice does no harm.
        for attempt in range(_MAX_ATTEMPTS):
            result: Prediction | ImageError
            try:
                result = self._handle.predict.remote(data, max_pixels, evidence).result()
            except BackPressureError as error:
                raise overloaded(self._retry_after_s) from error
            except RayActorError:
                _log.warning("A replica was lost; the request is retried on another one.")
                if attempt == _MAX_ATTEMPTS - 1:
                    raise
                continue
            if isinstance(result, ImageError):
                raise result
            return result
        raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def replicated(
    checked: Predictor,
    http: HttpSettings,
    settings: ReplicaSettings,
    name: str,
    notify: Callable[[str], None],
) -> Iterator[Predictor]:
    """Runs replicas for the block and yields a predictor that uses them.

    Args:
        checked: The exported model, loaded.
        http: Concurrency of each replica.
        settings: Autoscaling of the replicas.
        name: Name of the application on the cluster; one of that name is replaced.
        notify: Receives messages for the user.

    Raises:
        ConfigError: The cluster has no room for `min_replicas`.
    """
    # Before `serve` is imported, which reads it once.
    os.environ.setdefault(
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", _METRICS_INTERVAL_S
    )
    with connection.connected():
        from ray import serve

        _check_capacity(settings, _replica_cpus(http, settings), notify)
        # It logs a lost replica once for each of its requests.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # The job's own app takes the requests, so Ray Serve needs no HTTP proxy.
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(Replica, **_deployment_options(http, settings))
        try:
            # The model travels as bytes: workers may not share a file system with the job.
            replica = deployment.bind(checked.content, _engines(http))
            handle = serve.run(replica, name=name, route_prefix=None)
            model, content = checked.model, checked.content
            yield ReplicatedPredictor(model, content, handle, http.retry_after_s)
        finally:
            _shut_down(name)


def application(
    model: bytes,
    api: ApiSettings,
    http: HttpSettings,
    settings: ReplicaSettings,
    page: Path,
) -> Any:
    """Returns the Ray Serve application whose replicas have the HTTP interface of `serve.py`.

    Args:
        model: Content of the exported model.
        api: Limits and headers of the interface.
        http: Concurrency and timeouts of each replica.
        settings: Autoscaling of the replicas.
        page: Folder of the page that is served beside the interface, on machines that have it.
    """
    from ray import serve

    deployment = serve.deployment(serve.ingress()(Service), **_deployment_options(http, settings))
    return deployment.bind(model, api, http, page)


def front(http: HttpSettings, settings: ReplicaSettings) -> HttpSettings:
    """Returns settings of the app in front of the replicas: enough threads to keep all busy."""
    concurrent = http.max_concurrent * settings.max_replicas + http.max_queued
    return replace(http, max_concurrent=concurrent)


def _start_predictor(model: bytes, engines: int) -> Predictor:
    limit_kept_memory()
    predictor = Predictor(Path("model.onnx"), threads=1, max_concurrency=engines, content=model)
    predictor.start()
    return predictor


def _engines(http: HttpSettings) -> int:
    return http.engines or 1


def _replica_cpus(http: HttpSettings, settings: ReplicaSettings) -> float:
    return settings.replica_cpus or _engines(http)


def _deployment_options(http: HttpSettings, settings: ReplicaSettings) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": _replica_cpus(http, settings)},
        "max_ongoing_requests": http.max_concurrent,
        "max_queued_requests": http.max_queued,
        "autoscaling_config": _autoscaling_config(settings),
        "graceful_shutdown_timeout_s": 30,
    }


def _autoscaling_config(settings: ReplicaSettings) -> dict[str, Any]:
    return {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.target_ongoing_requests,
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
        "look_back_period_s": _LOOK_BACK_S,
    }


def _check_capacity(settings: ReplicaSettings, cpus: float, notify: Callable[[str], None]) -> None:
    """Rejects replicas that would wait for CPUs for ever; warns if not all of them fit."""
    _, node_cpus = connection.available_resources()
    # The small term is for rounding: 0.3 / 0.1 is below 3.
    fitting = sum(int(count / cpus + 1e-6) for count in node_cpus)
    if fitting < settings.min_replicas:
        raise ConfigError(
            f"There is no room for {settings.min_replicas} replicas of {cpus:g} CPUs each: the "
            f"machines have {', '.join(f'{count:g}' for count in node_cpus)}. Choose a smaller "
            f"--replica-cpus or fewer --engines."
        )
    if fitting < settings.max_replicas:
        notify(
            f"There is room for {fitting} of {settings.max_replicas} replicas of {cpus:g} CPUs "
            f"each; a smaller --replica-cpus makes room for more."
        )


def _shut_down(name: str) -> None:
    """Deletes the application, and on a cluster also Ray Serve if nothing else uses it."""
    from ray import serve

    serve.delete(name)
    # Other jobs may serve from the same Ray Serve.
    if connection.on_cluster() and not serve.status().applications:
        serve.shutdown()


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
