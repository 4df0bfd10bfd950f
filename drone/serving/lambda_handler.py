"""The AWS Lambda function: `drone.serving.lambda_handler.handler`.

Everything slow happens at import, where Lambda gives a full core and where SnapStart takes its
snapshot: the model is loaded and has made one prediction. All copies of the function start from the
same snapshot, so it must hold nothing open or unique. Request ids are Lambda's own or uuid4, which
reads os.urandom during the request; Lambda documents that this source differs between copies.

Environment variables:
    DRONE_MODEL         ONNX file, or s3://BUCKET/KEY; by default the package's model.onnx
    DRONE_MODEL_SHA256  expected checksum of that file
    DRONE_MAX_BYTES     maximum length of a body; by default what fits Lambda's 6 MB as base64
    DRONE_MAX_PIXELS    maximum pixels of an image; by default what fits the function's memory
    DRONE_ALLOW_ORIGIN  value of Access-Control-Allow-Origin; by default all (*)
    DRONE_KEEP          s3://BUCKET/PREFIX for served images, see lambda_keeping; by default none
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
from drone.serving.api import Api, ApiError, ApiSettings, loggable, request_id_of
from drone.serving.environment import whole_number
from drone.serving.lambda_events import (
    format_response,
    is_http_event,
    parse_headers,
    parse_request,
)
from drone.serving.lambda_keeping import create_keeper
from drone.serving.predictor import Predictor
from drone.serving.text_body import HOW_TO

_PACKAGED_MODEL = Path(__file__).resolve().parents[2] / "model.onnx"

# A body of 4.5 MiB is 6 MiB as base64, Lambda's limit for an event.
_MAX_BYTES = 9 * 2**19

_MB_PER_CORE = 1769
"""Memory for which Lambda gives one full core; it gives cores in proportion to memory."""

# Measured over all formats: a rotated WebP with alpha takes the most, 21 bytes.
_BYTES_PER_PIXEL = 25
_BASE_MEMORY_MB = 300

_log = logging.getLogger("drone.lambda")
_log.setLevel(logging.INFO)


def load_settings() -> ApiSettings:
    """Returns the interface's settings, read from the environment.

    Raises:
        ConfigError: An environment variable is not a whole number.
    """
    memory_mb = whole_number("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", _MB_PER_CORE)
    fitting_pixels = max(memory_mb - _BASE_MEMORY_MB, 1) * 2**20 // _BYTES_PER_PIXEL
    return ApiSettings(
        max_bytes=whole_number("DRONE_MAX_BYTES", _MAX_BYTES),
        max_pixels=whole_number("DRONE_MAX_PIXELS", min(ApiSettings.max_pixels, fitting_pixels)),
        allow_origin=os.environ.get("DRONE_ALLOW_ORIGIN", "*"),
    )


def model_file() -> Path:
    """Returns the model's file, downloaded and checked as the environment demands.

    Raises:
        RunError: The file cannot be read, or its checksum differs.
    """
    location = os.environ.get("DRONE_MODEL") or str(_PACKAGED_MODEL)
    file = download(location) if location.startswith("s3://") else Path(location)
    expected = os.environ.get("DRONE_MODEL_SHA256", "").lower()
    if expected:
        try:
            checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise RunError(f"{location} cannot be read: {error.strerror}.") from error
        if checksum != expected:
            raise RunError(
                f"{location} has the SHA-256 {checksum}, not {expected} as DRONE_MODEL_SHA256 "
                f"demands; it was not loaded."
            )
    return file


def download(uri: str) -> Path:
    """Downloads s3://BUCKET/KEY to the temporary folder, the only writable one in Lambda.

    Raises:
        ConfigError: The URI has no bucket or key.
        RunError: The object does not exist or may not be read.
    """
    # Part of Lambda's runtime, not of the package, and slow to import: only for models on S3.
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ConfigError(f"DRONE_MODEL is {uri!r}; write s3://BUCKET/KEY.")
    file = Path(tempfile.mkdtemp()) / "model.onnx"
    # Lambda aborts an initialisation that takes longer than ten seconds.
    client = boto3.client("s3", config=Config(connect_timeout=2, read_timeout=5))
    try:
        client.download_file(bucket, key, str(file))
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise RunError(f"{uri} cannot be read: {error}") from error
    finally:
        client.close()  # An open connection would be dead in every copy of the snapshot.
    return file


def create_api() -> Api:
    """Returns the interface with its model loaded and warmed up by one prediction.

    Raises:
        DroneError: The model or a setting is wrong.
    """
    settings = load_settings()
    memory_mb = whole_number("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", _MB_PER_CORE)
    # With an explicit count, onnxruntime does not pin its threads to cores, which Lambda forbids.
    predictor = Predictor(model_file(), threads=max(1, memory_mb // _MB_PER_CORE))
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        Image.init()  # Imports the readers of all formats, at no cost to any request.
    predictor.predict(_warm_up_image())
    return Api(predictor, settings, keeper=create_keeper())


def handle_event(api: Api, event: Any, context: Any) -> dict[str, Any]:
    """Returns the response to one event; never raises.

    Args:
        api: Handles the request.
        event: HTTP event of API Gateway, a function URL or a load balancer.
        context: Lambda's context object, with the id of the invocation.
    """
    start = time.monotonic()
    headers = parse_headers(event) if is_http_event(event) else {}
    invocation_id = getattr(context, "aws_request_id", "")
    request_id = request_id_of({"x-request-id": headers.get("x-request-id") or invocation_id})
    headers["x-request-id"] = request_id
    target, method = "an event", ""
    try:
        if not is_http_event(event):
            message = f"The event is not an HTTP request to POST /predict. {HOW_TO}"
            raise ApiError(400, "bad-event", message)
        request = parse_request(event, headers, api.has_route)
        method, target = request.method, f"{request.method} {request.path}"
        response = api.handle(request)
    except ApiError as error:
        response = api.error_response(error, request_id)
    except Exception as error:
        response = api.defect_response(error, request_id, _log)
    took_ms = 1000 * (time.monotonic() - start)
    # Never log the content: an image may be private, and a log is not.
    _log.info("%s %d %.0f ms %s", loggable(target), response.status, took_ms, request_id)
    return format_response(response, event, head=method == "HEAD")


def _warm_up_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


_API = create_api()


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answers one event; Lambda calls this for each request."""
    return handle_event(_API, event, context)
