"""Connections to the open web, only to addresses that were checked, and with a deadline.

Urls in a table or an answer are written by strangers. So the address that was checked is the one
that is connected to, after each redirect anew, and no proxy of the environment stands between.
"""

import contextlib
import functools
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from drone.data.collect.settings import FetchError, FetchSettings

_MAX_ADDRESSES = 4
"""Addresses of one host that are tried."""

_HOST = re.compile(r"[a-z0-9._:-]+")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A url as it is asked for."""

    url: str
    host: str
    port: int
    path: str
    tls: bool


def host_of(url: str) -> str:
    """The host that a url names, as rates are counted; empty if it names none that is fetched."""
    try:
        return parse(url).host
    except FetchError:
        return ""


def parse(url: str) -> Target:
    """What to ask for.

    Raises:
        FetchError: it is no url of a file on the web.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = (parts.hostname or "").rstrip(".").encode("idna").decode()
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]")
    except ValueError as error:
        raise FetchError("bad-url", f"Not a url: {error}.") from error
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise FetchError("bad-url", "Not the url of a file on the web: http:// or https://.")
    if "@" in parts.netloc:
        raise FetchError("bad-url", "A url with a user name in it is not fetched.")
    tls = parts.scheme == "https"
    default = 443 if tls else 80
    return Target(url=url.strip(), host=host, port=port or default, path=path, tls=tls)


class Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, with the host's name in Host and in TLS."""

    def __init__(self, target: Target, settings: FetchSettings) -> None:
        super().__init__(target.host, target.port)
        self.default_port = 443 if target.tls else 80
        self._target = target
        self._settings = settings
        self._live: socket.socket | None = None
        self._is_cut = False

    def connect(self) -> None:
        """Connects; http.client calls it with the first request."""
        self.sock = self._live = _connected(self._target, self._settings)
        if self._is_cut:
            raise TimeoutError
        self.sock.settimeout(self._settings.read_timeout_s)
        if self._target.tls:
            self.sock = self._live = tls_context().wrap_socket(
                self.sock, server_hostname=self._target.host, do_handshake_on_connect=False
            )
            # Not within wrap_socket: the deadline needs the socket that shakes hands.
            self.sock.do_handshake()

    def cut(self) -> None:
        """Ends the connection from another thread; whoever reads sees its end."""
        self._is_cut = True
        if self._live is not None:
            with contextlib.suppress(OSError):
                # Past SSLSocket's own, which takes the cipher from under the reader.
                socket.socket.shutdown(self._live, socket.SHUT_RDWR)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """What certificates are held against: the system's list, and the one that requests brings."""
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)  # A bare machine has no list of its own.
    return context


@contextlib.contextmanager
def deadline(connection: Connection, seconds: float) -> Iterator[threading.Event]:
    """Cuts a connection that is not done in time; the event says that it did.

    Time-outs of a socket count from byte to byte, so that a slow drip never meets one.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        connection.cut()

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        connection.close()


def _connected(target: Target, settings: FetchSettings) -> socket.socket:
    """A socket to the first address of the host that answers.

    The name is resolved once: a second look-up might give another address than was checked.
    """
    failure: OSError = TimeoutError()
    for family, address in _addresses(target, allow_private=settings.allow_private):
        try:
            candidate = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # No IPv6 on this machine.
            failure = error
            continue
        try:
            candidate.settimeout(settings.connect_timeout_s)
            candidate.connect(address)
        except OSError as error:
            candidate.close()
            failure = error
        else:
            return candidate
    raise failure


def _addresses(target: Target, *, allow_private: bool) -> Sequence[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise FetchError(
            "unreachable",
            f"{target.host} is not found: {error.strerror}.",
            host=target.host,
            temporary=error.errno == socket.EAI_AGAIN,
        ) from error
    except UnicodeError as error:
        raise FetchError("bad-url", f"{target.host!r} is no host name.") from error
    for *_, address in found:
        if not allow_private and not is_public(str(address[0])):
            raise FetchError(
                "private-address",
                f"{target.host} is {address[0]}, not an address of the public internet "
                f"(--allow-private permits it).",
                host=target.host,
            )
    return [(family, address) for family, *_, address in found][:_MAX_ADDRESSES]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, and so does any IPv4 one inside it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
