"""The HTTP app: the HTTP API of `api` as an ASGI application, with the web page beside it.

Requests for a prediction are computed by a pool of threads. When all threads are busy and the queue
is full, a further request is answered 503 at once. A request enters the queue only when its body
is complete, so slow clients do not block others. All other paths, such as GET /health, bypass the
queue. `connections` has the server and its limits on connections, `access` who is admitted.
"""

import asyncio
import logging
import mimetypes
import os
import posixpath
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response as AsgiResponse
from starlette.responses import StreamingResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Receive, Scope, Send

from drone.errors import ConfigError
from drone.serving.access import Access
from drone.serving.api import (
    Api,
    ApiError,
    Request,
    Response,
    body_too_large,
    loggable,
    request_id_of,
)
from drone.serving.metrics import CONTENT_TYPE, Metrics

_UPLOADS_PER_REQUEST = 4
"""Bodies that may be uploading, for each request that may be processed or queued."""

MAX_HEADER_BYTES = 2**15
"""Maximum length of a request's line and headers."""

_MAX_HEADERS = 100

_CHUNK_BYTES = 2**16
"""Bytes of the model that are sent at a time: what a slow client has not read stays in memory."""

_READY, _METRICS = "/health/ready", "/metrics"
"""Paths for those who run the server; the Lambda function has none of them."""

_log = logging.getLogger("drone.http")

# The tables of the operating system may lack these, and browsers refuse modules of another type.
for _suffix, _media_type in (
    (".mjs", "text/javascript"),
    (".js", "text/javascript"),
    (".wasm", "application/wasm"),
):
    mimetypes.add_type(_media_type, _suffix)


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Concurrency and timeouts of the HTTP server."""

    engines: int | None = None
    """Inference calls that run at the same time, each on one core (default: one for each core of
    this machine, or one in each replica)."""

    max_concurrent: int = 16
    """Requests processed at the same time."""

    max_queued: int = 32
    """Queue limit: requests that may wait; a further one is answered 503."""

    body_timeout_s: float = 30.0
    """Seconds within which a request body must arrive; a slower one is answered 408."""

    max_body_memory: int = 192 * 2**20
    """Bytes of all request bodies in memory, uploading or queued; a further one is answered 503."""

    retry_after_s: int = 1
    """Seconds in the Retry-After header of a 503."""

    def __post_init__(self) -> None:
        for name, minimum in (
            ("engines", 1),
            ("max_concurrent", 1),
            ("max_queued", 0),
            ("max_body_memory", 1),
            ("retry_after_s", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ConfigError(f"{name} is {value}; it must be at least {minimum}.")
        if self.body_timeout_s <= 0:
            raise ConfigError(f"body_timeout_s is {self.body_timeout_s}; it must be above 0.")


def overloaded(retry_after_s: int) -> ApiError:
    """Returns the error for a request that finds the queue full."""
    message = "The server is busy; try again in a moment."
    return ApiError(503, "busy", message, {"Retry-After": str(retry_after_s)})


class _PageFiles(StaticFiles):
    """The files of a folder, without those whose names begin with a dot: they are not for a page.

    A folder that is under version control, or holds secrets in `.env`, is safe to serve.
    """

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Returns the file at a path, with symbolic links resolved, and its stat result."""
        full_path, stat_result = super().lookup_path(path)
        if stat_result and self.directory is not None:
            inside = Path(full_path).relative_to(os.path.realpath(self.directory))
            if any(part.startswith(".") for part in inside.parts):
                return "", None
        return full_path, stat_result


class HttpApp:
    """An ASGI 3 application."""

    def __init__(
        self,
        api: Api,
        settings: HttpSettings,
        web: Path | None = None,
        access: Access | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Creates the app.

        Args:
            api: Handles the requests.
            settings: Concurrency and timeouts.
            web: Folder of static files to serve beside the interface; None serves none.
            access: Admits requests; None admits all of them.
            metrics: Counts requests; None counts them alone, and no answers.
        """
        self.api = api
        self.settings = settings
        self.is_draining = False
        self.metrics = metrics or Metrics()
        self._access = access or Access()
        self._files = _PageFiles(directory=web, html=True) if web else None
        self._pool = ThreadPoolExecutor(settings.max_concurrent, "predict")
        self._max_accepted = settings.max_concurrent + settings.max_queued
        # These need no lock: only the event loop's thread changes them.
        self._accepted = 0
        self._uploading = 0
        self._body_bytes = 0
        self._running: set[Future[Response]] = set()
        self._watch()

    def _watch(self) -> None:
        """Adds gauges of the queue to the metrics."""
        max_concurrent, watch = self.settings.max_concurrent, self.metrics.watch
        watch("running", "Requests being processed.", lambda: min(self._accepted, max_concurrent))
        watch(
            "queued",
            "Requests that wait for a thread.",
            lambda: max(0, self._accepted - max_concurrent),
        )
        watch("queue_limit", "Requests that may wait.", lambda: self.settings.max_queued)
        watch("uploading", "Requests whose bodies are being received.", lambda: self._uploading)
        watch("body_bytes", "Bytes of all request bodies in memory.", lambda: self._body_bytes)

    @property
    def is_busy(self) -> bool:
        """Whether a thread still processes a request."""
        return bool(self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                # Without waiting: the drain is over, and a decoder may go on for long.
                self._pool.shutdown(wait=False, cancel_futures=True)
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.monotonic()
        method, path, headers = scope["method"], scope["path"], dict(Headers(scope=scope))
        request_id = request_id_of(headers)
        headers["x-request-id"] = request_id
        key = None
        try:
            _check_headers(scope)
            key = self._admit(scope, headers)
            response = await self._response(scope, headers, receive)
        except ApiError as error:
            response = _to_asgi(self.api.error_response(error, request_id), method)
        except ConnectionError:
            return  # The client has disconnected.
        except Exception as error:
            response = _to_asgi(self.api.defect_response(error, request_id, _log), method)
        await response(scope, receive, send)
        # Never log the content: an image may be private, and a log is not.
        took_s, status = time.monotonic() - start, response.status_code
        sender = request_id if key is None else f"{request_id} {key}"
        _log.info("%s %d %.0f ms %s", loggable(f"{method} {path}"), status, 1000 * took_s, sender)
        self.metrics.observe_request(self._route(path, status), status, took_s)

    def _admit(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        """Returns the name of the API key of a request; None without one.

        The page, the description of the interface and the state of the server are for everyone,
        and so is the question of a browser which headers it may send.
        """
        path = _normalised(scope["path"])
        is_protected = path in ("/predict", "/model", _METRICS) or path.startswith("/model/")
        if not is_protected or scope["method"] == "OPTIONS":
            return None
        address, _ = scope.get("client") or ("", 0)
        key = self._access.check_key(headers, address)
        if path != _METRICS:
            self._access.limit(key, address)
        return key

    def _route(self, path: str, status: int) -> str:
        """Returns what the metrics call a path: one of few names, whatever clients send."""
        if path in (_READY, _METRICS) or self.api.has_route(path):
            return path
        return "page" if self._files and status < 400 else "other"

    async def _response(
        self, scope: Scope, headers: dict[str, str], receive: Receive
    ) -> AsgiResponse:
        method, path = scope["method"], scope["path"]
        if path in (_READY, _METRICS):
            return await self._state(method, path)
        if self._files and method in ("GET", "HEAD") and not self.api.has_route(path):
            if path != "/model/model.json":
                return await self._static(self._files, scope)
            path = "/model"
        query = (scope.get("query_string") or b"").decode("latin-1")
        request = Request(method, path, headers, query=query)
        if (method, path) == ("POST", "/predict"):
            response = await self._predict(request, receive)
        else:
            # In a thread although it is quick: the first GET /model may have to load the model.
            response = await asyncio.to_thread(self.api.handle, request)
        return _to_asgi(response, method)

    async def _predict(self, request: Request, receive: Receive) -> Response:
        body = await self._upload(request.headers, receive)
        try:
            self._check_accepted()  # Again: others may have been accepted during the upload.
            self._accepted += 1
            try:
                return await self._process(replace(request, body=body))
            finally:
                self._accepted -= 1
        finally:
            self._body_bytes -= len(body)

    async def _process(self, request: Request) -> Response:
        running = self._pool.submit(self._handle, request, time.monotonic())
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(running)

    def _handle(self, request: Request, accepted_at: float) -> Response:
        self.metrics.observe_wait(time.monotonic() - accepted_at)
        return self.api.handle(request)

    async def _state(self, method: str, path: str) -> AsgiResponse:
        """Returns the metrics, or whether the server takes requests."""
        if method not in ("GET", "HEAD"):
            message = f"{path} takes GET, not {method}."
            raise ApiError(405, "method-not-allowed", message, {"Allow": "GET, HEAD"})
        if path == _METRICS:
            text = await asyncio.to_thread(self.metrics.text)
            return _to_asgi(Response(200, {"Content-Type": CONTENT_TYPE}, text), method)
        if self.is_draining:
            raise ApiError(503, "draining", "The server ends once its requests are answered.")
        if not self.api.predictor.is_ready:
            raise ApiError(503, "loading", "The model has not given a prediction yet.")
        headers = {"Content-Type": "application/json"}
        return _to_asgi(Response(200, headers, b'{"status": "ready"}'), method)

    async def _upload(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        self._check_accepted()
        if self._uploading >= _UPLOADS_PER_REQUEST * self._max_accepted:
            raise overloaded(self.settings.retry_after_s)
        self._uploading += 1
        try:
            read = self._read_body(headers, receive)
            return await asyncio.wait_for(read, self.settings.body_timeout_s)
        except TimeoutError as error:
            timeout_s = self.settings.body_timeout_s
            message = f"The request body did not arrive within {timeout_s:g} seconds."
            raise ApiError(408, "timeout", message) from error
        finally:
            self._uploading -= 1

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """Reads a body of at most `max_bytes`, by its declared and by its actual length.

        It is counted in `_body_bytes` from its first byte on, and no longer if this fails.
        """
        max_bytes = self.api.settings.max_bytes
        declared = headers.get("content-length", "")
        expected = int(declared) if declared.isdecimal() else 0
        # One buffer that grows: many small parts would leave holes in the heap that stay.
        body = bytearray()
        try:
            while max(len(body), expected) <= max_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                if self._body_bytes + len(part) > self.settings.max_body_memory:
                    raise overloaded(self.settings.retry_after_s)
                body += part
                self._body_bytes += len(part)
                if len(body) <= max_bytes and not message.get("more_body"):
                    return bytes(body)
            raise body_too_large(max_bytes, expected if expected > max_bytes else None)
        except BaseException:
            self._body_bytes -= len(body)
            body.clear()  # The traceback would keep it until the next garbage collection.
            raise

    def _check_accepted(self) -> None:
        if self._accepted >= self._max_accepted:
            raise overloaded(self.settings.retry_after_s)

    async def _static(self, files: StaticFiles, scope: Scope) -> AsgiResponse:
        """Returns a file of the page, or the model for prediction in the browser."""
        path = scope["path"]
        # Starlette would answer a wrong range in plain text; errors here are JSON.
        scope["headers"] = [item for item in scope["headers"] if item[0] != b"range"]
        if path == "/model/model.onnx":
            response = await asyncio.to_thread(self._model_response, files, scope)
        else:
            try:
                response = await files.get_response(files.get_path(scope), scope)
            except HTTPException as error:
                raise ApiError(404, "not-found", f"There is no {path}.") from error
        response.headers["Accept-Ranges"] = "none"
        response.headers["Cache-Control"] = "no-cache"  # Browsers revalidate it by its ETag.
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _model_response(self, files: StaticFiles, scope: Scope) -> AsgiResponse:
        """Returns the bytes that were loaded, whatever has become of the file since."""
        predictor = self.api.predictor
        headers = {
            "Content-Length": str(len(predictor.content)),
            "ETag": f'"{predictor.checksum}"',
            "Last-Modified": formatdate(predictor.loaded_at, usegmt=True),
        }
        content = _chunks(predictor.content)
        response = StreamingResponse(content, 200, headers, "application/octet-stream")
        if files.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


def _normalised(path: str) -> str:
    """Returns a path as files are looked up by: without dots and repeated slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))


async def _chunks(content: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(content)
    for start in range(0, len(content), _CHUNK_BYTES):
        yield view[start : start + _CHUNK_BYTES]


def _to_asgi(response: Response, method: str) -> AsgiResponse:
    asgi = AsgiResponse(response.body, response.status, response.headers)
    if method == "HEAD":
        asgi.body = b""  # The headers keep the length that GET would have.
    return asgi


def _check_headers(scope: Scope) -> None:
    """Rejects headers that are too many or too long, and upgrades to another protocol."""
    headers = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    size += sum(len(name) + len(value) + 4 for name, value in headers)
    if size > MAX_HEADER_BYTES or len(headers) > _MAX_HEADERS:
        raise headers_too_large()
    if Headers(scope=scope).get("upgrade", "").lower() == "websocket":
        raise ApiError(400, "no-websocket", "This server has no WebSockets; send POST /predict.")


def headers_too_large() -> ApiError:
    """Returns the error for headers above the limits."""
    limits = f"{MAX_HEADER_BYTES // 1024} KiB or more than {_MAX_HEADERS}"
    return ApiError(431, "headers-too-large", f"The request's headers are longer than {limits}.")
