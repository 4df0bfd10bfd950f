"""A web on loopback that misbehaves as it is told, and collecting from it."""

import contextlib
import io
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from PIL import Image

from drone.data.collect import provenance
from drone.data.collect.download import Outcome, RateLimiter, download
from drone.data.collect.provenance import Record, Wanted
from drone.data.collect.raw_set import collect, download_here, plan
from drone.data.collect.settings import FetchSettings
from drone.labels import CLASSES

QUICK = FetchSettings(
    allow_private=True,
    per_host_per_s=1000,
    backoff_s=0.01,
    timeout_s=30,
    max_bytes=200_000,
)


def picture(seed: int = 0, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


class Asked(BaseHTTPRequestHandler):
    """One request to the web, as its routes see it."""

    web: "Web"

    def do_GET(self) -> None:
        self.web.times.append(time.monotonic())
        self.web.agents.append(self.headers.get("User-Agent", ""))
        self.web.hosts.append(self.headers.get("Host", ""))
        path = urlsplit(self.path).path
        self.web.paths.append(path)
        # The client may have had enough, which is what many tests are about.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.web.routes.get(path, not_found)(self)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes = b"", code: int = 200, **headers: str) -> None:
        """Headers as keywords, with an underscore for each hyphen."""
        headers = {"Content_Length": str(len(body)), "Content_Type": "image/jpeg"} | headers
        self.send_response(code)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


Route = Callable[[Asked], None]


def not_found(asked: Asked) -> None:
    asked.answer(b"gone", 404)


def gives(body: bytes, **headers: str) -> Route:
    return lambda asked: asked.answer(body, **headers)


def redirects(to: str) -> Route:
    return lambda asked: asked.answer(b"", 302, Location=to)


class Web:
    """The server, its routes and what it was asked."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.times: list[float] = []
        self.paths: list[str] = []
        self.agents: list[str] = []
        self.hosts: list[str] = []
        handler = type("Handler", (Asked,), {"web": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def first_fails(self, path: str, code: int, body: bytes, **headers: str) -> None:
        """The first request fails with a code, the next ones get the body."""

        def route(asked: Asked) -> None:
            if self.paths.count(path) == 1:
                asked.answer(b"", code, **headers)
            else:
                asked.answer(body)

        self.routes[path] = route


def changed(**settings: object) -> FetchSettings:
    return FetchSettings(**{**vars(QUICK), **settings})


def got(url: str, **settings: object) -> Outcome:
    chosen = changed(**settings)
    return download(url, chosen, RateLimiter(chosen.per_host_per_s))


def wanted(url: str, class_name: str = CLASSES[0]) -> Wanted:
    return Wanted(url=url, class_name=class_name, source="test", licence="CC0")


def collected(urls: list[Wanted], out: Path) -> list[Record]:
    todo = plan(urls, provenance.standing(out)).todo
    return list(collect(todo, out, QUICK, download_here))


def write_table(file: Path, urls: list[Wanted]) -> Path:
    rows = [(one.url, one.class_name, one.source, one.licence) for one in urls]
    columns = ["url", "class", "source", "licence"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file
