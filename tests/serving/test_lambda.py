"""The Lambda function: events of all senders, the package, and a run as in the cloud."""

import base64
import importlib.util
import io
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from drone.errors import ConfigError, RunError
from drone.labels import CLASSES
from drone.serving.api import Api, ApiSettings, Response
from drone.serving.lambda_events import result_of
from drone.serving.predictor import Predictor
from drone.serving.preprocess import Preprocessing
from tests.conftest import ROOT
from tests.serving.lambda_host import LambdaHost

SIDE = 64
CONTEXT = SimpleNamespace(aws_request_id="11111111-2222-3333-4444-555555555555")
OFFLINE = re.compile(r"Temporary failure|NewConnectionError|Connection refused|timed out|resolve")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which each pixel counts, made in no time."""
    weights = np.random.default_rng(0).normal(0, 1e-4, (SIDE * SIDE * 3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4])
    constants = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "linear", [pixels], [out], constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    settings = Preprocessing(side_px=SIDE).to_json()
    facts = {"classes": json.dumps(CLASSES), "preprocessing": settings, "version": "7"}
    helper.set_model_props(model, facts)
    target = tmp_path_factory.mktemp("export") / "model.onnx"
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module")
def function(exported: Path) -> Iterator[ModuleType]:
    """The function's module, which starts when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRONE_MODEL", str(exported))
        from drone.serving import lambda_handler

        yield lambda_handler


def file_of(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def noise(width: int = 90, height: int = 80, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8))


PICTURE = file_of(noise(), "PNG")


# The senders, each as AWS documents its events. What is not text comes as base64.


def carried(body: bytes, kind: str, always: bool = False) -> dict:
    if not body:
        return {"body": None, "isBase64Encoded": False}
    if kind.startswith(("text/", "application/json")) and not always:
        return {"body": body.decode(), "isBase64Encoded": False}
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def rest(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """API Gateway, REST API, with */* as binary media types and a route of ANY /{proxy+}."""
    given = {"Host": "abc.execute-api.eu-west-1.amazonaws.com", **headers}
    if kind:
        given["Content-Type"] = kind
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": given,
        "multiValueHeaders": {name: [value] for name, value in given.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": {"proxy": path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "path": f"/prod{path}",
            "stage": "prod",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "identity": {"sourceIp": "192.0.2.1"},
        },
        **carried(body, kind, always=True),
    }


def rest_null(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """The same from the console's test button: null for headers where there are none."""
    event = rest(method, path, kind, body, **headers)
    if not kind and not headers:
        event.update(headers=None, multiValueHeaders=None)
    return event


def mapped(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """The same behind a domain of one's own with a base path, which stays in `path`."""
    event = rest(method, path, kind, body, **headers)
    event["path"] = event["requestContext"]["path"] = f"/drones{path}"
    return event


def http_api(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """API Gateway, HTTP API, with the stage in front of the path."""
    given = {name.lower(): value for name, value in headers.items()}
    if kind:
        given["content-type"] = kind
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": f"/prod{path}",
        "rawQueryString": "a=1&b=2",
        "headers": {"host": "abc.execute-api.eu-west-1.amazonaws.com", **given},
        "requestContext": {
            "apiId": "abc",
            "domainName": "abc.execute-api.eu-west-1.amazonaws.com",
            "http": {
                "method": method,
                "path": f"/prod{path}",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "curl",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "prod",
        },
        **carried(body, kind),
    }
    if not body:
        del event["body"]
    return event


def http_route(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """The same with a route for each path, behind a mapping."""
    event = http_api(method, path, kind, body, **headers)
    event["routeKey"] = event["requestContext"]["routeKey"] = f"{method} {path}"
    event["rawPath"] = event["requestContext"]["http"]["path"] = f"/drones{path}"
    return event


def function_url(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    event = http_api(method, path, kind, body, **headers)
    event["rawPath"] = event["requestContext"]["http"]["path"] = path
    event["requestContext"]["stage"] = "$default"
    return event


def balancer(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """An application load balancer."""
    given = {name.lower(): value for name, value in headers.items()}
    if kind:
        given["content-type"] = kind
    arn = "arn:aws:elasticloadbalancing:eu-west-1:0:targetgroup/drone/0"
    event = {
        "requestContext": {"elb": {"targetGroupArn": arn}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": {},
        "headers": {"host": "drone.example.org", **given},
        **carried(body, kind),
    }
    return {**event, "body": event["body"] or ""}


def balancer_lists(
    method: str, path: str, kind: str = "", body: bytes = b"", **headers: str
) -> dict:
    """The same with headers of many values, which then come in no other way."""
    event = balancer(method, path, kind, body, **headers)
    event["multiValueHeaders"] = {name: [v] for name, v in event.pop("headers").items()}
    return event


SENDERS = (
    rest,
    rest_null,
    mapped,
    http_api,
    http_route,
    function_url,
    balancer,
    balancer_lists,
)
Sender = Callable[..., dict]


def content(result: dict) -> Any:
    body = result["body"]
    raw = base64.b64decode(body) if result["isBase64Encoded"] else body.encode()
    return json.loads(raw) if raw else None


def headers_in(result: dict) -> dict[str, str]:
    lists = result.get("multiValueHeaders", {})
    return result.get("headers") or {name: values[-1] for name, values in lists.items()}


def form(picture: bytes) -> tuple[str, bytes]:
    head = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    return "multipart/form-data; boundary=XX", head + b"\r\n" + picture + b"\r\n--XX--\r\n"


def as_json(picture: bytes) -> tuple[str, bytes]:
    return "application/json", json.dumps({"image": base64.b64encode(picture).decode()}).encode()


WAYS = {
    "bytes": ("application/octet-stream", PICTURE),
    "png": ("image/png", PICTURE),
    "form": form(PICTURE),
    "json": as_json(PICTURE),
}


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_picture_gets_the_predictors_answer(
    function: ModuleType, exported: Path, sender: Sender, way: str
) -> None:
    result = function.handler(sender("POST", "/predict", *WAYS[way]), CONTEXT)
    assert result["statusCode"] == 200, result
    assert result["isBase64Encoded"] is False
    expected = Predictor(exported, threads=1).predict(PICTURE)
    said = content(result)
    assert said["label"] == expected.label
    assert said["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert said["request_id"] == headers_in(result)["X-Request-Id"] == CONTEXT.aws_request_id
    assert said["model"]["version"] == "7"


@pytest.mark.parametrize("sender", SENDERS)
def test_other_requests(function: ModuleType, sender: Sender) -> None:
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
        (("POST", "/predict", "image/png", b"no picture"), 415, "non-media"),
    ]
    for request, status, problem in cases:
        result = function.handler(sender(*request), CONTEXT)
        assert result["statusCode"] == status, (request, result)
        assert headers_in(result)["Access-Control-Allow-Origin"] == "*"
        assert json.dumps(result)  # Lambda's runtime writes it as JSON.
        if request[0] in ("HEAD", "OPTIONS"):
            assert result["body"] == ""
        if problem:
            assert content(result)["error"]["problem"] == problem
            assert content(result)["request_id"] == CONTEXT.aws_request_id


def test_a_load_balancer_that_sends_lists_gets_lists(function: ModuleType) -> None:
    result = function.handler(balancer_lists("GET", "/health"), CONTEXT)
    assert result["multiValueHeaders"]["Content-Type"] == ["application/json"]
    assert "headers" not in result
    assert "multiValueHeaders" not in function.handler(rest("GET", "/health"), CONTEXT)


@pytest.mark.parametrize("sender", SENDERS)
def test_the_senders_number_is_kept_whatever_the_case_of_its_header(
    function: ModuleType, sender: Sender
) -> None:
    for name in ("X-Request-Id", "x-request-id", "X-REQUEST-ID"):
        result = function.handler(sender("GET", "/health", **{name: "mine-1"}), CONTEXT)
        assert headers_in(result)["X-Request-Id"] == "mine-1"
    event = sender("GET", "/health", **{"X-Request-Id": "no\nplain one"})
    assert re.fullmatch(
        "[0-9a-f]{32}", headers_in(function.handler(event, CONTEXT))["X-Request-Id"]
    )


def test_without_a_number_of_lambdas_each_request_gets_a_new_one(function: ModuleType) -> None:
    numbers = [
        headers_in(function.handler(rest("GET", "/health"), None))["X-Request-Id"] for _ in range(3)
    ]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize("event", [{}, [], None, "text", {"source": "aws.events"}])
def test_events_that_are_no_request(function: ModuleType, event: Any) -> None:
    result = function.handler(event, CONTEXT)
    assert result["statusCode"] == 400
    assert content(result)["error"]["problem"] == "bad-event"


def test_bodies_that_are_not_what_they_are_said_to_be(function: ModuleType) -> None:
    event = rest("POST", "/predict", "image/png", PICTURE)
    for body, status, problem in (
        ("&&&", 400, "bad-body"),
        ("abc", 400, "bad-body"),
        ("\N{SNOWMAN}", 400, "bad-body"),
        ("", 400, "empty"),
        (None, 400, "empty"),
    ):
        result = function.handler({**event, "body": body}, CONTEXT)
        assert (result["statusCode"], content(result)["error"]["problem"]) == (status, problem)
    lossy = {**event, "body": PICTURE.decode("utf-8", "replace"), "isBase64Encoded": False}
    result = function.handler(lossy, CONTEXT)
    assert result["statusCode"] == 415
    assert "binary media types" in content(result)["error"]["message"]
    halved = {**event, "body": json.loads('"\\ud800"'), "isBase64Encoded": False}
    assert function.handler(halved, CONTEXT)["statusCode"] == 415


def test_what_is_not_text_goes_back_as_base64() -> None:
    response = Response(200, {"Content-Type": "image/png"}, PICTURE)
    result = result_of(response, rest("GET", "/"), head=False)
    assert result["isBase64Encoded"] is True
    assert base64.b64decode(result["body"]) == PICTURE
    assert result_of(response, rest("GET", "/"), head=True)["body"] == ""


def test_a_defect_is_a_500_that_tells_nothing_of_the_picture(
    function: ModuleType,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stumble(data: bytes, **_: object) -> None:
        raise ValueError(f"cannot read {data!r}")

    predictor = Predictor(exported)
    predictor.start()
    monkeypatch.setattr(predictor, "predict", stumble)
    caplog.set_level(logging.INFO)
    event = rest("POST", "/predict", "image/png", b"secret pixels")
    result = function.respond(Api(predictor, ApiSettings()), event, CONTEXT)
    assert result["statusCode"] == 500
    assert headers_in(result)["Access-Control-Allow-Origin"] == "*"
    assert content(result)["error"]["problem"] == "internal"
    assert content(result)["request_id"] == CONTEXT.aws_request_id
    assert "ValueError" in caplog.text and "in stumble" in caplog.text
    assert CONTEXT.aws_request_id in caplog.text
    assert "POST /predict 500" in caplog.text
    assert "secret" not in caplog.text and "secret" not in json.dumps(result)


def test_a_path_cannot_write_lines_of_its_own_into_the_log(
    function: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    function.handler(rest("GET", "/x\nPOST /predict 200"), CONTEXT)
    assert "GET /x\\nPOST /predict 200 404" in caplog.text


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 50,000 x 50,000 pixels."""
    small = file_of(noise(8, 8), "PNG")
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def upright() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(noise(), "JPEG", exif=exif)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    return file_of(frames[0], kind, save_all=True, append_images=frames[1:])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
HOSTILE: dict[str, tuple[bytes, int]] = {
    "jpeg cut short": (file_of(noise(), "JPEG")[:900], 422),
    "png cut short": (PICTURE[:900], 422),
    "header alone": (PICTURE[:20], 422),
    "png with damaged middle": (PICTURE[:500] + bytes(500) + PICTURE[1000:], 422),
    "nothing": (b"", 400),
    "one byte": (b"\0", 415),
    "zeros": (bytes(5000), 415),
    "bomb": (bomb(), 413),
    "20,000 px": (file_of(Image.new("L", (20_000, 20_000)), "PNG"), 413),
    "20,000 px by 20": (file_of(Image.new("L", (20_000, 20)), "PNG"), 200),
    "one pixel": (file_of(noise(1, 1), "PNG"), 422),
    "cmyk": (file_of(noise().convert("CMYK"), "JPEG"), 200),
    "16 bit": (
        file_of(Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10), "PNG"),
        200,
    ),
    "palette": (file_of(noise().quantize(16), "PNG"), 200),
    "palette with alpha": (file_of(noise().quantize(16), "PNG", transparency=0), 200),
    "alpha": (file_of(noise(channels=4), "PNG"), 200),
    "grey with alpha": (file_of(noise().convert("LA"), "PNG"), 200),
    "black and white": (file_of(noise().convert("1"), "PNG"), 200),
    "exif": (upright(), 200),
    "gif of three": (animated("GIF"), 200),
    "webp of three": (animated("WEBP"), 200),
    "tiff": (file_of(noise(), "TIFF"), 200),
    "floating tiff": (file_of(noise().convert("F"), "TIFF"), 415),
    "avif": (file_of(noise(), "AVIF"), 200),
    "svg": (SVG, 415),
    "html named .jpg": (b"<!DOCTYPE html><html><body>404</body></html>", 415),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
    "zip": (b"PK\x03\x04" + bytes(200), 415),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_get_an_answer_or_a_reason(function: ModuleType, name: str) -> None:
    picture, status = HOSTILE[name]
    for kind, body in (("image/jpeg", picture), form(picture), as_json(picture)):
        result = function.handler(http_api("POST", "/predict", kind, body), CONTEXT)
        assert result["statusCode"] == status, (kind, result)
        if status != 200:
            assert content(result)["error"]["message"]


@pytest.mark.filterwarnings("ignore")  # Pillow says what is damaged.
def test_damage_of_any_kind_is_never_a_500(function: ModuleType) -> None:
    chance = random.Random(1)
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")
    pictures = [("image/*", file_of(noise(40, 30), kind)) for kind in kinds]
    sound = [*pictures, form(pictures[0][1]), as_json(pictures[0][1])]
    seen = set()
    for _ in range(1500):
        kind, body = chance.choice(sound)
        damaged = bytearray(body)
        for _ in range(chance.choice((1, 3, 10, 40))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        result = function.handler(rest("POST", "/predict", kind, bytes(damaged)), CONTEXT)
        seen.add(result["statusCode"])
        assert result["statusCode"] in (200, 400, 413, 415, 422), bytes(damaged)
    assert {200, 400, 415, 422} <= seen


def test_settings_by_environment(function: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert function.settings().max_bytes * 4 / 3 == 6 * 2**20
    assert function.settings().max_pixels == ApiSettings.max_pixels
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
    assert function.settings().max_pixels < 12_000_000
    monkeypatch.setenv("DRONE_MAX_BYTES", "1000")
    monkeypatch.setenv("DRONE_MAX_PIXELS", "2000")
    monkeypatch.setenv("DRONE_ALLOW_ORIGIN", "https://drone.example.org")
    found = function.settings()
    assert (found.max_bytes, found.max_pixels) == (1000, 2000)
    result = function.respond(
        Api(function._API.predictor, found), rest("POST", "/predict", "image/png", PICTURE), CONTEXT
    )
    assert result["statusCode"] == 413
    assert headers_in(result)["Access-Control-Allow-Origin"] == "https://drone.example.org"
    for wrong in ("many", "-1", "0", "1e6"):
        monkeypatch.setenv("DRONE_MAX_BYTES", wrong)
        with pytest.raises(ConfigError, match="(?i)max_bytes"):
            function.settings()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, exported: Path) -> Iterator[str]:
    """A bucket on a make-believe S3 with the model in it; its URI."""
    pytest.importorskip("moto.server")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
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
    result = function.respond(
        function.start(), rest("POST", "/predict", "image/png", PICTURE), CONTEXT
    )
    assert result["statusCode"] == 200
    monkeypatch.setenv("DRONE_MODEL_SHA256", "0" * 64)
    with pytest.raises(RunError, match=r"has the SHA-256 .*; it was not loaded"):
        function.model_file()
    for wrong, error, message in (
        ("s3://models/none.onnx", RunError, "s3://models/none.onnx cannot be read: .*404"),
        ("s3://nowhere/model.onnx", RunError, "s3://nowhere/model.onnx cannot be read"),
        ("s3://models", ConfigError, "write s3://BUCKET/KEY"),
    ):
        monkeypatch.setenv("DRONE_MODEL", wrong)
        with pytest.raises(error, match=message):
            function.model_file()


# The package, built once and run as in the cloud.


@dataclass(frozen=True)
class Built:
    folder: Path
    archive: Path
    facts: dict
    said: str


def load_packager() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packager", ROOT / "deploy/lambda/package.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["packager"] = module
    spec.loader.exec_module(module)
    return module


packager = load_packager()


@pytest.fixture(scope="module")
def version() -> str:
    """Of Lambda's Python, or of this one where there is no other."""
    return "3.13" if packager.interpreter("3.13") else ".".join(map(str, sys.version_info[:2]))


@pytest.fixture(scope="module")
def built(exported: Path, version: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("lambda")
    words = ["--onnx", str(exported), "--out", str(out), "--python", version, "--json"]
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("no PyPI in reach to get the function's packages from")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    return Built(Path(facts["folder"]), Path(facts["zip"]), facts, done.stderr)


@pytest.fixture(scope="module")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip's content, as Lambda lays it out."""
    task = tmp_path_factory.mktemp("task")
    with zipfile.ZipFile(built.archive) as packed:
        packed.extractall(task)
    return task


def test_what_is_in_the_package(built: Built) -> None:
    with zipfile.ZipFile(built.archive) as packed:
        entries = packed.infolist()
    names = [entry.filename for entry in entries]
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert {"drone", "numpy", "PIL", "onnxruntime", "python_multipart", "model.onnx"} <= tops
    assert not tops & {"torch", "torchvision", "ray", "mlflow", "pandas", "sympy", "boto3", "bin"}
    assert {name for name in names if name.startswith("drone/") and name.endswith(".py")} == {
        "drone/__init__.py",
        "drone/errors.py",
        "drone/labels.py",
        *(f"drone/serving/{file.name}" for file in (ROOT / "drone/serving").glob("*.py")),
    }
    assert not [name for name in names if "/tests/" in name or name.endswith((".h", ".pyi"))]
    assert any(name.endswith("LICENSE") for name in names)  # What is handed on keeps its licence.
    assert built.facts["unzipped_mb"] < 130
    assert built.facts["zipped_mb"] < 50
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert re.search(r"onnxruntime +│ +\d", built.said) and re.search(r"all +│ +\d", built.said)


def test_versions_are_those_of_the_requirements(built: Built) -> None:
    required = (ROOT / "requirements.txt").read_text()
    for name in ("numpy", "pillow", "onnxruntime"):
        folder = next(built.folder.glob(f"{name}-*.dist-info"))
        assert f"{name}=={folder.name.removesuffix('.dist-info').split('-')[1]} " in required


def test_modules_are_compiled_for_a_folder_that_cannot_be_written_to(built: Built) -> None:
    if not built.facts["compiled"]:
        pytest.skip("no Python of Lambda's version to compile with")
    sources = {path.stem for path in (built.folder / "drone" / "serving").glob("*.py")}
    compiled = list((built.folder / "drone" / "serving" / "__pycache__").glob("*.pyc"))
    assert {path.name.split(".")[0] for path in compiled} == sources
    for path in compiled:
        code = path.read_bytes()
        assert int.from_bytes(code[4:8], "little") == 1  # By hash, and that unchecked.
        assert b"/var/task/drone/serving" in code and str(built.folder).encode() not in code


def test_the_same_content_is_the_same_zip(built: Built, tmp_path: Path) -> None:
    small = tmp_path / "package"
    for name in ("drone", "python_multipart"):
        shutil.copytree(built.folder / name, small / name)
    packager.write_zip(small, tmp_path / "one.zip")
    for file in small.rglob("*"):
        os.utime(file, (0, 0))
        file.chmod(0o700)
    packager.write_zip(small, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_the_packaged_model_is_the_model(built: Built, exported: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    packaged = Predictor(built.folder / "model.onnx")
    plain = Predictor(exported)
    assert packaged.metadata == plain.metadata
    found = packaged.predict_pixels(pixels)
    np.testing.assert_allclose(found, plain.predict_pixels(pixels), atol=1e-5)


def test_what_lambda_would_refuse_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "package" / "torch").mkdir(parents=True)
    (tmp_path / "package" / "torch" / "x").write_bytes(bytes(2_000_000))
    (tmp_path / "function.zip").write_bytes(bytes(2_000_000))
    places = (tmp_path / "package", tmp_path / "function.zip")
    with pytest.raises(packager.DroneError, match="holds torch"):
        packager.check(*places)
    (tmp_path / "package" / "torch").rename(tmp_path / "package" / "own")
    monkeypatch.setattr(packager, "MOST_ZIPPED_MB", 1)
    packager.check(*places)
    assert "must go through S3" in capsys.readouterr().out
    monkeypatch.setattr(packager, "MOST_UNZIPPED_MB", 1)
    with pytest.raises(packager.DroneError, match="Lambda takes 1 at most"):
        packager.check(*places)
    with pytest.raises(packager.DroneError, match="does not start"):
        packager.try_import(tmp_path, sys.executable)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --onnx FILE or --model URI"),
        (["--onnx", "none.onnx"], "There is no file none.onnx"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *words]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
    assert done.returncode == 2 and message in done.stderr


@pytest.fixture(scope="module")
def client(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with AWS's runtime client for that Python."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    wanted = next(line.split()[0] for line in lines if line.startswith("awslambdaric=="))
    target = tmp_path_factory.mktemp("client")
    command = [packager.interpreter(version), "-m", "pip", "install", "--quiet", wanted]
    command += ["--only-binary=:all:", "--target", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no {wanted} for Python {version}: {done.stderr.strip()[-200:]}")
    return target


@pytest.fixture
def host(unpacked: Path, client: Path, version: str) -> Iterator[Callable[..., LambdaHost]]:
    started: list[LambdaHost] = []

    def start(**environment: str) -> LambdaHost:
        python = packager.interpreter(version)
        started.append(LambdaHost(python, unpacked, client, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_it_runs_under_lambdas_own_runtime(
    host: Callable[..., LambdaHost], function: ModuleType, exported: Path
) -> None:
    running = host()
    expected = Predictor(exported, threads=1).predict(PICTURE)
    for sender in SENDERS:
        for way in WAYS.values():
            outcome = running.invoke(sender("POST", "/predict", *way))
            assert outcome.kind == "response", outcome
            said = content(outcome.content)
            assert said["label"] == expected.label
            assert said["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    for name, (picture, status) in HOSTILE.items():
        outcome = running.invoke(http_api("POST", "/predict", "image/jpeg", picture))
        assert outcome.content["statusCode"] == status, name
    logged = running.close()
    assert "POST /predict 200" in logged
    assert "Traceback" not in logged


def test_it_starts_under_snapstart(host: Callable[..., LambdaHost]) -> None:
    running = host(AWS_LAMBDA_INITIALIZATION_TYPE="snap-start")
    outcome = running.invoke(function_url("POST", "/predict", "image/png", PICTURE))
    assert outcome.content["statusCode"] == 200


def test_a_function_without_its_model_says_so(
    host: Callable[..., LambdaHost], tmp_path: Path
) -> None:
    running = host(DRONE_MODEL=str(tmp_path / "none.onnx"))
    outcome = running.invoke(rest("GET", "/health"))
    assert outcome.kind == "error"
    assert "none.onnx is not a model that can be loaded" in outcome.content["errorMessage"]


# What osls makes of serverless.yml. Node is needed for these alone.


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Packages the service with some params, in a folder like the project's; its template."""
    if shutil.which("npm") is None:
        pytest.skip("no npm to get osls with")
    root = tmp_path_factory.mktemp("service")
    folder = root / "deploy" / "lambda"
    shutil.copytree(
        ROOT / "deploy/lambda", folder, ignore=shutil.ignore_patterns("node_modules", ".serverless")
    )
    (root / "build" / "lambda").mkdir(parents=True)
    with zipfile.ZipFile(root / "build" / "lambda" / "function.zip", "w") as packed:
        packed.writestr("empty", "")
    install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"osls cannot be had: {done.stderr.strip()[-200:]}")

    def package(**params: object) -> dict:
        words = [f"--param={name}={value}" for name, value in params.items()]
        command = [str(folder / "node_modules" / ".bin" / "osls"), "package", *words]
        # Nobody's keys, and no way out: what it makes must need neither.
        alone = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        done = subprocess.run(
            command, cwd=folder, env=alone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        made = folder / ".serverless" / "cloudformation-template-update-stack.json"
        # W3005 is about an alias that osls itself makes.
        lint = [str(Path(sys.executable).with_name("cfn-lint")), str(made), "-i", "W3005"]
        done = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(made.read_text())["Resources"]

    return package


def of_type(resources: dict, kind: str) -> list[dict]:
    return [one["Properties"] for one in resources.values() if one["Type"] == f"AWS::{kind}"]


def actions(resources: dict) -> set[str]:
    policies = of_type(resources, "IAM::Role")[0]["Policies"]
    statements = [one for policy in policies for one in policy["PolicyDocument"]["Statement"]]
    assert all(isinstance(one["Action"], list) for one in statements)
    return {action for one in statements for action in one["Action"]}


def test_the_service_as_it_is(template: Callable[..., dict]) -> None:
    made = template()
    function = of_type(made, "Lambda::Function")[0]
    assert function["Runtime"] == "python3.13" and function["Architectures"] == ["x86_64"]
    assert function["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert (function["MemorySize"], function["Timeout"]) == (1769, 29)
    module, _, name = function["Handler"].rpartition(".")
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file() and name == "handler"
    assert function["Environment"]["Variables"] == {"DRONE_ALLOW_ORIGIN": "*"}
    assert of_type(made, "ApiGateway::RestApi")[0]["BinaryMediaTypes"] == ["*/*"]
    # SnapStart works on a version alone, so the gateway must call one.
    integration = of_type(made, "ApiGateway::Method")[0]["Integration"]
    assert "snapstart" in json.dumps(integration["Uri"])
    deployment = next(one for one in made.values() if one["Type"].endswith("Gateway::Deployment"))
    limits = deployment["Properties"]["StageDescription"]
    assert limits == {"ThrottlingRateLimit": 20, "ThrottlingBurstLimit": 40}
    responses = [n for n, one in made.items() if one["Type"].endswith("::GatewayResponse")]
    assert set(responses) <= set(deployment["DependsOn"])
    assert "ReservedConcurrentExecutions" not in function
    assert of_type(made, "Logs::LogGroup")[0]["RetentionInDays"] == 30
    assert not of_type(made, "Lambda::Url")
    assert {action.split(":")[0] for action in actions(made)} == {"logs"}


def test_the_gateways_own_errors_have_the_functions_form(
    template: Callable[..., dict], function: ModuleType
) -> None:
    made = of_type(template(origin="https://drone.example.org"), "ApiGateway::GatewayResponse")
    usual = {"REQUEST_TOO_LARGE": 413, "THROTTLED": 429}
    usual |= {"INTEGRATION_FAILURE": 504, "INTEGRATION_TIMEOUT": 504, "WAF_FILTERED": 403}
    seen = {one["ResponseType"]: one for one in made}
    assert {"DEFAULT_4XX", "DEFAULT_5XX", "REQUEST_TOO_LARGE", "THROTTLED"} <= set(seen)
    ours = function.handler(rest("GET", "/nowhere"), CONTEXT)
    for kind, one in seen.items():
        # As the gateway fills them in: its message comes with quotation marks.
        text = one["ResponseTemplates"]["application/json"]
        text = text.replace("$context.error.messageString", '"Forbidden"')
        said = json.loads(text.replace("$context.requestId", "r-9"))
        assert "$" not in json.dumps(said)
        assert said.keys() == content(ours).keys() and said["request_id"] == "r-9"
        assert said["error"].keys() == content(ours)["error"].keys() and said["error"]["message"]
        number = said["error"]["status"]
        if kind.startswith("DEFAULT"):
            assert number == int(f"{kind[8]}00") and "StatusCode" not in one
        else:
            assert one["StatusCode"] == str(number) and usual.get(kind, number) == number
        headers = {
            name.rpartition(".")[2]: value for name, value in one["ResponseParameters"].items()
        }
        assert headers.pop("Access-Control-Allow-Origin") == "'https://drone.example.org'"
        assert headers.pop("Retry-After", None) == ("'1'" if number == 429 else None)
        for name, value in headers.items():
            assert value == f"'{headers_in(ours)[name]}'"


def test_the_service_with_a_url_and_a_model_on_s3(template: Callable[..., dict]) -> None:
    made = template(
        url="true",
        snapStart="false",
        model="s3",
        bucket="models",
        key="drone/model.onnx",
        sha256="0" * 64,
        rate=5,
        concurrency=3,
    )
    # Nothing else bounds what a URL lets through.
    assert of_type(made, "Lambda::Function")[0]["ReservedConcurrentExecutions"] == 3
    assert of_type(made, "Lambda::Url")[0]["AuthType"] == "NONE"
    assert "SnapStart" not in of_type(made, "Lambda::Function")[0]
    assert "Cors" not in of_type(made, "Lambda::Url")[0]  # The function's own would come twice.
    allowed = {
        one["Action"]
        for one in of_type(made, "Lambda::Permission")
        if one.get("FunctionUrlAuthType") or one.get("InvokedViaFunctionUrl")
    }
    assert allowed == {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}
    variables = of_type(made, "Lambda::Function")[0]["Environment"]["Variables"]
    assert variables["DRONE_MODEL"] == "s3://models/drone/model.onnx"
    assert variables["DRONE_MODEL_SHA256"] == "0" * 64
    assert "s3:GetObject" in actions(made)
    assert {action for action in actions(made) if action.startswith("s3:")} == {"s3:GetObject"}
    assert "arn:${AWS::Partition}:s3:::models/drone/model.onnx" in json.dumps(made)
