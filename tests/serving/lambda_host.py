"""A stand-in for the machine that Lambda runs a function on: the Runtime API on loopback.

The function runs in a process of its own under `awslambdaric`, AWS's runtime client, which asks
for the next event and posts its result, as it does in the cloud.
"""

import json
import os
import queue
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HANDLER = "drone.serving.lambda_handler.handler"


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended."""

    kind: str
    """`response`, or `error` if the handler raised or the function did not start."""

    content: Any


@dataclass
class Box:
    """What the process and the test tell each other."""

    events: queue.Queue = field(default_factory=queue.Queue)
    outcomes: queue.Queue = field(default_factory=queue.Queue)


class Runtime(BaseHTTPRequestHandler):
    """The Runtime API, version 2018-06-01."""

    protocol_version = "HTTP/1.1"
    box: Box

    def setup(self) -> None:
        super().setup()
        # Else each answer waits 40 ms for the other side's acknowledgement.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self.path.endswith("/restore/next"):
            self._send(200, b"")
            return
        number, event = self.box.events.get()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": number,
            "Lambda-Runtime-Deadline-Ms": str(int(1000 * time.time()) + 29_000),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-west-1:0:function:drone",
            "Lambda-Runtime-Trace-Id": "Root=1-0-0",
            "Content-Type": "application/json",
        }
        self._send(200, event, headers)

    def do_POST(self) -> None:
        body = self._read()
        self._send(202, b'{"status": "OK"}')
        kind = self.path.rsplit("/", 1)[1]
        self.box.outcomes.put(Outcome(kind, json.loads(body)))

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class LambdaHost:
    """A running function; close it at the end."""

    def __init__(self, python: str, task: Path, client: Path, **environment: str) -> None:
        """Starts the function.

        Args:
            python: interpreter to run it.
            task: folder of the unpacked package.
            client: folder with awslambdaric.
            environment: of the function, beside Lambda's own.
        """
        self._box = Box()
        handler = type("Handler", (Runtime,), {"box": self._box})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        given = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/tmp"),
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "drone",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/drone",
            "AWS_LAMBDA_LOG_STREAM_NAME": "local",
            "AWS_REGION": "eu-west-1",
            "LAMBDA_TASK_ROOT": str(task),
            "PYTHONPATH": f"{task}{os.pathsep}{client}",
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        }
        # Without site packages: what the function needs must be in its package.
        command = [python, "-S", "-m", "awslambdaric", HANDLER]
        self._process = subprocess.Popen(
            command, cwd=task, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def invoke(self, event: Mapping[str, Any], timeout_s: float = 30) -> Outcome:
        """Hands the function one event and waits for its result."""
        self._box.events.put((str(uuid.uuid4()), json.dumps(event).encode()))
        outcome: Outcome = self._box.outcomes.get(timeout=timeout_s)
        return outcome

    def close(self) -> str:
        """Ends the function; what it logged. A second call does nothing."""
        if self._process.returncode is not None:
            return ""
        self._process.kill()
        logged = self._process.communicate()[0].decode("utf-8", "replace")
        self._server.shutdown()
        self._server.server_close()
        return logged
