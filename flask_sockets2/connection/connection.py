"""Connection: the ``ws`` of a handler, with gevent-websocket's interface and more.

Servers and channels use the :class:`~flask_sockets2.connection.lifecycle.Lifecycle` of a connection
instead, see :func:`lifecycle_of`.

Differences from gevent-websocket's ``WebSocket``: binary messages are ``bytes``, not ``bytearray``;
``send(None)`` on a closed connection does nothing, so that the loop ``while not ws.closed:
ws.send(ws.receive())`` ends quietly. If an attribute is missing, as ``stream`` is, the error names
the replacement.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from ..wire.frames import BINARY, CLOSE, PING, PONG, TEXT
from .driver import OPEN, ProtocolDriver
from .lifecycle import ChannelService, Lifecycle, opened
from .limits import Limits
from .substitutes import NO_HANDLER, SUBSTITUTES

if TYPE_CHECKING:
    from ..brokers.base import Position
    from ..fanout.fanout import Subscription

__all__ = ["Connection", "lifecycle_of"]

logger = logging.getLogger("flask_sockets2.connection")


def lifecycle_of(connection: Connection) -> Lifecycle:
    """Return the lifecycle of a connection, which servers and channels work with."""
    return connection._lifecycle


class Connection:
    """A WebSocket as the handler sees it: receive, send, subscribe to channels, close.

    :param lifecycle: internal state, made by the server; handlers do not need it.

    A route accepts the connection and passes it to its handler::

        @sockets.route("/echo")
        def echo(ws):
            for message in ws:
                ws.send(message)

    Any thread may send at any time; under gevent, any greenlet of the connection's thread.
    Only one of them at a time may receive.
    """

    OPCODE_TEXT = TEXT
    OPCODE_BINARY = BINARY
    OPCODE_CLOSE = CLOSE
    OPCODE_PING = PING
    OPCODE_PONG = PONG

    __slots__ = ("__weakref__", "_conversing", "_driver", "_lifecycle", "closed", "handler")

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._driver: ProtocolDriver | None = None  # set by accept()
        self._conversing = False  # the handler has received since its last subscribe()
        #: True once the connection is closing or has ended. If unread messages are left, a handler
        #: that is receiving gets them first.
        self.closed = False
        #: The server's handler of the request; false if the server has none or has finished.
        self.handler: Any = NO_HANDLER
        lifecycle.ws = self

    if not TYPE_CHECKING:  # type checkers must report unknown attributes themselves

        def __getattr__(self, name: str) -> NoReturn:
            """Raise an error that names the replacement of another package's attribute."""
            instead = f": {SUBSTITUTES[name]}" if name in SUBSTITUTES else ""
            raise AttributeError(f"a connection has no {name!r}{instead}", name=name, obj=self)

    @staticmethod
    def opened() -> list[Connection]:
        """Return the connections of this process that are accepted and have not ended."""
        return [lifecycle.ws for lifecycle in opened()]

    # -- the request -----------------------------------------------------------------------

    @property
    def environ(self) -> Mapping[str, Any]:
        """WSGI environ of the request; reduced to the path when the handler has returned."""
        return self._lifecycle.environ

    @property
    def limits(self) -> Limits:
        """The limits of the connection, as the route or the application has set them."""
        return self._lifecycle.limits

    @property
    def accepted(self) -> bool:
        """Whether the 101 response has been sent."""
        return self._lifecycle.driver is not None

    @property
    def subprotocol(self) -> str | None:
        """The negotiated subprotocol; before the accept, the one that the route prefers."""
        return self._lifecycle.subprotocol

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client offers, in its order of preference."""
        return self._lifecycle.subprotocols

    @property
    def origin(self) -> str | None:
        """The ``Origin`` header field of the request."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def path(self) -> str | None:
        """The path of the request."""
        return self._lifecycle.path

    @property
    def protocol(self) -> str | None:
        """The raw ``Sec-WebSocket-Protocol`` header field; see :attr:`subprotocol`."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """The ``Sec-WebSocket-Version`` header field of the request."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def latency(self) -> float | None:
        """Seconds between the last keepalive ping and its pong; None before the first pong."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.latency

    @property
    def ping_interval(self) -> float | None:
        """Seconds between two keepalive pings; None if pings are off or before the accept."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.ping_interval

    @property
    def ping_timeout(self) -> float | None:
        """Seconds that the peer has to answer a ping; None for no limit or before the accept."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.ping_timeout

    @property
    def logger(self) -> logging.Logger:
        """The logger of all connections: ``flask_sockets2.connection``."""
        return logger

    def check(self) -> None:
        """Check that the request is a valid WebSocket handshake.

        :raises HandshakeError: if the request is not valid, with the HTTP status to answer with.
        """
        self._lifecycle.check()

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send the 101 response; does nothing if the connection is accepted already.

        :param subprotocol: one of :attr:`subprotocols`; by default the route's choice.
        :param headers: further header fields of the response.
        :raises HandshakeError: if the request is not a valid handshake, the server is shutting
            down or there are too many connections.
        :raises ValueError: if the client did not offer the subprotocol or a field cannot be sent.
        """
        self._driver = self._lifecycle.accept(subprotocol, headers)

    def _opened_driver(self) -> ProtocolDriver:
        """Accept the connection if needed and return its driver."""
        self.accept()
        assert self._driver is not None
        return self._driver

    # -- receiving -------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message of the client and return it.

        :param timeout: seconds to wait, None for no limit.
        :returns: ``str`` for text, ``bytes`` for binary, None once the connection has ended.
        :raises TimeoutError: if no message came in time; the connection stays open.
        :raises ConnectionClosed: if an earlier call has already returned None.
        :raises RuntimeError: if another greenlet or thread is receiving.
        """
        self._conversing = True
        driver = self._driver or self._opened_driver()
        message: str | bytes | None = driver.inbox.receive(timeout)
        if message is None:
            self._lifecycle.tell_end()
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages until the connection has ended."""
        return iter(self.receive, None)

    # -- sending ---------------------------------------------------------------------------

    def send(
        self,
        message: str | bytes | bytearray | memoryview | None,
        binary: bool | None = None,
    ) -> None:
        """Send one message; if the client is slow, the message waits in the send buffer.

        :param message: ``str``, or ``bytes``, ``bytearray`` or ``memoryview``; None is ignored once
            the connection has ended, and a TypeError before.
        :param binary: True for binary, False for text; None for text if ``str``, else binary.
        :raises ConnectionClosed: if the connection has ended, or if the buffer had no room for
            ``send_timeout`` seconds, which drops the connection.
        :raises TypeError: if the message is neither text nor bytes.
        """
        driver = self._driver or self._opened_driver()
        if driver.state is not OPEN:
            if message is None:  # the last round of: while not ws.closed: ws.send(ws.receive())
                return
            raise self._lifecycle.closed_error()
        transport = driver.transport
        if transport.buffered:
            self._wait_for_room(driver, message)
        frame = driver.encode(message, binary)
        transport.write(frame)
        size = len(frame)
        counters = driver.counters
        counters.messages_out += 1
        counters.bytes_out += size

    def _wait_for_room(self, driver: ProtocolDriver, message: Any) -> None:
        driver.wait_for_room(
            len(message) if isinstance(message, str | bytes | bytearray | memoryview) else 0
        )
        if driver.state is not OPEN:
            raise self._lifecycle.closed_error()

    def send_frame(self, message: str | bytes | bytearray | memoryview | None, opcode: int) -> None:
        """Send one frame, as in gevent-websocket: text, binary, ping or pong.

        :raises ValueError: if the opcode is another one.
        """
        if opcode in (TEXT, BINARY):
            self.send(message, binary=opcode == BINARY)
            return
        if opcode not in (PING, PONG):
            raise ValueError(
                f"cannot send a frame of opcode {opcode}; use send(), ping() or close()"
            )
        payload = message.encode() if isinstance(message, str) else bytes(message or b"")
        driver = self._driver or self._opened_driver()
        if driver.state is not OPEN:
            raise self._lifecycle.closed_error()
        if driver.transport.buffered:
            self._wait_for_room(driver, payload)
        make = driver.protocol.ping if opcode == PING else driver.protocol.pong_frame
        driver.transport.write(make(payload))

    def ping(self, payload: str | bytes | bytearray | memoryview = b"") -> None:
        """Send a ping of at most 125 bytes, without waiting for the pong."""
        self.send_frame(payload, PING)

    # -- channels --------------------------------------------------------------------------

    def subscribe(
        self,
        channel: str,
        since: Position | str | None = None,
        *,
        envelope: bool = False,
        presence: bool = False,
        identity: str | None = None,
        gap: Any = None,
    ) -> Subscription:
        """Subscribe the client to a channel: each message published there is sent to the client.

        The connection stays open when the handler returns, and discards what the client sends. If
        the handler has received since it subscribed, the connection closes instead. Under our own
        handler and worker, a connection without a handler uses no greenlet.

        :param since: last position that the client has, from a page or a message; later messages
            are replayed first. ``"start"`` replays the whole history; with None, nothing is
            replayed. The value may come from an untrusted client: a position that cannot be
            resumed is a gap.
        :param envelope: whether to send each message in a JSON object with its position, and to
            report gaps; see ``fanout/encoding.py``.
        :param presence: whether to send present identities, joins and leaves; needs ``envelope``.
        :param identity: name or id of this client that other subscribers see.
        :param gap: text, bytes or JSON to send if messages were lost; in an envelope, the event
            ``gap`` by default.
        :returns: a :class:`~flask_sockets2.Subscription` with ``position`` and ``gap``.
        :raises BrokerError: if the broker is unreachable.
        :raises ConnectionClosed: if the connection has ended.
        :raises ValueError: if the name is invalid or the client is subscribed already.
        """
        channels = self._channels()
        if not self.accepted:
            channels.check(channel)  # an error can still become the HTTP response
        driver = self._driver or self._opened_driver()
        if driver.state is not OPEN:
            raise self._lifecycle.closed_error()
        subscription = channels.subscribe(
            self._lifecycle,
            channel,
            since=since,
            envelope=envelope,
            presence=presence,
            identity=identity,
            gap=gap,
        )
        if driver.state is not OPEN:  # the connection ended while the broker was asked
            raise self._lifecycle.closed_error()
        self._conversing = False
        return subscription

    def unsubscribe(self, channel: str) -> bool:
        """End the subscription to a channel; False if the client was not subscribed."""
        return self._channels().unsubscribe(self._lifecycle, channel)

    def _channels(self) -> ChannelService:
        channels = self._lifecycle.channels
        if channels is None:
            raise RuntimeError("this connection has no channels: serve it by a route of Sockets")
        return channels

    @property
    def listening(self) -> bool:
        """Whether the connection stays open when the handler returns: it is subscribed to a
        channel, and the handler has not received since."""
        if not self.open or self._conversing:
            return False
        outlet = self._lifecycle.outlet
        return outlet is not None and bool(outlet.entries)

    # -- closing ---------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether the connection is accepted and has not begun to close."""
        return self._lifecycle.open

    @property
    def close_code(self) -> int | None:
        """Close code (RFC 6455 §7.1.5): the peer's, else ours, else 1006; None until the connection
        closes."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.close_code

    @property
    def close_reason(self) -> str:
        """Text that came with the close code, empty if there was none."""
        driver = self._lifecycle.driver
        return "" if driver is None else driver.close_reason

    def close(
        self,
        code: int = 1000,
        reason: str | bytes = "",
        *,
        message: str | bytes | None = None,
    ) -> None:
        """Start the closing handshake and return; does nothing if the connection is closing.

        :param code: 1000, or 4000 to 4999 for the application's own codes.
        :param reason: at most 123 bytes of text.
        :param message: gevent-websocket's name for ``reason``.
        :raises ValueError: if a close frame cannot carry the code or the reason.
        """
        reason = message or reason
        if isinstance(reason, bytes | bytearray):
            reason = bytes(reason).decode()
        (self._driver or self._opened_driver()).close(code, reason)
        self.closed = True

    def fail(self, code: int, reason: str = "") -> None:
        """Send a close frame and end without waiting for the peer's (RFC 6455 §7.1.7)."""
        if (driver := self._lifecycle.driver) is not None:
            driver.fail(code, reason)

    def abort(self, reason: str = "") -> None:
        """Drop the connection at once, without a closing handshake.

        :param reason: text for the log and for ``close_reason``.
        """
        if (driver := self._lifecycle.driver) is not None:
            driver.abort(reason)

    def wait_closed(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for the connection to end."""
        if (driver := self._lifecycle.driver) is not None:
            driver.wait_closed(timeout)
