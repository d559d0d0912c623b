"""Lifecycle: one WebSocket from its request to its end, for servers and channels.

A handler works with the :class:`~flask_sockets2.Connection` of a lifecycle instead.

States::

    CONNECTING ─ accept() ─> OPEN ─ close(), a close frame, a failure ─> CLOSING ─> CLOSED
         └─ refused with an HTTP response: the connection is never opened     ↑
                              OPEN ─ the peer vanishes ───────────────────────┘

The accept makes a driver (``connection/driver.py``), which holds the state from then on. The hub or
the selector thread calls the driver, even while the handler is busy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from typing import Protocol as Protocol_

from ..exceptions import ConnectionClosed, HandshakeError
from ..transports.base import StreamTransport
from ..wire.handshake import Upgrade, parse_upgrade
from ..wire.protocol import Protocol
from .connection_log import WEBSOCKET_LOG
from .driver import CLOSED, OPEN, ProtocolDriver
from .limits import Limits
from .opening import Opening, Take

if TYPE_CHECKING:
    from ..brokers.base import Position
    from ..fanout.fanout import Subscription
    from ..fanout.outbox import Outlet

__all__ = ["ChannelService", "Keeper", "Lifecycle", "opened"]

logger = logging.getLogger("flask_sockets2.connection")

_LISTEN_STEP = 3600.0  # seconds; wait_closed() needs a number, so a wait without limit loops


class ChannelService(Protocol_):
    """The channels of an application, to which its connections subscribe."""

    def check(self, channel: str) -> None:
        """Raise the errors of :meth:`subscribe` that can be detected before the accept."""

    def subscribe(
        self,
        connection: Lifecycle,
        channel: str,
        *,
        since: Position | str | None,
        envelope: bool,
        presence: bool,
        identity: str | None,
        gap: Any,
    ) -> Subscription:
        """See :meth:`flask_sockets2.Connection.subscribe`."""

    def unsubscribe(self, connection: Lifecycle, channel: str) -> bool:
        """See :meth:`flask_sockets2.Connection.unsubscribe`."""


class Keeper(Protocol_):
    """The server of a connection that outlives its request."""

    def forget(self, connection: Any) -> None:
        """Stop tracking a connection, which has ended."""


_opened: set[Lifecycle] = set()  # open or closing, in this process

if hasattr(os, "register_at_fork"):  # a forked child must not close or count its parent's
    os.register_at_fork(after_in_child=_opened.clear)


def opened() -> list[Lifecycle]:
    """Return the connections of this process that are accepted and have not ended."""
    return list(_opened)


@lru_cache(maxsize=1024)
def _bare_environ(path: str | None) -> Mapping[str, Any]:
    """Return the environ that an ended connection keeps, shared by all with this path."""
    return MappingProxyType({"PATH_INFO": path})


class Lifecycle:
    """Accepts, runs and ends one WebSocket.

    :param environ: WSGI environ of the request.
    :param take: takes the socket over; called once, at the accept.
    """

    error: type[ConnectionClosed] = ConnectionClosed
    """Error that is raised after the end; a server's subclass also inherits the server's error."""

    __slots__ = (
        "_announced",
        "_end_told",
        "_finished",
        "_upgrade",
        "channels",
        "detachable",
        "driver",
        "environ",
        "keeper",
        "on_end",
        "opening",
        "returned",
        "subprotocol",
        "ws",
    )

    def __init__(self, environ: Mapping[str, Any], take: Take) -> None:
        #: The handler's Connection; typed Any, since its module is above this one.
        self.ws: Any = None
        #: WSGI environ of the request; reduced to the path when the handler has returned.
        self.environ = environ
        #: The negotiated subprotocol; before the accept, the one that the route prefers.
        self.subprotocol: str | None = None
        #: Settings of the server and the route; None once the connection is accepted.
        self.opening: Opening | None = Opening(take)
        #: Called with the connection at its end, also if the accept fails after the admission.
        self.on_end: Callable[[Any], None] | None = None
        #: The channels that the connection can subscribe to.
        self.channels: ChannelService | None = None
        #: Whether the connection may outlive the request; if so, the end is reported to the keeper.
        self.detachable = False
        self.keeper: Keeper | None = None
        #: Whether the handler has returned without an exception.
        self.returned = False
        #: Runs the protocol; None before the accept.
        self.driver: ProtocolDriver | None = None
        self._announced = False  # the handler's receive() and ws.closed show the end
        self._end_told = False  # receive() has returned None
        self._finished = False  # the connection was open until its handler returned
        self._upgrade: Upgrade | HandshakeError | None
        try:
            self._upgrade = parse_upgrade(environ)
        except HandshakeError as exc:
            self._upgrade = exc

    # -- the request -----------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """The path of the request."""
        return self.environ.get("PATH_INFO")

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client offers, in its order of preference."""
        return self._upgrade.subprotocols if isinstance(self._upgrade, Upgrade) else ()

    @property
    def limits(self) -> Limits:
        """The limits that the route or the application has set."""
        opening = self.opening  # a copy, since another thread's accept may reset the attribute
        if opening is not None:
            return opening.limits
        assert self.driver is not None
        return self.driver.limits

    @property
    def accepted(self) -> bool:
        """Whether the 101 response has been sent."""
        return self.driver is not None

    def check(self) -> None:
        """Check that the request is a valid WebSocket handshake.

        :raises HandshakeError: if the request is not valid.
        """
        if isinstance(self._upgrade, HandshakeError):
            raise self._upgrade

    def accept(self, subprotocol: str | None, headers: Iterable[tuple[str, str]]) -> ProtocolDriver:
        """Send the 101 response and return the driver; see :meth:`Connection.accept`."""
        if self.driver is not None:
            return self.driver
        self.check()
        upgrade, opening = self._upgrade, self.opening
        assert isinstance(upgrade, Upgrade)
        assert opening is not None
        subprotocol = subprotocol or self.subprotocol
        response, extensions = upgrade.response(
            subprotocol=subprotocol, compression=opening.limits.compression, headers=headers
        )
        opening.admit(self.ws)
        if self.driver is not None:  # a receiver of connection_opened has accepted, by a send
            return self.driver
        try:
            response = opening.announced(response)
            if self.driver is not None:  # another greenlet has accepted meanwhile
                return self.driver
            transport, early = opening.take(opening.limits.send_timeout)
        except BaseException:
            if self.on_end is not None:
                self.on_end(self.ws)
            raise
        self.subprotocol = subprotocol
        protocol = Protocol(max_message_size=opening.limits.max_message_size, extensions=extensions)
        driver = ProtocolDriver(
            transport,
            protocol,
            opening.limits,
            opening.counters,
            opening.budget,
            self.path,
            self._changed,
        )
        self._open(driver, response, early)
        return driver

    def _open(self, driver: ProtocolDriver, response: bytes, early: bytes) -> None:
        with driver.transport.lock:
            self.driver = driver
            self.opening = None
            _opened.add(self)
            driver.counters.opened += 1
            driver.start(response, early)
        driver.keep_alive()
        WEBSOCKET_LOG.opened(self.path, self.environ.get("REMOTE_ADDR"))

    # -- open ------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether the connection is accepted and has not begun to close."""
        return self.driver is not None and self.driver.state is OPEN

    @property
    def transport(self) -> StreamTransport:
        """The transport of an accepted connection."""
        assert self.driver is not None
        return self.driver.transport

    @property
    def window_bits(self) -> int | None:
        """Window size of permessage-deflate for sending; None without compression."""
        assert self.driver is not None
        return self.driver.protocol.window_bits

    @property
    def outlet(self) -> Outlet | None:
        """Sends the messages of channels; None until the connection subscribes to one."""
        return None if self.driver is None else self.driver.outlet

    @outlet.setter
    def outlet(self, outlet: Outlet) -> None:
        assert self.driver is not None
        self.driver.outlet = outlet

    @property
    def subject(self) -> Any:
        """The object that signals pass as the connection."""
        return self.ws

    def too_slow(self) -> None:
        """Close with 1013, since the client reads the messages of its channels too slowly."""
        WEBSOCKET_LOG.too_slow(self.path, self.limits.send_buffer)
        assert self.driver is not None
        self.driver.fail(1013, "too slow; connect again")

    # -- when the handler has returned -----------------------------------------------------

    def listen(self) -> None:
        """Keep the connection open for its channels after the handler has returned.

        Returns at once if the connection is detachable, otherwise when the connection has ended.
        """
        driver = self.driver
        assert driver is not None
        with driver.transport.lock:
            driver.inbox.leave()
            driver.release()
            driver.inbox.wake()  # another greenlet may still be in receive()
        if self.detachable:
            self.environ = _bare_environ(self.path)
            self._upgrade = None
        else:
            try:
                while not driver.transport.closed:
                    driver.wait_closed(_LISTEN_STEP)
            finally:
                driver.abort()
            self.environ = _bare_environ(self.path)

    @property
    def detached(self) -> bool:
        """Whether the connection outlives its request and has not ended."""
        driver = self.driver
        if driver is None or driver.state is CLOSED:
            return False
        return self.detachable and driver.inbox.deaf

    def finish(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait for its end.

        :param code: close code, unless a closing handshake was started before.
        """
        driver = self.driver
        if driver is None:
            return
        self._finished = code == 1000 and self.open
        try:
            driver.close(code, reason)
            self.ws.closed = True
            # This wait is a backstop: close_timeout and send_timeout end the connection first.
            driver.wait_closed(driver.limits.send_timeout + driver.limits.close_timeout + 1.0)
        finally:
            driver.abort()
        driver.inbox.clear()
        self.environ = _bare_environ(self.path)  # the environ holds us: break the circle

    # -- the end ---------------------------------------------------------------------------

    def tell_end(self) -> None:
        """Record that the handler has seen the end. A second call raises, so that a loop which
        ignores None ends, too.

        :raises ConnectionClosed: if the handler has already seen the end.
        """
        self.ws.closed = True
        if self._end_told:
            raise self.closed_error()
        self._end_told = True

    def closed_error(self) -> ConnectionClosed:
        """Return the error for a handler that uses the connection after its end."""
        driver = self.driver
        assert driver is not None
        error = self.error(self.ws, driver.close_code, driver.close_reason)
        error.handler_returned = self._finished
        return error

    def _changed(self, driver: ProtocolDriver) -> None:
        """React to a change of the driver's state; under the transport's lock."""
        if not self._announced:
            self._announced = True
            self._announce_end(driver)
        if driver.state is CLOSED:
            self.ended(driver)

    def _announce_end(self, driver: ProtocolDriver) -> None:
        """Wake the handler in the next turn, since any greenlet may have closed the connection."""
        inbox, ws = driver.inbox, self.ws
        if inbox.deaf:
            ws.closed = True
        if self._end_told or inbox.deaf:
            return
        if not inbox.messages or not inbox.handling:
            ws.closed = True
        else:  # the handler reads its messages first; the timer is for one that never does
            driver.transport.call_later(driver.limits.send_timeout, self._set_closed)
        inbox.end()
        inbox.wake()

    def _set_closed(self) -> None:
        self.ws.closed = True

    def ended(self, driver: ProtocolDriver) -> None:
        """Record the end of the connection; a server's subclass may extend this."""
        _opened.discard(self)
        driver.counters.closed += 1
        path, code, reason = self.path, driver.close_code, driver.close_reason
        logger.info(
            "closed %.200r with %s %.200r",
            path,
            code,
            reason,
            extra={
                "event": "closed",
                "path": path and path[:200],
                "close_code": code,
                "close_reason": reason,
            },
        )
        try:
            if self.on_end is not None:
                self.on_end(self.ws)
        finally:
            if self.keeper is not None:
                self.keeper.forget(self)
