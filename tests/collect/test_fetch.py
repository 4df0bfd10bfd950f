"""Fetching single files: sizes, encodings, deadlines and redirects."""

import gzip
import socket
import struct
import threading
import time

from drone.collect.urls import host_of
from tests.collect.website import (
    QUICK,
    Exchange,
    Website,
    download_one,
    image_bytes,
    redirects,
    responds,
)


def test_files_that_are_not_images(site: Website) -> None:
    site.routes["/page.jpg"] = responds(b"<!doctype html><title>Sign in</title>")
    site.routes["/small.jpg"] = responds(image_bytes())
    site.routes["/empty.jpg"] = responds(b"")
    site.routes["/cut.jpg"] = lambda exchange: exchange.respond(
        image_bytes()[:-900], Content_Length=""
    )
    assert download_one(site.url("/page.jpg")).reason == "non-media"
    assert download_one(site.url("/small.jpg"), min_side_px=81).reason == "too-small"
    assert download_one(site.url("/small.jpg"), max_pixels=100).reason == "too-large"
    assert download_one(site.url("/empty.jpg")).reason == "empty"
    assert download_one(site.url("/cut.jpg")).reason == "undecodable"
    assert download_one(site.url("/none.jpg")).reason == "http-404"
    assert site.paths.count("/none.jpg") == 1, "a 404 is not retried"
    for url in ("ftp://example.org/a.jpg", "http:///a", "http://[", "http://u:p@example.org/", "a"):
        assert download_one(url).reason == "bad-url", url


def test_wrong_content_lengths(site: Website) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.respond(b"", Content_Length="")
        for _ in range(10_000):
            exchange.wfile.write(bytes(100_000))

    def endless_chunks(exchange: Exchange) -> None:
        exchange.protocol_version = "HTTP/1.1"
        exchange.respond(b"", Content_Length="", Transfer_Encoding="chunked")
        for _ in range(10_000):
            exchange.wfile.write(b"186a0\r\n" + bytes(100_000) + b"\r\n")

    site.routes["/endless"] = endless
    site.routes["/chunks"] = endless_chunks
    site.routes["/promised"] = lambda exchange: exchange.respond(b"", Content_Length=str(10**12))
    site.routes["/less"] = lambda exchange: exchange.respond(
        image_bytes() + bytes(10**6), Content_Length="9"
    )
    site.routes["/more"] = lambda exchange: exchange.respond(image_bytes(), Content_Length="100000")
    for path in ("/endless", "/chunks", "/promised"):
        outcome = download_one(site.url(path))
        assert (outcome.reason, outcome.data) == ("too-large", b""), path
    assert download_one(site.url("/less")).reason == "undecodable"
    assert download_one(site.url("/more"), num_retries=2).reason == "truncated"
    assert site.paths.count("/more") == 3


def test_compressed_bodies(site: Website) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < QUICK.max_bytes
    compressed = gzip.compress(image_bytes())
    site.routes["/bomb"] = responds(bomb, Content_Encoding="gzip")
    site.routes["/compressed"] = responds(compressed, Content_Encoding="gzip")
    site.routes["/half"] = responds(compressed[:-500], Content_Encoding="gzip")
    site.routes["/odd"] = responds(image_bytes(), Content_Encoding="br")
    site.routes["/not"] = responds(image_bytes(), Content_Encoding="deflate")
    assert download_one(site.url("/bomb")).reason == "too-large"
    assert download_one(site.url("/compressed")).data == image_bytes()
    assert download_one(site.url("/half"), num_retries=0).reason == "truncated"
    assert download_one(site.url("/odd")).reason == "encoding"
    assert download_one(site.url("/not")).reason == "encoding"


def test_a_slow_response_is_cut_off_at_the_deadline(site: Website) -> None:
    finished = threading.Event()

    def drip(exchange: Exchange) -> None:
        while not finished.wait(0.05):
            exchange.wfile.write(b"x")

    def drip_body(exchange: Exchange) -> None:
        exchange.respond(b"", Content_Length="")
        drip(exchange)

    site.routes["/headers"] = drip
    site.routes["/body"] = drip_body
    site.routes["/silent"] = lambda exchange: finished.wait(60) and None
    started = time.monotonic()
    for path in ("/headers", "/body"):
        assert download_one(site.url(path), timeout_s=0.5, num_retries=0).reason == "timeout"
    silent = download_one(site.url("/silent"), read_timeout_s=0.3, num_retries=1)
    assert silent.reason == "timeout"
    assert site.paths.count("/silent") == 2, "a timeout is retried"
    finished.set()
    assert time.monotonic() - started < 15, "far from the 60 s that the server would take"


def test_a_reset_connection_is_retried(site: Website) -> None:
    def resets(exchange: Exchange) -> None:
        if site.paths.count("/resets") == 2:
            exchange.respond(image_bytes())
            return
        exchange.respond(image_bytes()[:2000], Content_Length=str(len(image_bytes())))
        # Linger 0: a reset in the middle of the body, not an orderly end.
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    site.routes["/resets"] = resets
    assert download_one(site.url("/resets")).data == image_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert download_one(f"http://127.0.0.1:{port}/", num_retries=1).reason == "unreachable"
    assert download_one(site.url("/", host="no-such-host.invalid")).reason == "unreachable"


def test_redirects(site: Website) -> None:
    site.routes["/1"] = redirects("/2")
    site.routes["/2"] = redirects(site.url("/3", host="localhost"))
    site.routes["/3"] = responds(image_bytes())
    site.routes["/loop"] = redirects("/loop")
    site.routes["/file"] = redirects("file:///etc/passwd")
    site.routes["/nowhere"] = redirects("http://[")
    assert download_one(site.url("/1")).final_url == site.url("/3", host="localhost")
    assert download_one(site.url("/1"), max_redirects=1).reason == "redirects"
    assert download_one(site.url("/loop"), max_redirects=4).reason == "redirects"
    assert site.paths.count("/loop") == 5
    assert download_one(site.url("/file")).reason == "bad-url"
    assert download_one(site.url("/nowhere")).reason == "bad-url"
    # A lone surrogate cannot be encoded; the JSON of a search may contain one.
    for path in ("/\ud800", "/?q=\ud800"):
        assert download_one(site.url(path)).reason == "bad-url" and host_of(site.url(path)) == ""
