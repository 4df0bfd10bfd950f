"""Replicas on a local Ray: they come and go with the requests, and no request is lost."""

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
"""Keeps a replica at work for a while, so that it has some in hand whenever it is lost."""

WORDS = ["--replicas", 2, "--replica-cpus", 0.5, "--replica-load", 1, "--threads", 2]
WORDS += ["--waiting", 3, "--grow-after-s", 0.5, "--shrink-after-s", 0.5, "--retry-after-s", 0]


def replicas(server: Server) -> list[psutil.Process]:
    return workers_of(server.process, "ServeReplica")


@contextlib.contextmanager
def asked(server: Server, clients: int) -> Iterator[list[tuple[int, dict, bytes]]]:
    """Clients that ask again as soon as they have an answer; what they heard."""
    heard: list[tuple[int, dict, bytes]] = []
    enough = threading.Event()

    def client() -> None:
        while not enough.is_set():
            heard.append(server.ask("POST", "/predict", SLOW))
            if heard[-1][0] == 503:
                time.sleep(0.05)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            yield heard
        finally:
            enough.set()
    for one in running:
        one.result()  # An answer that did not come is an error here.


def check(heard: list[tuple[int, dict, bytes]]) -> None:
    """Each has an answer, or is told to come again; in the form of the interface."""
    assert {status for status, _, _ in heard} <= {200, 503}
    for status, headers, body in heard:
        said = json.loads(body)
        assert said["request_id"] == headers["x-request-id"]
        if status == 503:
            assert headers["retry-after"] == "0" and said["error"]["problem"] == "busy"


def answered(heard: list[tuple[int, dict, bytes]]) -> int:
    return sum(status == 200 for status, _, _ in heard)


def test_replicas_grow_are_lost_shrink_and_end_and_no_request_is_lost(
    exported: Path, tmp_path: Path
) -> None:
    with served(tmp_path, "--onnx", exported, *WORDS) as server:
        [first] = replicas(server)
        with asked(server, clients=8) as heard:
            wait_for(lambda: len(replicas(server)) == 2)
            first.kill()
            first.wait(60)
            already = answered(heard)
            wait_for(lambda: answered(heard) > already + 20)
            wait_for(lambda: len(replicas(server)) == 2)
        check(heard)
        assert 503 in {status for status, _, _ in heard}
        status, headers, body = server.ask("POST", "/predict", b"no picture")
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
    ("words", "message"),
    [
        (["--replicas", 0], "--replicas is 0; it must be at least 1"),
        (["--replicas", 2, "--min-replicas", 3], "--min-replicas is 3; it must be at least 1"),
        (["--replicas", 2, "--replica-cpus", 0], "--replica-cpus is 0.0; it must be above 0"),
        (["--replicas", 2, "--replica-load", 0], "--replica-load is 0.0; it must be above 0"),
        (["--replicas", 2, "--shrink-after-s", -1], "--shrink-after-s is -1.0"),
    ],
)
def test_wrong_usage(call_job: RunJob, words: list, message: str) -> None:
    done = call_job("serve", "--onnx", "any.onnx", *words)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_replicas_that_find_no_room_are_refused(run_job: RunJob, exported: Path) -> None:
    done = run_job("serve", "--onnx", exported, "--port", 0, "--replicas", 2, "--engines", 999)
    assert done.code == 2 and "There is no room for 1 replicas of 999 processors" in done.err
