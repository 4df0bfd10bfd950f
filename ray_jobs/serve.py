"""Serves a model over HTTP, with the page beside it, until Ctrl-C.

    python ray_jobs/serve.py --model models:/drone-classifier@champion      (http://127.0.0.1:8000)
    python ray_jobs/serve.py --onnx export/model.onnx --port 8080
    python ray_jobs/serve.py --onnx export/model.onnx --keep served       (docs/loop.md)
    python ray_jobs/serve.py --onnx export/model.onnx --host 0.0.0.0 --api-key-file keys
    RAY_ADDRESS=auto python ray_jobs/serve.py --model models:/drone-classifier@champion --replicas 4

    curl --data-binary @image.jpg http://127.0.0.1:8000/predict

Without --replicas it runs on this machine alone and needs no Ray. GET /docs describes the HTTP
API.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

import tyro

from drone.cluster.serve import ReplicaSettings
from drone.serving.access import AccessSettings
from drone.serving.api import ApiSettings
from drone.serving.connections import ConnectionSettings
from drone.serving.http import HttpSettings
from drone.serving.keeping import KeepSettings
from drone.serving.tls import TlsSettings
from drone.workflows.requests import ServeRequest
from ray_jobs import cli, console


@dataclass(frozen=True, kw_only=True)
class Serve(ServeRequest):
    """Arguments of the job."""

    json: bool = False
    """Print the server's URL and process id as one JSON object, after it has ended."""

    # Without names, the flags of these groups have no prefix: --max-bytes.
    api: Annotated[ApiSettings, tyro.conf.arg(name="")] = field(default_factory=ApiSettings)
    http: Annotated[HttpSettings, tyro.conf.arg(name="")] = field(default_factory=HttpSettings)
    connections: Annotated[ConnectionSettings, tyro.conf.arg(name="")] = field(
        default_factory=ConnectionSettings
    )
    kept: Annotated[KeepSettings, tyro.conf.arg(name="")] = field(default_factory=KeepSettings)
    access: Annotated[AccessSettings, tyro.conf.arg(name="")] = field(
        default_factory=AccessSettings
    )
    tls: Annotated[TlsSettings, tyro.conf.arg(name="")] = field(default_factory=TlsSettings)
    ray: Annotated[ReplicaSettings, tyro.conf.arg(name="")] = field(default_factory=ReplicaSettings)


def main(job: Serve) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import serving

    settings = serving.ServerSettings(
        api=job.api,
        http=job.http,
        connections=job.connections,
        access=job.access,
        tls=job.tls,
        replicas=job.ray,
        keep=job.kept,
    )
    url = serving.serve(job, settings, console.ConsoleDisplay())
    return {"url": url, "pid": os.getpid()}


if __name__ == "__main__":
    cli.start(Serve, main, __doc__)
