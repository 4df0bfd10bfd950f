"""Single files of a web that misbehaves: limits, redirects, retries, addresses and pace."""

import datetime
import gzip
import socket
import ssl
import struct
import threading
import time
from pathlib import Path

import pytest

from drone.data.collect.connection import host_of, is_public, tls_context
from drone.data.collect.download import RateLimiter, download
from drone.data.collect.raw_set import collect, download_here
from drone.data.collect.web import fetch
from tests.data.collect.website import (
    QUICK,
    Asked,
    Web,
    changed,
    gives,
    got,
    picture,
    redirects,
    wanted,
)


def test_files_that_are_no_pictures(web: Web) -> None:
    web.routes["/page.jpg"] = gives(b"<!doctype html><title>Sign in</title>")
    web.routes["/small.jpg"] = gives(picture())
    web.routes["/empty.jpg"] = gives(b"")
    web.routes["/cut.jpg"] = lambda asked: asked.answer(picture()[:-900], Content_Length="")
    assert got(web.url("/page.jpg")).reason == "non-media"
    assert got(web.url("/small.jpg"), min_side_px=81).reason == "too-small"
    assert got(web.url("/small.jpg"), max_pixels=100).reason == "too-large"
    assert got(web.url("/empty.jpg")).reason == "empty"
    assert got(web.url("/cut.jpg")).reason == "undecodable"
    assert got(web.url("/none.jpg")).reason == "http-404"
    assert web.paths.count("/none.jpg") == 1, "what is gone is not asked for again"
    for url in ("ftp://example.org/a.jpg", "http:///a", "http://[", "http://u:p@example.org/", "a"):
        assert got(url).reason == "bad-url", url


def test_sizes_that_lie(web: Web) -> None:
    def endless(asked: Asked) -> None:
        asked.answer(b"", Content_Length="")
        for _ in range(10_000):
            asked.wfile.write(bytes(100_000))

    def endless_chunks(asked: Asked) -> None:
        asked.protocol_version = "HTTP/1.1"
        asked.answer(b"", Content_Length="", Transfer_Encoding="chunked")
        for _ in range(10_000):
            asked.wfile.write(b"186a0\r\n" + bytes(100_000) + b"\r\n")

    web.routes["/endless"] = endless
    web.routes["/chunks"] = endless_chunks
    web.routes["/promised"] = lambda asked: asked.answer(b"", Content_Length=str(10**12))
    web.routes["/less"] = lambda asked: asked.answer(picture() + bytes(10**6), Content_Length="9")
    web.routes["/more"] = lambda asked: asked.answer(picture(), Content_Length="100000")
    for path in ("/endless", "/chunks", "/promised"):
        outcome = got(web.url(path))
        assert (outcome.reason, outcome.data) == ("too-large", b""), path
    assert got(web.url("/less")).reason == "undecodable"
    assert got(web.url("/more"), num_retries=2).reason == "truncated"
    assert web.paths.count("/more") == 3


def test_packed_bodies(web: Web) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < QUICK.max_bytes
    packed = gzip.compress(picture())
    web.routes["/bomb"] = gives(bomb, Content_Encoding="gzip")
    web.routes["/packed"] = gives(packed, Content_Encoding="gzip")
    web.routes["/half"] = gives(packed[:-500], Content_Encoding="gzip")
    web.routes["/odd"] = gives(picture(), Content_Encoding="br")
    web.routes["/not"] = gives(picture(), Content_Encoding="deflate")
    assert got(web.url("/bomb")).reason == "too-large"
    assert got(web.url("/packed")).data == picture()
    assert got(web.url("/half"), num_retries=0).reason == "truncated"
    assert got(web.url("/odd")).reason == "encoding"
    assert got(web.url("/not")).reason == "encoding"


def test_slow_drips_meet_the_deadline(web: Web) -> None:
    over = threading.Event()

    def drip(asked: Asked) -> None:
        while not over.wait(0.05):
            asked.wfile.write(b"x")

    def drip_body(asked: Asked) -> None:
        asked.answer(b"", Content_Length="")
        drip(asked)

    web.routes["/headers"] = drip
    web.routes["/body"] = drip_body
    web.routes["/silent"] = lambda asked: over.wait(60) and None
    started = time.monotonic()
    for path in ("/headers", "/body"):
        assert got(web.url(path), timeout_s=0.5, num_retries=0).reason == "timeout"
    silent = got(web.url("/silent"), read_timeout_s=0.3, num_retries=1)
    assert silent.reason == "timeout"
    assert web.paths.count("/silent") == 2, "a time-out is tried again"
    over.set()
    assert time.monotonic() - started < 15, "far from the 60 s that the server would take"


def test_a_connection_that_breaks(web: Web) -> None:
    def breaks(asked: Asked) -> None:
        if web.paths.count("/breaks") == 2:
            asked.answer(picture())
            return
        asked.answer(picture()[:2000], Content_Length=str(len(picture())))
        # Linger 0: a reset in the middle of the body, not an orderly end.
        asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    web.routes["/breaks"] = breaks
    assert got(web.url("/breaks")).data == picture()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert got(f"http://127.0.0.1:{port}/", num_retries=1).reason == "unreachable"
    assert got(web.url("/", host="no-such-host.invalid")).reason == "unreachable"


def test_a_host_that_is_gone_is_given_up(web: Web) -> None:
    """But not one whose redirects lead to hosts that are gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://localhost:{free.getsockname()[1]}/"
    settings = changed(max_silent=2, num_retries=0)

    def reasons(urls: list[str]) -> list[str]:
        found = download_here([wanted(url) for url in urls], settings)
        return [outcome.reason for _, outcome in found]

    web.routes["/to-gone"] = redirects(gone)
    assert (
        reasons([f"{gone}{number}" for number in range(4)])
        == ["unreachable"] * 2 + ["host-down"] * 2
    )
    through = [web.url(f"/to-gone?{number}") for number in range(4)]
    assert reasons(through) == ["unreachable"] * 4


def test_redirects(web: Web) -> None:
    web.routes["/1"] = redirects("/2")
    web.routes["/2"] = redirects(web.url("/3", host="localhost"))
    web.routes["/3"] = gives(picture())
    web.routes["/loop"] = redirects("/loop")
    web.routes["/file"] = redirects("file:///etc/passwd")
    web.routes["/nowhere"] = redirects("http://[")
    assert got(web.url("/1")).final_url == web.url("/3", host="localhost")
    assert got(web.url("/1"), max_redirects=1).reason == "redirects"
    assert got(web.url("/loop"), max_redirects=4).reason == "redirects"
    assert web.paths.count("/loop") == 5
    assert got(web.url("/file")).reason == "bad-url"
    assert got(web.url("/nowhere")).reason == "bad-url"
    # As a search's JSON may hold it: no text at all.
    for place in ("/\ud800", "/?q=\ud800"):
        assert got(web.url(place)).reason == "bad-url" and host_of(web.url(place)) == ""


def test_what_helps_is_tried_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.first_fails("/busy", 429, picture(), Retry_After="1")
    web.first_fails("/broken", 500, picture())
    web.routes["/down"] = lambda asked: asked.answer(b"", 503)
    web.routes["/full"] = lambda asked: asked.answer(b"", 429, Retry_After="9999")
    assert got(web.url("/broken")).reason == ""
    started = time.monotonic()
    assert got(web.url("/busy")).reason == ""
    assert time.monotonic() - started >= 1.0, "Retry-After is a promise"
    assert got(web.url("/down"), num_retries=2).reason == "http-503"
    odd = "Fri, 31 Dec 9999 23:59:59 -0000"
    web.routes["/odd"] = lambda asked: asked.answer(b"", 503, Retry_After=odd)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-5")  # The local time there is one of the year 10000.
        time.tzset()
        assert got(web.url("/odd"), num_retries=0).reason == "http-503"
    time.tzset()
    assert web.paths.count("/down") == 3
    limiter = RateLimiter(1000)
    assert download(web.url("/full"), QUICK, limiter).reason == "http-429"
    # The host said for how long: nobody asks it again before that.
    assert download(web.url("/broken"), QUICK, limiter).reason == "busy"
    assert web.paths.count("/full") == 1


PRIVATE = (
    "127.0.0.1",
    "localhost",
    "[::1]",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "2130706433",
    "0x7f.1",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[fe80::1]",
    "[fd00::1]",
    "[ff02::1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
)


def test_private_addresses_are_refused(web: Web) -> None:
    web.routes["/a.jpg"] = gives(picture())
    for host in PRIVATE:
        outcome = got(web.url("/a.jpg", host=host), allow_private=False)
        assert outcome.reason == "private-address", (host, outcome)
    assert web.paths == []
    assert is_public("8.8.8.8") and is_public("2606:4700::1111") and is_public("::ffff:8.8.8.8")


def test_names_are_resolved_once_and_checked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a redirect leads, also when a name changes its address, also past a proxy."""
    web.routes["/to-private"] = redirects("http://10.0.0.1/secret")
    web.routes["/a.jpg"] = gives(picture())
    monkeypatch.setenv("http_proxy", web.url("/proxy"))
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, port: int, *rest: object, **more: int) -> list[tuple[object, ...]]:
        """Public at the first look, loopback ever after."""
        asked.append(host)
        return real("192.0.2.1" if len(asked) == 1 else "127.0.0.1", port, **more)

    def public(address: str) -> bool:
        return address in ("127.0.0.1", "192.0.2.1")

    # As if loopback were public, so that the redirect's target alone is refused.
    monkeypatch.setattr("drone.data.collect.connection.is_public", public)
    outcome = got(web.url("/to-private"), allow_private=False)
    assert (outcome.reason, "10.0.0.1" in outcome.detail) == ("private-address", True)
    monkeypatch.setattr("socket.getaddrinfo", rebinding)
    places: list[object] = []
    monkeypatch.setattr("socket.socket.connect", lambda _, place: places.append(place) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(web.url("/a.jpg", host="name.test"), changed(allow_private=False), lambda _: None)
    assert places == [("192.0.2.1", web.port)], "connected to what was checked"
    assert asked == ["name.test"], "and looked up once"
    assert "/proxy" not in web.paths


def certificate_of(name: str, folder: Path) -> Path:
    """A file with a certificate that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    about = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(about, about, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(kind, form, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(kind) + secret)
    return file


def test_certificates_are_of_the_name_and_not_of_the_address(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate_of("pictures.test", tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    named: list[str] = []
    context.set_servername_callback(lambda _, name, __: named.append(name))
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    web.routes["/a"] = gives(picture())
    real = socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda _, *rest, **more: real("localhost", *rest, **more)
    )
    url = f"https://pictures.test:{web.port}/a"
    assert got(url, num_retries=0).reason == "certificate", "nobody vouches for it"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    tls_context.cache_clear()
    assert got(url).data == picture()
    assert named[-1] == "pictures.test"
    assert web.hosts == [f"pictures.test:{web.port}"]
    assert got(url.replace("pictures", "other")).reason == "certificate"
    tls_context.cache_clear()


def test_one_host_is_asked_at_its_pace(web: Web, tmp_path: Path) -> None:
    for number in range(4):
        web.routes[f"/{number}"] = gives(picture(number))
    web.routes["/3"] = redirects("/0")  # Counts as well.
    urls = [wanted(web.url(f"/{number}")) for number in range(4)]
    started = time.monotonic()
    list(collect(urls, tmp_path, changed(per_host_per_s=8), download_here))
    assert len(web.times) == 5
    for number, when in enumerate(web.times):
        assert when - started >= number / 8

    now = [0.0]
    limiter = RateLimiter(2, clock=lambda: now[0])
    assert limiter.reserve("a") == 0
    assert limiter.reserve("a") == 0.5
    assert limiter.reserve("b") == 0, "hosts do not wait for each other"
    limiter.hold("a", 3)
    now[0] = 1.0
    assert limiter.reserve("a") == 2.0
    limiter.hold("a", 0.1)
    now[0] = 3.0
    assert limiter.reserve("a") == 0
