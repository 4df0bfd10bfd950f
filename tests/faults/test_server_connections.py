"""Clients that hold connections, send too much or nothing, against a real server."""

import contextlib
import http.client
import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from drone.errors import ConfigError
from drone.serving.connections import ConnectionSettings
from tests.faults import slow_images
from tests.jobs.processes import wait_for
from tests.serving import hostile
from tests.serving.server import Server, served

pytestmark = pytest.mark.slow

JPEG = hostile.cases()["JPEG"][0]
SLOW = hostile.cases()["20000 px wide"][0]
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture(scope="module")
def impatient(linear: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short deadlines."""
    args = ["--header-timeout-s", 1, "--send-timeout-s", 1, "--body-timeout-s", 2]
    folder = tmp_path_factory.mktemp("impatient")
    (folder / "page").mkdir()
    (folder / "page" / "large.bin").write_bytes(bytes(30_000_000))
    with served(folder, "--onnx", linear, "--page", folder / "page", *args) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Status and JSON of a response after which the server closes the connection."""
    received = b""
    while part := connection.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


def ask(server: Server, data: bytes) -> tuple[int, dict]:
    with connect(server) as connection:
        connection.sendall(data)
        return answer(connection)


def num_connections(server: Server) -> int:
    kinds = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(kind.status == psutil.CONN_ESTABLISHED for kind in kinds)


def test_a_silent_connection_is_closed(impatient: Server) -> None:
    with connect(impatient) as connection:
        assert connection.recv(100) == b""


@pytest.mark.parametrize("pause_s", [0, 0.2])
def test_headers_that_do_not_end_are_answered_408(impatient: Server, pause_s: float) -> None:
    start = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        with contextlib.suppress(OSError):
            while pause_s and time.monotonic() - start < 2:
                connection.sendall(b"a")
                time.sleep(pause_s)
        status, content = answer(connection)
    assert (status, content["error"]["problem"]) == (408, "timeout")


def test_a_body_that_nobody_reads_has_a_deadline_too(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(POST.replace(b"/predict", b"/health"))
        assert b" 405 " in connection.recv(4096)
        end = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                connection.sendall(b"a")
                time.sleep(0.1)
        assert time.monotonic() < end - 10


def test_a_client_that_does_not_read_is_disconnected(impatient: Server) -> None:
    wait_for(lambda: num_connections(impatient) == 0)
    with connect(impatient) as connection:
        connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(10)
        wait_for(lambda: num_connections(impatient) == 0, timeout_s=20)


def test_a_client_that_reads_slowly_gets_everything(impatient: Server) -> None:
    with connect(impatient) as connection:
        head = b"GET /large.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.sendall(head)
        size, start = 0, time.monotonic()
        while part := connection.recv(2**20):
            size += len(part)
            if time.monotonic() - start < 4:
                time.sleep(0.05)
        assert size > 30_000_000


@pytest.mark.parametrize(
    ("request_", "status", "problem"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "bad-request"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad-request"),
        (b"nonsense\r\n\r\n", 400, "bad-request"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000, 431, "headers-too-large"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "headers-too-large"),
    ],
)
def test_a_bad_head_is_answered_as_json(
    impatient: Server, request_: bytes, status: int, problem: str
) -> None:
    found, content = ask(impatient, request_)
    assert (found, content["error"]["problem"]) == (status, problem)
    assert content["request_id"]


def test_too_many_headers_and_upgrades_are_answered_as_json(impatient: Server) -> None:
    many = {f"X-{number}": "a" for number in range(150)}
    status, _, body = impatient.request("GET", "/health", **many)
    assert status == 431 and json.loads(body)["error"]["problem"] == "headers-too-large"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    for path in ("/", "/predict", "/health"):
        status, _, body = impatient.request("GET", path, **upgrade)
        assert status == 400 and json.loads(body)["error"]["problem"] == "no-websocket"
    assert impatient.log.read_text().count("Unsupported upgrade") == 0


def test_endless_headers_take_no_memory(impatient: Server) -> None:
    process = psutil.Process(impatient.process.pid)
    before = process.memory_info().rss
    with connect(impatient) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError):
            for _ in range(200):
                connection.sendall(b"X-Long: " + b"a" * 2**20)
    assert process.memory_info().rss - before < 30 * 2**20


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHo"])
def test_idle_connections_leave_room_for_requests(
    linear: Path, tmp_path: Path, sent: bytes
) -> None:
    with served(tmp_path, "--onnx", linear) as server, contextlib.ExitStack() as stack:
        process = psutil.Process(server.process.pid)
        process.rlimit(resource.RLIMIT_NOFILE, (256, 256))
        for _ in range(600):
            connection = stack.enter_context(connect(server))
            if sent:
                connection.sendall(sent)
        for _ in range(5):
            start = time.monotonic()
            assert server.request("POST", "/predict", JPEG)[0] == 200
            assert time.monotonic() - start < 5
        assert process.num_fds() < 200
        assert "Too many open files" not in server.log.read_text()


def test_an_address_has_its_share(linear: Path, tmp_path: Path) -> None:
    args = ["--onnx", linear, "--max-connections-per-address", 4, "--retry-after-s", 7]
    with served(tmp_path, *args) as server, contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(connect(server)) for _ in range(4)]
        for upload in uploads:
            upload.sendall(POST)
        wait_for(lambda: num_connections(server) == 4)
        for _ in range(6):
            status, headers, body = server.request("POST", "/predict", SLOW)
            assert status == 503 and json.loads(body)["error"]["problem"] == "busy"
            assert {name.lower(): value for name, value in headers.items()}["retry-after"] == "7"
        uploads[0].close()
        wait_for(lambda: server.request("POST", "/predict", JPEG)[0] == 200, timeout_s=20)


def test_a_burst_of_large_bodies_is_answered(linear: Path, tmp_path: Path) -> None:
    args = ["--onnx", linear, "--max-concurrent", 1, "--max-queued", 0]
    body = slow_images.flat("JPEG", 3000) + bytes(8_000_000)

    def post(_: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", body, {"Connection": "close"})
            response = connection.getresponse()
            response.read()
            return response.status

    with served(tmp_path, *args) as server, ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(post, range(36)))
    assert set(statuses) == {200, 503}


def test_bodies_have_a_budget(linear: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", linear, "--max-body-memory", 1_500_000) as server:

        def is_refused_beside_another() -> bool:
            with connect(server) as first:
                first.sendall(POST + bytes(900_000))
                time.sleep(0.5)  # Of the two, the one that is read later is refused.
                status = server.request("POST", "/predict", bytes(800_000))[0]
                assert server.request("POST", "/predict", JPEG)[0] == 200
                return status == 503

        wait_for(is_refused_beside_another, 20)
        # What an aborted upload held is free again.
        wait_for(lambda: server.request("POST", "/predict", bytes(1_400_000))[0] == 415, 20)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_connections", 0, "max_connections is 0; it must be at least 1"),
        ("max_connections_per_address", 0, "max_connections_per_address is 0; it must be at lea"),
        ("header_timeout_s", 0.0, r"header_timeout_s is 0.0; it must be above 0"),
        ("send_timeout_s", -1.0, r"send_timeout_s is -1.0; it must be above 0"),
        ("drain_timeout_s", 0, "drain_timeout_s is 0; it must be at least 1"),
    ],
)
def test_wrong_settings_are_named(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConnectionSettings(**{name: value})
