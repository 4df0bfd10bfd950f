"""The AWS Lambda function: `drone.serving.lambda_handler.handler`.

All that takes time happens at import, where Lambda gives a full core, and where SnapStart takes its
picture of the memory: the engine is started and has answered once. What the picture holds must
be true of each copy made of it, so nothing in it is open or unique. Numbers of requests are
Lambda's own, or else uuid4, which reads the kernel's random source at the time of the request
(os.urandom); Lambda documents that this source differs between copies.

Settings, by environment:
    DRONE_MODEL         an ONNX file, or s3://BUCKET/KEY; by default the package's model.onnx
    DRONE_MODEL_SHA256  what that file's checksum must be
    DRONE_MAX_BYTES     of a body, at most; by default what fits Lambda's 6 MB as base64
    DRONE_MAX_PIXELS    of a picture, at most; by default what fits the function's memory
    DRONE_ALLOW_ORIGIN  whose pages may ask; by default all (*)
"""

import hashlib
import io
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from drone.errors import ConfigError, RunError
from drone.serving.api import Api, ApiSettings, Refusal, request_id
from drone.serving.lambda_events import headers_of, is_http, request_of, result_of
from drone.serving.predictor import Predictor

PACKAGED = Path(__file__).resolve().parents[2] / "model.onnx"

# A body of 4.5 MiB is 6 MiB as base64, which is all that Lambda takes.
MAX_BYTES = 9 * 2**19

MB_PER_CORE = 1769
"""Of memory; Lambda gives cores in proportion."""

# Measured over all formats: the most is a turned WebP with alpha, at 24.
_BYTES_PER_PIXEL = 25
_MB_WITHOUT_PICTURE = 300

_log = logging.getLogger("drone.lambda")
_log.setLevel(logging.INFO)


def settings() -> ApiSettings:
    """What the interface allows here.

    Raises:
        ConfigError: a variable of the environment is wrong.
    """
    memory_mb = _whole("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", MB_PER_CORE)
    fitting = max(memory_mb - _MB_WITHOUT_PICTURE, 1) * 2**20 // _BYTES_PER_PIXEL
    return ApiSettings(
        max_bytes=_whole("DRONE_MAX_BYTES", MAX_BYTES),
        max_pixels=_whole("DRONE_MAX_PIXELS", min(ApiSettings.max_pixels, fitting)),
        allow_origin=os.environ.get("DRONE_ALLOW_ORIGIN", "*"),
    )


def model_file() -> Path:
    """The model that answers, fetched and checked.

    Raises:
        RunError: it cannot be had, or its checksum is another.
    """
    place = os.environ.get("DRONE_MODEL") or str(PACKAGED)
    file = fetch(place) if place.startswith("s3://") else Path(place)
    expected = os.environ.get("DRONE_MODEL_SHA256", "").lower()
    if expected:
        try:
            found = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise RunError(f"{place} cannot be read: {error.strerror}.") from error
        if found != expected:
            raise RunError(f"{place} has the SHA-256 {found}, not {expected}; it was not loaded.")
    return file


def fetch(uri: str) -> Path:
    """A copy of s3://BUCKET/KEY in the temporary folder, the one place a function may write to.

    Raises:
        RunError: there is none, or it may not be read.
    """
    # Part of Lambda's own runtime, and slow to import: only here.
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ConfigError(f"DRONE_MODEL is {uri!r}; write s3://BUCKET/KEY.")
    file = Path(tempfile.mkdtemp()) / "model.onnx"
    # A start may take ten seconds in all.
    client = boto3.client("s3", config=Config(connect_timeout=2, read_timeout=5))
    try:
        client.download_file(bucket, key, str(file))
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise RunError(f"{uri} cannot be read: {error}") from error
    finally:
        client.close()  # A connection would be dead in each copy that SnapStart makes.
    return file


def start() -> Api:
    """The interface with its engine running, after a first answer.

    Raises:
        DroneError: the model or a setting is wrong.
    """
    allowed = settings()
    memory_mb = _whole("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", MB_PER_CORE)
    # A number of threads also keeps the engine from binding them to cores, which Lambda forbids.
    predictor = Predictor(model_file(), threads=max(1, memory_mb // MB_PER_CORE))
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        Image.init()  # Readers of all formats: nobody waits for it, and each copy has them.
    predictor.predict(_some_picture())
    return Api(predictor, allowed)


def respond(api: Api, event: Any, context: Any) -> dict[str, Any]:
    """Answers one event; never raises.

    Args:
        api: the interface.
        event: as API Gateway, a function URL or a load balancer sends it.
        context: Lambda's, with the number of the request.
    """
    began = time.monotonic()
    headers = headers_of(event) if is_http(event) else {}
    own = getattr(context, "aws_request_id", "")
    number = request_id({"x-request-id": headers.get("x-request-id") or own})
    headers["x-request-id"] = number
    what, method = "an event", ""
    try:
        if not is_http(event):
            raise Refusal(400, "bad-event", "The event is no HTTP request.")
        request = request_of(event, headers, api.knows)
        method, what = request.method, f"{request.method} {request.path[:200]}"
        response = api.answer(request)
    except Refusal as refusal:
        response = api.refuse(refusal, number)
    except Exception as error:
        response = api.failed(error, number, _log)
    took_ms = 1000 * (time.monotonic() - began)
    # Never the content: a picture may be private, and a log is not.
    _log.info("%s %d %.0f ms %s", ascii(what)[1:-1], response.status, took_ms, number)
    return result_of(response, event, head=method == "HEAD")


def _whole(name: str, default: int) -> int:
    """A whole number from the environment."""
    given = os.environ.get(name) or str(default)
    if not given.isascii() or not given.isdigit():
        raise ConfigError(f"{name} is {given!r}; it must be a whole number.")
    return int(given)


def _some_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


_API = start()


def handler(event: Any, context: Any) -> dict[str, Any]:
    """What Lambda calls for each request."""
    return respond(_API, event, context)
