"""Driver: the protocol of one WebSocket on its transport, from the 101 response to the end.

States::

    OPEN ─ close(), a close frame, a failure ─> CLOSING ─> CLOSED
      └─ the peer vanishes ───────────────────────────────────┘

The hub or the selector thread calls the driver, even while the handler is busy. The driver answers
pings, runs the closing handshake and puts messages into the handler's inbox.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from ..stats import RouteCounters
from ..transports import memory
from ..transports.base import LIGHT, READ_SIZE, READ_SIZE_LARGE, StreamTransport
from ..transports.budget import STEP, Budget, Share
from ..transports.clock import Clock, Timer
from ..wire import protocol as wire
from ..wire.protocol import Protocol
from .connection_log import WEBSOCKET_LOG
from .inbox import Inbox
from .keepalive import keepalive_of
from .limits import Limits

if TYPE_CHECKING:
    from ..fanout.outbox import Outlet

__all__ = ["CLOSED", "CLOSING", "OPEN", "ProtocolDriver"]

logger = logging.getLogger("flask_sockets2.connection")

OPEN, CLOSING, CLOSED = "OPEN", "CLOSING", "CLOSED"

_REPLY_GRACE = 1.0  # seconds; how long a peer's close frame waits for the handler's last reply
_LAST_REST = 65536  # most bytes of a begun frame that an evicted peer is sent before the 1013


class ProtocolDriver:
    """Runs the protocol of one connection, as the receiver of its transport.

    :param limits: limits of the connection.
    :param counters: counters of the connection's route.
    :param budget: counts the bytes that the connection holds.
    :param path: path of the request, for the log.
    :param changed: called with the driver when :attr:`state` changes, under the transport's lock.
    """

    __slots__ = (
        "_changed",
        "_close_timer",
        "_counted",
        "_has_turn",
        "_heard",
        "_inflates",
        "_late",
        "_late_pong",
        "_next",
        "_path",
        "_ping",
        "close_code",
        "close_reason",
        "counters",
        "encode",
        "inbox",
        "latency",
        "limits",
        "outlet",
        "protocol",
        "state",
        "transport",
    )

    def __init__(
        self,
        transport: StreamTransport,
        protocol: Protocol,
        limits: Limits,
        counters: RouteCounters,
        budget: Budget,
        path: str | None,
        changed: Callable[[ProtocolDriver], None],
    ) -> None:
        self.transport = transport
        transport.share = Share(budget, self)
        self.protocol = protocol
        #: Turns a message into a frame.
        self.encode = protocol.frame if protocol.window_bits is None else protocol.send
        #: Sends the messages of channels to the client; None without a subscription.
        self.outlet: Outlet | None = None
        self.limits = limits
        self.counters = counters
        self.inbox = Inbox(transport, self.read_on, limits, counters)
        self.state = OPEN
        #: See :attr:`Connection.close_code` and :attr:`Connection.close_reason`.
        self.close_code: int | None = None
        self.close_reason = ""
        #: Seconds between the last ping and its pong; None before the first pong.
        self.latency: float | None = None
        self._path = path
        self._changed = changed
        self._has_turn = False  # while set, large input is processed at once
        self._heard = 0
        self._counted = 0  # bytes of an unfinished message that the budget has counted
        self._ping: tuple[bytes, float] | None = None
        self._inflates = protocol.window_bits is not None  # a few bytes may be a large message
        self._late = b""  # received bytes that wait for their turn
        self._late_pong: bytes | None = None
        self._close_timer: Timer | None = None
        self._next: Timer | None = None  # resumes reading

    def start(self, response: bytes, early: bytes) -> None:
        """Send the 101 response and start reading; under the transport's lock.

        :param early: bytes that the peer sent behind its request.
        """
        transport = self.transport
        transport.start(self, reading=False)
        transport.write(response)
        if early:  # these bytes go first, and the hub may poll sockets before it calls us
            transport.call_next(lambda: self._take_early(early))
        else:
            transport.resume()

    def wait_for_room(self, size: int) -> None:
        """Wait until ``size`` bytes fit into the send buffer; drop the connection if there is no
        room within ``send_timeout`` seconds."""
        transport = self.transport
        limit = max(0, self.limits.send_buffer - size)
        deadline = monotonic() + self.limits.send_timeout
        with transport.lock:
            if transport.buffered <= limit:
                return
            transport.share.count(size)
            try:
                while transport.buffered > limit:
                    if not transport.wait_progress(max(0.0, deadline - monotonic())):
                        self._drop("no room to send")
            finally:
                transport.share.count(-size)

    # -- closing ---------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake or answer the peer's; does nothing if one was started.

        :raises ValueError: if a close frame cannot carry the code or the reason.
        """
        with self.transport.lock:
            if self.state is not OPEN:
                pass
            elif self.protocol.close_received:  # the peer's close frame waited for the handler
                self._answer_close()
            else:
                self.protocol.close(code, reason)
                self._attend()

    def fail(self, code: int, reason: str = "") -> None:
        """Send a close frame and end without waiting for the peer's (RFC 6455 §7.1.7)."""
        with self.transport.lock:
            if self.state is OPEN or self.state is CLOSING:
                self.protocol.fail(code, reason)
                self._attend()

    def abort(self, reason: str = "") -> None:
        """Drop the connection at once, without a closing handshake.

        :param reason: text for the log and for ``close_reason``.
        """
        with self.transport.lock:
            if self.state is CLOSED:
                return
            cut = self.transport.buffered > 0
            self.transport.close()
            self._ended(reason, cut=cut)

    def wait_closed(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for the connection to end."""
        transport = self.transport
        deadline = monotonic() + timeout
        with transport.lock:
            while not transport.closed and monotonic() < deadline:
                transport.wait_progress(max(0.0, deadline - monotonic()))

    def release(self) -> None:
        """Answer the close frame that waited for the handler."""
        with self.transport.lock:
            if self.inbox.release is not None:
                self.inbox.handling = False
                self._answer_close()

    def _start_closing(self) -> None:
        """Enter CLOSING: from now on the handler can send nothing more."""
        self.state = CLOSING
        self._set_close_code()
        self.inbox.stop()
        self._tell()
        transport = self.transport
        if self.protocol.over and not transport.buffered:
            return
        if not transport.buffered:
            self._start_close_timer()
        if self.protocol.more:
            self._read_on_next()

    def _start_close_timer(self) -> None:
        if self._close_timer is None:
            self._close_timer = self.transport.call_later(self.limits.close_timeout, self.abort)

    def _set_close_code(self, reason: str = "", *, cut: bool = False) -> None:
        protocol = self.protocol
        sent = None if cut else protocol.close_sent
        self.close_code, self.close_reason = protocol.close_received or sent or (1006, reason)

    def _ended(self, reason: str = "", *, cut: bool = False) -> None:
        """Enter CLOSED, after the transport; :param cut: whether unsent bytes were lost."""
        if self.state is CLOSED:
            return
        self.protocol.receive_eof()
        self._count_unfinished()
        self._late = b""
        self.state = CLOSED
        self._set_close_code(reason, cut=cut)
        self.inbox.stop()
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if self.limits.ping_interval:
            self.transport.call_inside(lambda: keepalive_of(self.transport.clock).forget(self))
        memory.ended(self.transport.clock)
        self._tell()

    def _tell(self) -> None:
        if self.outlet is not None:
            self.outlet.remove()
        self._changed(self)

    # -- the hub or the selector thread ----------------------------------------------------

    def data_received(self, data: bytes) -> None:
        heavy = self._inflates or len(data) > LIGHT
        if heavy and not self._has_turn and not self.transport.clock.has_time():
            self._heard += 1
            self._late = data
            self.transport.pause()
            self._read_on_next()
        else:
            self._see_to(data)

    def _see_to(self, data: bytes) -> None:
        try:
            self._data_received(data)
        except Exception:  # our own bug must not leave the connection open and silent
            logger.exception("the connection of %.200r broke", self._path)
            try:
                self.fail(1011)
            finally:
                self.abort()

    def _take_early(self, data: bytes) -> None:
        if self.state is CLOSED:
            return
        self._see_to(data)
        if not self.protocol.more:  # otherwise reading has been scheduled already
            self.read_on()

    def _data_received(self, data: bytes) -> None:
        self._heard += 1
        protocol = self.protocol
        size = len(data)
        self.counters.bytes_in += size
        messages = protocol.receive(data)
        extra = 0
        if protocol.attention:
            self._count_unfinished()
            if protocol.output:
                self._send_pongs()
            extra = protocol.extra
        if messages or extra:
            self.inbox.deliver(messages, extra)
        if protocol.attention:
            self._attend()

    def _attend(self) -> None:
        """Handle everything besides messages: pongs, closing, input for another turn."""
        protocol, transport = self.protocol, self.transport
        protocol.attention = False
        if protocol.pong is not None:
            self._take_pong(protocol.pong)
            protocol.pong = None
        if protocol.state is not wire.OPEN:
            self._attend_closing()
        if protocol.more:
            transport.pause()
            if not self.inbox.paused:
                self._read_on_next()
        missing = protocol.missing
        transport.read_size = READ_SIZE if missing < READ_SIZE else READ_SIZE_LARGE
        self._count_unfinished()

    def _count_unfinished(self) -> None:
        """Report the bytes of an incomplete message to the budget."""
        size = self.protocol.unfinished
        change = size - self._counted
        if change and (change >= STEP or change <= -STEP or not size):
            self._counted = size
            self.transport.share.count(change)

    def _send_pongs(self) -> None:
        """Answer pings before the messages behind them; leave a close frame for later."""
        output = self.protocol.output
        closing = [output.pop()] if self.protocol.state is not wire.OPEN else []
        if output and self.transport.buffered:
            self._late_pong = output[-1]  # a slow reader gets only the newest pong (§5.5.3)
        elif output:
            self.transport.write(b"".join(output))
        output[:] = closing

    def _attend_closing(self) -> None:
        """Write the close frame, or delay it if the handler still has messages to answer.

        RFC 6455 §5.5.1 lets an endpoint delay its close frame. As in gevent-websocket, the
        handler sees a close frame only after it has handled the messages before.
        """
        protocol = self.protocol
        if self.state is OPEN and protocol.close_received and not protocol.failed:
            inbox = self.inbox
            if inbox.release is None and inbox.busy:
                inbox.hold(self.release)
                grace = self.limits.close_timeout if inbox.messages else _REPLY_GRACE
                self.transport.call_later(min(grace, self.limits.close_timeout), self.release)
            if inbox.release is not None:
                return
        self._answer_close()

    def _answer_close(self) -> None:
        protocol, transport = self.protocol, self.transport
        if protocol.output:
            transport.write(b"".join(protocol.output))
            protocol.output.clear()
        if self.state is OPEN:
            self._start_closing()
        if protocol.finished:
            transport.finish(linger=not protocol.over)

    def _take_pong(self, payload: bytes) -> None:
        if self._ping is not None and self._ping[0] == payload:
            self.latency = monotonic() - self._ping[1]
            self._ping = None

    def _read_on_next(self) -> None:
        """Resume reading once the other sockets have had their turn."""
        if self._next is None:
            self._next = self.transport.call_next(self.read_on)

    def read_on(self) -> None:
        """Resume reading, first with the bytes that were received already."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self.inbox.paused or self.state is CLOSED:
            return
        late, self._late = self._late, b""
        if late or self.protocol.more:
            self._see_to(late)
        if not self.protocol.more and not self.inbox.paused:
            self.transport.resume()
            if late:  # the rest of that message may be in the kernel
                self._has_turn = True
                try:
                    self.transport.read_now()
                finally:
                    self._has_turn = False

    @property
    def owes(self) -> bool:
        return self.inbox.release is not None or (
            self.protocol.over and self.transport.buffered > 0
        )

    def eof_received(self) -> None:
        self._ended()

    def write_drained(self) -> None:
        if self.state is CLOSING:
            self._start_close_timer()
        else:
            if self.outlet is not None:
                self.outlet.drained()
            if self.inbox.paused:
                self.inbox.resume_when_caught_up()
        if self._late_pong is not None:
            pong, self._late_pong = self._late_pong, None
            self.transport.write(pong)

    def write_stalled(self) -> None:
        self._drop("the peer took nothing")

    def write_strained(self) -> None:
        self.inbox.strain()

    @property
    def clock(self) -> Clock:
        return self.transport.clock

    def evict(self) -> None:
        """Close the connection and free its memory: all connections together hold too much.

        The peer receives 1013 if a close frame can still follow the bytes that were sent.
        """
        transport = self.transport
        with transport.lock:
            self.inbox.drop()
            if self.state is CLOSED:
                return
            WEBSOCKET_LOG.evicted(self._path, transport.share.held)
            if self.state is OPEN and transport.cut(_LAST_REST):
                self.fail(1013, "the server holds too much; connect again")
            else:
                self.abort("evicted (SOCKETS_MAX_BUFFERED)")

    def _drop(self, why: str) -> None:
        """Abort the connection of a peer that reads too slowly."""
        if self.state is not CLOSED:
            reason = f"{why} for {self.limits.send_timeout} s (SOCKETS_SEND_TIMEOUT)"
            WEBSOCKET_LOG.dropped(self._path, reason)
            self.abort(reason)

    # -- keepalive -------------------------------------------------------------------------

    @property
    def ping_interval(self) -> float | None:
        return self.limits.ping_interval

    @property
    def ping_timeout(self) -> float | None:
        return self.limits.ping_timeout

    def heard(self) -> int:
        """Return a number that changes whenever bytes come from the peer."""
        if self.inbox.paused:
            self._heard += 1  # reading is paused, so a pong may wait unread in the kernel
        return self._heard

    def keep_alive(self) -> None:
        """Start the keepalive pings, if the limits ask for them."""
        if self.limits.ping_interval:
            self.transport.call_inside(self._watch)

    def _watch(self) -> None:
        if self.state is not CLOSED:
            keepalive_of(self.transport.clock).watch(self)

    def keepalive_ping(self) -> None:
        """Send a ping and measure the latency by its pong."""
        with self.transport.lock:
            if self.state is OPEN and self.inbox.release is None:
                payload = os.urandom(4)
                self._ping = (payload, monotonic())
                self.transport.write(self.protocol.ping(payload))

    def keepalive_failed(self) -> None:
        """End the connection: the peer did not answer a ping, although TCP reports no error."""
        self.fail(1011, "keepalive ping timeout")
        self.abort()
