"""The interface, request by request, without a server."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from drone.errors import ConfigError
from drone.labels import CLASSES
from drone.serving.api import Api, ApiSettings, Request, Response
from drone.serving.predictor import Predictor, calibrated
from tests.serving import hostile

CASES = hostile.cases()
JPEG = CASES["JPEG"][0]


@pytest.fixture(scope="module")
def api(exported: Path) -> Api:
    return Api(Predictor(exported, threads=1), ApiSettings(max_bytes=2**20, name="known"))


def post(api: Api, body: bytes, kind: str = "application/octet-stream", **more: str) -> Response:
    return api.answer(Request("POST", "/predict", {"content-type": kind, **more}, body))


def form(body: bytes, name: str = "image") -> tuple[bytes, str]:
    start = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n'
    start += "Content-Type: image/jpeg\r\n\r\n"
    return start.encode() + body + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def as_base64(body: bytes) -> tuple[bytes, str]:
    text = base64.b64encode(body).decode()
    return json.dumps({"image": text}).encode(), "application/json; charset=utf-8"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["raw", "form", "base64"])
def test_every_picture_gets_an_answer_or_a_reason(api: Api, name: str, way: str) -> None:
    data, status = CASES[name]
    body, kind = {"raw": lambda: (data, "image/jpeg"), "form": lambda: form(data)}.get(
        way, lambda: as_base64(data)
    )()
    response = post(api, body, kind)
    said = json.loads(response.body)
    assert response.status == status, said
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert said["request_id"] == response.headers["X-Request-Id"]
    if status == 200:
        assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert tuple(said["probabilities"]) == CLASSES
        assert said["label"] == max(said["probabilities"], key=said["probabilities"].get)
        assert said["kind"] in ("bird", "drone") and isinstance(said["unsure"], bool)
        assert said["model"] == {"name": "known", "version": "7", "fingerprint": ""}
    else:
        assert said["error"]["status"] == status
        assert said["error"]["message"].endswith(".") and said["error"]["problem"]


def test_all_ways_in_give_the_same_answer(api: Api) -> None:
    answers = []
    for body, kind in ((JPEG, "image/jpeg"), form(JPEG), form(JPEG, "file"), as_base64(JPEG)):
        answers.append(json.loads(post(api, body, kind).body)["probabilities"])
    uri = json.dumps({"image": f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"})
    answers.append(json.loads(post(api, uri.encode(), "application/json").body)["probabilities"])
    assert all(answer == answers[0] for answer in answers)
    direct = api.predictor.predict(JPEG)
    assert answers[0] == direct.probabilities


@pytest.mark.parametrize(
    ("body", "kind", "status", "problem"),
    [
        (b"{", "application/json", 400, "bad-json"),
        (b'{"image": 3}', "application/json", 400, "bad-json"),
        (b'{"image": "%%%"}', "application/json", 400, "bad-json"),
        (b"[" * 100_000, "application/json", 400, "bad-json"),
        (b"\xff\xfe", "application/json", 400, "bad-json"),
        (b'{"image": ""}', "application/json", 400, "empty"),
        (b"x", "multipart/form-data", 400, "bad-form"),
        (b"x", "multipart/form-data; boundary=edge", 400, "bad-form"),
        (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400, "empty"),
        (bytes(2**20 + 1), "image/jpeg", 413, "too-large"),
    ],
)
def test_bodies_that_hold_no_picture(
    api: Api, body: bytes, kind: str, status: int, problem: str
) -> None:
    response = post(api, body, kind)
    assert (response.status, json.loads(response.body)["error"]["problem"]) == (status, problem)


def test_other_paths_and_methods(api: Api) -> None:
    assert api.answer(Request("GET", "/health")).status == 200
    model = json.loads(api.answer(Request("GET", "/model")).body)
    assert model["classes"] == list(CLASSES) and model["limits"]["max_bytes"] == 2**20
    assert model["preprocessing"]["side_px"] == 64
    wrong = api.answer(Request("GET", "/predict"))
    assert wrong.status == 405 and wrong.headers["Allow"] == "OPTIONS, POST"
    nothing = api.answer(Request("GET", "/etc/passwd"))
    assert nothing.status == 404 and b"/predict" in nothing.body
    asked = api.answer(Request("OPTIONS", "/predict"))
    assert (asked.status, asked.body) == (204, b"")
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    page = api.answer(Request("GET", "/docs"))
    assert page.headers["Content-Type"].startswith("text/html") and b"POST /predict" in page.body
    assert b"http://" not in page.body.replace(b"http://HOST", b"")


def test_the_senders_number_is_kept_if_it_is_plain(api: Api) -> None:
    kept = post(api, JPEG, **{"x-request-id": "abc-1"})
    assert kept.headers["X-Request-Id"] == "abc-1"
    for bad in ("a\r\nSet-Cookie: x=1", "x" * 65, ""):
        other = post(api, JPEG, **{"x-request-id": bad})
        assert other.headers["X-Request-Id"] != bad and len(other.headers["X-Request-Id"]) == 32


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="max_bytes is 0"):
        ApiSettings(max_bytes=0)


def test_a_temperature_keeps_the_order_and_the_sum() -> None:
    probs_NK = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype(np.float32)
    for temperature in (0.5, 1.0, 2.0):
        calm_NK = calibrated(probs_NK, temperature)
        np.testing.assert_allclose(calm_NK.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(calm_NK.argsort(axis=1), probs_NK.argsort(axis=1))
    assert (calibrated(probs_NK, 2.0).max(axis=1) <= probs_NK.max(axis=1) + 1e-6).all()
