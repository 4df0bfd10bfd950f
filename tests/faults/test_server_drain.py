"""SIGTERM under load: what was accepted is answered, and the process ends within its limit."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, job_environment
from tests.jobs.processes import free_port, wait_for
from tests.serving import hostile
from tests.serving.server import Server, served

JPEG = hostile.cases()["JPEG"][0]
POST = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode() + JPEG
pytestmark = pytest.mark.slow

STUCK = """
import sys, time
from pathlib import Path
from drone.serving.predictor import Predictor
from drone.serving.connections import ConnectionSettings
from drone.workflows import serving
from drone.workflows.requests import ServeRequest
from ray_jobs import cli
from dataclasses import dataclass

def predict(self, data, max_pixels=None, *, evidence=False):
    print("is stuck", file=sys.stderr, flush=True)
    time.sleep(1000)

Predictor.predict = predict
@dataclass(frozen=True, kw_only=True)
class Job:
    json: bool = False
def main(job):
    request = ServeRequest(onnx=Path(sys.argv.pop()), port=int(sys.argv.pop()), page=None)
    connections = ConnectionSettings(drain_timeout_s=1)
    serving.serve(request, serving.ServerSettings(connections=connections))
    return {}
port_and_model = sys.argv[1:]
sys.argv = sys.argv[:1]
cli.start(Job, lambda job: (sys.argv.extend(port_and_model), main(job))[1])
"""


def answered(connection: socket.socket) -> bool:
    """Whether a whole response arrives before the connection ends."""
    received = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200 ") and body.endswith(b"}")


@pytest.mark.parametrize("num_sent", [len(POST), len(POST) - 20, 10, 0])
def test_every_accepted_connection_is_answered(linear: Path, tmp_path: Path, num_sent: int) -> None:
    """Whether the whole request, most, little or nothing of it had been sent at SIGTERM."""
    with served(tmp_path, "--onnx", linear) as server, contextlib.ExitStack() as stack:
        connections = []
        for _ in range(45):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            connections.append(stack.enter_context(connection))
            connection.sendall(POST[:num_sent])
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        for connection in connections:
            connection.sendall(POST[num_sent:])
        assert [answered(connection) for connection in connections] == [True] * 45
        assert server.process.wait(timeout=30) == 130


def test_the_accept_queue_is_answered(linear: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", linear) as server, contextlib.ExitStack() as stack:
        # While it is stopped, the kernel completes the connections that it has not accepted.
        server.process.send_signal(signal.SIGSTOP)
        connections = []
        for _ in range(45):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            connections.append(stack.enter_context(connection))
            connection.sendall(POST)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert [answered(connection) for connection in connections] == [True] * 45
        assert server.process.wait(timeout=30) == 130


def test_connections_that_are_reused_are_told_of_the_end(linear: Path, tmp_path: Path) -> None:
    """Clients that send request after request lose none: the last response says that it is."""
    lost, closed = [], []

    def client(server: Server) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while True:
            try:
                connection.request("POST", "/predict", JPEG)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                lost.append(repr(error))
                return
            if response.getheader("Connection") == "close":
                closed.append(response.status)
                return

    with served(tmp_path, "--onnx", linear) as server:
        threads = [threading.Thread(target=client, args=(server,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(timeout=30) == 130
    assert lost == [] and closed == [200] * 20


def test_an_idle_or_silent_client_does_not_delay_the_end(linear: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", linear, "--header-timeout-s", 2) as server:
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        idle.request("GET", "/health")
        idle.getresponse().read()
        with contextlib.closing(idle), socket.create_connection(("127.0.0.1", server.port)):
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=8) == 130


def test_a_thread_that_does_not_end_does_not_keep_the_process(linear: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-c", STUCK, str(port), str(linear)]
    environment = job_environment(PYTHONPATH=str(ROOT))
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=stream, stderr=stream
        )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        wait_for(lambda: connects(port) or process.poll() is not None)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", JPEG)
            wait_for(lambda: "is stuck" in log.read_text())
            start = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(timeout=30) == 130
            assert time.monotonic() - start < 8
    finally:
        process.kill()
        process.wait()


def connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
