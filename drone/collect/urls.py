"""Parses and normalises URLs of files on the web."""

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from drone.collect.errors import FetchError

_HOST = re.compile(r"[a-z0-9._:-]+")


@dataclass(frozen=True, kw_only=True)
class ParsedUrl:
    """The parts of a URL that a request needs."""

    url: str
    host: str
    """Lower case, IDNA-encoded, without a trailing dot; an IPv6 address has no brackets."""

    port: int
    path: str
    """Path and query, percent-encoded."""

    tls: bool


def host_of(url: str) -> str:
    """Returns the host of a URL, by which requests are rate-limited; "" if the URL is invalid."""
    try:
        return parse_url(url).host
    except FetchError:
        return ""


def parse_url(url: str) -> ParsedUrl:
    """Parses an http or https URL.

    Raises:
        FetchError: The URL is invalid, has another scheme or contains a user name.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = (parts.hostname or "").rstrip(".").encode("idna").decode()
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]")
    except ValueError as error:
        raise FetchError("bad-url", f"The URL is invalid: {error}.") from error
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise FetchError("bad-url", "The URL is invalid: it must be http://HOST or https://HOST.")
    if "@" in parts.netloc:
        raise FetchError("bad-url", "The URL contains a user name, which is not supported.")
    tls = parts.scheme == "https"
    default_port = 443 if tls else 80
    return ParsedUrl(url=url.strip(), host=host, port=port or default_port, path=path, tls=tls)
