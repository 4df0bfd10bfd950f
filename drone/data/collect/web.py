"""One file from the web, bounded in time and in size."""

import contextlib
import email.utils
import http.client
import ssl
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin

from drone.data.collect.connection import Connection, Target, deadline, parse
from drone.data.collect.settings import FetchError, FetchSettings

_CHUNK_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY = (408, 429)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file as it came."""

    data: bytes
    final_url: str
    """Address after all redirects."""

    content_type: str
    """What the server says it is, which proves nothing."""


def fetch(url: str, settings: FetchSettings, pace: Callable[[str], None]) -> Fetched:
    """Gets one file, once.

    Args:
        url: http or https.
        settings: limits.
        pace: is called with the host before each request, and returns when it may be asked.

    Raises:
        FetchError: there is no such file, or a limit was passed.
    """
    for _ in range(settings.max_redirects + 1):
        target = parse(url)
        pace(target.host)
        answer = _exchange(target, settings)
        if isinstance(answer, Fetched):
            return answer
        url = answer
    raise FetchError("redirects", f"More than {settings.max_redirects} redirects.")


def _exchange(target: Target, settings: FetchSettings) -> Fetched | str:
    """The file, or the url of a redirect."""
    connection = Connection(target, settings)
    with deadline(connection, settings.timeout_s) as late:
        try:
            answer = _ask(connection, target, settings)
        except (FetchError, OSError, http.client.HTTPException) as error:
            if not late.is_set():
                raise _as_fetch_error(error, target.host) from error
        # The end of a body without a length and a connection that was cut look the same.
        if late.is_set():
            raise FetchError(
                "timeout",
                f"Not complete after {settings.timeout_s:g} s.",
                host=target.host,
                temporary=True,
            )
    return answer


def _ask(connection: Connection, target: Target, settings: FetchSettings) -> Fetched | str:
    headers = {
        "User-Agent": settings.user_agent,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    connection.request("GET", target.path, headers=headers)
    with contextlib.closing(connection.getresponse()) as response:
        return _answer(response, target, settings)


def _answer(
    response: http.client.HTTPResponse, target: Target, settings: FetchSettings
) -> Fetched | str:
    location = response.getheader("Location")
    if response.status in _REDIRECTS and location:
        # Headers are read as Latin-1, while servers that do not quote write UTF-8.
        return _joined(target, location.encode("latin-1").decode("utf-8", "replace"))
    if response.status != 200:
        raise _refusal(response, target.host)
    return Fetched(
        data=_body(response, settings.max_bytes),
        final_url=target.url,
        content_type=response.getheader("Content-Type", ""),
    )


def _joined(target: Target, location: str) -> str:
    try:
        return urljoin(target.url, location)
    except ValueError as error:
        raise FetchError("bad-url", f"A redirect to {location!r}.", host=target.host) from error


def _refusal(response: http.client.HTTPResponse, host: str) -> FetchError:
    return FetchError(
        f"http-{response.status}",
        f"{host} answered {response.status} {response.reason}".strip() + ".",
        host=host,
        temporary=response.status in _TEMPORARY or response.status >= 500,
        wait_s=_retry_after_s(response.getheader("Retry-After")),
    )


def _retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when_s = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):  # No date, or one that this machine's calendar lacks.
        return None
    return max(0.0, when_s - time.time())


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    too_large = FetchError("too-large", f"More than {max_bytes / 2**20:g} MiB.")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    unpacker = _unpacker(response.getheader("Content-Encoding", ""))
    data, came = bytearray(), 0
    try:
        # read1 returns after each piece that comes, read would wait for a whole chunk.
        while piece := response.read1(_CHUNK_BYTES):
            came += len(piece)
            left = max_bytes + 1 - len(data)
            data += unpacker.decompress(piece, left) if unpacker else piece
            if max(came, len(data)) > max_bytes:
                raise too_large
    except zlib.error as error:
        raise FetchError("encoding", f"It cannot be unpacked: {error}.") from error
    if response.length or (unpacker and not unpacker.eof):
        raise FetchError("truncated", "The connection ended before the file.", temporary=True)
    return bytes(data)


def _unpacker(encoding: str) -> "zlib._Decompress | None":
    """What unpacks a body; some servers pack although we ask them not to."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=47)  # 15 bits of window, gzip or zlib by the header.
    raise FetchError("encoding", f"Packed as {name[:40]!r}, which was not asked for.")


def _as_fetch_error(error: Exception, host: str) -> FetchError:
    if isinstance(error, FetchError):
        error.host = error.host or host
        return error
    if isinstance(error, http.client.IncompleteRead):
        return FetchError(
            "truncated", "The connection ended before the file.", host=host, temporary=True
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchError("certificate", f"{host}: {error.verify_message}.", host=host)
    if isinstance(error, TimeoutError):
        return FetchError("timeout", f"{host} does not answer.", host=host, temporary=True)
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        return FetchError("unreachable", f"{host}: {said}.", host=host, temporary=True)
    return FetchError("bad-answer", f"{host} does not speak HTTP: {error!r}.", host=host)
