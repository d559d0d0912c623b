"""Channels of one application: publish to them, and subscribe connections."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

from flask import Flask, has_request_context, request

from ..admission.disconnects import ORDERS, Order, Unsent, UserId
from ..brokers.base import JSON, NOWHERE, BrokerOptions, Draft, Message, Position
from ..brokers.registry import open_broker
from ..exceptions import BrokerError
from ..fanout.encoding import Encoding, Frames
from ..fanout.fanout import ALL, Fanout, Observer, Subscription
from ..fanout.outbox import Outlet, Owner, SocketWriter
from ..fanout.turn_writer import Clock
from ..signals import broker_reconnected, client_too_slow, gap_told, message_dropped, tell
from ..stats import Counters
from ..throttled_log import ThrottledLog
from .publisher import Publisher, check_channel, dumps_of, payload_of

__all__ = ["Channels", "Subscriber"]

logger = logging.getLogger("flask_sockets2.channels")

_MAX_IDENTITY = 1024  # bytes of UTF-8

_AWAY_UNTIL = "flask_sockets2.away_until"  # in the environ: when a page may ask the broker again
_PATIENCE = 5.0  # seconds that it does not, as one attempt may take as long

Place = TypeVar("Place")


class Subscriber(Owner, Protocol):
    """A connection, as far as its channels need it."""

    environ: Any
    outlet: Any

    @property
    def limits(self) -> Any:
        """Of the connection."""

    @property
    def open(self) -> bool:
        """Whether its end has not begun."""

    @property
    def transport(self) -> SocketWriter:
        """What its bytes go through."""

    @property
    def window_bits(self) -> int | None:
        """Of permessage-deflate."""


class Watch(Protocol):
    """Looks whether anybody hears what a process publishes."""

    settled: bool

    def published(self, channel: str) -> None:
        """Take note of a message."""


class _Signals(Observer):
    """Sends an application's signals."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def gap(self, channel: str) -> None:
        tell(gap_told, self._app, channel=channel)

    def dropped(self, owner: Owner, channel: str) -> None:
        tell(message_dropped, self._app, connection=owner.subject, channel=channel)

    def too_slow(self, owner: Owner) -> None:
        tell(client_too_slow, self._app, connection=owner.subject)

    def reconnected(self) -> None:
        tell(broker_reconnected, self._app)


class Channels(Publisher):
    """The channels of one application in this process.

    :param app: the application.
    :param url: of the broker.
    :param options: for the broker.
    :param counters: to count in.
    :param max_message_size: bytes of one message.
    :param log_errors: log what cannot be published, and do not raise.
    :param unheard: looks whether anybody hears what is published, if the broker reaches no other
        process.
    """

    def __init__(
        self,
        app: Flask,
        url: str,
        options: BrokerOptions,
        counters: Counters,
        max_message_size: int,
        log_errors: bool,
        unheard: Callable[[Callable[[], bool], Callable[[str], None]], Watch],
    ) -> None:
        self._fanout = Fanout(lambda fanout: open_broker(url, options, fanout), options, counters)
        self._fanout.observer = _Signals(app)
        self._broker = self._fanout.broker
        self._counters = counters
        self._max_message_size = max_message_size
        self._app = app
        self._dumps = dumps_of(app)
        self._log_errors = log_errors
        self._seldom = ThrottledLog(logger)
        self._warned = False
        self._unheard = None if self._broker.shared else unheard(self._is_heard, self._warn_of_none)
        self._unsent = Unsent(self._publish_order)

    def disconnect(self, *, user: UserId, code: int = 1008, reason: str = "") -> None:
        """Close the WebSockets and end the event streams of a user, in all processes.

        Those of this process end whether or not the broker can be reached. If it cannot, the order
        is kept, and published as soon as the broker is back while this process runs.

        Takes and raises what :meth:`flask_sockets2.Publisher.disconnect` does.
        """
        order = Order.of(user, code, reason)
        self._fanout.deliver(Message(ORDERS, JSON, order.serialize(), NOWHERE))
        try:
            self._publish_order(order)
        except BrokerError as exc:
            self._unsent.keep(order)
            raise BrokerError(
                "the connections of the user in this process are ended, but other processes could "
                f"not be told ({exc.description}); this process tries again for an hour, while it "
                "runs; to be certain, disconnect the user again when the broker is back"
            ) from exc
        except BaseException:  # killed, or a timeout of its request's
            self._unsent.keep(order)
            raise
        self._unsent.drop(order.user)

    def _publish(self, drafts: list[Draft]) -> list[Position]:
        positions = self._broker.publish(drafts)
        for draft in drafts:
            self._counters.of_channel(draft.channel).published += 1
        self._fanout.relieve()
        if self._unheard is not None and not self._unheard.settled:
            self._unheard.published(drafts[0].channel)
        return positions

    def _unpublished(self, exc: BrokerError, channels: Sequence[str]) -> list[Position]:
        for channel in channels:
            self._counters.of_channel(channel).publish_errors += 1
            if self._log_errors:
                self._seldom.failure(
                    "unpublished",
                    "a message to %.200r was not published, and SOCKETS_PUBLISH_ERRORS is 'log': "
                    "%s",
                    channel,
                    exc,
                    extra={"event": "unpublished", "channel": channel[:200]},
                )
        if not self._log_errors:
            raise exc
        return [NOWHERE] * len(channels)

    def for_page(
        self, number: int, ask: Callable[[], Sequence[Place]]
    ) -> Sequence[Place] | list[Position]:
        """Return where the channels of a page are, :data:`NOWHERE` if the broker is away.

        The page is rendered then, and its connection is told of a gap. In the same request the
        broker is not asked again for a while.

        :param number: of channels.
        :param ask: asks the broker.
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
            gap=None if gap is None else payload_of(gap, self._dumps),
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
        """Subscribe what is no connection.

        :param outlet: of :meth:`outlet_of`.
        :param environ: WSGI environ of its request.
        :raises BrokerError: when the broker cannot be reached.
        :raises ValueError: when it subscribes to the channel already, or that is no name.
        """
        check_channel(channel)
        self._warn_of_processes(environ)
        return self._fanout.subscribe(outlet, channel, encoding, since=self._since(since, channel))

    def outlet_of(self, transport: SocketWriter, owner: Owner, limits: Any) -> Outlet:
        """Return a new outlet that writes to a transport."""
        return Outlet(transport, owner, self._fanout, limits.send_buffer, limits.slow_client)

    def listen(
        self,
        name: str,
        listener: Callable[[Message], None],
        clock: Clock,
        environ: Any,
        *,
        missed: Callable[[], None] | None = None,
    ) -> None:
        """Take part in a channel of the processes' own; see :meth:`Fanout.listen`.

        :param environ: WSGI environ of the request that asks for it.
        """
        self._warn_of_processes(environ)
        self._fanout.listen(name, listener, clock, missed=missed)

    def check(self, channel: str) -> None:
        """See that a channel can be subscribed to: its name, and that the broker is there."""
        check_channel(channel)
        if self._broker.waits and not self._fanout.subscribers(channel):
            self._broker.position(channel)

    def _outlet(self, connection: Subscriber) -> Outlet:
        """Return the outlet of a connection, made when it is first needed."""
        transport, limits = connection.transport, connection.limits
        with transport.lock:  # several threads may subscribe it, while another one closes it
            outlet: Outlet | None = connection.outlet
            if outlet is None:
                outlet = self.outlet_of(transport, connection, limits)
                connection.outlet = outlet
                if not connection.open:
                    outlet.remove()
        return outlet

    def unsubscribe(self, connection: Subscriber, channel: str) -> bool:
        """Send a connection nothing more of a channel."""
        outlet = connection.outlet
        return outlet is not None and self._fanout.unsubscribe(outlet, channel)

    def here(self) -> dict[str, int]:
        """Return the channels with subscribers in this process, and how many they have."""
        return self._fanout.channels()

    def close(self) -> None:
        """Let go of the broker."""
        self._unsent.close()
        self._fanout.close()

    def _since(self, given: Any, channel: str) -> Any:
        """Return the position that a client names; one that makes no sense is a gap."""
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

    def _is_heard(self) -> bool:
        """Tell whether this process has served anybody, or is a test."""
        app = self._app
        served = app.testing or getattr(app, "_got_first_request", False) or self.here()
        return bool(served) or "pytest" in sys.modules

    def _warn_of_none(self, channel: str) -> None:
        logger.warning(
            "published to %.200r in a process that serves nobody, and with %s:// no other process "
            "hears it; set app.config['SOCKETS_BROKER_URL'] to a redis:// URL, the same here and "
            "in the processes that serve",
            channel,
            self._broker.url.partition("://")[0],
        )

    def _warn_of_processes(self, environ: Any) -> None:
        """Say once that a message would not leave this process, where there are others."""
        if self._warned or self._broker.shared:
            return
        self._warned = True
        if environ.get("wsgi.multiprocess"):
            logger.warning(
                "this server has several workers, and with %s:// what is published stays in its "
                "process; set app.config['SOCKETS_BROKER_URL'] to a redis:// URL, or run one "
                "worker",
                self._broker.url.partition("://")[0],
            )


def _check_identity(identity: Any) -> None:
    if not isinstance(identity, str):
        raise TypeError(f"identity= is a str, got {type(identity).__name__}; use str(user.id)")
    try:
        size = len(identity.encode())
    except UnicodeEncodeError as exc:
        raise ValueError("identity= cannot hold half a surrogate pair") from exc
    if not 0 < size <= _MAX_IDENTITY:
        raise ValueError(f"identity= is 1 to {_MAX_IDENTITY} bytes long, got {size}")
