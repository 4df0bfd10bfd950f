"""Downloads from hosts that fail, and the rate of requests."""

import socket
import time
from pathlib import Path

import pytest

from drone.collect.download import download
from drone.collect.rate_limiter import RateLimiter
from drone.collect.raw_folder import collect, download_sequentially
from tests.collect.website import (
    QUICK,
    Website,
    download_one,
    image_bytes,
    image_url,
    redirects,
    responds,
    settings_with,
)


def test_temporary_failures_are_retried(site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    site.first_fails("/busy", 429, image_bytes(), Retry_After="1")
    site.first_fails("/broken", 500, image_bytes())
    site.routes["/down"] = lambda exchange: exchange.respond(b"", 503)
    site.routes["/full"] = lambda exchange: exchange.respond(b"", 429, Retry_After="9999")
    assert download_one(site.url("/broken")).reason == ""
    started = time.monotonic()
    assert download_one(site.url("/busy")).reason == ""
    assert time.monotonic() - started >= 1.0, "not before Retry-After"
    assert download_one(site.url("/down"), num_retries=2).reason == "http-503"
    far_future = "Fri, 31 Dec 9999 23:59:59 -0000"
    site.routes["/odd"] = lambda exchange: exchange.respond(b"", 503, Retry_After=far_future)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-5")  # Local time is in the year 10000.
        time.tzset()
        assert download_one(site.url("/odd"), num_retries=0).reason == "http-503"
    time.tzset()
    assert site.paths.count("/down") == 3
    limiter = RateLimiter(1000)
    assert download(site.url("/full"), QUICK, limiter).reason == "http-429"
    # No further request until the Retry-After has passed.
    assert download(site.url("/broken"), QUICK, limiter).reason == "busy"
    assert site.paths.count("/full") == 1


def test_an_unresponsive_host_is_skipped(site: Website) -> None:
    """But not a host that redirects to unresponsive ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://localhost:{free.getsockname()[1]}/"
    settings = settings_with(max_host_failures=2, num_retries=0)

    def reasons(urls: list[str]) -> list[str]:
        outcomes = download_sequentially([image_url(url) for url in urls], settings)
        return [outcome.reason for _, outcome in outcomes]

    site.routes["/to-gone"] = redirects(gone)
    assert (
        reasons([f"{gone}{number}" for number in range(4)])
        == ["unreachable"] * 2 + ["host-down"] * 2
    )
    redirecting = [site.url(f"/to-gone?{number}") for number in range(4)]
    assert reasons(redirecting) == ["unreachable"] * 4


def test_requests_to_a_host_are_rate_limited(site: Website, tmp_path: Path) -> None:
    for number in range(4):
        site.routes[f"/{number}"] = responds(image_bytes(number))
    site.routes["/3"] = redirects("/0")  # A redirect counts as well.
    urls = [image_url(site.url(f"/{number}")) for number in range(4)]
    started = time.monotonic()
    list(collect(urls, tmp_path, settings_with(requests_per_s=8), download_sequentially))
    assert len(site.times) == 5
    for number, time_s in enumerate(site.times):
        assert time_s - started >= number / 8


def test_rate_limiter() -> None:
    now = [0.0]
    limiter = RateLimiter(2, clock=lambda: now[0])
    assert limiter.try_acquire("a") == 0
    assert limiter.try_acquire("a") == 0.5
    assert limiter.try_acquire("b") == 0, "hosts are independent"
    limiter.block("a", 3)
    now[0] = 1.0
    assert limiter.try_acquire("a") == 2.0
    limiter.block("a", 0.1)
    now[0] = 3.0
    assert limiter.try_acquire("a") == 0
