"""Collecting from a web that misbehaves; a server on loopback plays it."""

import contextlib
import datetime
import gzip
import io
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.data.collect import provenance
from drone.data.collect.connection import host_of, is_public, tls_context
from drone.data.collect.download import Outcome, RateLimiter, download
from drone.data.collect.provenance import Record, Wanted
from drone.data.collect.raw_set import collect, download_here, plan, read_table, tally
from drone.data.collect.search import SearchSettings, asking, parse_queries, search
from drone.data.collect.settings import FetchError, FetchSettings
from drone.data.collect.web import fetch
from drone.data.scan import list_sources, scan_file
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.conftest import ROOT, RunJob

QUICK = FetchSettings(
    allow_private=True,
    per_host_per_s=1000,
    backoff_s=0.01,
    timeout_s=30,
    max_bytes=200_000,
)


def picture(seed: int = 0, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


class Asked(BaseHTTPRequestHandler):
    """One request to the web, as its routes see it."""

    web: "Web"

    def do_GET(self) -> None:
        self.web.times.append(time.monotonic())
        self.web.agents.append(self.headers.get("User-Agent", ""))
        self.web.hosts.append(self.headers.get("Host", ""))
        path = urlsplit(self.path).path
        self.web.paths.append(path)
        # The client may have had enough, which is what many tests are about.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.web.routes.get(path, not_found)(self)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes = b"", code: int = 200, **headers: str) -> None:
        """Headers as keywords, with an underscore for each hyphen."""
        headers = {"Content_Length": str(len(body)), "Content_Type": "image/jpeg"} | headers
        self.send_response(code)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


Route = Callable[[Asked], None]


def not_found(asked: Asked) -> None:
    asked.answer(b"gone", 404)


def gives(body: bytes, **headers: str) -> Route:
    return lambda asked: asked.answer(body, **headers)


def redirects(to: str) -> Route:
    return lambda asked: asked.answer(b"", 302, Location=to)


class Web:
    """The server, its routes and what it was asked."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.times: list[float] = []
        self.paths: list[str] = []
        self.agents: list[str] = []
        self.hosts: list[str] = []
        handler = type("Handler", (Asked,), {"web": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def first_fails(self, path: str, code: int, body: bytes, **headers: str) -> None:
        """The first request fails with a code, the next ones get the body."""

        def route(asked: Asked) -> None:
            if self.paths.count(path) == 1:
                asked.answer(b"", code, **headers)
            else:
                asked.answer(body)

        self.routes[path] = route


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()


def changed(**settings: object) -> FetchSettings:
    return FetchSettings(**{**vars(QUICK), **settings})


def got(url: str, **settings: object) -> Outcome:
    chosen = changed(**settings)
    return download(url, chosen, RateLimiter(chosen.per_host_per_s))


def wanted(url: str, class_name: str = CLASSES[0]) -> Wanted:
    return Wanted(url=url, class_name=class_name, source="test", licence="CC0")


def collected(urls: list[Wanted], out: Path) -> list[Record]:
    todo = plan(urls, provenance.standing(out)).todo
    return list(collect(todo, out, QUICK, download_here))


def test_a_picture_and_all_that_is_known_of_it(web: Web, tmp_path: Path) -> None:
    data = picture(kind="PNG")
    web.routes["/a b/ü.jpg"] = web.routes["/a%20b/%C3%BC.jpg"] = gives(data)
    web.routes["/short"] = redirects("/a%20b/%C3%BC.jpg")
    (record,) = collected([wanted(web.url("/short#part"))], tmp_path / "raw")
    assert (record.status, record.reason, record.format) == ("kept", "", "PNG")
    assert record.final_url == web.url("/a%20b/%C3%BC.jpg")
    assert record.path == f"Flying Birds/{record.md5[:16]}.png"
    assert (tmp_path / "raw" / record.path).read_bytes() == data
    assert (record.size_bytes, record.content_type) == (len(data), "image/jpeg")
    assert (record.source, record.licence) == ("test", "CC0")
    assert record.when.endswith("+00:00")
    assert web.agents[0].startswith("drone-collect/")
    assert got(web.url("/a b/ü.jpg"), contact="me@example.org").reason == ""
    assert "me@example.org" in web.agents[-1]


def test_equal_pictures_of_a_class_are_one_file(web: Web, tmp_path: Path) -> None:
    web.routes["/a"] = web.routes["/b"] = gives(picture())
    urls = [wanted(web.url(path)) for path in ("/a", "/b", "/a")]
    records = collected([*urls, wanted(web.url("/a"), CLASSES[1])], tmp_path)
    assert len(records) == 3
    assert sorted(path.suffix for path in tmp_path.rglob("*.jpg")) == [".jpg", ".jpg"]
    counts = tally(urls[:2], provenance.standing(tmp_path))
    assert (counts[CLASSES[0]].kept, counts[CLASSES[0]].pictures) == (2, 1)


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
    odd = "Mon, 01 Jan 0001 00:00:00 -0000"
    web.routes["/odd"] = lambda asked: asked.answer(b"", 503, Retry_After=odd)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")  # There, such a date is before the first year.
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


SLOW = """
import sys
from pathlib import Path
from drone.data.collect.raw_set import collect, download_here, plan, read_table
from drone.data.collect.settings import FetchSettings
settings = FetchSettings(allow_private=True, per_host_per_s=1000)
for record in collect(read_table(Path(sys.argv[1])), Path(sys.argv[2]), settings, download_here):
    print(record.url, flush=True)
"""


def write_table(file: Path, urls: list[Wanted]) -> Path:
    rows = [(one.url, one.class_name, one.source, one.licence) for one in urls]
    columns = ["url", "class", "source", "licence"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


def test_a_killed_run_goes_on(web: Web, tmp_path: Path) -> None:
    stuck, out = threading.Event(), tmp_path / "raw"

    def stalls(asked: Asked) -> None:
        asked.answer(picture(9)[:1000], Content_Length=str(len(picture(9))))
        stuck.wait(60)

    for number in range(3):
        web.routes[f"/{number}"] = gives(picture(number))
    web.routes["/9"] = stalls
    urls = [wanted(web.url(f"/{number}")) for number in (0, 1, 9, 2)]
    table = write_table(tmp_path / "urls.csv", urls)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(table), str(out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    assert [process.stdout.readline().strip().decode() for _ in range(2)] == [
        urls[0].url,
        urls[1].url,
    ]
    with pytest.raises(DataError, match="Another run collects"):
        collected(urls, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    stuck.set()
    assert len(list(out.rglob("*.jpg"))) == 2
    # As if it had been killed within a write, too.
    with (out / provenance.NAME).open("ab") as stream:
        stream.write(b'{"url": "http://exam')
    web.routes["/9"] = gives(picture(9))
    web.paths.clear()
    assert {record.url for record in collected(urls, out)} == {urls[2].url, urls[3].url}
    assert sorted(web.paths) == ["/2", "/9"]
    lines = (out / provenance.NAME).read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["kept"] * 4
    assert collected(urls, out) == []
    for file in out.rglob("*.jpg"):
        Image.open(file).load()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        collected([wanted("http://a.test/")], tmp_path / "file" / "raw")


def test_stopped_between_two_pictures(web: Web, tmp_path: Path) -> None:
    for number in range(2):
        web.routes[f"/{number}"] = gives(picture(number))
    urls = [wanted(web.url(f"/{number}")) for number in range(2)]

    def interrupted(todo, settings):  # type: ignore[no-untyped-def]
        yield next(iter(download_here(todo, settings)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(collect(urls, tmp_path, QUICK, interrupted))
    assert [record.status for record in provenance.standing(tmp_path).values()] == ["kept"]
    assert len(collected(urls, tmp_path)) == 1


def test_what_failed_is_tried_again_only_when_asked(web: Web, tmp_path: Path) -> None:
    urls = [wanted(web.url("/late"))]
    assert collected(urls, tmp_path)[0].reason == "http-404"
    web.routes["/late"] = gives(picture())
    assert collected(urls, tmp_path) == []
    again = plan(urls, provenance.standing(tmp_path), retry_failed=True)
    (record,) = collect(again.todo, tmp_path, QUICK, download_here)
    assert record.status == "kept"
    assert len((tmp_path / provenance.NAME).read_text().splitlines()) == 2
    counts = tally(urls, provenance.standing(tmp_path))[CLASSES[0]]
    assert (counts.wanted, counts.kept, counts.failed) == (1, 1, {})


def test_a_provenance_file_with_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / provenance.NAME).write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"provenance.jsonl, line 1 is no record"):
        provenance.standing(tmp_path)


def test_a_last_line_without_its_end_is_whole(web: Web, tmp_path: Path) -> None:
    """An editor may have taken the line break away."""
    web.routes["/a"] = web.routes["/b"] = gives(picture())
    collected([wanted(web.url("/a"))], tmp_path)
    file = tmp_path / provenance.NAME
    file.write_bytes(file.read_bytes().rstrip())
    collected([wanted(web.url("/b"))], tmp_path)
    assert len(provenance.standing(tmp_path)) == 2


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "urls.csv"
    file.write_text(
        "\ufeffURL,Class,source,license,Landing page\n"
        'http://a/1,flying_birds,"me, myself",CC0,http://a\n'
        "\n"
        "http://a/2,winged drone,me,,\n",
        "utf-8",
    )
    first, second = read_table(file)
    assert (first.class_name, first.source, first.licence) == ("Flying Birds", "me, myself", "CC0")
    assert (first.landing_page, second.class_name) == ("http://a", "Winged Drones")
    pd.read_csv(file, encoding="utf-8-sig").to_parquet(tmp_path / "urls.parquet")
    assert read_table(tmp_path / "urls.parquet") == [first, second]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url,class,source\nu,c,s\n", "no column licence. It has: url, class, source"),
        ("", "no column url, class, source, licence. It has: none"),
        ("url,class,source,licence\n", "has no row"),
        ("url,class,source,licence\na,Flying Birds,s,l\n,Flying Birds,s,l\n", "line 3: the url is"),
        ("url,class,source,licence\na,Winged Dron,s,l\n", "line 2: 'Winged Dron' is no class. Did"),
        ("url,class,source,licence\na\n", "line 2: '' is no class. Classes: Flying Birds"),
    ],
)
def test_tables_that_are_no_use(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "urls.csv"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_table(file)
    assert said in str(caught.value) and "urls.csv" in str(caught.value)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("no.csv", None), ("b.csv", b"\xff\xfe\x00"), ("c.parquet", b"text")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_table(tmp_path / name)


def openverse_page(web: Web, asked: Asked) -> None:
    query = parse_qs(urlsplit(asked.path).query)
    page, words = int(query["page"][0]), query["q"][0]
    assert query["page_size"] == ["20"]
    if page == 3:
        asked.answer(b"{}", 401)
        return
    results = [
        {
            "url": web.url(f"/ov/{words}/{page}/{number}.jpg"),
            "license": "by-sa",
            "license_version": "2.0",
            "source": "flickr",
            "creator": "Ann",
            "attribution": "Bird by Ann",
            "foreign_landing_url": "https://flickr.test/1",
        }
        for number in range(3)
    ]
    results += [{"url": "http://a/none.jpg", "license": None}, {"url": "x", "filetype": "svg"}]
    asked.answer(json.dumps({"results": results, "page_count": 9}).encode())


def commons_page(web: Web, asked: Asked) -> None:
    query = parse_qs(urlsplit(asked.path).query)
    assert query["generator"] == ["search"] and query["gsrnamespace"] == ["6"]
    offset = int(query.get("gsroffset", ["0"])[0])

    def page(number: int, mime: str = "image/jpeg") -> dict:
        about = {
            "LicenseShortName": {"value": "CC BY 4.0"},
            "Artist": {"value": '<a href="//x">Bob &amp; Co</a>'},
        }
        image = {
            "url": web.url(f"/wm/{number}.jpg"),
            "descriptionurl": "https://commons.test/f",
            "mime": mime,
            "extmetadata": about,
        }
        return {"index": -number, "imageinfo": [image]}

    pages = [page(offset), page(offset + 1), page(7, "application/pdf"), {"index": 1}]
    answer: dict = {"query": {"pages": pages}}
    if offset < 4:
        answer["continue"] = {"gsroffset": offset + 2, "continue": "gsroffset||"}
    asked.answer(json.dumps(answer).encode())


@pytest.fixture
def searches(web: Web) -> SearchSettings:
    web.routes["/openverse/"] = lambda asked: openverse_page(web, asked)
    web.routes["/commons"] = lambda asked: commons_page(web, asked)
    return SearchSettings(
        per_class=10, openverse_url=web.url("/openverse/"), commons_url=web.url("/commons")
    )


def test_searches_page_on_and_share(web: Web, searches: SearchSettings) -> None:
    ask = asking(QUICK, RateLimiter(1000))
    queries = parse_queries(["winged_drones=glider"])
    found = search(queries, ["openverse", "commons"], searches, ask)
    assert len(found.wanted) == 10 and found.notes == ()
    assert {one.class_name for one in found.wanted} == {"Winged Drones"}
    assert [one.source for one in found.wanted].count("commons") == 5
    ann = found.wanted[0]
    assert (ann.licence, ann.creator, ann.source) == ("CC BY-SA 2.0", "Ann", "openverse/flickr")
    assert (ann.attribution, ann.landing_page) == ("Bird by Ann", "https://flickr.test/1")
    bob = next(one for one in found.wanted if one.source == "commons")
    assert (bob.licence, bob.creator) == ("CC BY 4.0", "Bob & Co")
    # Openverse ends at the page that it refuses, Commons where it has no `continue`.
    more = SearchSettings(**{**vars(searches), "per_class": 50})
    found = search(queries, ["openverse", "commons"], more, ask)
    assert len(found.wanted) == 12
    assert found.notes == ("Winged Drones: 12 urls of 50 were found.",)


def test_a_search_that_is_down(web: Web, searches: SearchSettings) -> None:
    del web.routes["/commons"]
    ask = asking(QUICK, RateLimiter(1000))
    queries = parse_queries(["Flying Birds=gull"] * 3)
    found = search(queries, ["commons", "openverse"], searches, ask)
    assert {one.source for one in found.wanted} == {"openverse/flickr"}
    assert "commons failed and is left out" in found.notes[0]
    assert web.paths.count("/commons") == 1
    with pytest.raises(DataError, match="found no picture. commons failed.*404"):
        search(parse_queries([]), ["commons"], searches, ask)
    web.routes["/commons"] = gives(b"<html>")
    with pytest.raises(FetchError, match="no JSON object"):
        ask(searches.commons_url, {})


def test_wrong_words(call_job: RunJob, tmp_path: Path) -> None:
    def fails(code: int, said: str, *words: object) -> None:
        done = call_job("collect", "--out", "raw", *words)
        assert done.code == code, done.err
        assert said in " ".join((done.err + done.out).split()), done.err
        assert "Traceback" not in done.err

    fails(2, "--table FILE, or --search")
    fails(2, "--query needs --search", "--table", "t.csv", "--query", "a=b")
    fails(2, "CLASS=WORDS", "--search", "commons", "--query", "birds")
    fails(2, "Did you mean 'Flying Birds'?", "--search", "commons", "--query", "Flying Bats=bat")
    fails(2, "--per-host-per-s is 0.0", "--table", "t.csv", "--per-host-per-s", 0)
    fails(2, "--contact is", "--table", "t.csv", "--contact", "a\nb: c")
    fails(1, "t.csv cannot be read", "--table", "t.csv")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").touch()
    fails(1, "was not collected", "--table", "t.csv")
    with pytest.raises(ConfigError):
        SearchSettings(per_class=0)


def test_a_dry_run_shows_hosts_and_writes_nothing(call_job: RunJob, tmp_path: Path) -> None:
    urls = [wanted(f"http://{host}/{n}") for host in ("a.test", "b.test") for n in range(2)]
    table = write_table(tmp_path / "urls.csv", [*urls, wanted("http://A.test./x", CLASSES[3])])
    done = call_job("collect", "--out", "raw", "--table", table, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.result["hosts"] == {
        "a.test": {"Flying Birds": 2, "Winged Drones": 1},
        "b.test": {"Flying Birds": 2},
    }
    assert done.result["classes"]["Flying Birds"]["open"] == 4
    assert "a.test" in done.err
    assert not (tmp_path / "raw").exists()
    assert host_of("http://BÜCHER.example/a") == "xn--bcher-kva.example"


@pytest.mark.ray
def test_the_job(run_job: RunJob, web: Web, searches: SearchSettings, tmp_path: Path) -> None:
    """A table and a search, two hosts; what it leaves is what `prepare` takes."""
    for number in range(4):
        web.routes[f"/{number}"] = gives(picture(number))
    web.routes["/html"] = gives(b"<html>")
    web.routes["/here"] = redirects(web.url("/0"))
    for number in range(6):
        web.routes[f"/wm/{number}.jpg"] = gives(picture(20 + number))
    urls = [wanted(web.url(f"/{name}"), CLASSES[1]) for name in (0, 1, "html", "none")]
    urls += [wanted(web.url(f"/{name}", "localhost"), CLASSES[2]) for name in (2, 3, "here")]
    table = write_table(tmp_path / "urls.csv", urls)
    words = ["--out", "raw", "--table", table, "--json", "--allow-private", "--per-host-per-s", 20]
    words += ["--search", "commons", "--commons-url", searches.commons_url, "--per-class", 6]
    words += ["--query", "Flying Birds=gull", "Winged Drones=glider"]
    started = time.monotonic()
    done = run_job("collect", *words)
    assert done.code == 0, done.err
    classes = done.result["classes"]
    assert classes[CLASSES[1]] == {
        "wanted": 4,
        "kept": 2,
        "pictures": 2,
        "failed": {"non-media": 1, "http-404": 1},
        "open": 0,
    }
    assert [classes[name]["kept"] for name in CLASSES] == [6, 2, 3, 6]
    # Both workers came to 127.0.0.1, one of them through a redirect.
    of_127 = [when for when, path in zip(web.times, web.paths, strict=True) if path[1:] not in "23"]
    assert of_127[-1] - started >= (len(of_127) - 3) / 20
    listing = list_sources([tmp_path / "raw"])
    assert len(listing.sources) == 17 and listing.unknown_folders == ()
    assert not any(scan_file(one, Preprocessing()).problem for one in listing.sources)
    records = provenance.standing(tmp_path / "raw")
    assert len(records) == 19
    assert {record.licence for record in records.values()} == {"CC0", "CC BY 4.0"}
