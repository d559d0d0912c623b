"""Lifecycle: one WebSocket from its request to its end, as servers and channels handle it.

A handler has the :class:`~flask_sockets2.Connection` of a lifecycle, and not the lifecycle itself.

States::

    CONNECTING ─ accept() ─> OPEN ─ close(), a close frame, a failure ─> CLOSING ─> CLOSED
         └─ refused with an HTTP response: the connection is never opened     ↑
                              OPEN ─ the peer vanishes ───────────────────────┘

From the accept on there is a driver (``connection/driver.py``), which has the state. The hub or the
selector thread feeds the driver, whatever the handler does.
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

_LISTEN_STEP = 3600.0  # seconds; a wait that is meant to last for ever needs a number


class ChannelService(Protocol_):
    """The channels of an application, to which its connections subscribe."""

    def check(self, channel: str) -> None:
        """Raise what :meth:`subscribe` would, as far as that is known before the accept."""

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
        """Take note that the connection has ended."""


_opened: set[Lifecycle] = set()  # those that are open or closing, in this process

if hasattr(os, "register_at_fork"):  # a forked child must not close or count its parent's
    os.register_at_fork(after_in_child=_opened.clear)


def opened() -> list[Lifecycle]:
    """Return all connections of this process that were accepted and have not ended."""
    return list(_opened)


@lru_cache(maxsize=1024)
def _bare_environ(path: str | None) -> Mapping[str, Any]:
    """Return what a connection keeps of its environ at the end; one for all with this path."""
    return MappingProxyType({"PATH_INFO": path})


class Lifecycle:
    """One WebSocket, from the request for it to its end.

    :param environ: WSGI environ of the request.
    :param take: called once, when the connection is accepted, to take over the socket.
    """

    error: type[ConnectionClosed] = ConnectionClosed
    """Raised after the end; a server mixes its own error in."""

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
        #: The Connection that a handler is given; Any, since its module is above this one.
        self.ws: Any = None
        #: WSGI environ of the request; nothing but the path once the handler has ended.
        self.environ = environ
        #: The subprotocol agreed to; before accept, the one that the route prefers.
        self.subprotocol: str | None = None
        #: Set by the server and the route; None once the connection is accepted.
        self.opening: Opening | None = Opening(take)
        #: Called with the connection when it has ended, if it was about to be accepted.
        self.on_end: Callable[[Any], None] | None = None
        #: The channels that the connection can subscribe to.
        self.channels: ChannelService | None = None
        #: Whether the connection may outlive the request; and the server to tell of the end then.
        self.detachable = False
        self.keeper: Keeper | None = None
        #: Whether the handler has returned, without an exception.
        self.returned = False
        #: Drives the protocol, once the connection is accepted.
        self.driver: ProtocolDriver | None = None
        self._announced = False  # the end, to a handler that waits or looks at ws.closed
        self._end_told = False  # receive() has returned None
        self._finished = False  # it was open until its handler had returned
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
        opening = self.opening  # which another thread that accepts may take away meanwhile
        if opening is not None:
            return opening.limits
        assert self.driver is not None
        return self.driver.limits

    @property
    def accepted(self) -> bool:
        """Whether the 101 response has been sent."""
        return self.driver is not None

    def check(self) -> None:
        """See whether the request can be accepted.

        :raises HandshakeError: when the request is no valid handshake.
        """
        if isinstance(self._upgrade, HandshakeError):
            raise self._upgrade

    def accept(self, subprotocol: str | None, headers: Iterable[tuple[str, str]]) -> ProtocolDriver:
        """Send the 101 response, unless it was sent; see :meth:`Connection.accept`."""
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
        if self.driver is not None:  # by a receiver of connection_opened, which may send
            return self.driver
        try:
            response = opening.announced(response)
            if self.driver is not None:  # meanwhile, in another greenlet
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
        """Whether it is accepted and its end has not begun."""
        return self.driver is not None and self.driver.state is OPEN

    @property
    def transport(self) -> StreamTransport:
        """What its bytes go through, once it is accepted."""
        assert self.driver is not None
        return self.driver.transport

    @property
    def window_bits(self) -> int | None:
        """Window of permessage-deflate for what is sent; None if that was not agreed to."""
        assert self.driver is not None
        return self.driver.protocol.window_bits

    @property
    def outlet(self) -> Outlet | None:
        """The way that messages of channels go out, once it has subscribed to one."""
        return None if self.driver is None else self.driver.outlet

    @outlet.setter
    def outlet(self, outlet: Outlet) -> None:
        assert self.driver is not None
        self.driver.outlet = outlet

    @property
    def subject(self) -> Any:
        """What signals name as the connection."""
        return self.ws

    def too_slow(self) -> None:
        """Close it with 1013: it does not take the messages of its channels."""
        WEBSOCKET_LOG.too_slow(self.path, self.limits.send_buffer)
        assert self.driver is not None
        self.driver.fail(1013, "too slow; connect again")

    # -- when the handler has returned -----------------------------------------------------

    def listen(self) -> None:
        """Leave it to what it subscribes to.

        Returns at once if it is detachable, else once it has ended.
        """
        driver = self.driver
        assert driver is not None
        with driver.transport.lock:
            driver.inbox.leave()
            driver.release()
            driver.inbox.wake()  # a receiver in another greenlet, to be told
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
        """Whether it is to outlive its request, and has not ended yet."""
        driver = self.driver
        if driver is None or driver.state is CLOSED:
            return False
        return self.detachable and driver.inbox.deaf

    def finish(self, code: int = 1000, reason: str = "") -> None:
        """Close it and wait until it is over.

        :param code: close code, if no closing handshake has been started.
        """
        driver = self.driver
        if driver is None:
            return
        self._finished = code == 1000 and self.open
        try:
            driver.close(code, reason)
            self.ws.closed = True
            # The timers of closing and of a peer that takes nothing come first.
            driver.wait_closed(driver.limits.send_timeout + driver.limits.close_timeout + 1.0)
        finally:
            driver.abort()
        driver.inbox.clear()
        self.environ = _bare_environ(self.path)  # the environ holds us: break the circle

    # -- the end ---------------------------------------------------------------------------

    def tell_end(self) -> None:
        """Note that the handler is told of the end, so that a loop that only looks at messages
        ends, too.

        :raises ConnectionClosed: when the handler was told before.
        """
        self.ws.closed = True
        if self._end_told:
            raise self.closed_error()
        self._end_told = True

    def closed_error(self) -> ConnectionClosed:
        """Return the error for a handler that goes on after the end."""
        driver = self.driver
        assert driver is not None
        error = self.error(self.ws, driver.close_code, driver.close_reason)
        error.handler_returned = self._finished
        return error

    def _changed(self, driver: ProtocolDriver) -> None:
        """See :class:`~flask_sockets2.connection.driver.ProtocolDriver`."""
        if not self._announced:
            self._announced = True
            self._announce_end(driver)
        if driver.state is CLOSED:
            self.ended(driver)

    def _announce_end(self, driver: ProtocolDriver) -> None:
        """Tell the handler, in the next turn: any greenlet may have closed the connection."""
        inbox, ws = driver.inbox, self.ws
        if inbox.deaf:
            ws.closed = True
        if self._end_told or inbox.deaf:
            return
        if not inbox.messages or not inbox.handling:
            ws.closed = True
        else:  # it sees what came before first, unless it never comes back for it
            driver.transport.call_later(driver.limits.send_timeout, self._set_closed)
        inbox.end()
        inbox.wake()

    def _set_closed(self) -> None:
        self.ws.closed = True

    def ended(self, driver: ProtocolDriver) -> None:
        """Note that it is over; a server may add to this."""
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
