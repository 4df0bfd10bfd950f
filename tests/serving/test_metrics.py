"""The metrics of a server, as Prometheus reads them, and whether it is ready."""

import asyncio
import json
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drone.labels import CLASSES, NONE
from drone.serving.api import Api, ApiSettings
from drone.serving.drift import Reference
from drone.serving.http import HttpApp, HttpSettings
from drone.serving.metrics import Metrics
from drone.serving.predictor import Prediction, Predictor, class_metadata
from drone.serving.preprocess import Preprocessing
from tests.linear_model import random_weights, write_linear
from tests.serving import hostile
from tests.serving.server import Server, served
from tests.serving.test_http import call_app

IMAGES = hostile.cases()
JPEG = IMAGES["JPEG"][0]
SIDE = 16


@pytest.fixture(scope="module")
def referenced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model with the reference of its answers to noise."""
    target = tmp_path_factory.mktemp("referenced") / "model.onnx"
    metadata = {
        **class_metadata(CLASSES),
        "preprocessing": Preprocessing(side_px=SIDE).to_json(),
        "unsure_below": "0.9",
        "alarm_above": "0.0",
        "version": "7",
    }
    weights = random_weights(SIDE, len(CLASSES))
    predictor = Predictor(write_linear(target, SIDE, weights, metadata))
    noise = np.random.default_rng(0).integers(0, 256, (100, SIDE, SIDE, 3), np.uint8)
    reference = Reference.of([predictor.predict_one(image) for image in noise], len(CLASSES))
    return write_linear(target, SIDE, weights, {**metadata, **reference.as_metadata()})


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """Values by the name of the series and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(server: Server) -> dict[tuple[str, ...], float]:
    status, headers, body = server.request("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    return parsed(body.decode())


def test_a_server_is_scraped(referenced: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("page")
    with served(tmp_path, "--onnx", referenced, "--page", page) as server:
        first = scrape(server)
        assert {first["drone_answers_total", label] for label in (*CLASSES, NONE)} == {0}
        assert first["drone_drift_answers",] == 0
        assert first["drone_drift_reference_images",] == 100
        for _ in range(3):
            label = json.loads(server.request("POST", "/predict", JPEG)[2])["label"]
        server.request("POST", "/predict", b"no image")
        server.request("POST", "/predict", IMAGES["JPEG"][0][:200])
        server.request("POST", "/predict", b'{"image": 3}')
        for path in ("/", "/nothing", "/nothing?x=1", "/" + "a" * 999, "/health", "/health/ready"):
            server.request("GET", path)
        server.request("BREW", "/health")
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"this is not HTTP\r\n\r\n")
            client.recv(1000)
        found = scrape(server)
        requests = {
            tuple(labels): value
            for (name, *labels), value in found.items()
            if name == "drone_requests_total"
        }
        assert requests == {
            ("/metrics", "200"): 1,
            ("/predict", "200"): 3,
            ("/predict", "400"): 1,
            ("/predict", "415"): 1,
            ("/predict", "422"): 1,
            ("page", "200"): 1,
            ("other", "404"): 3,
            ("/health", "200"): 1,
            ("/health/ready", "200"): 1,
            ("/health", "405"): 1,
            ("connection", "400"): 1,
        }
        assert found["drone_request_seconds_count", "/predict"] == 6
        assert found["drone_queue_wait_seconds_count",] == 6
        assert found["drone_images_total", "decoded"] == 3
        assert found["drone_images_total", "non-media"] == 1
        assert found["drone_images_total", "undecodable"] == 1
        assert found["drone_answers_total", label] == 3
        assert found["drone_confidence_count",] == found["drone_known_score_count",] == 3
        assert found["drone_unsure_answers_total",] == 3 and found["drone_alarms_total",] == 3
        assert found["drone_drift_answers",] == 3
        assert not [key for key in found if key[0] == "drone_drift_psi"]
        assert found["drone_connections",] >= 1 and found["drone_queue_limit",] == 32
        assert "7" in next(key for key in found if key[0] == "drone_model_info")
        # Once there are enough answers: all of one image are not what noise gets.
        for _ in range(200):
            server.request("POST", "/predict", JPEG)
        found = scrape(server)
        assert found["drone_drift_answers",] == 203
        assert found["drone_drift_psi", "classes"] > 0.25
        assert found["drone_drift_psi", "classes"] > found["drone_drift_psi_by_chance", "classes"]
        for aspect in ("confidence", "known"):
            assert found["drone_drift_psi", aspect] < found["drone_drift_psi_by_chance", aspect]
        names = {key[0] for key in found}
        assert "process_resident_memory_bytes" in names
        assert not [name for name in names if name.endswith("_created")]


def test_a_model_without_a_reference_has_no_drift(linear: Path) -> None:
    predictor = Predictor(linear, threads=1)
    metrics = Metrics(predictor.info)
    api = Api(predictor, ApiSettings(), metrics.observe_answer)
    app = HttpApp(api, HttpSettings(), metrics=metrics)
    sent = asyncio.run(call_app(app, "POST", "/predict", JPEG))
    assert sent[0]["status"] == 200
    found = parsed(metrics.text().decode())
    assert found["drone_images_total", "decoded"] == 1
    assert not [key for key in found if "drift" in key[0]]


def test_the_queue_is_shown_while_it_is_full(linear: Path) -> None:
    started, resume = threading.Event(), threading.Event()

    class Slow(Predictor):
        def predict(
            self, data: bytes, max_pixels: int | None = None, *, evidence: bool = False
        ) -> Prediction:
            started.set()
            resume.wait(60)
            return super().predict(data, max_pixels, evidence=evidence)

    app = HttpApp(Api(Slow(linear), ApiSettings()), HttpSettings(max_concurrent=1, max_queued=2))

    async def scenario() -> None:
        waiting = [asyncio.create_task(call_app(app, "POST", "/predict", JPEG)) for _ in range(3)]
        assert await asyncio.to_thread(started.wait, 60)
        assert (await call_app(app, "POST", "/predict", JPEG))[0]["status"] == 503
        sent = await call_app(app, "GET", "/metrics")
        found = parsed(sent[1]["body"].decode())
        assert (found["drone_running",], found["drone_queued",]) == (1, 2)
        assert found["drone_body_bytes",] == 3 * len(JPEG)
        resume.set()
        await asyncio.gather(*waiting)
        found = parsed(app.metrics.text().decode())
        assert (found["drone_running",], found["drone_queued",]) == (0, 0)
        assert found["drone_requests_total", "/predict", "503"] == 1

    asyncio.run(scenario())


def test_ready_is_more_than_alive(linear: Path) -> None:
    predictor = Predictor(linear, threads=1)
    app = HttpApp(Api(predictor, ApiSettings()), HttpSettings())

    def get(path: str, method: str = "GET") -> tuple[int, dict]:
        sent = asyncio.run(call_app(app, method, path))
        return sent[0]["status"], json.loads(sent[1]["body"] or b"{}")

    status, content = get("/health/ready")
    assert (status, content["error"]["problem"]) == (503, "loading")
    predictor.start()
    assert get("/health/ready") == (200, {"status": "ready"})
    assert get("/health/ready", "HEAD") == (200, {})
    assert get("/health/ready", "POST")[0] == get("/metrics", "POST")[0] == 405
    app.is_draining = True
    status, content = get("/health/ready")
    assert (status, content["error"]["problem"]) == (503, "draining")
    assert get("/health")[0] == 200


@pytest.mark.slow
def test_a_server_that_drains_is_alive_and_not_ready(linear: Path, tmp_path: Path) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode()
    with served(tmp_path, "--onnx", linear) as server:
        address = ("127.0.0.1", server.port)
        # The first keeps the server in its drain; the second asks once that has begun.
        with socket.create_connection(address) as busy, socket.create_connection(address) as probe:
            busy.sendall(head + JPEG[:-1])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            probe.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 503 " in probe.recv(4096)
            busy.sendall(JPEG[-1:])
            assert b" 200 " in busy.recv(65536)
        assert server.process.wait(timeout=30) == 130
