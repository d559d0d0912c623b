"""Connection: one WebSocket, as its handler has it: gevent-websocket's interface and more.

States::

    CONNECTING ─ accept() ─> OPEN ─ close(), a close frame, a failure ─> CLOSING ─> CLOSED
         └─ refused with an HTTP response: the connection is never opened     ↑
                              OPEN ─ the peer vanishes ───────────────────────┘

From the accept on there is a link (``connection/driver.py``), which the hub or the selector thread
feeds whatever the handler does; a message goes straight to the greenlet or thread that waits in
:meth:`Connection.receive`, or into the link's inbox (``connection/inbox.py``).

Differences from gevent-websocket's ``WebSocket``: binary messages are ``bytes``, not ``bytearray``;
``send(None)`` on a closed connection does nothing, so that the loop ``while not ws.closed:
ws.send(ws.receive())`` ends quietly. Errors for attributes that it does not have, as ``stream``,
name what to use instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn
from typing import Protocol as Protocol_

from ..exceptions import ConnectionClosed, HandshakeError
from ..stats import RouteCounters
from ..transports.base import StreamTransport
from ..transports.budget import Budget
from ..wire.frames import BINARY, CLOSE, PING, PONG, TEXT
from ..wire.handshake import Upgrade, end_to_end, extended, parse_upgrade
from ..wire.protocol import Protocol
from .driver import CLOSED, OPEN, Link
from .limits import MAX_BUFFERED, Limits

if TYPE_CHECKING:
    from ..brokers.base import Position
    from ..fanout.fanout import Subscription

__all__ = ["NO_HANDLER", "Connection", "Take"]

logger = logging.getLogger("flask_sockets2.connection")

Take = Callable[[float], tuple[StreamTransport, bytes]]
"""Take the socket over: send_timeout -> transport, bytes that came behind the request's head."""

_LISTEN_STEP = 3600.0  # seconds; a wait that is meant to last for ever needs a number


class Channels(Protocol_):
    """Who subscribes connections to channels: the application's."""

    def check(self, channel: str) -> None:
        """Raise what :meth:`subscribe` would, as far as that is known before the accept."""

    def subscribe(
        self,
        connection: Connection,
        channel: str,
        *,
        since: Position | str | None,
        envelope: bool,
        presence: bool,
        identity: str | None,
        gap: Any,
    ) -> Subscription:
        """See :meth:`Connection.subscribe`."""

    def unsubscribe(self, connection: Connection, channel: str) -> bool:
        """See :meth:`Connection.unsubscribe`."""


class Outlet(Protocol_):
    """The way that messages of channels go out of a connection."""

    @property
    def entries(self) -> Collection[Any]:
        """What it subscribes to."""

    def remove(self) -> None:
        """It is closing: let nothing out any more."""

    def drained(self) -> None:
        """The transport keeps nothing back any more."""


class Keeper(Protocol_):
    """The server that a connection outlives its request in."""

    def forget(self, connection: Any) -> None:
        """It has ended."""


_uncounted = RouteCounters()
_budget = Budget(MAX_BUFFERED)  # of connections that no application of Flask's has
_opened: set[Connection] = set()  # those that are open or closing, in this process


def _begin_anew() -> None:
    """Leave the connections to the parent: a forked child must not close or count them."""
    global _budget
    _budget = Budget(MAX_BUFFERED)
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@lru_cache(maxsize=1024)
def _bare_environ(path: str | None) -> Mapping[str, Any]:
    """What a connection keeps of its environ once that is gone; one for all with the path."""
    return MappingProxyType({"PATH_INFO": path})


_CHANNEL = (
    "call ws.subscribe(channel) in the handler of each client, and sockets.publish(channel, data) "
    "to send to all of them"
)
_INSTEAD = {
    # of gevent-websocket
    "clients": _CHANNEL,
    "current_app": "use flask.current_app",
    "handle_close": "receive() returns None at the end; ws.close_code says how it ended",
    "handle_ping": "pings are answered without the handler",
    "handle_pong": "ws.latency is the time of the last ping to its pong",
    "raw_read": "use ws.receive()",
    "raw_write": "use ws.send() or ws.send_frame()",
    "read_frame": "use ws.receive()",
    "read_message": "use ws.receive()",
    "stream": "use ws.receive() and ws.send(); SOCKETS_PING_INTERVAL is for keepalive, and under "
    "gunicorn -k flask_sockets2.worker the socket is ws.handler.socket",
    # of Flask-SocketIO, Flask-Sock, Starlette and the websockets library
    "broadcast": _CHANNEL,
    "connected": "use not ws.closed",
    "emit": f"use ws.send() for this client alone, or {_CHANNEL}",
    "iter_text": "use a loop: for message in ws",
    "join": "use ws.subscribe(channel)",
    "join_room": "use ws.subscribe(channel)",
    "receive_bytes": "use ws.receive(), which returns bytes for a binary message",
    "receive_json": "use flask.json.loads(ws.receive())",
    "receive_text": "use ws.receive(), which returns str for a text message",
    "recv": "use ws.receive()",
    "send_bytes": "use ws.send()",
    "send_json": "use ws.send(flask.json.dumps(data))",
    "send_text": "use ws.send()",
}
_INSTEAD_OF_HANDLER = {
    "active_client": _CHANNEL,
    "client_address": 'the address of the client is ws.environ["REMOTE_ADDR"]',
    "environ": "use ws.environ",
    "server": _CHANNEL,
    "websocket": "use ws",
}


class _NoHandler:
    """Stands for the handler where the server has none, or its request is over; it is false."""

    __slots__ = ("__weakref__",)

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        instead = _INSTEAD_OF_HANDLER.get(name, "start the program with -k flask_sockets2.worker")
        raise AttributeError(
            f"ws.handler has no {name!r}: it is there until the handler returns, under "
            f"flask_sockets2.worker and WebSocketServer; {instead}"
        )


NO_HANDLER = _NoHandler()


class Connection:
    """One WebSocket, from the request for it to its end.

    :param environ: WSGI environ of the request.
    :param take: called once, when the connection is accepted, to take over the socket.

    A handler is given it once it is accepted::

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

    error: type[ConnectionClosed] = ConnectionClosed
    """What is raised after the end; a server mixes its own error in."""

    __slots__ = (
        "__weakref__",
        "_conversing",
        "_encode",
        "_end_told",
        "_finished",
        "_link",
        "_refusal",
        "_take",
        "_upgrade",
        "announce",
        "budget",
        "channels",
        "closed",
        "counters",
        "detachable",
        "environ",
        "fields",
        "handler",
        "keeper",
        "limits",
        "on_end",
        "on_open",
        "outlet",
        "returned",
        "subprotocol",
    )

    def __init__(self, environ: Mapping[str, Any], take: Take) -> None:
        #: WSGI environ of the request; nothing but the path once its handler has ended.
        self.environ = environ
        #: The server's handler of the request; false where there is none, or not any more.
        self.handler: Any = NO_HANDLER
        #: Whether it has ended, as far as its handler is concerned: one that receives sees the
        #: messages that came before the end first.
        self.closed = False
        #: The subprotocol agreed to; before accept, the one that the route prefers.
        self.subprotocol: str | None = None
        #: What its route or its application has set; to be read.
        self.limits = Limits()
        #: Called with the header fields of the 101 response before that is sent.
        self.announce: Callable[[list[tuple[str, str]]], object] | None = None
        #: Those that reached the server, with what middleware has added; set by the server.
        self.fields: Iterable[tuple[str, str]] = ()
        #: Called once, when it is accepted, and when it has ended after that.
        self.on_open: Callable[[Connection], None] | None = None
        self.on_end: Callable[[Connection], None] | None = None
        #: What it subscribes to channels with, and where they go out once it has.
        self.channels: Channels | None = None
        self.outlet: Outlet | None = None
        #: Whether it may outlive the request, and who is told when it has ended then.
        self.detachable = False
        self.keeper: Keeper | None = None
        #: Whether its handler has returned, and not raised.
        self.returned = False
        #: What is counted for its route.
        self.counters = _uncounted
        #: That the bytes it holds count for.
        self.budget = _budget
        self._take: Take | None = take
        self._link: Link | None = None  # once it is accepted
        self._end_told = False
        self._finished = False  # it was open until its handler had returned
        self._conversing = False  # its handler has received since it last subscribed
        self._upgrade: Upgrade | None = None
        self._refusal: HandshakeError | None = None
        try:
            self._upgrade = parse_upgrade(environ)
        except HandshakeError as exc:
            self._refusal = exc

    if not TYPE_CHECKING:  # for type checkers it has what is written here, and no more

        def __getattr__(self, name: str) -> NoReturn:
            """Name what to use in place of an attribute that another package has."""
            instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise AttributeError(f"a connection has no {name!r}{instead}", name=name, obj=self)

    @staticmethod
    def opened() -> list[Connection]:
        """All connections of this process that were accepted and have not ended."""
        return list(_opened)

    # -- the request -----------------------------------------------------------------------

    @property
    def accepted(self) -> bool:
        """Whether the 101 response has been sent."""
        return self._link is not None

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the client offers, in its order of preference."""
        return self._upgrade.subprotocols if self._upgrade else ()

    @property
    def origin(self) -> str | None:
        """The ``Origin`` header field of the request."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def path(self) -> str | None:
        """The path of the request."""
        return self.environ.get("PATH_INFO")

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
        return self._link.latency if self._link is not None else None

    @property
    def ping_interval(self) -> float | None:
        """Seconds, of the keepalive; None for none, and before accept."""
        return self._link.ping_interval if self._link is not None else None

    @property
    def ping_timeout(self) -> float | None:
        """Seconds, of the keepalive; None for ever, and before accept."""
        return self._link.ping_timeout if self._link is not None else None

    @property
    def logger(self) -> logging.Logger:
        """Where this package logs about connections."""
        return logger

    def check(self) -> None:
        """See whether the request can be accepted.

        :raises HandshakeError: when it cannot, with the HTTP status to answer with.
        """
        if self._refusal is not None:
            raise self._refusal

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
        if self._link is not None:
            return
        self.check()
        assert self._upgrade is not None
        assert self._take is not None
        limits = self.limits
        subprotocol = subprotocol or self.subprotocol
        response, extensions = self._upgrade.response(
            subprotocol=subprotocol, compression=limits.compression, headers=headers
        )
        if not self._admit():
            return
        try:
            response = self._announced(response)
            if self._link is not None:  # meanwhile, in another greenlet
                return
            transport, early = self._take(limits.send_timeout)
        except BaseException:
            if self.on_end is not None:
                self.on_end(self)
            raise
        self._take = None
        protocol = Protocol(max_message_size=limits.max_message_size, extensions=extensions)
        self.subprotocol = subprotocol
        self._encode = protocol.send if extensions else protocol.frame
        link = Link(self, transport, protocol, limits, self.counters, self.budget)
        with transport.lock:
            self._link = link
            _opened.add(self)
            self.counters.opened += 1
            link.start(response, early)
        link.keep_alive()
        address = self.environ.get("REMOTE_ADDR")
        logger.info(
            "open %.200r from %.100r",
            self.path,
            address,
            extra={"event": "open", "path": self.path and self.path[:200], "address": address},
        )

    def _admit(self) -> bool:
        """Tell that it is about to open; False where that has opened it: who is told may send."""
        on_open, self.on_open = self.on_open, None
        if on_open is not None:
            try:
                on_open(self)
            except BaseException:
                self.on_open = on_open
                raise
        return self._link is None

    def _announced(self, response: bytes) -> bytes:
        """Tell the server of the response, through all middleware; return it with what they add."""
        announce, self.announce = self.announce, None
        if announce is None and not self.fields:
            return response
        known = end_to_end(response)
        if announce is not None:
            announce(known)
        added = [field for field in self.fields if field not in known]
        self.fields = ()
        return extended(response, added)

    def _opened_link(self) -> Link:
        """Accept it, where that has not been done, and return its link."""
        self.accept()
        assert self._link is not None
        return self._link

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
        link = self._link or self._opened_link()
        message: str | bytes | None = link.inbox.receive(timeout)
        if message is None:
            self._tell_end()
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages until the connection has ended."""
        return iter(self.receive, None)

    def _tell_end(self) -> None:
        """Say None once, so that a loop that only looks at the message ends, too."""
        self.closed = True
        if self._end_told:
            raise self._closed_error()
        self._end_told = True

    def _closed_error(self) -> ConnectionClosed:
        error = self.error(self, self.close_code, self.close_reason)
        error.handler_returned = self._finished
        return error

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
        link = self._link or self._opened_link()
        if link.state is not OPEN:
            if message is None:  # the last turn of: while not ws.closed: ws.send(ws.receive())
                return
            raise self._closed_error()
        transport = link.transport
        if transport.buffered:
            self._wait_for_room(link, message)
        frame = self._encode(message, binary)
        transport.write(frame)
        size = len(frame)
        counters = self.counters
        counters.messages_out += 1
        counters.bytes_out += size

    def _wait_for_room(self, link: Link, message: Any) -> None:
        link.wait_for_room(
            len(message) if isinstance(message, str | bytes | bytearray | memoryview) else 0
        )
        if link.state is not OPEN:
            raise self._closed_error()

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
        link = self._link or self._opened_link()
        if link.state is not OPEN:
            raise self._closed_error()
        if link.transport.buffered:
            self._wait_for_room(link, payload)
        make = link.protocol.ping if opcode == PING else link.protocol.pong_frame
        link.transport.write(make(payload))

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
        if self._link is None:
            channels.check(channel)  # what is wrong becomes the response
        link = self._link or self._opened_link()
        if link.state is not OPEN:
            raise self._closed_error()
        subscription = channels.subscribe(
            self,
            channel,
            since=since,
            envelope=envelope,
            presence=presence,
            identity=identity,
            gap=gap,
        )
        if link.state is not OPEN:  # it has ended while the broker was asked
            raise self._closed_error()
        self._conversing = False
        return subscription

    def unsubscribe(self, channel: str) -> bool:
        """Send the client nothing more of a channel; False where it was not subscribed to."""
        return self._channels().unsubscribe(self, channel)

    def _channels(self) -> Channels:
        if self.channels is None:
            raise RuntimeError("this connection has no channels: serve it by a route of Sockets")
        return self.channels

    @property
    def window_bits(self) -> int | None:
        """Window of permessage-deflate for what is sent; None where it was not agreed to."""
        assert self._link is not None
        return self._link.protocol.window_bits

    @property
    def transport(self) -> StreamTransport:
        """What its bytes go through, once it is accepted."""
        assert self._link is not None
        return self._link.transport

    @property
    def open(self) -> bool:
        """Whether it is accepted and its end has not begun."""
        return self._link is not None and self._link.state is OPEN

    @property
    def listening(self) -> bool:
        """Whether it is to outlive its handler: it is open and subscribes to a channel, and has
        not received since."""
        if not self.open or self._conversing:
            return False
        return self.outlet is not None and bool(self.outlet.entries)

    def listen(self) -> None:
        """Leave it to what it subscribes to: its handler has returned.

        Returns at once where it is detachable, else once it has ended.
        """
        link = self._link
        assert link is not None
        transport = link.transport
        with transport.lock:
            link.inbox.leave()
            link.release()
            link.inbox.wake()  # a receiver in another greenlet, to be told
        if self.detachable:
            self.environ = _bare_environ(self.path)
            self._take = self._upgrade = None
        else:
            try:
                while not transport.closed:
                    self.wait_closed(_LISTEN_STEP)
            finally:
                self.abort()
            self.environ = _bare_environ(self.path)

    @property
    def detached(self) -> bool:
        """Whether it is to outlive its request, and has not ended yet."""
        link = self._link
        if link is None or link.state is CLOSED:
            return False
        return self.detachable and link.inbox.deaf

    def too_slow(self) -> None:
        """Close it with 1013: it does not take the messages of its channels."""
        logger.info(
            "too slow %.200r: more than %s bytes kept back (SOCKETS_SEND_BUFFER)",
            self.path,
            self.limits.send_buffer,
            extra={"event": "too_slow", "path": self.path and self.path[:200]},
        )
        self.fail(1013, "too slow; connect again")

    # -- closing ---------------------------------------------------------------------------

    @property
    def close_code(self) -> int | None:
        """Code that it ended with (RFC 6455 §7.1.5): what the peer sent, else what we sent, 1006
        without either; None before."""
        return self._link.close_code if self._link is not None else None

    @property
    def close_reason(self) -> str:
        """The reason to it, empty without one."""
        return self._link.close_reason if self._link is not None else ""

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
        (self._link or self._opened_link()).close(code, reason)
        self.closed = True

    def fail(self, code: int, reason: str = "") -> None:
        """Send a close frame and end, without waiting for the peer's (RFC 6455 §7.1.7)."""
        if self._link is not None:
            self._link.fail(code, reason)

    def abort(self, reason: str = "") -> None:
        """Drop the connection at once, without a closing handshake.

        :param reason: why, for the log and for ``close_reason``.
        """
        if self._link is not None:
            self._link.abort(reason)

    def wait_closed(self, timeout: float) -> None:
        """Wait until the connection is over, at most so many seconds."""
        if self._link is not None:
            self._link.wait_closed(timeout)

    def finish(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait until it is over: its handler has returned.

        :param code: close code, where no closing handshake has been started.
        """
        if self._link is None:
            return
        limits = self.limits
        self._finished = code == 1000 and self.open
        try:
            self.close(code, reason)
            # The timers of closing and of a peer that takes nothing come first.
            self.wait_closed(limits.send_timeout + limits.close_timeout + 1.0)
        finally:
            self.abort()
        self._link.inbox.clear()
        self.environ = _bare_environ(self.path)  # the environ holds us: break the circle

    # -- told by its link ------------------------------------------------------------------

    def link_closing(self) -> None:
        """See :class:`~flask_sockets2.connection.driver.Owner`."""
        if self.outlet is not None:
            self.outlet.remove()
        self._announce_end()

    def _announce_end(self) -> None:
        """Tell the handler, in the next turn: whoever closes may be any greenlet."""
        assert self._link is not None
        inbox, transport = self._link.inbox, self._link.transport
        if inbox.deaf:
            self.closed = True
        if self._end_told or inbox.deaf:
            return
        if not inbox.messages or not inbox.handling:
            self.closed = True
        else:  # it sees what came before first, unless it never comes back for it
            transport.call_later(self.limits.send_timeout, self._set_closed)
        inbox.end()
        inbox.wake()

    def _set_closed(self) -> None:
        self.closed = True

    def link_ended(self) -> None:
        """See :class:`~flask_sockets2.connection.driver.Owner`."""
        _opened.discard(self)
        if self.outlet is not None:
            self.outlet.remove()
        self.counters.closed += 1
        code, reason = self.close_code, self.close_reason
        logger.info(
            "closed %.200r with %s %.200r",
            self.path,
            code,
            reason,
            extra={
                "event": "closed",
                "path": self.path and self.path[:200],
                "close_code": code,
                "close_reason": reason,
            },
        )
        try:
            if self.on_end is not None:
                self.on_end(self)
        finally:
            if self.keeper is not None:
                self.keeper.forget(self)

    def link_drained(self) -> None:
        """See :class:`~flask_sockets2.connection.driver.Owner`."""
        if self.outlet is not None:
            self.outlet.drained()
