"""Connection: one WebSocket, as its handler has it: gevent-websocket's interface and more.

Servers and channels use the :class:`~flask_sockets2.connection.lifecycle.Lifecycle` of a connection
instead, see :func:`lifecycle_of`.

Differences from gevent-websocket's ``WebSocket``: binary messages are ``bytes``, not ``bytearray``;
``send(None)`` on a closed connection does nothing, so that the loop ``while not ws.closed:
ws.send(ws.receive())`` ends quietly. Errors for attributes that it does not have, as ``stream``,
name what to use instead.
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
    """Return the lifecycle of a connection, for servers and channels."""
    return connection._lifecycle


class Connection:
    """One WebSocket, from the request for it to its end.

    :param lifecycle: made by the server; a handler need not know it.

    A route gives its handler the connection once it is accepted::

        @sockets.route("/echo")
        def echo(ws):
            for message in ws:
                ws.send(message)

    Anyone may send at any time, under gevent any greenlet of the thread, elsewhere any thread;
    one at a time may receive.
    """

    OPCODE_TEXT = TEXT
    OPCODE_BINARY = BINARY
    OPCODE_CLOSE = CLOSE
    OPCODE_PING = PING
    OPCODE_PONG = PONG

    __slots__ = ("__weakref__", "_conversing", "_driver", "_lifecycle", "closed", "handler")

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._driver: ProtocolDriver | None = None  # once it is accepted
        self._conversing = False  # its handler has received since it last subscribed
        #: Whether it has ended, as far as its handler is concerned: one that receives sees the
        #: messages that came before the end first.
        self.closed = False
        #: The server's handler of the request; false if there is none, or not any more.
        self.handler: Any = NO_HANDLER
        lifecycle.ws = self

    if not TYPE_CHECKING:  # for type checkers it has what is written here, and no more

        def __getattr__(self, name: str) -> NoReturn:
            """Name what to use in place of an attribute that another package has."""
            instead = f": {SUBSTITUTES[name]}" if name in SUBSTITUTES else ""
            raise AttributeError(f"a connection has no {name!r}{instead}", name=name, obj=self)

    @staticmethod
    def opened() -> list[Connection]:
        """All connections of this process that were accepted and have not ended."""
        return [lifecycle.ws for lifecycle in opened()]

    # -- the request -----------------------------------------------------------------------

    @property
    def environ(self) -> Mapping[str, Any]:
        """WSGI environ of the request; nothing but the path once its handler has ended."""
        return self._lifecycle.environ

    @property
    def limits(self) -> Limits:
        """The limits that its route or its application has set."""
        return self._lifecycle.limits

    @property
    def accepted(self) -> bool:
        """Whether the 101 response has been sent."""
        return self._lifecycle.driver is not None

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed to; before accept, the one that the route prefers."""
        return self._lifecycle.subprotocol

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the client offers, in its order of preference."""
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
        """The ``Sec-WebSocket-Protocol`` header field as it came; see :attr:`subprotocol`."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """The ``Sec-WebSocket-Version`` header field of the request."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def latency(self) -> float | None:
        """Seconds from the last ping of the keepalive to its pong, None before."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.latency

    @property
    def ping_interval(self) -> float | None:
        """Seconds, of the keepalive; None for none, and before accept."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.ping_interval

    @property
    def ping_timeout(self) -> float | None:
        """Seconds, of the keepalive; None for ever, and before accept."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.ping_timeout

    @property
    def logger(self) -> logging.Logger:
        """Where this package logs about connections."""
        return logger

    def check(self) -> None:
        """See whether the request can be accepted.

        :raises HandshakeError: when it cannot, with the HTTP status to answer with.
        """
        self._lifecycle.check()

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send the 101 response; does nothing where it was sent.

        :param subprotocol: one of :attr:`subprotocols`; by default the route's choice.
        :param headers: further header fields of the response.
        :raises HandshakeError: when the request is no valid handshake, the server stops or there
            are too many connections.
        :raises ValueError: when the subprotocol was not offered or a field cannot be sent.
        """
        self._driver = self._lifecycle.accept(subprotocol, headers)

    def _opened_driver(self) -> ProtocolDriver:
        """Accept it, unless that was done, and return its driver."""
        self.accept()
        assert self._driver is not None
        return self._driver

    # -- receiving -------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message.

        :param timeout: seconds to wait, None for as long as it takes.
        :returns: ``str`` for text, ``bytes`` for binary, None once the connection has ended.
        :raises TimeoutError: when none came in time; the connection goes on.
        :raises ConnectionClosed: when the end has been told already.
        :raises RuntimeError: when another greenlet or thread receives.
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
        """Send one message: to the kernel at once, or into the buffer for a slow peer.

        :param message: ``str``, or ``bytes``, ``bytearray`` or ``memoryview``; None is ignored once
            the connection has ended, and a TypeError before.
        :param binary: send it as binary; None: text for ``str``, binary for anything else.
        :raises ConnectionClosed: when the connection has ended, or there was no room in the buffer
            for ``send_timeout`` seconds, which ends it.
        :raises TypeError: when the message is neither text nor bytes.
        """
        driver = self._driver or self._opened_driver()
        if driver.state is not OPEN:
            if message is None:  # the last turn of: while not ws.closed: ws.send(ws.receive())
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
        """Send one frame of a given opcode (gevent-websocket's): text, binary, ping or pong.

        :raises ValueError: for another opcode.
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
        """Send a ping of at most 125 bytes; the peer's pong is not waited for."""
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
        """Send the client what is published to a channel, until the end or :meth:`unsubscribe`.

        It goes on when the handler returns, unless that has received since: then it has had a
        conversation, and ends it. Under our own handler and worker such a connection costs no
        greenlet. What the client sends then is thrown away.

        :param since: position that the client has seen everything up to, as a page or a message
            carried it; what came after it is sent first. ``"start"`` for all that the history
            holds, None for what comes from now on. It may come from the client: whatever it holds
            is either resumed at or a gap.
        :param envelope: send each message in a JSON object with its position, and tell of a gap;
            see ``fanout/encoding.py``.
        :param presence: tell who is there, joins and leaves; needs ``envelope``.
        :param identity: who this is, for others to be told; a name or an id.
        :param gap: text, bytes or JSON to send where messages were lost; in an envelope the event
            ``gap`` by default.
        :returns: a :class:`~flask_sockets2.Subscription` with ``position`` and ``gap``.
        :raises BrokerError: when the broker cannot be reached.
        :raises ConnectionClosed: when the connection has ended.
        :raises ValueError: for a name that is none, or where it is subscribed to already.
        """
        channels = self._channels()
        if not self.accepted:
            channels.check(channel)  # what is wrong becomes the response
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
        if driver.state is not OPEN:  # it has ended while the broker was asked
            raise self._lifecycle.closed_error()
        self._conversing = False
        return subscription

    def unsubscribe(self, channel: str) -> bool:
        """Send the client nothing more of a channel; False where it was not subscribed to."""
        return self._channels().unsubscribe(self._lifecycle, channel)

    def _channels(self) -> ChannelService:
        channels = self._lifecycle.channels
        if channels is None:
            raise RuntimeError("this connection has no channels: serve it by a route of Sockets")
        return channels

    @property
    def listening(self) -> bool:
        """Whether it is to outlive its handler: it is open and subscribes to a channel, and has
        not received since."""
        if not self.open or self._conversing:
            return False
        outlet = self._lifecycle.outlet
        return outlet is not None and bool(outlet.entries)

    # -- closing ---------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether it is accepted and its end has not begun."""
        return self._lifecycle.open

    @property
    def close_code(self) -> int | None:
        """Code that it ended with (RFC 6455 §7.1.5): what the peer sent, else what we sent, 1006
        without either; None before."""
        driver = self._lifecycle.driver
        return None if driver is None else driver.close_code

    @property
    def close_reason(self) -> str:
        """The reason to it, empty without one."""
        driver = self._lifecycle.driver
        return "" if driver is None else driver.close_reason

    def close(
        self,
        code: int = 1000,
        reason: str | bytes = "",
        *,
        message: str | bytes | None = None,
    ) -> None:
        """Start the closing handshake and return; does nothing where it has been started.

        :param code: 1000, or 4000 to 4999 for codes of the application's own.
        :param reason: at most 123 bytes of text.
        :param message: gevent-websocket's name of ``reason``.
        :raises ValueError: when a close frame cannot carry the code or the reason.
        """
        reason = message or reason
        if isinstance(reason, bytes | bytearray):
            reason = bytes(reason).decode()
        (self._driver or self._opened_driver()).close(code, reason)
        self.closed = True

    def fail(self, code: int, reason: str = "") -> None:
        """Send a close frame and end, without waiting for the peer's (RFC 6455 §7.1.7)."""
        if (driver := self._lifecycle.driver) is not None:
            driver.fail(code, reason)

    def abort(self, reason: str = "") -> None:
        """Drop the connection at once, without a closing handshake.

        :param reason: why, for the log and for ``close_reason``.
        """
        if (driver := self._lifecycle.driver) is not None:
            driver.abort(reason)

    def wait_closed(self, timeout: float) -> None:
        """Wait until the connection is over, at most so many seconds."""
        if (driver := self._lifecycle.driver) is not None:
            driver.wait_closed(timeout)
