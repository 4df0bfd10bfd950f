"""Connections to public addresses only, with a deadline for the whole request.

Anyone may have written a URL of a table or a search result, so it must not lead into a private
network. The name is resolved once and the connection goes to the very address that was checked,
after every redirect anew; proxies of the environment are not used.
"""

import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from drone.collect.errors import FetchError
from drone.collect.settings import FetchSettings
from drone.collect.urls import ParsedUrl

_MAX_ADDRESSES = 4
"""Maximum number of addresses of one host to try."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PinnedConnection(http.client.HTTPConnection):
    """An HTTP connection to a checked address; Host, SNI and the certificate use the host's name.

    Args:
        target: URL to connect to.
        settings: Timeouts, and whether private addresses are allowed.
    """

    def __init__(self, target: ParsedUrl, settings: FetchSettings) -> None:
        super().__init__(target.host, target.port)
        self.default_port = 443 if target.tls else 80
        self._target = target
        self._settings = settings
        self._open_socket: socket.socket | None = None
        self._is_aborted = False

    def connect(self) -> None:
        """Connects. `http.client` calls this with the first request."""
        self.sock = self._open_socket = _open_socket(self._target, self._settings)
        if self._is_aborted:
            raise TimeoutError
        self.sock.settimeout(self._settings.read_timeout_s)
        if self._target.tls:
            self.sock = self._open_socket = tls_context().wrap_socket(
                self.sock, server_hostname=self._target.host, do_handshake_on_connect=False
            )
            # Not within wrap_socket: `abort` needs the socket that does the handshake.
            self.sock.do_handshake()

    def abort(self) -> None:
        """Ends the connection from another thread; a blocked reader sees its end."""
        self._is_aborted = True
        if self._open_socket is not None:
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown would drop the cipher that the reader is still using.
                socket.socket.shutdown(self._open_socket, socket.SHUT_RDWR)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Returns a context that trusts the system's certificates and those of certifi."""
    context = ssl.create_default_context()
    # A minimal container has no certificates of its own.
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


@contextlib.contextmanager
def deadline(connection: PinnedConnection, timeout_s: float) -> Iterator[threading.Event]:
    """Closes a connection at the end of the block, and aborts it if that takes too long.

    A socket's timeout starts anew with every byte, so a slow drip of bytes never reaches it.

    Yields:
        Event that is set if the connection was aborted.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        connection.abort()

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        connection.close()


def _open_socket(target: ParsedUrl, settings: FetchSettings) -> socket.socket:
    """Returns a socket to the first address of the host that accepts a connection."""
    failure: OSError = TimeoutError()
    for family, address in _resolve(target, allow_private=settings.allow_private):
        try:
            candidate = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # This machine has no IPv6.
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


def _resolve(target: ParsedUrl, *, allow_private: bool) -> Sequence[tuple[int, tuple[object, ...]]]:
    """Returns the family and socket address of each address of the host, all of them checked."""
    try:
        addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise FetchError(
            "unreachable",
            f"Cannot resolve {target.host}: {error.strerror}.",
            host=target.host,
            temporary=error.errno == socket.EAI_AGAIN,
        ) from error
    except UnicodeError as error:
        raise FetchError("bad-url", f"{target.host!r} is not a valid host name.") from error
    for *_, address in addresses:
        if not allow_private and not is_public_address(str(address[0])):
            raise FetchError(
                "private-address",
                f"{target.host} resolves to {address[0]}, which is not a public address "
                f"(allow it with --allow-private).",
                host=target.host,
            )
    return [(family, address) for family, *_, address in addresses][:_MAX_ADDRESSES]


def is_public_address(address: str) -> bool:
    """Returns whether an IP address, and any IPv4 address embedded in it, is a public one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public_address(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
