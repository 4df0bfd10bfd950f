"""The HTTP app: the interface of `api` as an ASGI application, and the page beside it.

Answers are computed by a few threads; when all are busy and as many requests wait as may, a further
one is refused at once with 503, so that none is lost in a queue that grows. A request counts there
only when it has come whole, so that slow senders keep nobody from an answer. What needs no picture,
such as GET /health, goes past that queue.
"""

import asyncio
import contextlib
import logging
import mimetypes
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from drone.errors import ConfigError
from drone.serving.api import Api, Refusal, Request, Response, request_id, too_large

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_COMING_PER_TAKEN = 4
"""Bodies that may be on their way, for each request that may be worked on or wait."""

_PIECE = 256 * 2**10
"""Bytes of a file that are in memory at a time."""

_log = logging.getLogger("drone.http")

for _suffix, _kind in (
    (".mjs", "text/javascript"),
    (".js", "text/javascript"),
    (".wasm", "application/wasm"),
):
    mimetypes.add_type(_kind, _suffix)


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """How many requests are taken at a time."""

    engines: int | None = None
    """Calls of the network at the same time, each on one core; by default one for each core of
    this machine, or one in each replica."""

    batch: int = 1
    """Pictures that one call takes at most, of those that have come meanwhile. More gained nothing
    on two processor cores."""

    threads: int = 16
    """Requests that are worked on at the same time."""

    waiting: int = 32
    """Requests that may wait for a thread; a further one gets 503."""

    body_timeout_s: float = 30.0
    """A body that has not come whole by then is refused with 408."""

    retry_after_s: int = 1
    """What a 503 tells the sender to wait."""

    def __post_init__(self) -> None:
        engines = 1 if self.engines is None else self.engines
        if min(self.threads, engines, self.batch) < 1 or self.waiting < 0:
            raise ConfigError(
                "threads, engines and batch must be at least 1, and waiting at least 0."
            )
        if self.body_timeout_s <= 0 or self.retry_after_s < 0:
            raise ConfigError("body_timeout_s must be above 0 and retry_after_s at least 0.")


def busy(retry_after_s: int) -> Refusal:
    """The refusal of a picture that finds too many before it."""
    message = "Too many pictures at once; try again in a moment."
    return Refusal(503, "busy", message, {"Retry-After": str(retry_after_s)})


@dataclass(frozen=True)
class _FileResponse(Response):
    """A response whose body is read while it is sent."""

    file: BinaryIO
    size: int


class HttpApp:
    """An ASGI 3 application."""

    def __init__(self, api: Api, settings: HttpSettings, web: Path | None = None) -> None:
        """Answers with an interface; `web` is a folder of files to serve beside it."""
        self.api = api
        self.settings = settings
        self._web = web.resolve() if web else None
        self._threads = ThreadPoolExecutor(settings.threads, "answer")
        self._most = settings.threads + settings.waiting
        self._taken = 0
        self._coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as the server hands it over."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                self._threads.shutdown()
                return

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.monotonic()
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        number = request_id(headers)
        headers["x-request-id"] = number
        try:
            response = await self._response(scope, headers, receive)
        except Refusal as refusal:
            response = self.api.refuse(refusal, number)
        except ConnectionError:
            return  # The sender has gone.
        except Exception as error:
            response = self.api.failed(error, number, _log)
        await _send(send, response, head=scope["method"] == "HEAD")
        # Never the content: a picture may be private, and a log is not.
        took_ms = 1000 * (time.monotonic() - start)
        _log.info(
            "%s %s %d %.0f ms %s", scope["method"], scope["path"], response.status, took_ms, number
        )

    async def _response(self, scope: Scope, headers: dict[str, str], receive: Receive) -> Response:
        path, method = scope["path"], scope["method"]
        if not self.api.knows(path) and self._web is not None and method in ("GET", "HEAD"):
            return await asyncio.to_thread(self._file, path, headers)
        if method != "POST" or path != "/predict":
            # Quick, but a model's facts may have to start its engine first.
            return await asyncio.to_thread(self.api.answer, Request(method, path, headers))
        if self._taken >= self._most or self._coming >= _COMING_PER_TAKEN * self._most:
            raise busy(self.settings.retry_after_s)
        self._coming += 1
        try:
            body = await self._body(headers, receive)
        finally:
            self._coming -= 1
        if self._taken >= self._most:
            raise busy(self.settings.retry_after_s)
        self._taken += 1
        try:
            loop = asyncio.get_running_loop()
            request = Request(method, path, headers, body)
            return await loop.run_in_executor(self._threads, self.api.answer, request)
        finally:
            self._taken -= 1

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        # A form or base64 is longer than its picture by up to a third and some headers.
        most = self.api.settings.max_bytes
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > most:
            raise too_large(most)
        try:
            return await asyncio.wait_for(_read(receive, most), self.settings.body_timeout_s)
        except TimeoutError as error:
            raise Refusal(408, "timeout", "The request did not come whole in time.") from error

    def _file(self, path: str, asked: dict[str, str]) -> Response:
        """A file of the page, or of the model that the page can use itself; nothing else."""
        assert self._web is not None
        if path == "/model/model.json":
            return self.api.answer(Request("GET", "/model"))
        is_model = path == "/model/model.onnx"
        wanted = self.api.predictor.model if is_model else self._page_file(path)
        file = wanted.open("rb")
        # Of the open file: what is put in its place meanwhile has a tag of its own.
        facts = os.fstat(file.fileno())
        tag = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
        headers = {
            "Content-Type": mimetypes.guess_type(wanted.name)[0] or "application/octet-stream",
            "Cache-Control": "no-cache",
            "ETag": tag,
            "X-Content-Type-Options": "nosniff",
        }
        known = {
            one.strip().removeprefix("W/") for one in asked.get("if-none-match", "").split(",")
        }
        if known & {tag, "*"}:
            file.close()
            return Response(304, headers, b"")
        return _FileResponse(200, headers, b"", file, facts.st_size)

    def _page_file(self, path: str) -> Path:
        assert self._web is not None
        with contextlib.suppress(OSError, ValueError):  # Too long a name; a zero byte in it.
            wanted = (self._web / path.lstrip("/")).resolve()
            if wanted.is_dir():
                wanted = wanted / "index.html"
            if wanted.is_relative_to(self._web) and wanted.is_file():
                return wanted
        raise Refusal(404, "not-found", f"There is no {path}.")


async def _read(receive: Receive, most: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise too_large(most)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _send(send: Send, response: Response, *, head: bool) -> None:
    with contextlib.ExitStack() as stack:
        file, size = None, len(response.body)
        if isinstance(response, _FileResponse):
            file, size = stack.enter_context(response.file), response.size
        headers = {**response.headers, "Content-Length": str(size)}
        if response.status in (204, 304):
            del headers["Content-Length"]
        encoded = [
            (name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": encoded})
        while file is not None and size > 0 and not head:
            part = await asyncio.to_thread(file.read, min(_PIECE, size))
            if not part:
                break  # It was cut meanwhile; the server ends the connection.
            size -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if head else response.body})
