"""AppChannels: publish to an application's channels, and subscribe connections to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

from flask import Flask, has_request_context, request

from ..brokers.base import NOWHERE, Broker, Message, Position
from ..exceptions import BrokerError
from ..fanout.encoding import Encoding, Frames
from ..fanout.fanout import ALL, Fanout, Subscription
from ..fanout.outbox import Observer, Outlet, OutletOwner, SocketWriter
from ..fanout.turn_writer import WriterClock
from ..signals import broker_reconnected, client_too_slow, gap_told, message_dropped, tell
from ..throttled_log import ThrottledLog
from .publisher import Publisher, check_channel, dumps_of, encode, utf8

__all__ = ["AppChannels", "Subscriber"]

logger = logging.getLogger("flask_sockets2.channels")

_MAX_IDENTITY = 1024  # bytes of UTF-8

_AWAY_UNTIL = "flask_sockets2.away_until"  # in the environ: when a page may ask the broker again
_PATIENCE = 5.0  # seconds until a page asks again; one attempt may take as long

Place = TypeVar("Place")


class Subscriber(OutletOwner, Protocol):
    """A connection, with the attributes that its channels use."""

    environ: Any
    outlet: Any

    @property
    def limits(self) -> Any:
        """The limits of the connection."""

    @property
    def open(self) -> bool:
        """Whether the connection has not begun to close."""

    @property
    def transport(self) -> SocketWriter:
        """The transport that sends the connection's bytes."""

    @property
    def window_bits(self) -> int | None:
        """The window bits of permessage-deflate, None without compression."""


class _Signals(Observer):
    """Sends an application's signals."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def gap(self, channel: str) -> None:
        tell(gap_told, self._app, channel=channel)

    def dropped(self, owner: OutletOwner, channel: str) -> None:
        tell(message_dropped, self._app, connection=owner.subject, channel=channel)

    def too_slow(self, owner: OutletOwner) -> None:
        tell(client_too_slow, self._app, connection=owner.subject)

    def reconnected(self) -> None:
        tell(broker_reconnected, self._app)


class AppChannels:
    """The channels of one application in this process: publishes, and subscribes connections.

    :param app: the application.
    :param fanout: delivers messages to this process's subscribers.
    :param publisher: publishes to the channels.
    """

    def __init__(self, app: Flask, fanout: Fanout, publisher: Publisher) -> None:
        self.publisher = publisher
        self._app = app
        self._fanout = fanout
        self._fanout.observer = _Signals(app)
        self._dumps = dumps_of(app)
        self._seldom = ThrottledLog(logger)
        self._warned = False

    @property
    def broker(self) -> Broker:
        """The broker of the channels."""
        return self.publisher.broker

    def for_page(
        self, number: int, ask: Callable[[], Sequence[Place]]
    ) -> Sequence[Place] | list[Position]:
        """Return the positions of a page's channels, :data:`NOWHERE` if the broker is unreachable.

        An unreachable broker does not stop the page, but its connection is told of a gap. If the
        request asks again within seconds, the broker is not tried.

        :param number: number of channels.
        :param ask: function that asks the broker for positions.
        """
        environ = request.environ if has_request_context() else {}
        if environ.get(_AWAY_UNTIL, 0.0) <= monotonic():
            try:
                return ask()
            except BrokerError as exc:
                environ[_AWAY_UNTIL] = monotonic() + _PATIENCE
                self._seldom.failure(
                    "positions", "a page has no positions and will be told of a gap: %s", exc
                )
        return [NOWHERE] * number

    def subscribe(
        self,
        connection: Subscriber,
        channel: str,
        *,
        since: Position | str | None = None,
        envelope: bool = False,
        presence: bool = False,
        identity: str | None = None,
        gap: Any = None,
    ) -> Subscription:
        """Subscribe a connection; see :meth:`flask_sockets2.Connection.subscribe`."""
        check_channel(channel)
        if presence and not envelope:
            raise ValueError("presence=True needs envelope=True: who joins comes in an envelope")
        if identity is not None:
            _check_identity(identity)
        position = self._since(since, channel)
        encoding = Frames.of(
            envelope=envelope,
            presence=presence,
            gap=None if gap is None else encode(gap, self._dumps, "gap="),
            window_bits=connection.window_bits,
        )
        self._warn_of_processes(connection.environ)
        return self._fanout.subscribe(
            self._outlet(connection),
            channel,
            encoding,
            since=position,
            identity=identity,
            presence=presence,
        )

    def attach(
        self, outlet: Outlet, channel: str, encoding: Encoding, since: Any, environ: Any
    ) -> Subscription:
        """Subscribe an outlet without a WebSocket connection, such as an event stream.

        :param outlet: outlet that :meth:`outlet_of` returned.
        :param environ: WSGI environ of the request.
        :raises BrokerError: if the broker cannot be reached.
        :raises ValueError: if the outlet has subscribed already, or the channel's name is invalid.
        """
        check_channel(channel)
        self._warn_of_processes(environ)
        return self._fanout.subscribe(outlet, channel, encoding, since=self._since(since, channel))

    def outlet_of(self, transport: SocketWriter, owner: OutletOwner, limits: Any) -> Outlet:
        """Return a new outlet that writes to a transport."""
        return Outlet(transport, owner, self._fanout, limits.send_buffer, limits.slow_client)

    def listen(
        self,
        name: str,
        listener: Callable[[Message], None],
        clock: WriterClock,
        environ: Any,
        *,
        missed: Callable[[], None] | None = None,
    ) -> None:
        """Listen to an internal channel of the processes; see :meth:`Fanout.listen`.

        :param environ: WSGI environ of the request that starts the listener.
        """
        self._warn_of_processes(environ)
        self._fanout.listen(name, listener, clock, missed=missed)

    def check(self, channel: str) -> None:
        """Check that a channel's name is valid and that the broker can be reached."""
        check_channel(channel)
        if self.broker.waits and not self._fanout.subscribers(channel):
            self.broker.position(channel)

    def _outlet(self, connection: Subscriber) -> Outlet:
        """Return the outlet of a connection; the first call creates one."""
        transport, limits = connection.transport, connection.limits
        with transport.lock:  # threads may subscribe the connection while another one closes
            outlet: Outlet | None = connection.outlet
            if outlet is None:
                outlet = self.outlet_of(transport, connection, limits)
                connection.outlet = outlet
                if not connection.open:
                    outlet.remove()
        return outlet

    def unsubscribe(self, connection: Subscriber, channel: str) -> bool:
        """Stop sending a channel's messages to a connection."""
        outlet = connection.outlet
        return outlet is not None and self._fanout.unsubscribe(outlet, channel)

    def here(self) -> dict[str, int]:
        """Return the number of subscribers in this process, by channel."""
        return self._fanout.channels()

    def close(self) -> None:
        """Close the broker."""
        self.publisher.close()

    def _since(self, given: Any, channel: str) -> Any:
        """Return the position that a client names; :data:`NOWHERE` if the text is invalid."""
        if given is None or given == "":
            return None
        if isinstance(given, Position):
            return given
        if not isinstance(given, str):
            raise TypeError(f"since= is a position as text, got {type(given).__name__}")
        if given == "start":
            return ALL
        position = Position.parse(given)
        if position is None and given != str(NOWHERE) and self._app.debug:
            logger.warning(
                "since=%.200r is no position in channel %.200r, so the client is told of a gap; "
                'give it what sockets.position() or an envelope has named, or "start"',
                given,
                channel,
            )
        return position or NOWHERE

    def _warn_of_processes(self, environ: Any) -> None:
        """Warn once if there are several worker processes but the broker is in memory."""
        if self._warned or self.broker.shared:
            return
        self._warned = True
        if environ.get("wsgi.multiprocess"):
            logger.warning(
                "this server has several workers, and with %s:// what is published stays in its "
                "process; set app.config['SOCKETS_BROKER_URL'] to a redis:// URL, or run one "
                "worker",
                self.broker.url.partition("://")[0],
            )


def _check_identity(identity: Any) -> None:
    if not isinstance(identity, str):
        raise TypeError(f"identity= is a str, got {type(identity).__name__}; use str(user.id)")
    size = len(utf8(identity, "identity="))
    if not 0 < size <= _MAX_IDENTITY:
        raise ValueError(f"identity= is 1 to {_MAX_IDENTITY} bytes long, got {size}")
