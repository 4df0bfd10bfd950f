"""The HTTP server: uvicorn, with the limits on connections that it lacks.

uvicorn has no deadline for a request's headers, for a body that nobody reads, or for a client that
does not read its response. It accepts connections until no file descriptor is left, and closes
those with unread data, whose clients see a reset instead of the response. A subclass of its
protocol adds the limits, because the protocol has the state that they depend on.

The protocol is the one on h11: it is present wherever uvicorn is, bounds incomplete headers, and
rejects a request with no Host header or with two. Parsing in Python costs little beside a
prediction.
"""

import asyncio
import http
import os
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from drone.errors import ConfigError
from drone.serving.api import ApiError, Response, request_id_of
from drone.serving.http import MAX_HEADER_BYTES, HttpApp, headers_too_large, overloaded
from drone.serving.memory import return_freed_memory

_LINGER_S = 2.0
"""Seconds that a closed connection is still read, until the client has read its response."""

_MAX_DISCARDED_BYTES = 2**26
"""Bytes of a refused body that are read and dropped, so that the client can read its response."""

_IDLE_DRAIN_S = 1.0
"""Seconds that a connection in use before may send a further request during the drain."""

_MAX_CLOSING = 32
"""Closed connections that are still read, for all addresses; beyond it the oldest is reset."""

_SWEEP_S = 0.25
"""Interval between two checks of all deadlines."""

_TRIM_S = 10.0
"""Minimum time between two attempts to return memory."""

_BACKLOG = 1024
"""Connections that the kernel queues until they are accepted."""

_ACCEPTED_AT_ONCE = 32
"""Connections accepted in one turn of the event loop, before any of them can be refused."""

_RESERVED_DESCRIPTORS = 96
"""Descriptors for the model, the log, libraries, and connections that are being refused."""

_EXIT_MARGIN_S = 3.0
"""Seconds between the end of the drain and the end of the process, whatever its threads do."""

_INTERRUPTED = 130

_TLS_BUFFER_BYTES = 2**16
"""Bytes of a response that may wait to be encrypted."""


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Limits on the connections of the HTTP server."""

    max_connections: int = 512
    """Connections open at the same time; fewer where the limit on open files demands it. Beyond
    it, the longest idle connection is closed, or else the new one is answered 503."""

    max_connections_per_address: int | None = None
    """The same limit for each client address; by default half of all connections."""

    header_timeout_s: float = 10.0
    """Seconds within which the headers of a request must arrive, counted from the connection or
    from the previous response."""

    send_timeout_s: float = 30.0
    """Seconds without progress after which a client that does not read its response is
    disconnected."""

    drain_timeout_s: int = 30
    """Seconds that accepted requests may take after SIGTERM or Ctrl-C; then the process ends."""

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_connections_per_address", "drain_timeout_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        for name in ("header_timeout_s", "send_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")

    def allowed(self) -> tuple[int, int]:
        """Returns how many connections may be open: of all addresses, and of each."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each connection may have a file of the page open.
        fitting = max(2, (descriptors - _RESERVED_DESCRIPTORS) // 2)
        total = min(self.max_connections, fitting)
        return total, min(total, self.max_connections_per_address or max(1, total // 2))


class _Transport:
    """A transport that sends all of a response, and reads on, before it closes.

    Closing a socket with unread data resets the connection, and the client loses what it has not
    read yet: the response that says why its body was refused.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.closed_at: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.closed_at is not None or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if not self.is_closing():
            self.closed_at = asyncio.get_running_loop().time()
            # TLS cannot close one direction: its clients read the length, and close.
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._transport.resume_reading()


class LimitedProtocol(H11Protocol):
    """A connection with deadlines, which is refused where there are too many."""

    transport: _Transport  # type: ignore[assignment]

    def __init__(self, *, app: HttpApp, settings: ConnectionSettings, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._http_app = app
        self._settings = settings
        self._waiting_since = self.loop.time()
        self._wait_s = settings.header_timeout_s
        self._unsent, self._unsent_since = 0, 0.0
        self._discarded = 0
        self.raw_transport: asyncio.Transport | None = None
        """Transport below TLS, which has what is encrypted and not sent."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress: none has come yet, or the last one is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_closing(self) -> bool:
        """Whether the last response is on its way, or the client has gone."""
        return self.transport.is_closing()

    @property
    def address(self) -> str:
        """The client's IP address."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Registers the connection, in place of an idle one if there are too many."""
        super().connection_made(cast(asyncio.Transport, _Transport(transport)))
        connections = cast("set[LimitedProtocol]", self.connections)
        closing = [other for other in connections if other.is_closing]
        if len(closing) > _MAX_CLOSING:
            _longest_idle(closing).transport.abort()
        serving = [other for other in connections if not other.is_closing]
        own = [other for other in serving if other.address == self.address]
        total, per_address = self._settings.allowed()
        if len(own) > per_address:
            self._make_room(own)
        elif len(serving) > total:
            self._make_room(serving)

    def _make_room(self, connections: Sequence["LimitedProtocol"]) -> None:
        idle = [other for other in connections if other.is_idle and other is not self]
        if idle:
            _longest_idle(idle).transport.abort()
        else:
            self._refuse(overloaded(self._http_app.settings.retry_after_s))

    def data_received(self, data: bytes) -> None:
        """Parses data in pieces, or drops the rest of a body whose request is answered."""
        if self.transport.is_closing() or (self.is_idle and self.conn.their_state is h11.SEND_BODY):
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED_BYTES:
                self.transport.abort()
        # In pieces, because h11 limits the length of headers only while they are incomplete.
        for start in range(0, len(data), MAX_HEADER_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + MAX_HEADER_BYTES])

    def on_response_complete(self) -> None:
        """Starts the deadline of the next request."""
        self._waiting_since = self.loop.time()
        self._discarded = 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that cannot be parsed; h11's error says if its headers are too long."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            self._refuse(headers_too_large())
        else:
            self._refuse(ApiError(400, "bad-request", "The request is not valid HTTP/1.1."))

    def shutdown(self) -> None:
        """Begins the drain: a request in progress or on its way is answered, the last one here."""
        self._waiting_since = self.loop.time()
        if self.cycle is not None:
            self._wait_s = min(self._wait_s, _IDLE_DRAIN_S)
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def check_deadlines(self, now: float) -> None:
        """Closes the connection if its client has been too slow."""
        unsent = self.transport.get_write_buffer_size()
        if self.raw_transport is not None:
            unsent += self.raw_transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        if unsent:
            if now - self._unsent_since > self._settings.send_timeout_s:
                self.transport.abort()
        elif self.transport.closed_at is not None:
            if now - max(self.transport.closed_at, self._unsent_since) > _LINGER_S:
                self.transport.abort()
        elif self.is_idle and now - self._waiting_since > self._wait_s:
            self._time_out()

    def _time_out(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            message = (
                f"The headers did not arrive within {self._settings.header_timeout_s:g} seconds."
            )
            self._refuse(ApiError(408, "timeout", message))
        elif self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        else:
            self.transport.abort()  # Nothing was sent that could be lost.

    def _refuse(self, error: ApiError) -> None:
        """Answers outside of the app, and closes."""
        if self.is_idle or not self.cycle.response_started:
            self._http_app.metrics.observe_request("connection", error.status)
            response = self._http_app.api.error_response(error, request_id_of({}))
            self.transport.write(_to_http(response))
        if not self.is_idle:
            # The app waits for a body that will not come.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


class _Handshake(asyncio.Protocol):
    """A TLS connection until the handshake is done; then a `LimitedProtocol` takes over.

    asyncio's own TLS servers show a connection only after its handshake, for which it may take a
    minute and which nothing else bounds.
    """

    def __init__(
        self,
        protocol: LimitedProtocol,
        tls: ssl.SSLContext,
        settings: ConnectionSettings,
        pending: "dict[_Handshake, asyncio.Task[None]]",
    ) -> None:
        """Creates the protocol.

        Args:
            protocol: Takes over.
            tls: Certificate and key.
            settings: Limits, which hold for handshakes and open connections together.
            pending: All connections whose handshake is not done, the oldest first.
        """
        self._protocol, self._tls, self._settings = protocol, tls, settings
        self._pending = pending
        self._early = b""
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the handshake, in place of the oldest one if there are too many."""
        self._raw = cast(asyncio.Transport, transport)
        self._raw.pause_reading()  # Until the handshake reads.
        peer = self._raw.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        self._make_room()
        self._pending[self] = asyncio.create_task(self._shake_hands())

    def _make_room(self) -> None:
        total, per_address = self._settings.allowed()
        connections = cast("set[LimitedProtocol]", self._protocol.connections)
        own = [other for other in self._pending if other.address == self.address]
        open_here = sum(other.address == self.address for other in connections)
        if own and len(own) + open_here >= per_address:
            own[0]._raw.abort()
        elif self._pending and len(self._pending) + len(connections) >= total:
            next(iter(self._pending))._raw.abort()

    async def _shake_hands(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            timeout_s = self._settings.header_timeout_s
            transport = await loop.start_tls(
                self._raw, self, self._tls, server_side=True, ssl_handshake_timeout=timeout_s
            )
        except OSError:  # The client speaks no TLS, refuses the certificate, is slow or has gone.
            self._raw.abort()
            return
        finally:
            del self._pending[self]
        if transport is None or self._is_lost:
            return
        # As without TLS: what a slow client has not read stays in memory.
        transport.set_write_buffer_limits(_TLS_BUFFER_BYTES)
        transport.set_protocol(self._protocol)
        self._protocol.raw_transport = self._raw
        self._protocol.connection_made(transport)
        if self._early:
            self._protocol.data_received(self._early)

    def data_received(self, data: bytes) -> None:
        """Keeps what came with the end of the handshake."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves nothing to take over."""
        self._is_lost = True


def _longest_idle(connections: Sequence[LimitedProtocol]) -> LimitedProtocol:
    return min(connections, key=lambda connection: connection._waiting_since)


class LimitedServer(uvicorn.Server):
    """Serves an app on sockets that listen already, until SIGTERM or Ctrl-C."""

    def __init__(
        self,
        app: HttpApp,
        settings: ConnectionSettings,
        on_started: Callable[[], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Creates the server.

        Args:
            app: Answers the requests.
            settings: Limits on connections.
            on_started: Called once requests are answered, and interrupts drain them.
            tls: Certificate and key; None does not encrypt.
        """
        self._handshakes: dict[_Handshake, asyncio.Task[None]] = {}

        def protocol(**of_uvicorn: Any) -> asyncio.Protocol:
            limited = LimitedProtocol(app=app, settings=settings, **of_uvicorn)
            return _Handshake(limited, tls, settings, self._handshakes) if tls else limited

        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", protocol),
            # The same everywhere, whatever else is installed; without WebSockets.
            loop="asyncio",
            ws="none",
            # A warning for each malformed request would let anyone fill the log.
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=_ACCEPTED_AT_ONCE,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=settings.drain_timeout_s,
        )
        super().__init__(config)
        app.metrics.watch(
            "connections", "Open connections.", lambda: len(self.server_state.connections)
        )
        self._app = app
        self._on_started = on_started
        exit_s = settings.drain_timeout_s + _EXIT_MARGIN_S
        # The thread of a decoder cannot be stopped, and the interpreter would wait for it.
        self._exit = threading.Timer(exit_s, os._exit, [_INTERRUPTED])
        self._exit.daemon = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers requests; those in progress or queued at the interrupt are answered too."""
        try:
            super().run(sockets)
        finally:
            if not self._app.is_busy:
                self._exit.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections and to check their deadlines."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)
        self._maintenance = asyncio.create_task(self._maintain())
        self._on_started()

    async def _maintain(self) -> None:
        """Checks deadlines, and returns memory whenever the server has become idle."""
        loop = asyncio.get_running_loop()
        num_trimmed, trimmed_at = 0, loop.time()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now, num_requests = loop.time(), self.server_state.total_requests
            for connection in list(cast("set[LimitedProtocol]", self.server_state.connections)):
                # Not called here: a defect that shows at one connection must not end this loop.
                loop.call_soon(connection.check_deadlines, now)
            is_due = now - trimmed_at > _TRIM_S and num_requests > num_trimmed
            if is_due and not self._app.is_busy:
                num_trimmed, trimmed_at = num_requests, now
                await asyncio.to_thread(return_freed_memory)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts what is queued and no more, and waits for the responses."""
        self._exit.start()
        self._app.is_draining = True
        headers = [*self.server_state.default_headers, CLOSE_HEADER]
        self.server_state.default_headers = headers
        # Closing a listening socket resets the connections in its queue, so nothing may run
        # between the last one that is accepted and the end of listening.
        queued = [client for listener in sockets or [] for client in _accept_queued(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for client in queued:
            await loop.connect_accepted_socket(self._protocol, client)
        if self._handshakes:
            await asyncio.wait(self._handshakes.values(), timeout=_IDLE_DRAIN_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        create: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = create(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_queued(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            client, _ = listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # The queue is empty, or no descriptor is left.
            return
        client.setblocking(False)
        yield client


def _to_http(response: Response) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    lines += [f"Content-Length: {len(response.body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + response.body
