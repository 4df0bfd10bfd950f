"""The Lambda function: events of all sources, errors, its settings.

For the full matrix of images see test_preprocess.
"""

import base64
import json
import logging
import random
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drone.errors import ConfigError, RunError
from drone.serving.api import Api, ApiSettings, Response
from drone.serving.lambda_events import format_response
from drone.serving.predictor import Predictor
from tests.serving import hostile
from tests.serving.lambda_events import (
    CONTEXT,
    ENCODINGS,
    IMAGE,
    SOURCES,
    Source,
    as_json,
    balancer_lists,
    content,
    file_of,
    form,
    headers_in,
    http_api,
    noise,
    rest,
)

IMAGES = hostile.representatives()


@pytest.fixture(scope="module")
def exported(linear: Path) -> Path:
    return linear


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_image_gets_the_predictors_answer(
    function: ModuleType, exported: Path, source: Source, encoding: str
) -> None:
    result = function.handler(source("POST", "/predict", *ENCODINGS[encoding]), CONTEXT)
    assert result["statusCode"] == 200, result
    assert result["isBase64Encoded"] is False
    expected = Predictor(exported, threads=1).predict(IMAGE)
    body = content(result)
    assert body["label"] == expected.label
    assert body["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert body["request_id"] == headers_in(result)["X-Request-Id"] == CONTEXT.aws_request_id
    assert body["model"]["version"] == "7"


@pytest.mark.parametrize("source", SOURCES)
def test_the_evidence_is_there_if_requested(function: ModuleType, source: Source) -> None:
    event = source("POST", "/predict", "image/png", IMAGE)
    if "rawQueryString" in event:
        event["rawQueryString"] = "evidence=true"
    elif source is balancer_lists:
        event["multiValueQueryStringParameters"] = {"evidence": ["true"]}
    else:
        event["queryStringParameters"] = {"evidence": "true"}
    body = content(function.handler(event, CONTEXT))
    assert body["evidence"]["class"] == body["label"]
    plain = source("POST", "/predict", "image/png", IMAGE)
    assert "evidence" not in content(function.handler(plain, CONTEXT))


@pytest.mark.parametrize("source", SOURCES)
def test_other_requests(function: ModuleType, source: Source) -> None:
    cases = [
        (("GET", "/health"), 200, None),
        (("GET", "/model"), 200, None),
        (("GET", "/docs"), 200, None),
        (("OPTIONS", "/predict"), 204, None),
        (("HEAD", "/health"), 200, None),
        (("POST", "/predict"), 400, "empty"),
        (("GET", "/predict"), 405, "method-not-allowed"),
        (("GET", "/"), 404, "not-found"),
        (("GET", "/prod"), 404, "not-found"),
        (("GET", "/prod/health/more"), 404, "not-found"),
        (("POST", "/predict", "application/json", b"{"), 400, "bad-json"),
        (("POST", "/predict", "multipart/form-data", b"x"), 400, "bad-form"),
        (("POST", "/predict", "image/png", b"no image"), 415, "non-media"),
    ]
    for request, status, problem in cases:
        result = function.handler(source(*request), CONTEXT)
        assert result["statusCode"] == status, (request, result)
        assert headers_in(result)["Access-Control-Allow-Origin"] == "*"
        assert json.dumps(result)  # Lambda's runtime writes it as JSON.
        if request[0] in ("HEAD", "OPTIONS"):
            assert result["body"] == ""
        if problem:
            assert content(result)["error"]["problem"] == problem
            assert content(result)["request_id"] == CONTEXT.aws_request_id


def test_a_load_balancer_that_sends_multi_value_headers_gets_them(function: ModuleType) -> None:
    result = function.handler(balancer_lists("GET", "/health"), CONTEXT)
    assert result["multiValueHeaders"]["Content-Type"] == ["application/json"]
    assert "headers" not in result
    assert "multiValueHeaders" not in function.handler(rest("GET", "/health"), CONTEXT)


@pytest.mark.parametrize("source", SOURCES)
def test_the_clients_request_id_is_used_whatever_the_case_of_its_header(
    function: ModuleType, source: Source
) -> None:
    for name in ("X-Request-Id", "x-request-id", "X-REQUEST-ID"):
        result = function.handler(source("GET", "/health", **{name: "mine-1"}), CONTEXT)
        assert headers_in(result)["X-Request-Id"] == "mine-1"
    event = source("GET", "/health", **{"X-Request-Id": "not\nsafe"})
    assert re.fullmatch(
        "[0-9a-f]{32}", headers_in(function.handler(event, CONTEXT))["X-Request-Id"]
    )


def test_without_a_context_each_request_gets_a_new_id(function: ModuleType) -> None:
    request_ids = [
        headers_in(function.handler(rest("GET", "/health"), None))["X-Request-Id"] for _ in range(3)
    ]
    assert len(set(request_ids)) == 3


@pytest.mark.parametrize("event", [{}, [], None, "text", {"source": "aws.events"}])
def test_events_that_are_not_http(function: ModuleType, event: Any) -> None:
    result = function.handler(event, CONTEXT)
    assert result["statusCode"] == 400
    assert content(result)["error"]["problem"] == "bad-event"


def test_malformed_headers_are_ignored(function: ModuleType) -> None:
    event = {**rest("GET", "/health"), "headers": ["odd"], "multiValueHeaders": {"x": 1}}
    assert function.handler(event, CONTEXT)["statusCode"] == 200


def test_malformed_bodies(function: ModuleType) -> None:
    event = rest("POST", "/predict", "image/png", IMAGE)
    for body, status, problem in (
        ("&&&", 400, "bad-body"),
        ("abc", 400, "bad-body"),
        ("\N{SNOWMAN}", 400, "bad-body"),
        ("", 400, "empty"),
        (None, 400, "empty"),
    ):
        result = function.handler({**event, "body": body}, CONTEXT)
        assert (result["statusCode"], content(result)["error"]["problem"]) == (status, problem)
    lossy = {**event, "body": IMAGE.decode("utf-8", "replace"), "isBase64Encoded": False}
    result = function.handler(lossy, CONTEXT)
    assert result["statusCode"] == 415
    assert "binary media types" in content(result)["error"]["message"]
    halved = {**event, "body": json.loads('"\\ud800"'), "isBase64Encoded": False}
    assert function.handler(halved, CONTEXT)["statusCode"] == 415


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_an_image_may_be_text(
    function: ModuleType, exported: Path, source: Source, start: str
) -> None:
    expected = Predictor(exported, threads=1).predict(IMAGE).probabilities
    wrapped = start.encode() + base64.encodebytes(IMAGE)
    safe = json.dumps({"image": start + base64.urlsafe_b64encode(IMAGE).decode()}).encode()
    for kind, body in (("text/plain", wrapped), ("image/png", wrapped), ("text/plain", safe)):
        result = function.handler(source("POST", "/predict", kind, body), CONTEXT)
        assert content(result)["probabilities"] == pytest.approx(expected, abs=1e-6)
    lines = {"body": base64.encodebytes(IMAGE).decode(), "isBase64Encoded": True}
    event = {**source("POST", "/predict", "image/png", IMAGE), **lines}
    assert function.handler(event, CONTEXT)["statusCode"] == 200
    refused = function.handler({"image": "..."}, CONTEXT)
    assert "base64" in content(refused)["error"]["message"]


def test_images_are_kept_in_a_bucket_and_a_broken_one_costs_no_answer(
    function: ModuleType,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import boto3

    monkeypatch.setenv("DRONE_KEEP", f"{bucket}/served/")
    monkeypatch.setenv("DRONE_KEEP_SHARE", "1")
    api = function.create_api()
    event = rest("POST", "/predict", "image/png", IMAGE)
    answer = content(function.handle_event(api, event, CONTEXT))
    private = rest("POST", "/predict", "image/png", file_of(noise(50), "PNG"))
    private["headers"] = {**private["headers"], "X-Do-Not-Keep": "1"}
    assert function.handle_event(api, private, CONTEXT)["statusCode"] == 200
    s3 = boto3.client("s3")
    listed = s3.list_objects_v2(Bucket="models", Prefix="served/")["Contents"]
    record, image = sorted((item["Key"] for item in listed), key=lambda key: key.endswith(".png"))
    assert s3.get_object(Bucket="models", Key=image)["Body"].read() == IMAGE
    stored = json.loads(s3.get_object(Bucket="models", Key=record)["Body"].read())
    assert stored["answer"]["label"] == answer["label"] and stored["reasons"][-1] == "sampled"
    assert CONTEXT.aws_request_id not in json.dumps(stored)

    monkeypatch.setenv("DRONE_KEEP", "s3://gone/served")
    api = function.create_api()
    for _ in range(2):
        assert function.handle_event(api, event, CONTEXT)["statusCode"] == 200
    assert caplog.text.count("Served images cannot be kept") == 1
    wrong = [("", "/tmp/x"), ("_SHARE", "2"), ("_SHARE", "many"), ("_SHARE", "nan")]
    wrong += [("_NONE", "no"), ("_DAYS", "nan"), ("_DAYS", "1.5"), ("_DAYS", "0")]
    for name, value in wrong:
        with monkeypatch.context() as patch:
            patch.setenv(f"DRONE_KEEP{name}", value)
            with pytest.raises(ConfigError, match="(?i)keep.share|keep.days|DRONE_KEEP"):
                function.create_api()


def test_binary_responses_are_base64() -> None:
    response = Response(200, {"Content-Type": "image/png"}, IMAGE)
    result = format_response(response, rest("GET", "/"), head=False)
    assert result["isBase64Encoded"] is True
    assert base64.b64decode(result["body"]) == IMAGE
    assert format_response(response, rest("GET", "/"), head=True)["body"] == ""


def test_a_defect_is_a_500_that_quotes_nothing(
    function: ModuleType,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(data: bytes, **_: object) -> None:
        raise ValueError(f"cannot read {data!r}")

    predictor = Predictor(exported)
    predictor.start()
    monkeypatch.setattr(predictor, "predict", fail)
    caplog.set_level(logging.INFO)
    event = rest("POST", "/predict", "image/png", b"secret pixels")
    result = function.handle_event(Api(predictor, ApiSettings()), event, CONTEXT)
    assert result["statusCode"] == 500
    assert headers_in(result)["Access-Control-Allow-Origin"] == "*"
    assert content(result)["error"]["problem"] == "internal"
    assert content(result)["request_id"] == CONTEXT.aws_request_id
    assert "ValueError" in caplog.text and "in fail" in caplog.text
    assert CONTEXT.aws_request_id in caplog.text
    assert "POST /predict 500" in caplog.text
    assert "secret" not in caplog.text and "secret" not in json.dumps(result)


def test_a_path_cannot_forge_lines_of_the_log(
    function: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    function.handler(rest("GET", "/x\nPOST /predict 200"), CONTEXT)
    assert "GET /x\\nPOST /predict 200 404" in caplog.text


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_gets_a_prediction_or_an_error(function: ModuleType, name: str) -> None:
    image, status = IMAGES[name]
    for content_type, body in (("image/jpeg", image), form(image), as_json(image)):
        event = http_api("POST", "/predict", content_type, body)
        result = function.handler(event, CONTEXT)
        assert result["statusCode"] == status, (content_type, result)
        if status != 200:
            assert content(result)["error"]["message"]


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damage.
def test_damage_of_any_kind_is_never_a_500(function: ModuleType) -> None:
    rng = random.Random(1)
    formats = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")
    images = [("image/*", file_of(noise(40, 30), format)) for format in formats]
    intact = [*images, form(images[0][1]), as_json(images[0][1])]
    statuses = set()
    for _ in range(1500):
        content_type, body = rng.choice(intact)
        damaged = bytearray(body)
        for _ in range(rng.choice((1, 3, 10, 40))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        result = function.handler(rest("POST", "/predict", content_type, bytes(damaged)), CONTEXT)
        statuses.add(result["statusCode"])
        assert result["statusCode"] in (200, 400, 413, 415, 422), bytes(damaged)
    assert {200, 400, 415, 422} <= statuses


def test_settings_from_the_environment(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert function.load_settings().max_bytes * 4 / 3 == 6 * 2**20
    assert function.load_settings().max_pixels == ApiSettings.max_pixels
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
    assert function.load_settings().max_pixels < 12_000_000
    monkeypatch.setenv("DRONE_MAX_BYTES", "1000")
    monkeypatch.setenv("DRONE_MAX_PIXELS", "2000")
    monkeypatch.setenv("DRONE_ALLOW_ORIGIN", "https://drone.example.org")
    settings = function.load_settings()
    assert (settings.max_bytes, settings.max_pixels) == (1000, 2000)
    result = function.handle_event(
        Api(function._API.predictor, settings),
        rest("POST", "/predict", "image/png", IMAGE),
        CONTEXT,
    )
    assert result["statusCode"] == 413
    assert headers_in(result)["Access-Control-Allow-Origin"] == "https://drone.example.org"
    for wrong in ("many", "-1", "0", "1e6"):
        monkeypatch.setenv("DRONE_MAX_BYTES", wrong)
        with pytest.raises(ConfigError, match="(?i)max_bytes"):
            function.load_settings()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, exported: Path) -> Iterator[str]:
    """The URI of a bucket on a simulated S3 with the model in it."""
    pytest.importorskip("moto.server")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    # What another test has put there is still in the memory of this process.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.upload_file(str(exported), "models", "drone/model.onnx")
    yield "s3://models"
    server.stop()


def test_a_model_on_s3(
    function: ModuleType,
    exported: Path,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hashlib
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("DRONE_MODEL", f"{bucket}/drone/model.onnx")
    right = hashlib.sha256(exported.read_bytes()).hexdigest()
    for checksum in ("", right, right.upper()):
        monkeypatch.setenv("DRONE_MODEL_SHA256", checksum)
        file = function.model_file()
        assert file.read_bytes() == exported.read_bytes()
        assert file.is_relative_to(tmp_path)
    result = function.handle_event(
        function.create_api(), rest("POST", "/predict", "image/png", IMAGE), CONTEXT
    )
    assert result["statusCode"] == 200
    monkeypatch.setenv("DRONE_MODEL_SHA256", "0" * 64)
    with pytest.raises(
        RunError, match=r"has the SHA-256 .* as DRONE_MODEL_SHA256 demands; it was not loaded"
    ):
        function.model_file()
    for wrong, error, message in (
        ("s3://models/none.onnx", RunError, "s3://models/none.onnx cannot be read: .*404"),
        ("s3://nowhere/model.onnx", RunError, "s3://nowhere/model.onnx cannot be read"),
        ("s3://models", ConfigError, "write s3://BUCKET/KEY"),
    ):
        monkeypatch.setenv("DRONE_MODEL", wrong)
        with pytest.raises(error, match=message):
            function.model_file()
