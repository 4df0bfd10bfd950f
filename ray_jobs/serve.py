"""Answers over HTTP, with the page beside it, until Ctrl-C.

    python ray_jobs/serve.py --model models:/drone-classifier@champion      (http://127.0.0.1:8000)
    python ray_jobs/serve.py --onnx export/model.onnx --port 8080
    RAY_ADDRESS=auto python ray_jobs/serve.py --model models:/drone-classifier@champion --replicas 4

    curl --data-binary @picture.jpg http://127.0.0.1:8000/predict

Without --replicas it runs on this machine alone and needs no Ray. GET /docs says how to ask.
"""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
ROOT = next(place for place in PLACES if (place / "drone").is_dir())
sys.path.insert(0, str(ROOT))

import tyro

from drone.adapters import ray_serve
from drone.errors import ConfigError
from drone.serving.api import Api, ApiSettings
from drone.serving.batching import BatchingPredictor
from drone.serving.http import HttpApp, HttpSettings
from drone.serving.predictor import Predictor
from ray_jobs import cli

PAGE = ROOT / "web"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Arguments of the job."""

    model: str | None = None
    """Registered model, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model answers, instead."""

    onnx: Path | None = None
    """Exported model, instead."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's."""

    port: int = 8000
    """Port to listen on."""

    page: Path | None = PAGE
    """Folder of the page that is served beside the interface."""

    open: bool = False
    """Open the page in this machine's browser."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    json: bool = False
    """Print where it listens as one JSON object, last."""

    api: Annotated[ApiSettings, tyro.conf.arg(name="")] = field(default_factory=ApiSettings)
    http: Annotated[HttpSettings, tyro.conf.arg(name="")] = field(default_factory=HttpSettings)
    ray: Annotated[ray_serve.ReplicaSettings, tyro.conf.arg(name="")] = field(
        default_factory=ray_serve.ReplicaSettings
    )

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.model, self.run, self.onnx)) != 1:
            raise ConfigError("Name what answers: one of --model URI, --run RUN, --onnx FILE.")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; it must be 0 to 65535.")
        # The project's own page may be absent, as where only the jobs were copied to.
        if self.page is not None and self.page != PAGE and not self.page.is_dir():
            raise ConfigError(f"There is no folder {self.page} for --page.")


def main(job: Serve) -> cli.Result:
    """Runs the job."""
    with contextlib.ExitStack() as stack:
        onnx, api = _model(job, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        listener = _listener(job)
        stack.callback(listener.close)
        url = f"http://{_address(job.host, listener.getsockname()[1])}"
        predictor, http = _predictor(job, onnx, listener.getsockname()[1], stack)
        page = job.page if job.page and job.page.is_dir() else None
        app = HttpApp(Api(predictor, api), http, page)
        listener.listen()  # Who reads the next line may ask at once.
        beside = f"the page: {url}/, " if page else ""
        _say(f"{onnx.name} answers on {url} - {beside}the interface: {url}/docs")
        if job.open:
            # The socket listens already: the browser waits until the server takes its request.
            webbrowser.open(url)
        _run(app, listener)
        return {"url": url, "pid": os.getpid()}


def _model(job: Serve, folder: Path) -> tuple[Path, ApiSettings]:
    """The model's file, and the interface's settings with its name and version."""
    from dataclasses import replace

    if job.onnx is not None:
        if not job.onnx.is_file():
            raise ConfigError(f"There is no file {job.onnx} for --onnx.")
        return job.onnx, job.api
    from drone.adapters import mlflow_model
    from drone.adapters import mlflow_tracking as tracking

    tracking.connect(job.experiment)
    found = mlflow_model.named(job.model, job.run)
    onnx = mlflow_model.fetch_onnx(found.run_id, folder)
    return onnx, replace(
        job.api, name=job.api.name or found.name, version=job.api.version or found.version
    )


def _listener(job: Serve) -> socket.socket:
    """A socket on the address, taken before anything is started for it."""
    listener = socket.socket(socket.AF_INET6 if ":" in job.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((job.host, job.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{_address(job.host, job.port)} cannot be listened on. Is a server running there "
            f"already? Else choose another --host or --port."
        ) from error
    return listener


def _address(host: str, port: int) -> str:
    """Both as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _predictor(
    job: Serve, onnx: Path, port: int, stack: contextlib.ExitStack
) -> tuple[Predictor, HttpSettings]:
    """Who answers, and the app's settings before it."""
    if job.ray.replicas is None:
        here = BatchingPredictor(onnx, job.http.engines or os.cpu_count() or 1, job.http.batch)
        here.start()  # A broken model fails here, and the first answer is quick.
        return here, job.http
    Predictor(onnx).start()
    name = f"drone-{port}"
    there = stack.enter_context(ray_serve.replicated(onnx, job.http, job.ray, name, _say))
    return there, ray_serve.front(job.http, job.ray)


def _run(app: HttpApp, listener: socket.socket) -> None:
    """Answers until it is interrupted; what is under way then is answered first."""
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _say(text: str) -> None:
    cli.console.print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    cli.start(Serve, main, __doc__)
