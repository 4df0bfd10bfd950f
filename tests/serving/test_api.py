"""The HTTP interface without a server. For the full matrix of images see test_preprocess."""

import base64
import json
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from drone.errors import ConfigError, ImageError
from drone.labels import CLASSES
from drone.model.export import add_metadata
from drone.serving.api import Api, ApiSettings, Request, Response
from drone.serving.predictor import Predictor, apply_temperature
from drone.serving.roles import decide
from tests.serving import hostile

IMAGES = hostile.representatives()
JPEG = IMAGES["JPEG"][0]


@pytest.fixture(scope="module")
def api(exported: Path) -> Api:
    return Api(Predictor(exported, threads=1), ApiSettings(max_bytes=2**20, name="known"))


def post(
    api: Api, body: bytes, content_type: str = "application/octet-stream", **headers: str
) -> Response:
    return api.handle(Request("POST", "/predict", {"content-type": content_type, **headers}, body))


def form(body: bytes, name: str = "image") -> tuple[bytes, str]:
    start = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n'
    start += "Content-Type: image/jpeg\r\n\r\n"
    return start.encode() + body + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def as_base64(body: bytes) -> tuple[bytes, str]:
    text = base64.b64encode(body).decode()
    return json.dumps({"image": text}).encode(), "application/json; charset=utf-8"


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("encoding", ["raw", "form", "base64"])
def test_every_image_gets_a_prediction_or_an_error(api: Api, name: str, encoding: str) -> None:
    data, status = IMAGES[name]
    body, content_type = {"raw": lambda: (data, "image/jpeg"), "form": lambda: form(data)}.get(
        encoding, lambda: as_base64(data)
    )()
    response = post(api, body, content_type)
    content = json.loads(response.body)
    assert response.status == status, content
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert content["request_id"] == response.headers["X-Request-Id"]
    if status == 200:
        assert sum(content["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert tuple(content["probabilities"]) == CLASSES.names
        probs_NK = np.array([list(content["probabilities"].values())])
        assert (
            content["label"] == CLASSES[content["index"]] == CLASSES[decide(probs_NK, CLASSES)[0]]
        )
        assert content["kind"] in ("bird", "drone") and isinstance(content["unsure"], bool)
        assert content["known"] == pytest.approx(1, abs=1e-3)
        assert content["model"] == {"name": "known", "version": "7", "fingerprint": ""}
    else:
        assert content["error"]["status"] == status
        assert content["error"]["message"].endswith(".") and content["error"]["problem"]


@pytest.mark.parametrize("reason", ImageError.REASONS)
def test_each_reason_has_its_status(api: Api, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def fail(data: bytes, **_: object) -> None:
        raise ImageError(reason, "This is why.")

    monkeypatch.setattr(api.predictor, "predict", fail)
    response = post(api, JPEG)
    expected = {
        "empty": 400,
        "too-large": 413,
        "non-media": 415,
        "unsupported": 415,
        "undecodable": 422,
        "too-small": 422,
    }
    assert response.status == expected[reason]
    error = json.loads(response.body)["error"]
    assert error == {"status": response.status, "problem": reason, "message": "This is why."}


def test_all_encodings_give_the_same_prediction(api: Api) -> None:
    uri = json.dumps({"image": f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"})
    bodies = [(JPEG, "image/jpeg"), form(JPEG), form(JPEG, "file"), as_base64(JPEG)]
    bodies.append((uri.encode(), "application/json"))
    expected = api.predictor.predict(JPEG).probabilities
    for body, content_type in bodies:
        response = post(api, body, content_type)
        assert json.loads(response.body)["probabilities"] == expected


@pytest.mark.parametrize(
    ("body", "content_type", "status", "problem"),
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
def test_bodies_without_an_image(
    api: Api, body: bytes, content_type: str, status: int, problem: str
) -> None:
    response = post(api, body, content_type)
    assert (response.status, json.loads(response.body)["error"]["problem"]) == (status, problem)


B64 = base64.b64encode(JPEG)
URL_SAFE = base64.urlsafe_b64encode(JPEG).rstrip(b"=")
DATA_URL = b"data:image/jpeg;base64," + B64
FIELD = b'--edge\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
URL_ENCODED = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (B64, "application/octet-stream"),
        (B64, "text/plain"),
        (b"\n".join(B64[at : at + 76] for at in range(0, len(B64), 76)) + b"\n", "image/jpeg"),
        (URL_SAFE, "text/plain"),
        (DATA_URL, "image/jpeg"),
        (b'"' + DATA_URL + b'"\n', "text/plain"),
        (b"DATA:;charset=utf-8;base64," + URL_SAFE, "text/plain"),
        (b"data:image/jpeg," + quote(JPEG).encode(), "text/plain"),
        (json.dumps({"image": DATA_URL.decode()}).encode(), "text/plain"),
        (json.dumps({"image": URL_SAFE.decode()}).encode(), "application/json"),
        (json.dumps(DATA_URL.decode()).encode(), "application/json"),
        (json.dumps({"image": B64.decode()}).encode(), URL_ENCODED),
        (b"name=x&image=" + quote(B64, safe="").encode(), URL_ENCODED),
        (b"image=" + B64, URL_ENCODED),
        form(DATA_URL),
        form(B64 + b"\n"),
        (FIELD + B64 + b"\r\n--edge--", "multipart/form-data; boundary=edge"),
    ],
)  # fmt: skip
def test_an_image_may_be_text(api: Api, body: bytes, content_type: str) -> None:
    response = post(api, body, content_type)
    assert response.status == 200, response.body
    expected = api.predictor.predict(JPEG).probabilities
    assert json.loads(response.body)["probabilities"] == expected


def test_plain_ppm_is_no_base64(api: Api) -> None:
    assert post(api, b"P3 9 9 255\n" + b"7 " * 243).status == 200


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"data:image/png;base64,%%%", "text/plain", 400),
        (b"not an image at all", "text/plain", 415),
        (B64[:-30] + b"!" + B64, "text/plain", 415),
        (b'{"images": ["a"]}', "application/json", 400),
        (b'{"image": ["a"]}', "application/json", 400),
        (b'{"image": "data:image/png;base64,%%%"}', "application/json", 400),
        (b"", "image/png", 400),
        (b"image=", URL_ENCODED, 400),
    ],
)
def test_text_that_is_no_image_is_told_how_to_send_one(
    api: Api, body: bytes, content_type: str, status: int
) -> None:
    response = post(api, body, content_type)
    message = json.loads(response.body)["error"]["message"]
    assert response.status == status and "base64" in message, message


def test_what_curl_has_damaged_is_told_the_other_flag(api: Api) -> None:
    png = hostile.cases()["PNG"][0].replace(b"\n", b"").replace(b"\r", b"")
    for data, problem in ((png, "non-media"), (JPEG[: len(JPEG) // 2], "undecodable")):
        error = json.loads(post(api, data, URL_ENCODED).body)["error"]
        assert error["problem"] == problem and "--data-binary" in error["message"]


def test_the_evidence_is_that_of_the_predictor(api: Api) -> None:
    response = api.handle(Request("POST", "/predict", body=JPEG, query="a=1&evidence=true"))
    evidence = json.loads(response.body)["evidence"]
    expected = api.predictor.predict(JPEG, evidence=True).evidence
    assert expected is not None and evidence["class"] == expected.class_name
    assert evidence["map"] == [pytest.approx(row, abs=6e-4) for row in expected.map]


@pytest.mark.parametrize("query", ["", "evidence=false", "other=1"])
def test_without_a_request_there_is_no_evidence(api: Api, query: str) -> None:
    response = api.handle(Request("POST", "/predict", body=JPEG, query=query))
    assert response.status == 200 and "evidence" not in json.loads(response.body)


@pytest.mark.parametrize("value", ["yes", "", "1", "%22"])
def test_evidence_is_true_or_false(api: Api, value: str) -> None:
    response = api.handle(Request("POST", "/predict", body=JPEG, query=f"evidence={value}"))
    error = json.loads(response.body)["error"]
    assert (response.status, error["problem"]) == (400, "bad-query")
    assert error["message"].endswith("in the query; it must be true or false.")


def test_other_paths_and_methods(api: Api) -> None:
    assert api.handle(Request("GET", "/health")).status == 200
    model = json.loads(api.handle(Request("GET", "/model")).body)
    assert model["classes"] == list(CLASSES) and model["limits"]["max_bytes"] == 2**20
    assert model["preprocessing"]["side_px"] == 64
    wrong = api.handle(Request("GET", "/predict"))
    assert wrong.status == 405 and wrong.headers["Allow"] == "OPTIONS, POST"
    missing = api.handle(Request("GET", "/etc/passwd"))
    assert missing.status == 404 and b"/predict" in missing.body
    preflight = api.handle(Request("OPTIONS", "/predict"))
    assert (preflight.status, preflight.body) == (204, b"")
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    page = api.handle(Request("GET", "/docs"))
    assert page.headers["Content-Type"].startswith("text/html") and b"POST /predict" in page.body
    assert b"http://" not in page.body.replace(b"http://HOST", b"")


def test_the_clients_request_id_is_used_if_it_is_safe(api: Api) -> None:
    response = post(api, JPEG, **{"x-request-id": "abc-1"})
    assert response.headers["X-Request-Id"] == "abc-1"
    for bad in ("a\r\nSet-Cookie: x=1", "x" * 65, ""):
        request_id = post(api, JPEG, **{"x-request-id": bad}).headers["X-Request-Id"]
        assert request_id != bad and len(request_id) == 32


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="max_bytes is 0"):
        ApiSettings(max_bytes=0)


def test_a_temperature_keeps_the_order_and_the_sum() -> None:
    probs_NK = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype(np.float32)
    for temperature in (0.5, 1.0, 2.0):
        scaled_NK = apply_temperature(probs_NK, temperature)
        np.testing.assert_allclose(scaled_NK.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(scaled_NK.argsort(axis=1), probs_NK.argsort(axis=1))
    assert (apply_temperature(probs_NK, 2.0).max(axis=1) <= probs_NK.max(axis=1) + 1e-6).all()


def test_alarms(api: Api, exported: Path, tmp_path: Path) -> None:
    assert "alarm" not in json.loads(post(api, JPEG).body)
    assert model_info(api)["alarm_above"] is None
    answers = []
    for threshold in (0.0, 1.0):
        shutil.copy(exported, tmp_path / f"{threshold}.onnx")
        add_metadata(tmp_path / f"{threshold}.onnx", {"alarm_above": repr(threshold)})
        alarming = Api(Predictor(tmp_path / f"{threshold}.onnx", threads=1), ApiSettings())
        assert model_info(alarming)["alarm_above"] == threshold
        answers.append(json.loads(post(alarming, JPEG).body)["alarm"])
    assert answers == [True, False]


def model_info(api: Api) -> dict:
    info = json.loads(api.handle(Request("GET", "/model")).body)
    assert isinstance(info, dict)
    return info
