"""Fetches one file from the web, within limits of time and size.

Built on `http.client`; docs/log.md compares it with urllib3.
"""

import contextlib
import email.utils
import http.client
import ssl
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin

from drone.collect.connection import PinnedConnection, deadline
from drone.collect.errors import FetchError
from drone.collect.settings import FetchSettings
from drone.collect.urls import ParsedUrl, parse_url

_CHUNK_BYTES = 64 * 1024
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_TEMPORARY_STATUSES = (408, 429)


@dataclass(frozen=True, kw_only=True)
class FetchedFile:
    """A file as the server sent it, decompressed."""

    data: bytes
    final_url: str
    """URL after all redirects."""

    content_type: str
    """Content-Type header; the content may be something else."""


def fetch(url: str, settings: FetchSettings, wait_for_turn: Callable[[str], None]) -> FetchedFile:
    """Fetches one file without retries.

    Args:
        url: http or https URL.
        settings: Limits of time, size and redirects.
        wait_for_turn: Called with the host before each request, also after a redirect; returns
            when the request may be sent.

    Raises:
        FetchError: There is no such file, or a limit was exceeded.
    """
    for _ in range(settings.max_redirects + 1):
        target = parse_url(url)
        wait_for_turn(target.host)
        response = _request(target, settings)
        if isinstance(response, FetchedFile):
            return response
        url = response
    raise FetchError("redirects", f"More than {settings.max_redirects} redirects.")


def _request(target: ParsedUrl, settings: FetchSettings) -> FetchedFile | str:
    """Sends one request and returns the file, or the URL of a redirect."""
    connection = PinnedConnection(target, settings)
    with deadline(connection, settings.timeout_s) as expired:
        try:
            response = _send(connection, target, settings)
        except (FetchError, OSError, http.client.HTTPException) as error:
            if not expired.is_set():
                raise _as_fetch_error(error, target.host) from error
        # A body without a length ends like an aborted connection, so check before returning it.
        if expired.is_set():
            raise FetchError(
                "timeout",
                f"The request took more than {settings.timeout_s:g} s.",
                host=target.host,
                temporary=True,
            )
    return response


def _send(
    connection: PinnedConnection, target: ParsedUrl, settings: FetchSettings
) -> FetchedFile | str:
    headers = {
        "User-Agent": settings.user_agent,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    connection.request("GET", target.path, headers=headers)
    with contextlib.closing(connection.getresponse()) as response:
        return _read_response(response, target, settings)


def _read_response(
    response: http.client.HTTPResponse, target: ParsedUrl, settings: FetchSettings
) -> FetchedFile | str:
    location = response.getheader("Location")
    if response.status in _REDIRECT_STATUSES and location:
        # http.client decodes headers as Latin-1; servers that do not percent-encode send UTF-8.
        return _redirect_url(target, location.encode("latin-1").decode("utf-8", "replace"))
    if response.status != 200:
        raise _status_error(response, target.host)
    return FetchedFile(
        data=_read_body(response, settings.max_bytes),
        final_url=target.url,
        content_type=response.getheader("Content-Type", ""),
    )


def _redirect_url(target: ParsedUrl, location: str) -> str:
    try:
        return urljoin(target.url, location)
    except ValueError as error:
        message = f"The server redirects to the invalid URL {location!r}."
        raise FetchError("bad-url", message, host=target.host) from error


def _status_error(response: http.client.HTTPResponse, host: str) -> FetchError:
    return FetchError(
        f"http-{response.status}",
        f"{host} returned status {response.status} {response.reason}".strip() + ".",
        host=host,
        temporary=response.status in _TEMPORARY_STATUSES or response.status >= 500,
        wait_s=_parse_retry_after(response.getheader("Retry-After")),
    )


def _parse_retry_after(value: str | None) -> float | None:
    """Returns the seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        retry_at_s = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):  # Not a date, or one beyond this machine's calendar.
        return None
    return max(0.0, retry_at_s - time.time())


def _read_body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    too_large = FetchError("too-large", f"The file has more than {max_bytes / 2**20:g} MiB.")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    decompressor = _decompressor(response.getheader("Content-Encoding", ""))
    data, received_bytes = bytearray(), 0
    try:
        # read1 returns whatever has arrived; read would wait for a whole chunk.
        while chunk := response.read1(_CHUNK_BYTES):
            received_bytes += len(chunk)
            remaining_bytes = max_bytes + 1 - len(data)
            data += decompressor.decompress(chunk, remaining_bytes) if decompressor else chunk
            if max(received_bytes, len(data)) > max_bytes:
                raise too_large
    except zlib.error as error:
        raise FetchError("encoding", f"The file cannot be decompressed: {error}.") from error
    if response.length or (decompressor and not decompressor.eof):
        raise _truncated()
    return bytes(data)


def _decompressor(encoding: str) -> "zlib._Decompress | None":
    """Returns the decompressor of a Content-Encoding, or None if the body is not compressed."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    # Some servers compress although the request asks them not to.
    if name in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=47)  # 15 bits of window, gzip or zlib by the header.
    raise FetchError("encoding", f"The content encoding {name[:40]!r} is not supported.")


def _truncated(host: str = "") -> FetchError:
    message = "The connection was closed before the end of the file."
    return FetchError("truncated", message, host=host, temporary=True)


def _as_fetch_error(error: Exception, host: str) -> FetchError:
    if isinstance(error, FetchError):
        error.host = error.host or host
        return error
    if isinstance(error, http.client.IncompleteRead):
        return _truncated(host)
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchError("certificate", f"{host}: {error.verify_message}.", host=host)
    if isinstance(error, TimeoutError):
        return FetchError("timeout", f"{host} does not respond.", host=host, temporary=True)
    if isinstance(error, OSError):
        message = f"{host}: {error.strerror or error}."
        return FetchError("unreachable", message, host=host, temporary=True)
    message = f"{host} sent an invalid HTTP response: {error!r}."
    return FetchError("bad-answer", message, host=host)
