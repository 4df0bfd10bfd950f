"""The service that KubeRay starts: its Serve config, served by a local Ray, answers over HTTP."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from drone.errors import ConfigError
from drone.serving.predictor import Predictor
from drone.workflows.serving import build_application
from tests.conftest import ROOT, job_environment
from tests.jobs.processes import free_port, wait_for
from tests.kuberay.manifests import manifest
from tests.serving import conftest as serving
from tests.serving import hostile
from tests.serving.server import Server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

linear = serving.linear
JPEG = hostile.cases()["JPEG"][0]


@pytest.fixture
def service(linear: Path, tmp_path: Path) -> Iterator[Server]:
    """`serve run` with the config of the manifest, but a model that is at hand."""
    config = yaml.safe_load(manifest("serve")["spec"]["serveConfigV2"])
    port = free_port()
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    args = config["applications"][0]["args"]
    args["onnx"] = str(linear)
    del args["model"]
    args["replicas"] |= {"min_replicas": 1, "replicas": 1, "replica_cpus": 0.5}
    args["http"] = {"max_concurrent": 2}
    args["api"] = {"max_bytes": 100_000}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**job_environment(), "PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            server = Server(process, port, log)
            wait_for(lambda: process.poll() is not None or _is_up(server))
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return server.request("GET", "/health")[0] == 200
    return False


@pytest.mark.timeout(600)
def test_the_service_answers_as_serve_py_does(service: Server, linear: Path) -> None:
    assert service.process.poll() is None, service.log.read_text()
    status, headers, body = service.request("POST", "/predict", JPEG)
    answer = json.loads(body)
    expected = Predictor(linear).predict(JPEG)
    assert status == 200 and answer["label"] == expected.label
    assert answer["probabilities"] == pytest.approx(expected.probabilities)
    assert answer["model"]["version"] == "7" and answer["request_id"] == headers["x-request-id"]
    status, headers, body = service.request("POST", "/predict", b"no image")
    assert status == 415 and json.loads(body)["error"]["problem"] == "non-media"
    assert headers["access-control-allow-origin"] == "*"
    status, _, body = service.request("POST", "/predict", bytes(100_001))
    assert status == 413 and json.loads(body)["error"]["problem"] == "too-large"
    status, _, body = service.request("GET", "/")
    assert status == 200 and body == (ROOT / "web" / "index.html").read_bytes()
    # KubeRay asks this of each pod.
    assert service.request("GET", "/-/healthz")[::2] == (200, b"success")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "Name what to serve in the args of the application: model, run or onnx."),
        ({"run": "x", "onnx": "y"}, "Name what to serve"),
        ({"modell": "x"}, "args of the application: there is no setting 'modell'. Did you mean"),
        ({"replicas": {"replicas": 0}}, "args of the application: replicas: --replicas is 0"),
        ({"onnx": "gone.onnx"}, "There is no file gone.onnx"),
    ],
)
def test_wrong_args_are_refused(args: dict, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_application(args)
    assert message in str(raised.value)
