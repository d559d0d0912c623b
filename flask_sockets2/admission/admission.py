"""Admission: who may come, who is here, and who has to go; of one application in one process.

A guest is a WebSocket or an event stream. It comes in two steps, since what is refused early costs
least, and what counts is only known late::

    expect()  the request is there: the rates, and whether there is room by now
       └─ enter()  it is accepted: room is looked for and taken in one step
            └─ leave()  it has ended

Of three limits on their number each may refuse: of all, of one address, of one user. An address is
that of the request, so behind a proxy it is ``ProxyFix`` that makes it the client's. Of IPv6 it is
the /64, within which every client takes the addresses it likes (RFC 4291 §2.5.1, RFC 8981).

What is the client's own doing is answered with 429 (RFC 6585 §4), what is everybody's with 503
(RFC 9110 §15.6.4), both with ``Retry-After``.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from math import ceil
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..brokers.base import Message
from ..concurrency.native_lock import native_lock
from ..exceptions import HandshakeError
from ..stats import Counters
from ..throttled_log import ThrottledLog
from ..token_bucket import Buckets, TokenBucket
from ..transports.clock import Clock
from .disconnects import DisconnectOrder
from .guests import NO_RULES, Guest, Rules, network_of
from .max_age import Ages

__all__ = ["Admission"]

logger = logging.getLogger("flask_sockets2.sockets")

_LATER = 5.0  # seconds after which there may be room
_ORDERS = 1000  # that are remembered for those who are just coming
# When all users have to come again: how many are ended a second, so that they do not come at once,
# and within how many seconds all are, however many: one of them may have been disconnected.
_PACE = 100
_LONGEST = 30.0


class _QuotaRefusal(NamedTuple):
    """Why one cannot come.

    :ivar limit: the field of :class:`Rules` that says so.
    """

    limit: str
    status: int
    description: str


_TOO_MANY = _QuotaRefusal("max_connections", 503, "too many connections")
_OF_ADDRESS = _QuotaRefusal(
    "max_connections_per_address", 429, "too many connections from your address; close some"
)
_OF_USER = _QuotaRefusal(
    "max_connections_per_user", 429, "too many connections of yours; close some"
)
_TOO_FAST = _QuotaRefusal("max_handshake_rate", 503, "too many connect at once; come back later")
_FAST = _QuotaRefusal(
    "max_handshake_rate_per_address", 429, "you connect too often; come back later"
)


class Admission:
    """Who is here.

    :param counters: to count in.

    :ivar connections: WebSockets that are open.
    :ivar streams: the same of event streams.
    :ivar unattended: streams whose client has left, while what brings their pieces has not ended.
    """

    def __init__(self, counters: Counters) -> None:
        self.connections: set[Any] = set()
        self.streams: set[Any] = set()
        self.unattended: set[Any] = set()
        self._counters = counters
        self._log = ThrottledLog(logger)
        # Guards all below, and adding to what is above. Nothing waits while it is held: brokers
        # deliver orders wherever they are.
        self._lock = native_lock()
        self._guests: dict[Any, Guest] = {}  # those with more to them, by connection or stream
        self._networks: Counter[str] = Counter()
        self._users: dict[str, dict[Guest, None]] = {}
        self._rate: TokenBucket | None = None
        self._rates = Buckets()
        self._ages: WeakKeyDictionary[Clock, Ages] = WeakKeyDictionary()  # a hub may end
        self._heard = 0  # orders, ever; and the last of them, with their numbers
        self._orders: deque[tuple[int, str]] = deque(maxlen=_ORDERS)
        self._obeyed: dict[str, None] = {}  # their ids, the last of them

    def expect(self, rules: Rules, address: str | None, what: str) -> Guest:
        """Take note of a request for a connection, and see whether it may have one by now.

        :param address: of the client, None where the server knows none.
        :param what: is asked for, for the log.
        :raises HandshakeError: when it may not; 429 or 503.
        """
        guest = Guest(rules, what, address or "", self._heard)
        if rules is NO_RULES:
            return guest
        counted = rules.max_connections_per_address is not None
        network = None
        if address and (counted or rules.max_handshake_rate_per_address is not None):
            network = network_of(address)
        if counted:
            guest.network = network
        now = monotonic()
        with self._lock:
            wait, refusal = self._take_token(rules, network, now)
        if refusal is not None:
            raise self._refused(guest, refusal, wait)
        self.check(guest)
        return guest

    def _take_token(
        self, rules: Rules, network: str | None, now: float
    ) -> tuple[float, _QuotaRefusal | None]:
        """See whether it comes too soon; the address first, so that one does not use up what is
        there for all."""
        rate = rules.max_handshake_rate_per_address
        if rate is not None and network is not None:
            wait = self._rates.take(network, rate, now)
            if wait:
                return wait, _FAST
        rate = rules.max_handshake_rate
        if rate is not None:
            if self._rate is None or self._rate.rate != rate:
                self._rate = TokenBucket(rate, now)
            wait = self._rate.take(now)
            if wait:
                return wait, _TOO_FAST
        return 0.0, None

    def check(self, guest: Guest) -> None:
        """See whether there is room, before it costs anything.

        :raises HandshakeError: when there is none.
        """
        with self._lock:
            refusal = self._full(guest)
        if refusal is not None:
            raise self._refused(guest, refusal)

    def _full(self, guest: Guest) -> _QuotaRefusal | None:
        rules, user = guest.rules, guest.user
        here = len(self.connections) + len(self.streams) + len(self.unattended)
        if rules.max_connections is not None and here >= rules.max_connections:
            return _TOO_MANY
        most = rules.max_connections_per_address
        if most is not None and guest.network and self._networks[guest.network] >= most:
            return _OF_ADDRESS
        most = rules.max_connections_per_user
        if most is not None and user is not None and len(self._users.get(user, ())) >= most:
            return _OF_USER
        return None

    def _refused(
        self, guest: Guest, refusal: _QuotaRefusal, wait: float = _LATER
    ) -> HandshakeError:
        """Count and log it, and return what to answer."""
        limit = refusal.limit
        with self._lock:
            self._counters.refused[limit] += 1
        self._log.warning(
            limit,
            "refused %s: SOCKETS_%s is reached (%s)%s",
            guest.what,
            limit.upper(),
            getattr(guest.rules, limit),
            _by(guest, refusal),
            extra={
                "event": "refused",
                "reason": limit,
                "address": guest.address,
                "user": guest.user,
            },
        )
        later = (("Retry-After", str(ceil(max(1.0, wait)))),)
        return HandshakeError(refusal.status, refusal.description, later)

    # -- here ------------------------------------------------------------------------------

    def enter(
        self,
        here: set[Any],
        one: Any,
        guest: Guest,
        clock: Clock | None,
        close: Callable[[int, str], bool],
    ) -> None:
        """Count one, where there is room for it: two threads must not both find the last place.

        :param here: :attr:`connections` or :attr:`streams`.
        :param clock: the hub or selector thread that may close it; None where the guest is not
            :attr:`~Guest.remarkable`.
        :param close: called there with a code and a reason; says False as long as it cannot.
        :raises HandshakeError: when there is none.
        """
        with self._lock:
            refusal = self._full(guest)
            ordered = refusal is None and self._was_disconnected(guest)
            if refusal is None and not ordered:
                here.add(one)
                if clock is not None and guest.remarkable:
                    guest.clock, guest.close = clock, close
                    self._keep(one, guest)
        if refusal is not None:
            raise self._refused(guest, refusal)
        if ordered:
            again = (("Retry-After", "1"),)
            raise HandshakeError(503, "disconnected meanwhile; connect again", again)

    def _keep(self, one: Any, guest: Guest) -> None:
        self._guests[one] = guest
        if guest.network:
            self._networks[guest.network] += 1
        if guest.user is not None:
            self._users.setdefault(guest.user, {})[guest] = None
        if guest.max_age:
            ages = self._ages.get(guest.clock)
            if ages is None:
                ages = self._ages[guest.clock] = Ages(self._lock)
            ages.add(guest, guest.max_age)

    def leave(self, here: set[Any], one: Any, *, works: bool = False) -> bool:
        """Count one no longer; can be repeated.

        :param works: it has no client any more, but a greenlet or thread: the limit on all bounds
            what a process does, so there it counts until this is called without.
        :returns: whether it was counted as open.
        """
        with self._lock:
            if not works:
                self.unattended.discard(one)
            if one not in here:
                return False
            here.discard(one)
            if works:
                self.unattended.add(one)
            guest = self._guests.pop(one, None)
            if guest is not None:
                self._forget(guest)
        return True

    def _forget(self, guest: Guest) -> None:
        guest.close = None
        if guest.network:
            self._networks[guest.network] -= 1
            if not self._networks[guest.network]:
                del self._networks[guest.network]
        if guest.user is not None:
            of_user = self._users[guest.user]
            del of_user[guest]
            if not of_user:
                del self._users[guest.user]
        if guest.due:
            self._ages[guest.clock].remove(guest)

    # -- orders ----------------------------------------------------------------------------

    def obey(self, message: Message) -> None:
        """Take an order; in whatever thread the broker delivers it, and without waiting.

        An order that was obeyed already is passed over: this process may have given it, or it was
        published twice. Its user may be here again by now.
        """
        order = DisconnectOrder.parse(message.data)
        if order is None:
            logger.warning("an order at %s makes no sense to this version", message.position)
            return
        with self._lock:
            if order.id in self._obeyed:
                return
            if order.id:
                self._obeyed[order.id] = None
                if len(self._obeyed) > _ORDERS:
                    del self._obeyed[next(iter(self._obeyed))]
            self._heard += 1
            self._orders.append((self._heard, order.user))
            guests = list(self._users.get(order.user, ()))
            self._counters.disconnected += len(guests)
        _end(guests, order.code, order.reason)

    def orders_lost(self) -> None:
        """Whoever has a user comes anew, some after others: an order for it may be among those that
        are lost."""
        with self._lock:
            self._heard += 2  # so that those who are just coming count as too long ago to know
            self._orders.clear()
            self._orders.append((self._heard, ""))
            guests = [guest for of_user in self._users.values() for guest in of_user]
        if not guests:
            return
        pace = min(_PACE, guests[0].rules.max_handshake_rate or _PACE)  # else they are refused
        step = min(1 / pace, _LONGEST / len(guests))
        logger.warning(
            "the broker may have lost a call of disconnect(), so the %d open connections of users "
            "are closed within %.1f s; their clients reconnect and are authorized again",
            len(guests),
            len(guests) * step,
            extra={"event": "orders_lost", "count": len(guests)},
        )
        _end(guests, 1012, "connect again", step)

    def _was_disconnected(self, guest: Guest) -> bool:
        """Whether an order for its user came since it was asked who it is."""
        if guest.user is None or guest.heard == self._heard:
            return False
        if self._orders[0][0] > guest.heard + 1:
            return True  # too long ago to know
        return any(heard > guest.heard and user == guest.user for heard, user in self._orders)


def _end(guests: Iterable[Guest], code: int, reason: str, step: float = 0.0) -> None:
    """End them, each so many seconds after the one before."""
    for number, guest in enumerate(guests):
        try:
            guest.clock.call_soon(partial(guest.end_later, number * step, code, reason))
        except Exception:  # of a hub that has gone; the others must not stay for it
            logger.exception("a connection of user %.200r could not be ended", guest.user)


def _by(guest: Guest, refusal: _QuotaRefusal) -> str:
    """Whose doing it is, for the log."""
    if refusal is _OF_USER:
        return f" by user {guest.user!r:.200}"
    if refusal.status == 429:
        return f" by {guest.address!r:.200}; if that is a proxy, use ProxyFix"
    return ""
