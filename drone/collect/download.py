"""Downloads images: rate limits, retries, and a check of what was received."""

import functools
import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drone.collect.errors import FetchError
from drone.collect.fetch import FetchedFile, fetch
from drone.collect.rate_limiter import Limiter
from drone.collect.settings import FetchSettings
from drone.collect.urls import host_of
from drone.errors import ImageError
from drone.serving.preprocess import Preprocessing, decode, open_header


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one URL: an image, or the reason why there is none."""

    data: bytes = b""
    """Content of the file; empty if the download failed."""

    md5: str = ""
    format: str = ""
    """Format of the content as Pillow names it, such as "JPEG"."""

    final_url: str = ""
    content_type: str = ""
    reason: str = ""
    """Short name of the reason for a failure; empty for an image."""

    detail: str = ""
    """The reason as a sentence."""

    unresponsive_host: str = ""
    """Host that did not respond, if that is the reason."""


_UNRESPONSIVE = ("unreachable", "timeout")


def download_host_queue(
    urls: Sequence[str], settings: FetchSettings, limiter: Limiter
) -> Iterator[Outcome]:
    """Downloads the URLs of one host, in order.

    A host that does not respond to several URLs in a row is skipped: the retries and timeouts of
    each further URL could take hours.

    Yields:
        One outcome per URL.
    """
    failures = 0
    for url in urls:
        if failures >= settings.max_host_failures:
            message = f"Skipped: the host did not respond to {failures} URLs in a row."
            yield Outcome(reason="host-down", detail=message)
            continue
        outcome = download(url, settings, limiter)
        # After a redirect it may be another host that does not respond.
        failures = failures + 1 if outcome.unresponsive_host == host_of(url) != "" else 0
        yield outcome


def download(url: str, settings: FetchSettings, limiter: Limiter) -> Outcome:
    """Downloads and checks one image. A failure becomes a reason in the outcome, not an error."""
    try:
        file = fetch_with_retries(url, settings, limiter)
    except FetchError as error:
        host = error.host if error.reason in _UNRESPONSIVE else ""
        return Outcome(reason=error.reason, detail=str(error), unresponsive_host=host)
    return _check_image(file, settings)


def fetch_with_retries(url: str, settings: FetchSettings, limiter: Limiter) -> FetchedFile:
    """Fetches one file, with retries after temporary failures.

    Args:
        url: http or https URL.
        settings: Number of retries, backoff, and the limits of each request.
        limiter: Limits the rate of requests; blocks a host for its Retry-After.

    Raises:
        FetchError: There is no such file, or every attempt failed.
    """
    wait_for_turn = functools.partial(_wait_for_turn, limiter=limiter, settings=settings)
    for attempt in range(settings.num_retries + 1):
        try:
            return fetch(url, settings, wait_for_turn)
        except FetchError as error:
            is_last = attempt == settings.num_retries
            if error.wait_s is not None:
                limiter.block(error.host, error.wait_s)
            if not error.temporary or is_last or (error.wait_s or 0) > settings.max_wait_s:
                raise
            limiter.block(error.host, _backoff_s(attempt, settings))
    raise AssertionError("the last attempt returns or raises")


def _backoff_s(attempt: int, settings: FetchSettings) -> float:
    max_backoff_s = min(settings.backoff_s * 2**attempt, settings.max_wait_s)
    # Jitter, so that hosts that failed together are not retried together.
    return float(max_backoff_s * random.uniform(0.5, 1.0))


def _wait_for_turn(host: str, limiter: Limiter, settings: FetchSettings) -> None:
    # At a low rate the regular interval may be longer than the longest wait.
    max_wait_s = max(settings.max_wait_s, 1 / settings.requests_per_s)
    while wait_s := limiter.try_acquire(host):
        if wait_s > max_wait_s:
            message = f"{host} asks clients to wait {wait_s:.0f} s. Retry later."
            raise FetchError("busy", message, host=host)
        time.sleep(wait_s)


def _check_image(file: FetchedFile, settings: FetchSettings) -> Outcome:
    limits = Preprocessing(
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        min_side_px=settings.min_side_px,
    )
    try:
        header = open_header(file.data, limits)
        # Without a Content-Length, only decoding shows that a file is truncated.
        decode(file.data, limits)
    except ImageError as error:
        return Outcome(
            final_url=file.final_url,
            content_type=file.content_type,
            reason=error.reason,
            detail=str(error),
        )
    return Outcome(
        data=file.data,
        md5=hashlib.md5(file.data, usedforsecurity=False).hexdigest(),
        format=header.format or "",
        final_url=file.final_url,
        content_type=file.content_type,
    )
