"""Replicas on a local Ray: they scale with the requests, and no request is lost."""

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import RunJob
from tests.jobs.processes import wait_for, workers_of
from tests.serving import hostile
from tests.serving.server import Server, served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

JPEG = hostile.cases()["JPEG"][0]
SLOW = hostile.cases()["20000 px wide"][0]
"""Occupies a replica for a while, so that it has ongoing requests whenever it is lost."""

ARGS = ["--replicas", 2, "--replica-cpus", 0.5, "--target-ongoing-requests", 1]
ARGS += ["--upscale-delay-s", 0.5, "--downscale-delay-s", 0.5]
ARGS += ["--max-concurrent", 2, "--max-queued", 3, "--retry-after-s", 0]


def replicas(server: Server) -> list[psutil.Process]:
    return workers_of(server.process, "ServeReplica")


@contextlib.contextmanager
def load(server: Server, clients: int) -> Iterator[list[tuple[int, dict, bytes]]]:
    """Runs clients that send request after request, and yields the list of their responses."""
    responses: list[tuple[int, dict, bytes]] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            responses.append(server.request("POST", "/predict", SLOW))
            if responses[-1][0] == 503:
                time.sleep(0.05)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            yield responses
        finally:
            stop.set()
    for client_done in running:
        client_done.result()  # Raises if a request got no response.


def check(responses: list[tuple[int, dict, bytes]]) -> None:
    """Each response is a prediction or a 503, in the form of the interface."""
    assert {status for status, _, _ in responses} <= {200, 503}
    for status, headers, body in responses:
        content = json.loads(body)
        assert content["request_id"] == headers["x-request-id"]
        if status == 503:
            assert headers["retry-after"] == "0" and content["error"]["problem"] == "busy"


def num_answered(responses: list[tuple[int, dict, bytes]]) -> int:
    return sum(status == 200 for status, _, _ in responses)


@pytest.mark.slow
def test_replicas_scale_and_fail_and_no_request_is_lost(exported: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", exported, *ARGS) as server:
        [first] = replicas(server)
        with load(server, clients=8) as responses:
            wait_for(lambda: len(replicas(server)) == 2)
            first.kill()
            first.wait(60)
            before = num_answered(responses)
            wait_for(lambda: num_answered(responses) > before + 20)
            wait_for(lambda: len(replicas(server)) == 2)
        check(responses)
        assert 503 in {status for status, _, _ in responses}
        status, headers, body = server.request("POST", "/predict", b"no image")
        assert status == 415 and json.loads(body)["error"]["problem"] == "non-media"
        assert headers["access-control-allow-origin"] == "*"
        wait_for(lambda: len(replicas(server)) == 1)
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with contextlib.closing(connection):
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            connection.sendall(head.encode() + JPEG[:100])
            time.sleep(0.5)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            connection.sendall(JPEG[100:])
            assert b" 200 OK" in connection.recv(65536)
        assert server.process.wait(timeout=60) == 130, server.log.read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--replicas", 0], "--replicas is 0; it must be at least 1"),
        (["--replicas", 2, "--min-replicas", 3], "--min-replicas is 3; it must be at least 1"),
        (["--replicas", 2, "--replica-cpus", 0], "--replica-cpus is 0.0; it must be above 0"),
        (
            ["--replicas", 2, "--target-ongoing-requests", 0],
            "--target-ongoing-requests is 0.0; it must be above 0",
        ),
        (
            ["--replicas", 2, "--downscale-delay-s", -1],
            "--downscale-delay-s is -1.0; it must be at least 0",
        ),
    ],
)
def test_wrong_usage(call_job: RunJob, args: list, message: str) -> None:
    done = call_job("serve", "--onnx", "any.onnx", *args)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


@pytest.mark.slow
def test_replicas_without_room_are_rejected(run_job: RunJob, exported: Path) -> None:
    done = run_job("serve", "--onnx", exported, "--port", 0, "--replicas", 2, "--engines", 999)
    assert done.code == 2 and "There is no room for 1 replicas of 999 CPUs" in done.err
