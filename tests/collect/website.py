"""A website on loopback that misbehaves as a test wants, and helpers to collect from it."""

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

from drone.collect import provenance
from drone.collect.download import Outcome, download
from drone.collect.provenance import ImageUrl, Record
from drone.collect.rate_limiter import RateLimiter
from drone.collect.raw_folder import collect, download_sequentially, plan_collection
from drone.collect.settings import FetchSettings
from drone.labels import CLASSES

QUICK = FetchSettings(
    allow_private=True,
    requests_per_s=1000,
    backoff_s=0.01,
    timeout_s=30,
    max_bytes=200_000,
)


def image_bytes(seed: int = 0, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


class Exchange(BaseHTTPRequestHandler):
    """A request and its response."""

    site: "Website"

    def do_GET(self) -> None:
        self.site.times.append(time.monotonic())
        self.site.agents.append(self.headers.get("User-Agent", ""))
        self.site.hosts.append(self.headers.get("Host", ""))
        path = urlsplit(self.path).path
        self.site.paths.append(path)
        # Many tests are about a client that closes the connection early.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.site.routes.get(path, not_found)(self)

    def log_message(self, *_: object) -> None:
        pass

    def respond(self, body: bytes = b"", code: int = 200, **headers: str) -> None:
        """Sends a response; headers are keywords with an underscore for each hyphen."""
        headers = {"Content_Length": str(len(body)), "Content_Type": "image/jpeg"} | headers
        self.send_response(code)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


Route = Callable[[Exchange], None]


def not_found(exchange: Exchange) -> None:
    exchange.respond(b"gone", 404)


def responds(body: bytes, **headers: str) -> Route:
    return lambda exchange: exchange.respond(body, **headers)


def redirects(to: str) -> Route:
    return lambda exchange: exchange.respond(b"", 302, Location=to)


class Website:
    """An HTTP server, its routes and a log of its requests."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.times: list[float] = []
        self.paths: list[str] = []
        self.agents: list[str] = []
        self.hosts: list[str] = []
        handler = type("Handler", (Exchange,), {"site": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def first_fails(self, path: str, code: int, body: bytes, **headers: str) -> None:
        """The first request gets a status code, later ones the body."""

        def route(exchange: Exchange) -> None:
            if self.paths.count(path) == 1:
                exchange.respond(b"", code, **headers)
            else:
                exchange.respond(body)

        self.routes[path] = route


def settings_with(**settings: object) -> FetchSettings:
    return FetchSettings(**{**vars(QUICK), **settings})


def download_one(url: str, **settings: object) -> Outcome:
    fetch_settings = settings_with(**settings)
    return download(url, fetch_settings, RateLimiter(fetch_settings.requests_per_s))


def image_url(url: str, class_name: str = CLASSES[0]) -> ImageUrl:
    return ImageUrl(url=url, class_name=class_name, source="test", licence="CC0")


def collect_all(image_urls: list[ImageUrl], folder: Path) -> list[Record]:
    plan = plan_collection(image_urls, provenance.latest_records(folder))
    return list(collect(plan.pending, folder, QUICK, download_sequentially))


def write_table(file: Path, image_urls: list[ImageUrl]) -> Path:
    rows = [(row.url, row.class_name, row.source, row.licence) for row in image_urls]
    columns = ["url", "class", "source", "licence"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file
