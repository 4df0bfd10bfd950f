"""The HTTP API without a server: `Api` turns a `Request` into a `Response`.

The HTTP app and the Lambda handler both call `Api.handle`, so they answer alike.

Each limit on bytes is checked in one place. `Api` checks the length of a request's body against
`ApiSettings.max_bytes`, whichever transport brought it. The HTTP app enforces the same limit while
it reads, to bound its memory. An image inside a form or JSON is never longer than the body.
"""

import json
import logging
import re
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from drone.errors import ConfigError, ImageError
from drone.serving.keeping import DO_NOT_KEEP, Keeper
from drone.serving.openapi import docs_page, openapi_schema
from drone.serving.predictor import ModelInfo, Prediction, Predictor
from drone.serving.text_body import HOW_TO, decode_if_text, decode_text

# Its debug messages quote bytes of damaged forms; images may be private, and a log is not.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

STATUS_BY_REASON = {
    "empty": 400,
    "non-media": 415,
    "undecodable": 422,
    "unsupported": 415,
    "too-small": 422,
    "too-large": 413,
}
"""HTTP status for each of `ImageError.REASONS`."""

# Request ids are logged: a line break in one could forge a log entry.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_MAX_FORM_PARTS = 100
"""Parts of a form; a body of tiny ones would take the parser, written in Python, many seconds."""

_URL_ENCODED_TYPE = "application/x-www-form-urlencoded"
_URL_ENCODED = re.compile(rb"(?:[^&]*&)*?image=([^&]*)")


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """Limits and headers of the HTTP API."""

    max_bytes: int = 10 * 2**20
    """Maximum length of a request body in bytes; a longer one is answered 413."""

    max_pixels: int = 50_000_000
    """Maximum width times height of an image; a larger one is answered 413, undecoded."""

    allow_origin: str = "*"
    """Value of the Access-Control-Allow-Origin header; empty sends no CORS headers."""

    name: str = ""
    """Model name in responses; empty takes the one in the model's file."""

    version: str = ""
    """Model version in responses; empty takes the one in the model's file."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class Request:
    """An HTTP request."""

    method: str
    path: str
    """Path without the query string."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Values by header name in lower case."""

    body: bytes = b""

    query: str = ""
    """Query string without the question mark."""


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class ApiError(Exception):
    """A request that fails, with the status, problem code and message to answer."""

    def __init__(
        self, status: int, problem: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem
        self.headers = dict(headers or {})


class Api:
    """Handles requests to classify images; threads may share it."""

    def __init__(
        self,
        predictor: Predictor,
        settings: ApiSettings,
        observe: Callable[[Prediction | ImageError], None] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        """Creates the interface.

        Args:
            predictor: Classifies the images.
            settings: Limits and headers.
            observe: Called with the answer to each image, or with why there is none.
            keeper: Keeps some of the images; None keeps none.
        """
        self.predictor = predictor
        self.settings = settings
        self.keeper = keeper
        self._observe = observe or (lambda _: None)
        self._routes: dict[str, dict[str, Callable[[Request], dict[str, Any] | str]]] = {
            "/predict": {"POST": self._predict},
            "/model": {"GET": self._model},
            "/health": {"GET": lambda _: {"status": "ok"}},
            "/openapi.json": {"GET": lambda _: self._schema()},
            "/docs": {"GET": lambda _: docs_page(self._schema())},
        }

    def handle(self, request: Request) -> Response:
        """Returns the response to a request; raises only for defects, never for bad input."""
        request_id = request_id_of(request.headers)
        try:
            content = self._content(request, request_id)
        except ApiError as error:
            return self.error_response(error, request_id)
        except ImageError as error:
            status = STATUS_BY_REASON[error.reason]
            explained = ApiError(status, error.reason, _explained(error, request))
            return self.error_response(explained, request_id)
        if isinstance(content, str):
            return self._response(200, "text/html; charset=utf-8", content.encode(), request_id)
        if content is None:
            return self._response(204, "", b"", request_id)
        return self._response(200, "application/json", _json(content), request_id)

    def has_route(self, path: str) -> bool:
        """Whether the interface itself answers at this path."""
        return path in self._routes

    def error_response(self, error: ApiError, request_id: str) -> Response:
        """Returns the response that reports an error as JSON."""
        content = {"status": error.status, "problem": error.problem, "message": str(error)}
        body = _json({"error": content, "request_id": request_id})
        response = self._response(error.status, "application/json", body, request_id)
        response.headers.update(error.headers)
        return response

    def defect_response(self, error: Exception, request_id: str, log: logging.Logger) -> Response:
        """Logs an unexpected exception and returns a response with status 500."""
        # The message of the exception may quote the image, so only its type and origin are logged.
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s in request %s\n%s", type(error).__name__, request_id, frames)
        message = "Internal error. The server's log has details under this request_id."
        return self.error_response(ApiError(500, "internal", message), request_id)

    def _content(self, request: Request, request_id: str) -> dict[str, Any] | str | None:
        methods = self._routes.get(request.path)
        if methods is None:
            paths = ", ".join(self._routes)
            message = f"There is no {request.path}. Available paths: {paths}."
            raise ApiError(404, "not-found", message)
        if request.method == "OPTIONS":
            return None  # A CORS preflight: the headers that it asks for are on every response.
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            allowed = ["OPTIONS", *methods, *(["HEAD"] if "GET" in methods else [])]
            message = f"{request.path} takes {', '.join(methods)}, not {request.method}."
            raise ApiError(405, "method-not-allowed", message, {"Allow": ", ".join(allowed)})
        content = methods[method](request)
        if isinstance(content, dict) and request.path == "/predict":
            content["request_id"] = request_id
        return content

    def _predict(self, request: Request) -> dict[str, Any]:
        if len(request.body) > self.settings.max_bytes:
            raise body_too_large(self.settings.max_bytes, len(request.body))
        evidence = _wants_evidence(request.query)
        image = extract_image(request)
        max_pixels = self.settings.max_pixels
        try:
            prediction = self.predictor.predict(image, max_pixels=max_pixels, evidence=evidence)
        except ImageError as error:
            self._observe(error)
            raise
        self._observe(prediction)
        model = identity(self.predictor.info, self.settings)
        if self.keeper and DO_NOT_KEEP.lower() not in request.headers:
            answer = _prediction_to_dict(replace(prediction, evidence=None))
            kept_model = {**model, "onnx_sha256": self.predictor.checksum}
            self.keeper.offer(image, answer, kept_model)
        return {**_prediction_to_dict(prediction), "model": model}

    def _model(self, _: Request) -> dict[str, Any]:
        info, settings = self.predictor.info, self.settings
        limits = {"max_bytes": settings.max_bytes, "max_pixels": settings.max_pixels}
        keeps = self.keeper.settings.to_dict() if self.keeper else None
        return {**info.to_dict(), **identity(info, settings), "limits": limits, "keeps": keeps}

    def _schema(self) -> dict[str, Any]:
        notice = self.keeper.settings.notice if self.keeper else ""
        return openapi_schema(self.settings.max_bytes, notice)

    def _response(self, status: int, media_type: str, body: bytes, request_id: str) -> Response:
        headers = {"X-Request-Id": request_id, "X-Content-Type-Options": "nosniff"}
        if media_type:
            headers["Content-Type"] = media_type
        # On errors too: without these headers a page sees only that the network failed.
        if self.settings.allow_origin:
            headers["Access-Control-Allow-Origin"] = self.settings.allow_origin
            headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, OPTIONS"
            headers["Access-Control-Allow-Headers"] = (
                f"Authorization, Content-Type, X-API-Key, X-Request-Id, {DO_NOT_KEEP}"
            )
            headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
            headers["Access-Control-Max-Age"] = "3600"
        return Response(status, headers, body)


def identity(info: ModelInfo, settings: ApiSettings) -> dict[str, str]:
    """Returns the model's name, version and fingerprint, as answers have them."""
    return {
        "name": settings.name or info.name,
        "version": settings.version or info.version,
        "fingerprint": info.fingerprint,
    }


def _wants_evidence(query: str) -> bool:
    values = parse_qs(query, keep_blank_values=True).get("evidence", ["false"])
    if values[-1] not in ("true", "false"):
        message = f"evidence is {values[-1]!r} in the query; it must be true or false."
        raise ApiError(400, "bad-query", message)
    return values[-1] == "true"


def _prediction_to_dict(prediction: Prediction) -> dict[str, Any]:
    content = {
        "label": prediction.label,
        "index": prediction.index,
        "probabilities": prediction.probabilities,
        "confidence": prediction.confidence,
        "drone": prediction.drone,
        "kind": prediction.kind,
        "kind_probability": prediction.kind_probability,
        "unsure": prediction.unsure,
        "known": prediction.known,
    }
    if prediction.evidence:
        rows = [[round(value, 3) for value in row] for row in prediction.evidence.map]
        content["evidence"] = {"class": prediction.evidence.class_name, "map": rows}
    if prediction.alarm is not None:
        content["alarm"] = prediction.alarm
    return content


def body_too_large(max_bytes: int, num_bytes: int | None) -> ApiError:
    """Returns the error for a body above the limit, whose length may be unknown."""
    limit = f"the limit is {max_bytes / 2**20:g} MiB"
    # With so many digits that it is never shown as the limit itself.
    size = "is too long" if num_bytes is None else f"has {num_bytes / 2**20:.7g} MiB"
    return ApiError(413, "too-large", f"The request body {size}; {limit}.")


def request_id_of(headers: Mapping[str, str]) -> str:
    """Returns the client's X-Request-Id if it is safe to log, otherwise a new UUID."""
    request_id = headers.get("x-request-id", "")
    return request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex


def loggable(target: str) -> str:
    """Returns a request's method and path for the log: printable ASCII, cut at 200 characters.

    A line break or an escape sequence in a path could forge a log entry.
    """
    return ascii(target[:200])[1:-1][:200]


def extract_image(request: Request) -> bytes:
    """Returns the image in a request.

    It is the body itself, a file or field of a form, or text in JSON; whatever it is, it may be
    base64 or a data URL.

    Raises:
        ApiError: There is no image, or the form, JSON or base64 is malformed.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.split(";")[0].strip().lower()
    field = _URL_ENCODED.match(request.body) if media_type == _URL_ENCODED_TYPE else None
    if media_type == "multipart/form-data":
        image = _from_form(content_type, request.body)
    elif field:
        image = unquote_to_bytes(field[1])
    # No image begins like this, and many clients send JSON under another type.
    elif _is_json(media_type) or request.body[:64].lstrip().startswith(b"{"):
        return _not_empty(_from_json(request.body))
    else:
        image = request.body
    try:
        return _not_empty(decode_if_text(image))
    except ValueError as error:
        raise ApiError(400, "bad-base64", f"The image is text, but {error}. {HOW_TO}") from error


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise ApiError(400, "empty", f"The request contains no image. {HOW_TO}")
    return image


def _explained(error: ImageError, request: Request) -> str:
    """Returns the message of an error, with how to send an image if it seems to be sent wrongly."""
    content_type = request.headers.get("content-type", "").lower()
    if content_type.startswith(_URL_ENCODED_TYPE) and error.reason in ("non-media", "undecodable"):
        return f"{error} curl -d removes line breaks from files: use --data-binary instead."
    start = request.body[:200]
    if error.reason == "non-media" and start.isascii() and b"\0" not in start:
        return f"{error} {HOW_TO}"
    return str(error)


def _from_form(content_type: str, body: bytes) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ApiError(400, "bad-form", "The form's Content-Type has no boundary.")
    if body.count(b"--" + boundary) > _MAX_FORM_PARTS:
        raise ApiError(400, "bad-form", f"The form has more than {_MAX_FORM_PARTS} parts.")
    files: dict[str, bytes] = {}
    fields: dict[bytes, bytes] = {}

    def add_field(field: Any) -> None:
        fields.setdefault(field.field_name or b"", field.value or b"")

    def add_file(part: Any) -> None:
        name = (part.field_name or b"").decode("utf-8", "replace")
        if hasattr(part, "file_object"):
            part.file_object.seek(0)
            # Of several files with one name the first counts.
            files.setdefault(name, part.file_object.read())
            part.close()

    # Keeps parts off the disk: the body is in memory already, so its parts fit as well.
    config = {"MAX_MEMORY_FILE_SIZE": 2 * len(body) + 1}
    try:
        parser = FormParser(
            "multipart/form-data",
            add_field,
            add_file,
            boundary=boundary,
            config=config,
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise ApiError(400, "bad-form", f"The form is malformed: {error}.") from error
    if files:
        return files.get("image", next(iter(files.values())))
    if fields.get(b"image"):
        return fields[b"image"]
    message = 'The form contains no file; send the image as the file "image".'
    raise ApiError(400, "empty", message)


def _from_json(body: bytes) -> bytes:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "bad-json", f"The body is not valid JSON. {HOW_TO}") from error
    image = content.get("image") if isinstance(content, dict) else content
    if not isinstance(image, str):
        message = (
            'The JSON must be {"image": "..."} with the image as base64 or a data URL, one image '
            "per request."
        )
        raise ApiError(400, "bad-json", message)
    try:
        return decode_text(image.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise ApiError(400, "bad-json", f'"image" is text, but {error}.') from error


def _json(content: object) -> bytes:
    # NaN is not JSON, and browsers reject it: better an internal error than half an answer.
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
