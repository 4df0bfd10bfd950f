"""The server as users start it: under load, with slow and hostile clients, until it ends.

For the full matrix of images see test_preprocess.
"""

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

JPEG = hostile.cases()["JPEG"][0]
SLOW = hostile.cases()["20000 px wide"][0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "web"
    folder.mkdir()
    (folder / "index.html").write_text("<!DOCTYPE html><title>Drones</title>")
    (folder / "app.mjs").write_text("export {};")
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    return folder


@pytest.fixture(scope="module")
def server(
    exported: Path, page: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    args = ["--onnx", exported, "--page", page, "--max-bytes", 2_000_000]
    with served(tmp_path_factory.mktemp("served"), *args) as running:
        yield running


def test_images_get_predictions_or_errors(server: Server) -> None:
    before = psutil.Process(server.process.pid).memory_info().rss
    for name, (data, expected) in hostile.representatives().items():
        status, headers, body = server.request("POST", "/predict", data)
        assert status == expected, (name, body)
        assert json.loads(body)["request_id"] == headers["x-request-id"]
    # Nothing of a decompression bomb is decoded, and what was read is freed.
    assert psutil.Process(server.process.pid).memory_info().rss - before < 300 * 2**20


def test_the_evidence_is_there_if_requested(server: Server) -> None:
    body = server.request("POST", "/predict?evidence=true", JPEG)[2]
    assert len(json.loads(body)["evidence"]["map"]) == 2  # 64 pixels are two cells.
    assert "evidence" not in json.loads(server.request("POST", "/predict", JPEG)[2])
    status, _, body = server.request("POST", "/predict?evidence=yes", JPEG)
    assert status == 400 and json.loads(body)["error"]["problem"] == "bad-query"


def test_the_page_is_served_and_nothing_outside_of_it(server: Server) -> None:
    status, headers, body = server.request("GET", "/")
    assert status == 200 and b"Drones" in body
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-cache" and headers["x-content-type-options"] == "nosniff"
    module_type = server.request("GET", "/app.mjs")[1]["content-type"]
    assert module_type == "text/javascript; charset=utf-8"
    status, head, empty = server.request("HEAD", "/index.html")
    assert (status, empty) == (200, b"") and int(head["content-length"]) == len(body)
    status, _, body = server.request("GET", "/model/model.json")
    assert status == 200 and json.loads(body) == json.loads(server.request("GET", "/model")[2])
    assert len(server.request("GET", "/model/model.onnx")[2]) > 100_000
    outside = ["/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/model/../../secret.txt"]
    outside += ["/link.txt", "/..%5csecret.txt", "/%2fetc/passwd"]
    for path in outside:
        status, _, body = server.request("GET", path)
        assert status == 404 and b"secret" not in body.replace(b"secret.txt", b"")
    for path in (*outside, "/no.html", "/%00", "/" + 300 * "a", "/" + 3000 * "a/"):
        status, headers, body = server.request("GET", path)
        content = json.loads(body)
        assert (status, content["error"]["problem"]) == (404, "not-found")
        assert content["request_id"] == headers["x-request-id"]


def test_a_range_gets_the_whole_file(server: Server, exported: Path) -> None:
    for value in ("bytes=0-9", "bytes=999999999-", "bytes=x"):
        status, headers, body = server.request("GET", "/model/model.onnx", Range=value)
        assert status == 200 and body == exported.read_bytes()
        assert headers["accept-ranges"] == "none"


def test_a_file_is_sent_once_and_in_chunks(
    exported: Path, page: Path, server: Server, tmp_path: Path
) -> None:
    status, headers, body = server.request("GET", "/model/model.onnx")
    etag = headers["etag"]
    assert status == 200 and body == exported.read_bytes()
    for method in ("GET", "HEAD"):
        for tags in (etag, f'"other", W/{etag}', "*"):
            status, again, body = server.request(
                method, "/model/model.onnx", **{"If-None-Match": tags}
            )
            assert (status, body, again["etag"]) == (304, b"", etag)
        status, again, _ = server.request(
            method, "/model/model.onnx", **{"If-None-Match": '"other"'}
        )
        assert status == 200 and int(again["content-length"]) == exported.stat().st_size

    (tmp_path / "large.bin").write_bytes(bytes(range(250)) * 4000)
    (tmp_path / "empty.bin").touch()
    app = HttpApp(Api(Predictor(exported), ApiSettings()), HttpSettings(), tmp_path)
    sent = asyncio.run(call_app(app, "GET", "/large.bin"))
    assert (b"content-length", b"1000000") in sent[0]["headers"]
    assert b"".join(part["body"] for part in sent[1:]) == (tmp_path / "large.bin").read_bytes()
    assert max(len(part["body"]) for part in sent[1:]) <= 2**18
    first = dict(sent[0]["headers"])[b"etag"]
    (tmp_path / "large.bin").write_bytes(b"new")
    sent = asyncio.run(call_app(app, "GET", "/large.bin", b"", (b"if-none-match", first)))
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"new"
    assert len(asyncio.run(call_app(app, "HEAD", "/large.bin"))) == 2
    assert asyncio.run(call_app(app, "GET", "/empty.bin"))[1]["body"] == b""


def test_a_body_that_is_too_long_is_refused_before_it_is_read(server: Server) -> None:
    status, _, body = server.request("POST", "/predict", bytes(2_000_001))
    assert status == 413 and json.loads(body)["error"]["problem"] == "too-large"
    # Without a declared length, in endless chunks: refused once it has become too long.
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with contextlib.closing(connection):
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(400):
                connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
        assert b" 413 " in connection.recv(4096)


def test_a_declared_length_above_the_limit_is_refused_without_reading(exported: Path) -> None:
    app = HttpApp(Api(Predictor(exported), ApiSettings()), HttpSettings())
    length = (b"content-length", str(10 * 2**20 + 1).encode())

    async def send_no_body() -> list[dict]:
        return await call_app(app, "POST", "/predict", b"", length, after=asyncio.Event())

    sent = asyncio.run(asyncio.wait_for(send_no_body(), 60))
    assert sent[0]["status"] == 413


def test_the_log_has_requests_but_no_images(server: Server) -> None:
    server.request("POST", "/predict", JPEG, **{"X-Request-Id": "find-me"})
    wait_for(lambda: "find-me" in server.log.read_text())
    form = b"--x\r\nContent-Disposition: form-data; nam\xffe\r\n\r\nprivate bytes"
    content_type = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.request("POST", "/predict", form, **content_type)[0] == 400
    assert server.request("POST", "/predict", b"private bytes", **content_type)[0] == 400
    wait_for(lambda: server.log.read_text().count("POST /predict 400") >= 2)
    assert "multipart" not in server.log.read_text()
    line = next(line for line in server.log.read_text().splitlines() if "find-me" in line)
    assert "POST /predict 200" in line and " ms " in line
    assert "JFIF" not in server.log.read_text()


def test_no_request_that_the_schema_allows_ends_in_500(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    count = 0
    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=60, deadline=None)
        def each(case: schemathesis.Case) -> None:
            nonlocal count
            count += 1
            response = case.call()
            assert response.status_code < 500, response.text
            response.json()

        each()
    assert count > 60
    assert server.process.poll() is None


def test_an_overloaded_server_answers_every_request(exported: Path, tmp_path: Path) -> None:
    args = ["--onnx", exported, "--engines", 1, "--max-concurrent", 2, "--max-queued", 2]
    args += ["--retry-after-s", 3]
    with served(tmp_path, *args) as server, ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda _: server.request("POST", "/predict", SLOW), range(96)))
        statuses = [status for status, _, _ in responses]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 3
        for status, headers, body in responses:
            content = json.loads(body)
            if status == 503:
                assert headers["retry-after"] == "3" and "try again" in content["error"]["message"]
                assert headers["access-control-allow-origin"] == "*"
            else:
                assert content["probabilities"]
        assert server.request("POST", "/predict", JPEG)[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_before_the_server_ends(
    exported: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with served(tmp_path, "--onnx", exported) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with contextlib.closing(connection):
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            connection.sendall(head.encode() + JPEG[:100])
            time.sleep(0.5)
            server.process.send_signal(number)
            time.sleep(0.5)
            connection.sendall(JPEG[100:])
            assert b" 200 OK" in connection.recv(65536)
        assert server.process.wait(timeout=60) == 130


def test_a_client_that_is_too_slow(exported: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", exported, "--body-timeout-s", 1) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with contextlib.closing(connection):
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n..")
            assert b" 408 " in connection.recv(4096)
        assert server.request("GET", "/health")[0] == 200


async def call_app(
    app: HttpApp,
    method: str,
    path: str,
    body: bytes = b"",
    *headers: tuple[bytes, bytes],
    after: asyncio.Event | None = None,
) -> list[dict]:
    """Returns what the app sends without a server; the body may arrive after an event."""
    sent: list[dict] = []

    async def receive() -> dict:
        if after is not None:
            await after.wait()
        return {"type": "http.request", "body": body}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": method, "path": path}
    scope["headers"] = list(headers)
    await app(scope, receive, send)
    return sent


def post_to_app(app: HttpApp, body: bytes, *headers: tuple[bytes, bytes]) -> list[dict]:
    """Returns what the app sends to a POST of /predict."""
    return asyncio.run(call_app(app, "POST", "/predict", body, *headers))


def test_slow_clients_do_not_block_others(exported: Path) -> None:
    app = HttpApp(
        Api(Predictor(exported), ApiSettings()), HttpSettings(max_concurrent=1, max_queued=0)
    )

    async def scenario() -> None:
        complete = asyncio.Event()
        slow = [
            asyncio.create_task(call_app(app, "POST", "/predict", JPEG, after=complete))
            for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        assert (await call_app(app, "POST", "/predict", JPEG))[0]["status"] == 200
        slow.append(asyncio.create_task(call_app(app, "POST", "/predict", JPEG, after=complete)))
        await asyncio.sleep(0.05)
        # The maximum number of bodies is uploading.
        sent = await call_app(app, "POST", "/predict", JPEG)
        assert sent[0]["status"] == 503 and (b"retry-after", b"1") in sent[0]["headers"]
        complete.set()
        statuses = [sent[0]["status"] for sent in await asyncio.gather(*slow)]
        assert statuses[0] == 200 and set(statuses) <= {200, 503}
        assert (await call_app(app, "POST", "/predict", JPEG))[0]["status"] == 200

    asyncio.run(scenario())


def test_a_busy_server_still_answers_what_needs_no_image(exported: Path) -> None:
    started, resume = threading.Event(), threading.Event()

    class Slow(Predictor):
        def predict(
            self, data: bytes, max_pixels: int | None = None, *, evidence: bool = False
        ) -> Prediction:
            started.set()
            resume.wait(60)
            return super().predict(data, max_pixels, evidence=evidence)

    app = HttpApp(Api(Slow(exported), ApiSettings()), HttpSettings(max_concurrent=1, max_queued=0))

    async def scenario() -> None:
        first = asyncio.create_task(call_app(app, "POST", "/predict", JPEG))
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
            assert (await call_app(app, method, path, JPEG))[0]["status"] == status
        resume.set()
        assert (await first)[0]["status"] == 200

    asyncio.run(scenario())


def test_an_invalid_content_length_is_ignored(exported: Path) -> None:
    app = HttpApp(Api(Predictor(exported), ApiSettings()), HttpSettings())
    for length in ("\u00b2", "-1", "9e9", ""):
        sent = post_to_app(app, JPEG, (b"content-length", length.encode("latin-1")))
        assert sent[0]["status"] == 200


def test_a_defect_is_reported_as_json_and_quotes_nothing(
    exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Predictor):
        def predict(
            self, data: bytes, max_pixels: int | None = None, *, evidence: bool = False
        ) -> Prediction:
            raise ZeroDivisionError(f"about {data!r}")

    sent = post_to_app(HttpApp(Api(Broken(exported), ApiSettings()), HttpSettings()), b"private")
    assert sent[0]["status"] == 500
    assert (b"access-control-allow-origin", b"*") in sent[0]["headers"]
    content = json.loads(sent[1]["body"])
    assert content["error"]["problem"] == "internal" and content["request_id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text and "private" not in caplog.text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name what to serve: one of --model URI, --run RUN, --onnx FILE."),
        (["--onnx", "gone.onnx"], "There is no file gone.onnx"),
        (["--model", "models:/nothing@champion"], "There is no model models:/nothing@champion"),
        (["--onnx", "a", "--port", "70000"], "--port is 70000"),
        (["--onnx", "a", "--page", "gone"], "There is no folder gone for --page"),
        (["--onnx", "a", "--engines", "0"], "engines is 0; it must be at least 1"),
        (["--onnx", "a", "--max-queued", "-1"], "max_queued is -1; it must be at least 0"),
        (["--onnx", "a", "--body-timeout-s", "0"], "body_timeout_s is 0.0; it must be above 0"),
        (["--onnx", "a", "--max-concurrent", "0"], "max_concurrent is 0; it must be at least 1"),
    ],
)
def test_wrong_usage(call_job: RunJob, args: list[str], message: str) -> None:
    done = call_job("serve", *args)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_a_broken_model_and_a_taken_port(call_job: RunJob, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    done = call_job("serve", "--onnx", "no.onnx")
    assert done.code == 1 and "is not a model that can be loaded" in done.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call_job("serve", "--onnx", exported, "--port", port)
    message = f"Cannot listen on 127.0.0.1:{port}: Address already in use."
    assert done.code == 2 and message in done.err


def test_the_address_is_printed_as_a_browser_takes_it(exported: Path, tmp_path: Path) -> None:
    args = ["--onnx", exported, "--page", "None", "--host", "::1"]
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served(tmp_path, *args) as server:
        log = server.log.read_text()
        assert f"is served at http://[::1]:{server.port} - the HTTP API: http://[::1]:" in log
        assert "the page" not in log
