"""The page's files over HTTP, with a service beside them that answers as a test tells it to."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from drone.labels import CLASSES
from tests.conftest import ROOT

WEB = ROOT / "web"

FACTS: dict[str, Any] = {
    "name": "drone-classifier",
    "version": "7",
    "fingerprint": "f" * 64,
    "classes": list(CLASSES),
    "preprocessing": {"side_px": 224, "resampling": "bilinear", "min_side_px": 8},
    "temperature": 1.0,
    "unsure_below": 0.5,
    "limits": {"max_bytes": 3_000_000, "max_pixels": 4_000_000},
}


def answer(index: int = 1, confidence: float = 0.85, **more: Any) -> dict[str, Any]:
    """What POST /predict says."""
    rest = (1 - confidence) / (len(CLASSES) - 1)
    probs = {name: confidence if at == index else rest for at, name in enumerate(CLASSES)}
    drone = 1 - probs[CLASSES[0]]
    model = {name: FACTS[name] for name in ("name", "version", "fingerprint")}
    said = {
        "label": CLASSES[index],
        "index": index,
        "probabilities": probs,
        "confidence": confidence,
        "drone": drone,
        "kind": "drone" if drone > 0.5 else "bird",
        "unsure": confidence < 0.5,
        "model": model,
        "request_id": "r-1",
    }
    return {**said, **more}


def error(status: int, message: str) -> dict[str, Any]:
    return {
        "error": {"status": status, "problem": "some", "message": message},
        "request_id": "r-9",
    }


@dataclass(frozen=True)
class Reply:
    """One answer of the service."""

    status: int = 200
    body: dict[str, Any] | str = field(default_factory=answer)
    headers: dict[str, str] = field(default_factory=dict)
    after: threading.Event | None = None
    """It is held back until this is set."""

    cut: bool = False
    """The connection ends without an answer."""


BUSY = Reply(503, "<html>Service Unavailable</html>")
CUT = Reply(cut=True)


class Site:
    """What is served, and what was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.config: dict[str, Any] = {"api": ".", "first_wait_s": 0.02, "timeout_s": 10}
        self.files: dict[str, bytes] = {}
        """Served beside, and instead of, the page's own."""
        self.facts: list[Reply] = []
        """How GET /model answers, one after another; then with FACTS."""
        self.replies: list[Reply] = []
        """How POST /predict answers, one after another; then with 200."""
        self.service = True
        """Without it, this is a host of plain files."""
        self.asked: list[str] = []
        self.asked_anew: set[str] = set()
        """What the browser may not take from what it keeps without asking."""
        self.uploads: list[tuple[str, bytes]] = []
        """Content type and body of each POST."""
        self.failures = 0
        """Answers that a browser's console complains of."""
        self.forbidden = False
        """Whether the page is to ask what its policy forbids; the console complains of that too."""

    def with_model(self, model: bytes, facts: dict[str, Any]) -> None:
        """Puts a model beside the page."""
        self.files["model/model.onnx"] = model
        self.files["model/model.json"] = json.dumps(facts).encode()


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """The site on a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(site: Site) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(WEB))

        def log_message(self, *words: Any) -> None:
            """Says nothing."""

        def do_OPTIONS(self) -> None:
            headers = {"Access-Control-Allow-Headers": "*", "Access-Control-Allow-Methods": "*"}
            self._send(204, b"", "text/plain", headers)

        def do_GET(self) -> None:
            path = self.path.lstrip("/").split("?")[0]
            site.asked.append(path)
            if self.headers["Cache-Control"] in ("max-age=0", "no-cache"):
                site.asked_anew.add(path)
            if path == "config.json":
                self._send(200, json.dumps(site.config).encode(), "application/json")
            elif path == "model" and site.service:
                self._reply(site.facts.pop(0) if site.facts else Reply(200, FACTS))
            elif path in site.files:
                kind = "application/octet-stream" if path else "text/html"
                self._send(200, site.files[path], kind)
            else:
                if not (WEB / path).exists():
                    site.failures += 1
                super().do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not site.service or self.path != "/predict":
                site.failures += 1
                self.send_error(405)
                return
            site.uploads.append((self.headers["Content-Type"], body))
            self._reply(site.replies.pop(0) if site.replies else Reply())

        def _reply(self, reply: Reply) -> None:
            if reply.after:
                reply.after.wait(20)
            if reply.cut:
                site.failures += 1
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            site.failures += reply.status >= 400
            text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            self._send(reply.status, text.encode(), "application/json", reply.headers)

        def _send(
            self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
        ) -> None:
            try:
                self.send_response(status)
                given = headers or {}
                basic = {"Content-Type": kind, "Content-Length": str(len(body))}
                for name, value in {**basic, "Access-Control-Allow-Origin": "*", **given}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The page no longer wants it: that is what some tests are about.

    return Handler
