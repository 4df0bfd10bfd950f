"""Serves the page's files and a fake service that responds as a test tells it to."""

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

MODEL_INFO: dict[str, Any] = {
    "name": "drone-classifier",
    "version": "7",
    "fingerprint": "f" * 64,
    "classes": list(CLASSES),
    "roles": list(CLASSES.roles),
    "preprocessing": {"side_px": 224, "resampling": "bilinear", "min_side_px": 8},
    "temperature": 1.0,
    "unsure_below": 0.5,
    "known_above": 0.5,
    "limits": {"max_bytes": 3_000_000, "max_pixels": 4_000_000},
}


def prediction(index: int = 1, confidence: float = 0.85, **overrides: Any) -> dict[str, Any]:
    """The body of a response to POST /predict."""
    rest = (1 - confidence) / (len(CLASSES) - 1)
    probs = {name: confidence if at == index else rest for at, name in enumerate(CLASSES)}
    drone = 1 - probs[CLASSES[0]]
    body = {
        "label": CLASSES[index],
        "index": index,
        "probabilities": probs,
        "confidence": confidence,
        "drone": drone,
        "kind": "drone" if drone > 0.5 else "bird",
        "kind_probability": max(drone, 1 - drone),
        "unsure": confidence < 0.5,
        "known": 0.9,
        "model": {name: MODEL_INFO[name] for name in ("name", "version", "fingerprint")},
        "request_id": "r-1",
    }
    return {**body, **overrides}


def error(status: int, message: str) -> dict[str, Any]:
    """The body of an error response."""
    return {
        "error": {"status": status, "problem": "some", "message": message},
        "request_id": "r-9",
    }


@dataclass(frozen=True)
class Reply:
    """One response of the service."""

    status: int = 200
    body: dict[str, Any] | str = field(default_factory=prediction)
    headers: dict[str, str] = field(default_factory=dict)
    hold_until: threading.Event | None = None
    """The response is held back until this is set."""

    disconnect: bool = False
    """The connection closes without a response."""


BUSY = Reply(503, "<html>Service Unavailable</html>")
DISCONNECT = Reply(disconnect=True)


class Site:
    """What is served, and a record of the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.config: dict[str, Any] = {"api": ".", "first_wait_s": 0.02, "timeout_s": 10}
        self.files: dict[str, bytes] = {}
        """Files by path, served in addition to the page's own or in place of them."""

        self.model_replies: list[Reply] = []
        """Responses to GET /model, in order; afterwards MODEL_INFO."""

        self.predict_replies: list[Reply] = []
        """Responses to POST /predict, in order; afterwards 200."""

        self.has_service = True
        """False for a host of static files."""

        self.requests: list[str] = []
        """Paths of all GET requests."""

        self.revalidated: set[str] = set()
        """Paths that the browser may not take from its cache without asking."""

        self.uploads: list[tuple[str, bytes]] = []
        """Content type and body of each POST."""

        self.forbids_keeping: list[bool] = []
        """Whether each POST forbids to keep its image."""

        self.predict_responses = 0
        """Responses to POST /predict that were sent, including those that nobody read."""

        self.failures = 0
        """Responses that the browser reports as errors in its console."""

        self.violates_policy = False
        """Whether the test makes the page violate its policy, which the console reports too."""

    def add_model(self, model: bytes, info: dict[str, Any]) -> None:
        """Puts a model beside the page."""
        self.files["model/model.onnx"] = model
        self.files["model/model.json"] = json.dumps(info).encode()


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serves the site on a free port."""
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
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(WEB))

        def log_message(self, *args: Any) -> None:
            """Logs nothing."""

        def do_OPTIONS(self) -> None:
            headers = {"Access-Control-Allow-Headers": "*", "Access-Control-Allow-Methods": "*"}
            self._send(204, b"", "text/plain", headers)

        def do_GET(self) -> None:
            path = self.path.lstrip("/").split("?")[0]
            site.requests.append(path)
            if self.headers["Cache-Control"] in ("max-age=0", "no-cache"):
                site.revalidated.add(path)
            if path == "config.json":
                self._send(200, json.dumps(site.config).encode(), "application/json")
            elif path == "model" and site.has_service:
                replies = site.model_replies
                self._reply(replies.pop(0) if replies else Reply(200, MODEL_INFO))
            elif path in site.files:
                content_type = "application/octet-stream" if path else "text/html"
                self._send(200, site.files[path], content_type)
            else:
                if not (WEB / path).exists():
                    site.failures += 1
                super().do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not site.has_service or self.path.split("?")[0] != "/predict":
                site.failures += 1
                self.send_error(405)
                return
            site.uploads.append((self.headers["Content-Type"], body))
            site.forbids_keeping.append("X-Do-Not-Keep" in self.headers)
            self._reply(site.predict_replies.pop(0) if site.predict_replies else Reply())
            site.predict_responses += 1

        def _reply(self, reply: Reply) -> None:
            if reply.hold_until:
                reply.hold_until.wait(20)
            if reply.disconnect:
                site.failures += 1
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            site.failures += reply.status >= 400
            text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            self._send(reply.status, text.encode(), "application/json", reply.headers)

        def _send(
            self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
        ) -> None:
            defaults = {
                "Content-Type": content_type,
                "Content-Length": str(len(body)),
                "Access-Control-Allow-Origin": "*",
            }
            try:
                self.send_response(status)
                for name, value in {**defaults, **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # Several tests make the page abort its request.

    return Handler
