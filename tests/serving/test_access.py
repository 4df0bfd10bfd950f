"""API keys, limits and TLS, as functions and at a server."""

import contextlib
import http.client
import json
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drone.errors import ConfigError
from drone.hosts import is_reached_by_others
from drone.serving.access import Access, AccessSettings
from drone.serving.api import ApiError
from drone.serving.api_keys import ApiKeys
from drone.serving.rate_limit import RateLimiter, network_of
from drone.serving.tls import TlsSettings, tls_context
from tests.conftest import RunJob
from tests.jobs.processes import wait_for
from tests.serving import hostile
from tests.serving.server import Server, served

JPEG = hostile.cases()["JPEG"][0]
FIRST, SECOND, THIRD = (letter * 32 for letter in "abc")


def write_keys(file: Path, text: str) -> Path:
    """Replaces a file of keys in one step."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    return new.rename(file)


def name_of(keys: ApiKeys, key: str) -> str | None:
    return keys.name_of({"authorization": f"Bearer {key}"})


def test_each_key_has_its_name_in_either_header(tmp_path: Path) -> None:
    text = f"# who may ask\n\nalice {FIRST}\nbob:{SECOND}\n  alice : {THIRD}\n"
    keys = ApiKeys(write_keys(tmp_path / "keys", text))
    assert [name_of(keys, key) for key in (FIRST, SECOND, THIRD)] == ["alice", "bob", "alice"]
    assert keys.name_of({"x-api-key": SECOND}) == "bob"
    assert keys.name_of({"authorization": f"bearer  {SECOND} "}) == "bob"
    for wrong in ("", FIRST[:-1], FIRST + "a", "\udcff", "alice"):
        assert name_of(keys, wrong) is None
    assert keys.name_of({}) is None
    assert keys.name_of({"authorization": f"Basic {FIRST}"}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There are no API keys in .* Write one NAME KEY on each line"),
        ("# none\n", "There are no API keys in "),
        (f"alice {FIRST}\n{SECOND}\n", "Line 2 of the API keys .* is not a name and a key"),
        ("alice short-key\n", "Line 1 .* a key of 9 characters; it must have at least 16"),
        (f"alice {FIRST}\nbob {FIRST}\n", "Line 2 .* has the key of another"),
        (f"al/ice {FIRST}\n", "Line 1 .* is not a name and a key"),
    ],
)
def test_a_wrong_file_is_named_by_its_line_and_not_quoted(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        ApiKeys(write_keys(tmp_path / "keys", text))
    assert not any(secret in str(raised.value) for secret in (FIRST, SECOND, "short-key"))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone cannot be read: No such file"):
        ApiKeys(tmp_path / "gone")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="are not UTF-8 text"):
        ApiKeys(tmp_path / "keys")


def test_a_changed_file_counts_at_once_and_a_broken_one_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = write_keys(tmp_path / "keys", f"alice {FIRST}\n")
    keys = ApiKeys(file)
    write_keys(file, f"alice {SECOND}\n")
    assert name_of(keys, SECOND) == "alice" and name_of(keys, FIRST) is None
    write_keys(file, "nonsense\n")
    for _ in range(3):
        assert name_of(keys, SECOND) == "alice"
    file.unlink()
    assert name_of(keys, SECOND) == "alice"
    stays = [line for line in caplog.messages if line.startswith("The API keys stay as they were.")]
    assert len(stays) == 2
    write_keys(file, f"bob {THIRD}\n")
    assert name_of(keys, THIRD) == "bob" and name_of(keys, SECOND) is None
    assert not any(secret in caplog.text for secret in (FIRST, SECOND, THIRD, "nonsense"))


def test_a_file_that_becomes_readable_later_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_keys(tmp_path / "keys", f"alice {FIRST}\n")
    keys = ApiKeys(file)
    write_keys(file, f"alice {SECOND}\n")

    def unreadable(path: Path, *args: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", unreadable)
        assert name_of(keys, FIRST) == "alice"
    file.chmod(0o400)
    assert name_of(keys, SECOND) == "alice" and name_of(keys, FIRST) is None


def test_a_file_that_everyone_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_keys(tmp_path / "keys", f"alice {FIRST}\n")
    ApiKeys(file)
    assert caplog.messages == []
    file.chmod(0o644)
    ApiKeys(file)
    assert "restrict it by chmod 600" in caplog.text


def test_a_limit_lets_bursts_pass_and_says_how_long_to_wait() -> None:
    now = 0.0
    limiter = RateLimiter(600, lambda: now)
    # Ten seconds of 600 per minute.
    assert [limiter.take("a") for _ in range(100)] == [0.0] * 100
    assert limiter.take("a") == pytest.approx(0.1) and limiter.take("b") == 0
    now += 0.1
    assert limiter.take("a") == pytest.approx(0, abs=1e-9)
    assert limiter.take("a") > 0
    slow = RateLimiter(1, lambda: now)
    assert [slow.take("a") for _ in range(10)] == [0.0] * 10
    assert slow.take("a") == pytest.approx(60)


def test_the_memory_of_a_limit_is_bounded() -> None:
    now = 0.0
    limiter = RateLimiter(1, lambda: now)
    for number in range(25_000):
        limiter.take("busy")
        limiter.take(f"client {number}")
    assert len(limiter._buckets) == 10_000
    assert limiter.take("busy") > 0  # It has asked all the time, and is not forgotten.


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("x" * 9000, "x" * 64),
        ("", ""),
    ],
)
def test_an_ipv6_network_is_one_client(address: str, client: str) -> None:
    assert network_of(address) == client


def test_wrong_keys_count_towards_the_limit_of_their_address(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys", f"alice {FIRST}\n")
    access = Access(AccessSettings(api_key_file=file, rate_limit=1))
    statuses = []
    for _ in range(12):
        with pytest.raises(ApiError) as raised:
            access.check_key({"x-api-key": "guess"}, "203.0.113.7")
        statuses.append(raised.value.status)
    assert statuses == [401] * 10 + [429] * 2
    # A right key is not kept out by what others guess from its address.
    assert access.check_key({"x-api-key": FIRST}, "203.0.113.7") == "alice"


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none(limit: float) -> None:
    with pytest.raises(ConfigError, match="--rate-limit is .*; it must be above 0"):
        AccessSettings(rate_limit=limit)


@pytest.mark.parametrize(
    ("host", "reached"),
    [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True), ("10.0.0.5", True)],
)
def test_which_addresses_others_reach(host: str, reached: bool) -> None:
    assert is_reached_by_others(host) == reached


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "Set --api-key-file FILE to ask them for a key, or --open-to-all"),
        (["--api-key-file", "gone"], "The API keys gone cannot be read"),
        (["--api-key-file", "gone", "--open-to-all"], "exclude each other"),
        (["--rate-limit", "0"], "--rate-limit is 0.0; it must be above 0"),
        (["--tls-cert", "gone"], "--tls-key is missing"),
        (["--tls-key", "gone"], "--tls-cert is missing"),
        (["--tls-cert", "gone", "--tls-key", "gone"], "gone cannot be read: No such file"),
    ],
)
def test_wrong_usage(call_job: RunJob, args: list[str], message: str) -> None:
    done = call_job("serve", "--onnx", "any.onnx", *args)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def make_certificate(
    folder: Path,
    name: str,
    days: tuple[int, int] = (-1, 1),
    passphrase: bytes = b"",
    curve: ec.EllipticCurve | None = None,
) -> TlsSettings:
    """Makes a key, and a certificate for localhost that is valid from one day on to another."""
    private = ec.generate_private_key(curve or ec.SECP256R1())
    own_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    first, last = (datetime.now(UTC) + timedelta(days=day) for day in days)
    signed = (
        x509.CertificateBuilder(own_name, own_name, private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    encryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    pair = TlsSettings(tls_cert=folder / f"{name}.crt", tls_key=folder / f"{name}.key")
    assert pair.tls_cert and pair.tls_key
    pair.tls_cert.write_bytes(signed.public_bytes(pem))
    pair.tls_key.write_bytes(private.private_bytes(pem, form, encryption))
    return pair


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    good = make_certificate(tmp_path, "good")
    assert tls_context(good) is not None and tls_context(TlsSettings()) is None
    other = make_certificate(tmp_path, "other")
    assert good.tls_cert and other.tls_key
    with pytest.raises(ConfigError, match=r"other.key is not that of the certificate .*good.crt"):
        tls_context(TlsSettings(tls_cert=good.tls_cert, tls_key=other.tls_key))
    with pytest.raises(ConfigError, match="Both must be in PEM"):
        (tmp_path / "text").write_text("no certificate")
        tls_context(TlsSettings(tls_cert=tmp_path / "text", tls_key=good.tls_key))
    with pytest.raises(ConfigError, match=r"locked.key has a passphrase"):
        tls_context(make_certificate(tmp_path, "locked", passphrase=b"secret"))
    with pytest.raises(ConfigError, match=r"expired.crt has expired; renew it"):
        tls_context(make_certificate(tmp_path, "expired", (-9, -2)))
    with pytest.raises(ConfigError, match=r"early.crt is not valid yet"):
        tls_context(make_certificate(tmp_path, "early", (2, 9)))
    with pytest.raises(ConfigError, match=r"No client can connect with .*odd.crt .*P-256"):
        tls_context(make_certificate(tmp_path, "odd", curve=ec.BrainpoolP256R1()))


def request(
    server: Server, method: str, path: str, body: bytes = b"", key: str = "", origin: str = ""
) -> tuple[int, dict[str, str], bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return server.request(method, path, body, **headers, **({"Origin": origin} if origin else {}))


def test_a_server_with_keys(linear: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "model").mkdir(parents=True)
    (page / "index.html").write_text("page")
    (page / "model" / "model.onnx").write_bytes(b"weights")
    (page / "model" / "other.onnx").write_bytes(b"weights")
    keys = write_keys(tmp_path / "keys", f"alice {FIRST}\nbob {SECOND}\n")
    args = ["--onnx", linear, "--page", page, "--api-key-file", keys, "--host", "0.0.0.0"]
    with served(tmp_path, *args, "--rate-limit", 6) as server:
        for path in ("/", "/health", "/health/ready", "/docs", "/openapi.json"):
            assert request(server, "GET", path)[0] == 200, path
        hidden = ["/model", "/model/model.onnx", "/model/model.json", "/model/other.onnx"]
        hidden += [
            "/metrics",
            "/x/../model/other.onnx",
            "//model/other.onnx",
            "/model/./other.onnx",
        ]
        for path in hidden:
            status, headers, body = request(server, "GET", path)
            assert status == 401 and headers["www-authenticate"] == "Bearer", path
            assert json.loads(body)["error"]["problem"] == "unauthorised" and b"weights" not in body
        for expected in (401, 401, 429):
            assert request(server, "POST", "/predict", JPEG, key=THIRD)[0] == expected
        # The address has used up its burst by guessing; what has a right key still counts.
        preflight = request(server, "OPTIONS", "/predict", origin="http://elsewhere")
        assert preflight[0] == 204
        assert "authorization" in preflight[1]["access-control-allow-headers"].lower()
        statuses = [request(server, "POST", "/predict", JPEG, key=FIRST)[0] for _ in range(14)]
        assert statuses[:10] == [200] * 10 and 429 in statuses
        status, headers, body = request(server, "POST", "/predict", JPEG, key=FIRST)
        assert status == 429 and 1 <= int(headers["retry-after"]) <= 10
        assert json.loads(body)["error"]["problem"] == "rate-limited"
        assert request(server, "POST", "/predict", JPEG, key=SECOND)[0] == 200
        # What watches the server is never limited.
        for _ in range(15):
            assert request(server, "GET", "/metrics", key=FIRST)[0] == 200
        write_keys(keys, f"carol {THIRD}\n")
        assert request(server, "POST", "/predict", JPEG, key=THIRD)[0] == 200
        assert request(server, "GET", "/metrics", key=FIRST)[0] in (401, 429)
        wait_for(lambda: " carol" in server.log.read_text())
        log = server.log.read_text()
        assert "POST /predict 200" in log and " alice" in log
        assert not any(secret in log for secret in (FIRST, SECOND, THIRD))


def test_a_proxy_on_this_machine_tells_whose_limit_counts(linear: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", linear, "--rate-limit", 1) as server:

        def predict(address: str) -> int:
            return server.request("POST", "/predict", JPEG, **{"X-Forwarded-For": address})[0]

        assert [predict("203.0.113.1") for _ in range(11)] == [200] * 10 + [429]
        assert predict("203.0.113.2") == 200


@contextlib.contextmanager
def encrypted(server: Server, certificate: Path) -> Iterator[http.client.HTTPSConnection]:
    context = ssl.create_default_context(cafile=certificate)
    connection = http.client.HTTPSConnection("localhost", server.port, timeout=60, context=context)
    with contextlib.closing(connection):
        yield connection


@pytest.mark.slow
def test_a_server_with_tls(linear: Path, tmp_path: Path) -> None:
    pair = make_certificate(tmp_path, "server")
    assert pair.tls_cert
    args = ["--onnx", linear, "--tls-cert", pair.tls_cert, "--tls-key", pair.tls_key]
    args += ["--header-timeout-s", 2, "--max-connections", 8, "--max-connections-per-address", 8]
    with served(tmp_path, *args, "--max-bytes", 2_000_000) as server:
        assert f"is served at https://127.0.0.1:{server.port}" in server.log.read_text()
        with encrypted(server, pair.tls_cert) as connection:
            for _ in range(3):  # On one connection.
                connection.request("POST", "/predict", JPEG)
                response = connection.getresponse()
                assert response.status == 200 and json.loads(response.read())["label"]
            connection.request("GET", "/model/model.onnx")
            assert connection.getresponse().read() == linear.read_bytes()
        with encrypted(server, pair.tls_cert) as connection:
            connection.request("POST", "/predict", bytes(2_000_001))
            assert connection.getresponse().status == 413
        # Silent and plain clients neither fill the server nor stay.
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            plain.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP" not in plain.recv(100)
        with encrypted(server, pair.tls_cert) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        start = time.monotonic()
        for client in silent:
            client.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            client.close()
        assert time.monotonic() - start < 10


@pytest.mark.slow
def test_what_was_accepted_over_tls_is_answered_at_the_end(linear: Path, tmp_path: Path) -> None:
    pair = make_certificate(tmp_path, "server")
    assert pair.tls_cert
    with (
        served(
            tmp_path, "--onnx", linear, "--tls-cert", pair.tls_cert, "--tls-key", pair.tls_key
        ) as server,
        encrypted(server, pair.tls_cert) as connection,
    ):
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(len(JPEG)))
        connection.endheaders(JPEG[:100])
        time.sleep(0.5)
        server.process.terminate()
        time.sleep(0.5)
        connection.send(JPEG[100:])
        response = connection.getresponse()
        assert response.status == 200 and response.getheader("Connection") == "close"
        assert json.loads(response.read())["label"]
        assert server.process.wait(timeout=30) == 130
