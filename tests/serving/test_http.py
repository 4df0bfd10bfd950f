"""The server as people start it: under load, with slow and rude senders, to its end."""

import asyncio
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
import schemathesis
from hypothesis import given, settings

from drone.serving.api import Api, ApiSettings
from drone.serving.http import HttpApp, HttpSettings
from drone.serving.predictor import Prediction, Predictor
from tests.conftest import RunJob
from tests.jobs.processes import wait_for
from tests.serving import hostile
from tests.serving.server import Server, served

CASES = hostile.cases()
JPEG = CASES["JPEG"][0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "web"
    folder.mkdir()
    (folder / "index.html").write_text("<!DOCTYPE html><title>Drones</title>")
    (folder / "app.mjs").write_text("export {};")
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def server(
    exported: Path, page: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    words = ["--onnx", exported, "--page", page, "--max-bytes", 2_000_000]
    with served(tmp_path_factory.mktemp("served"), *words) as running:
        yield running


def test_pictures_get_answers_or_reasons(server: Server) -> None:
    before = psutil.Process(server.process.pid).memory_info().rss
    for name, (data, status) in CASES.items():
        found, headers, body = server.ask("POST", "/predict", data)
        assert found == status, (name, body)
        assert json.loads(body)["request_id"] == headers["x-request-id"]
    # Nothing of a bomb is unpacked, and what was read is given back.
    assert psutil.Process(server.process.pid).memory_info().rss - before < 300 * 2**20


def test_the_page_is_beside_it_and_nothing_else(server: Server) -> None:
    status, headers, body = server.ask("GET", "/")
    assert status == 200 and b"Drones" in body and headers["content-type"] == "text/html"
    assert server.ask("GET", "/app.mjs")[1]["content-type"] == "text/javascript"
    assert server.ask("HEAD", "/index.html")[2] == b""
    status, _, body = server.ask("GET", "/model/model.json")
    assert status == 200 and json.loads(body) == json.loads(server.ask("GET", "/model")[2])
    assert len(server.ask("GET", "/model/model.onnx")[2]) > 100_000
    for path in ("/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/model/../../secret.txt"):
        status, _, body = server.ask("GET", path)
        assert status == 404 and b"secret" not in body.replace(b"secret.txt", b"")
    for path in ("/%00", "/" + 300 * "a", "/" + 3000 * "a/"):
        assert server.ask("GET", path)[0] == 404


def test_a_file_is_sent_once_and_in_pieces(
    exported: Path, page: Path, server: Server, tmp_path: Path
) -> None:
    status, headers, body = server.ask("GET", "/model/model.onnx")
    tag = headers["etag"]
    assert status == 200 and body == exported.read_bytes()
    for method in ("GET", "HEAD"):
        for tags in (tag, f'"other", W/{tag}', "*"):
            status, again, body = server.ask(method, "/model/model.onnx", **{"If-None-Match": tags})
            assert (status, body, again["etag"]) == (304, b"", tag)
        status, again, _ = server.ask(method, "/model/model.onnx", **{"If-None-Match": '"other"'})
        assert status == 200 and int(again["content-length"]) == exported.stat().st_size

    (tmp_path / "large.bin").write_bytes(bytes(range(250)) * 4000)
    (tmp_path / "empty.bin").touch()
    app = HttpApp(Api(Predictor(exported), ApiSettings()), HttpSettings(), tmp_path)
    sent = asyncio.run(asked(app, "GET", "/large.bin"))
    assert (b"content-length", b"1000000") in sent[0]["headers"]
    assert b"".join(part["body"] for part in sent[1:]) == (tmp_path / "large.bin").read_bytes()
    assert max(len(part["body"]) for part in sent[1:]) <= 2**18
    first = dict(sent[0]["headers"])[b"etag"]
    (tmp_path / "large.bin").write_bytes(b"new")
    sent = asyncio.run(asked(app, "GET", "/large.bin", b"", (b"if-none-match", first)))
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"new"
    assert len(asyncio.run(asked(app, "HEAD", "/large.bin"))) == 2
    assert asyncio.run(asked(app, "GET", "/empty.bin"))[1]["body"] == b""


def test_a_body_that_is_too_long_is_refused_before_it_is_read(server: Server) -> None:
    status, _, body = server.ask("POST", "/predict", bytes(2_000_001))
    assert status == 413 and json.loads(body)["error"]["problem"] == "too-large"
    # Without a length, piece by piece, for ever: refused when it has become too long.
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with contextlib.closing(connection):
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(400):
                connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
        assert b" 413 " in connection.recv(4096)


def test_the_log_says_what_happened_and_not_what_was_shown(server: Server) -> None:
    server.ask("POST", "/predict", JPEG, **{"X-Request-Id": "find-me"})
    wait_for(lambda: "find-me" in server.log.read_text())
    form = b"--x\r\nContent-Disposition: form-data; nam\xffe\r\n\r\nprivate bytes"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.ask("POST", "/predict", form, **kind)[0] == 400
    assert server.ask("POST", "/predict", b"private bytes", **kind)[0] == 400
    wait_for(lambda: server.log.read_text().count("POST /predict 400") >= 2)
    assert "multipart" not in server.log.read_text()
    line = next(line for line in server.log.read_text().splitlines() if "find-me" in line)
    assert "POST /predict 200" in line and " ms " in line
    assert "JFIF" not in server.log.read_text()


def test_no_request_that_the_description_allows_ends_in_500(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    tried = 0
    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=60, deadline=None)
        def each(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            response = case.call()
            assert response.status_code < 500, response.text
            response.json()

        each()
    assert tried > 60
    assert server.process.poll() is None


def test_when_it_is_full_it_says_so_and_loses_nothing(exported: Path, tmp_path: Path) -> None:
    words = [
        "--onnx",
        exported,
        "--threads",
        2,
        "--waiting",
        2,
        "--engines",
        1,
        "--retry-after-s",
        3,
    ]
    large = CASES["20000 px wide"][0]
    with served(tmp_path, *words) as server, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: server.ask("POST", "/predict", large), range(96)))
        states = [status for status, _, _ in answers]
        assert set(states) == {200, 503} and states.count(200) >= 3
        for status, headers, body in answers:
            said = json.loads(body)
            if status == 503:
                assert headers["retry-after"] == "3" and "try again" in said["error"]["message"]
                assert headers["access-control-allow-origin"] == "*"
            else:
                assert said["probabilities"]
        assert server.ask("POST", "/predict", JPEG)[0] == 200


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_answered_before_it_ends(
    exported: Path, tmp_path: Path, asked: signal.Signals
) -> None:
    with served(tmp_path, "--onnx", exported) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with contextlib.closing(connection):
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            connection.sendall(head.encode() + JPEG[:100])
            time.sleep(0.5)
            server.process.send_signal(asked)
            time.sleep(0.5)
            connection.sendall(JPEG[100:])
            assert b" 200 OK" in connection.recv(65536)
        assert server.process.wait(timeout=60) == 130


def test_a_sender_that_is_too_slow(exported: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", exported, "--body-timeout-s", 1) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with contextlib.closing(connection):
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n..")
            assert b" 408 " in connection.recv(4096)
        assert server.ask("GET", "/health")[0] == 200


async def asked(
    app: HttpApp,
    method: str,
    path: str,
    body: bytes = b"",
    *headers: tuple[bytes, bytes],
    after: asyncio.Event | None = None,
) -> list[dict]:
    """What the application itself sends, without a server between; a body may come late."""
    sent: list[dict] = []

    async def receive() -> dict:
        if after is not None:
            await after.wait()
        return {"type": "http.request", "body": body}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await app(scope, receive, send)
    return sent


def posted(app: HttpApp, body: bytes, *headers: tuple[bytes, bytes]) -> list[dict]:
    """What the application itself sends to one who posts to /predict."""
    return asyncio.run(asked(app, "POST", "/predict", body, *headers))


def test_slow_senders_keep_nobody_out(exported: Path) -> None:
    app = HttpApp(Api(Predictor(exported), ApiSettings()), HttpSettings(threads=1, waiting=0))

    async def all_of_it() -> None:
        whole = asyncio.Event()
        slow = [
            asyncio.create_task(asked(app, "POST", "/predict", JPEG, after=whole)) for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        assert (await asked(app, "POST", "/predict", JPEG))[0]["status"] == 200
        slow.append(asyncio.create_task(asked(app, "POST", "/predict", JPEG, after=whole)))
        await asyncio.sleep(0.05)
        # As many bodies are on their way as the memory is meant for.
        sent = await asked(app, "POST", "/predict", JPEG)
        assert sent[0]["status"] == 503 and (b"retry-after", b"1") in sent[0]["headers"]
        whole.set()
        states = [sent[0]["status"] for sent in await asyncio.gather(*slow)]
        assert states[0] == 200 and set(states) <= {200, 503}
        assert (await asked(app, "POST", "/predict", JPEG))[0]["status"] == 200

    asyncio.run(all_of_it())


def test_a_busy_server_says_that_it_lives(exported: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(Predictor):
        def predict(self, data: bytes, max_pixels: int | None = None) -> Prediction:
            started.set()
            go_on.wait(60)
            return super().predict(data, max_pixels)

    app = HttpApp(Api(Slow(exported), ApiSettings()), HttpSettings(threads=1, waiting=0))

    async def all_of_it() -> None:
        first = asyncio.create_task(asked(app, "POST", "/predict", JPEG))
        assert await asyncio.to_thread(started.wait, 60)
        for method, path, status in (
            ("GET", "/health", 200),
            ("GET", "/model", 200),
            ("OPTIONS", "/predict", 204),
            ("GET", "/predict", 405),
            ("POST", "/model", 405),
            ("GET", "/nothing", 404),
            ("POST", "/predict", 503),
        ):
            assert (await asked(app, method, path, JPEG))[0]["status"] == status
        go_on.set()
        assert (await first)[0]["status"] == 200

    asyncio.run(all_of_it())


def test_a_length_that_is_no_number_is_not_believed(exported: Path) -> None:
    app = HttpApp(Api(Predictor(exported), ApiSettings()), HttpSettings())
    for length in ("\u00b2", "-1", "9e9", ""):
        sent = posted(app, JPEG, (b"content-length", length.encode("latin-1")))
        assert sent[0]["status"] == 200


def test_a_defect_is_told_in_the_same_form_and_quotes_nothing(
    exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Predictor):
        def predict(self, data: bytes, max_pixels: int | None = None) -> Prediction:
            raise ZeroDivisionError(f"about {data!r}")

    sent = posted(HttpApp(Api(Broken(exported), ApiSettings()), HttpSettings()), b"private")
    assert sent[0]["status"] == 500
    assert (b"access-control-allow-origin", b"*") in sent[0]["headers"]
    said = json.loads(sent[1]["body"])
    assert said["error"]["problem"] == "internal" and said["request_id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text and "private" not in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name what answers"),
        (["--onnx", "gone.onnx"], "There is no file gone.onnx"),
        (["--model", "models:/nothing@champion"], "There is no model models:/nothing@champion"),
        (["--onnx", "a", "--port", "70000"], "--port is 70000"),
        (["--onnx", "a", "--page", "gone"], "There is no folder gone for --page"),
        (["--onnx", "a", "--threads", "0"], "threads, engines and batch must be at least 1"),
    ],
)
def test_wrong_usage(call_job: RunJob, words: list[str], message: str) -> None:
    done = call_job("serve", *words)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_a_broken_model_and_a_taken_port(call_job: RunJob, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    done = call_job("serve", "--onnx", "no.onnx")
    assert done.code == 1 and "is not a model that can be loaded" in done.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = call_job("serve", "--onnx", exported, "--port", taken.getsockname()[1])
    assert done.code == 2 and "cannot be listened on" in done.err


def test_the_address_is_printed_as_a_browser_takes_it(exported: Path, tmp_path: Path) -> None:
    words = ["--onnx", exported, "--page", "None", "--host", "::1"]
    try:
        with socket.socket(socket.AF_INET6) as there:
            there.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served(tmp_path, *words) as server:
        said = server.log.read_text()
        assert f"answers on http://[::1]:{server.port} - the interface: http://[::1]:" in said
        assert "the page" not in said
