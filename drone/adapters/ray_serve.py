"""The HTTP app on a Ray cluster, by Ray Serve: replicas that grow and shrink with the requests."""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from drone.adapters import ray_cluster
from drone.serving.api import Api, ApiSettings
from drone.serving.batching import BatchingPredictor
from drone.serving.http import HttpApp, HttpSettings

_NAME = "drone"
_POLL_S = 1.0


def serve(
    onnx: Path,
    api: ApiSettings,
    http: HttpSettings,
    page: Path | None,
    *,
    host: str,
    port: int,
    replicas: int,
    say: Callable[[str], None],
) -> None:
    """Serves until it is interrupted; requests that are under way are answered first.

    Args:
        onnx: exported model.
        api: of the interface.
        http: of each replica.
        page: folder of files to serve beside it.
        host: address to listen on, of the machine that the job runs on.
        port: of it.
        replicas: at most so many, at least one; each takes as many processors as it has engines.
        say: hears where it listens.
    """
    model = onnx.read_bytes()
    files = {} if page is None else _files(page)
    with ray_cluster.connected():
        from ray import serve as ray_serve

        def build() -> HttpApp:
            return _app(model, api, http, files)

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray_serve.start(http_options={"host": host, "port": port})
        deployment = ray_serve.deployment(
            ray_serve.ingress(build)(),
            name=_NAME,
            ray_actor_options={"num_cpus": http.engines},
            # The app itself refuses what is too much, with a word on when to come again.
            max_ongoing_requests=2 * (http.threads + http.waiting),
            autoscaling_config={
                "min_replicas": 1,
                "max_replicas": replicas,
                "target_ongoing_requests": http.threads,
            },
            graceful_shutdown_timeout_s=30,
        )
        try:
            ray_serve.run(deployment.bind(), name=_NAME, route_prefix="/")
            url = f"http://{host}:{port}"
            say(f"Up to {replicas} replicas answer on {url} - the interface: {url}/docs")
            while True:
                time.sleep(_POLL_S)
        finally:
            ray_serve.shutdown()


def _app(model: bytes, api: ApiSettings, http: HttpSettings, files: Mapping[str, bytes]) -> HttpApp:
    """The app of a replica, with a copy of model and page on its own machine."""
    folder = Path(tempfile.mkdtemp(prefix="drone-serve-"))
    for path, content in {"model.onnx": model, **{f"web/{n}": c for n, c in files.items()}}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    predictor = BatchingPredictor(folder / "model.onnx", http.engines, http.batch)
    predictor.start()
    return HttpApp(Api(predictor, api), http, folder / "web" if files else None)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
