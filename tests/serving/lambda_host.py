"""Simulates the machine that Lambda runs a function on: the Runtime API on loopback.

The function runs in a process of its own under `awslambdaric`, AWS's runtime client, which fetches
events and posts results as it does in the cloud.
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
class Queues:
    """Queues between the function's process and the test."""

    events: queue.Queue = field(default_factory=queue.Queue)
    outcomes: queue.Queue = field(default_factory=queue.Queue)


class Runtime(BaseHTTPRequestHandler):
    """The Runtime API, version 2018-06-01."""

    protocol_version = "HTTP/1.1"
    queues: Queues

    def setup(self) -> None:
        super().setup()
        # Otherwise each response waits 40 ms for a delayed acknowledgement.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self.path.endswith("/restore/next"):
            self._send(200, b"")
            return
        request_id, event = self.queues.events.get()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
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
        self.queues.outcomes.put(Outcome(kind, json.loads(body)))

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
    """A running function; call `close` at the end."""

    def __init__(self, python: str, task: Path, client: Path, **environment: str) -> None:
        """Starts the function.

        Args:
            python: Interpreter to run it with.
            task: Folder of the unpacked package.
            client: Folder with awslambdaric.
            environment: Variables of the function, in addition to Lambda's own.
        """
        self._queues = Queues()
        handler = type("Handler", (Runtime,), {"queues": self._queues})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        variables = {
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
        # -S hides installed packages: all that the function needs must be in its package.
        command = [python, "-S", "-m", "awslambdaric", HANDLER]
        self._process = subprocess.Popen(
            command, cwd=task, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def invoke(self, event: Mapping[str, Any], timeout_s: float = 30) -> Outcome:
        """Sends the function one event and returns its outcome."""
        self._queues.events.put((str(uuid.uuid4()), json.dumps(event).encode()))
        outcome: Outcome = self._queues.outcomes.get(timeout=timeout_s)
        return outcome

    def close(self) -> str:
        """Ends the function and returns its log; a second call does nothing."""
        if self._process.returncode is not None:
            return ""
        self._process.kill()
        log = self._process.communicate()[0].decode("utf-8", "replace")
        self._server.shutdown()
        self._server.server_close()
        return log
