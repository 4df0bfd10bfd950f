"""The HTTP interface without a server: a request in, a response out.

The HTTP app and the Lambda handler both call `Api.answer`, so that they say the same.
"""

import base64
import binascii
import json
import logging
import re
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from drone.errors import ConfigError, ImageError
from drone.serving.openapi import describe, page
from drone.serving.predictor import Prediction, Predictor

# It would log bytes of damaged forms; the refusal says enough.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """What the interface allows."""

    max_bytes: int = 10 * 2**20
    """A longer body is refused with 413."""

    max_pixels: int = 50_000_000
    """A picture with more is refused with 413, from its header."""

    allow_origin: str = "*"
    """Value of Access-Control-Allow-Origin; empty sends none."""

    name: str = ""
    """Of the registered model, for GET /model; empty takes what the model's file says."""

    version: str = ""
    """Of the registered model; empty takes what the model's file says."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class Request:
    """An HTTP request."""

    method: str
    path: str
    """Without the query."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """By name in lower case."""

    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """A request that gets no answer, with what to tell its sender."""

    def __init__(
        self, status: int, problem: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem
        self.headers = dict(headers or {})


class Api:
    """Answers requests about pictures; may be shared by threads."""

    def __init__(self, predictor: Predictor, settings: ApiSettings) -> None:
        """Answers with a model; it starts with the first question."""
        self.predictor = predictor
        self.settings = settings
        self._routes: dict[str, dict[str, Callable[[Request], dict[str, Any] | str]]] = {
            "/predict": {"POST": self._predict},
            "/model": {"GET": self._model},
            "/health": {"GET": lambda _: {"status": "ok"}},
            "/openapi.json": {"GET": lambda _: describe(self.settings.max_bytes)},
            "/docs": {"GET": lambda _: page(describe(self.settings.max_bytes))},
        }

    def answer(self, request: Request) -> Response:
        """The response to any request; never raises for what a sender did."""
        number = request_id(request.headers)
        try:
            content = self._content(request, number)
        except Refusal as refusal:
            return self.refuse(refusal, number)
        except ImageError as error:
            return self.refuse(Refusal(error.status, error.problem, str(error)), number)
        if isinstance(content, str):
            return self._response(200, "text/html; charset=utf-8", content.encode(), number)
        if content is None:
            return self._response(204, "", b"", number)
        return self._response(200, "application/json", _json(content), number)

    def knows(self, path: str) -> bool:
        """Whether the path is one of the interface's own."""
        return path in self._routes

    def refuse(self, refusal: Refusal, number: str) -> Response:
        """The response that says why there is no answer."""
        error = {
            "status": refusal.status,
            "problem": refusal.problem,
            "message": str(refusal),
        }
        body = _json({"error": error, "request_id": number})
        response = self._response(refusal.status, "application/json", body, number)
        response.headers.update(refusal.headers)
        return response

    def failed(self, error: Exception, number: str, log: logging.Logger) -> Response:
        """The response to what should not have happened; the log gets the place, not the data."""
        # An error's message may quote the picture that it stumbled over, so its kind must do.
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s in request %s\n%s", type(error).__name__, number, place)
        message = "Something went wrong here; the log has more under the request_id."
        return self.refuse(Refusal(500, "internal", message), number)

    def _content(self, request: Request, number: str) -> dict[str, Any] | str | None:
        methods = self._routes.get(request.path)
        if methods is None:
            known = ", ".join(self._routes)
            raise Refusal(404, "not-found", f"There is no {request.path}. There is: {known}.")
        allowed = ["OPTIONS", *methods, *(["HEAD"] if "GET" in methods else [])]
        if request.method == "OPTIONS":
            return None
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            raise Refusal(
                405,
                "method-not-allowed",
                f"{request.path} takes {', '.join(methods)}, not {request.method}.",
                {"Allow": ", ".join(allowed)},
            )
        content = methods[method](request)
        if isinstance(content, dict) and request.path == "/predict":
            content["request_id"] = number
        return content

    def _model(self, _: Request) -> dict[str, Any]:
        return {
            **self.predictor.facts,
            **self._named(),
            "limits": {
                "max_bytes": self.settings.max_bytes,
                "max_pixels": self.settings.max_pixels,
            },
        }

    def _named(self) -> dict[str, str]:
        facts = self.predictor.facts
        return {
            "name": self.settings.name or facts["name"],
            "version": self.settings.version or facts["version"],
            "fingerprint": facts["fingerprint"],
        }

    def _predict(self, request: Request) -> dict[str, Any]:
        if len(request.body) > self.settings.max_bytes:
            raise too_large(self.settings.max_bytes)
        picture = picture_of(request, self.settings.max_bytes)
        found = self.predictor.predict(picture, max_pixels=self.settings.max_pixels)
        return {**as_json(found), "model": self._named()}

    def _response(self, status: int, kind: str, body: bytes, number: str) -> Response:
        headers = {"X-Request-Id": number, "X-Content-Type-Options": "nosniff"}
        if kind:
            headers["Content-Type"] = kind
        if self.settings.allow_origin:
            headers["Access-Control-Allow-Origin"] = self.settings.allow_origin
            headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, OPTIONS"
            headers["Access-Control-Allow-Headers"] = "Content-Type, X-Request-Id"
            headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
            headers["Access-Control-Max-Age"] = "3600"
        return Response(status, headers, body)


def as_json(found: Prediction) -> dict[str, Any]:
    """An answer as plain values."""
    kind = None if found.drone is None else ("drone" if found.drone > 0.5 else "bird")
    return {
        "label": found.label,
        "index": found.index,
        "probabilities": found.probabilities,
        "confidence": found.probabilities[found.label],
        "drone": found.drone,
        "kind": kind,
        "unsure": found.unsure,
    }


def too_large(max_bytes: int) -> Refusal:
    """The refusal of a body that is too long."""
    return Refusal(413, "too-large", f"The request is longer than {max_bytes / 2**20:g} MiB.")


def request_id(headers: Mapping[str, str]) -> str:
    """The sender's own number of the request if it is a plain one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def picture_of(request: Request, max_bytes: int) -> bytes:
    """The bytes of the picture in a request: its body, a part of a form, or base64 in JSON.

    Raises:
        Refusal: there is none, or the form or JSON is damaged.
    """
    given = request.headers.get("content-type", "")
    kind = given.split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        picture = _from_form(given, request.body)
    elif kind == "application/json" or kind.endswith("+json"):
        picture = _from_json(request.body)
    else:
        picture = request.body
    if not picture:
        raise Refusal(400, "empty", "The request holds no picture.")
    if len(picture) > max_bytes:
        raise too_large(max_bytes)
    return picture


def _from_form(content_type: str, body: bytes) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Refusal(400, "bad-form", "The form's Content-Type names no boundary.")
    found: dict[str, bytes] = {}

    def keep(part: Any) -> None:
        name = (part.field_name or b"").decode("utf-8", "replace")
        if hasattr(part, "file_object"):
            part.file_object.seek(0)
            found.setdefault(name, part.file_object.read())
            part.close()

    # Never to disk: the body, whose length has been checked, is in memory already.
    config = {"MAX_MEMORY_FILE_SIZE": 2 * len(body) + 1}
    try:
        parser = FormParser(
            "multipart/form-data", lambda _: None, keep, boundary=boundary, config=config
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal(400, "bad-form", f"The form is damaged: {error}.") from error
    if not found:
        raise Refusal(400, "empty", 'The form holds no file; send the picture as "image".')
    return found.get("image", next(iter(found.values())))


def _from_json(body: bytes) -> bytes:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "bad-json", "The body is not valid JSON.") from error
    image = said.get("image") if isinstance(said, dict) else None
    if not isinstance(image, str):
        raise Refusal(400, "bad-json", 'Wanted is {"image": "..."} with the picture as base64.')
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "bad-json", '"image" is not valid base64.') from error


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
