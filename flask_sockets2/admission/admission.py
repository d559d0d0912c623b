"""Admission: enforces quotas and rate limits on the connections of one application in one process.

A guest is a WebSocket or an event stream. Limits are checked twice: early, because an early refusal
costs least, and again when the user is known::

    expect()  a request arrived: check the rate limits, and the quotas for the first time
       └─ enter()  the request is accepted: check the quotas and count the guest, in one step
            └─ leave()  the connection has ended

There are three quotas: for all guests, for one address, for one user. The address is that of the
request; behind a proxy, ``ProxyFix`` makes it the client's. For IPv6 the address is the /64, in
which every client chooses its own addresses (RFC 4291 §2.5.1, RFC 8981).

If a client exceeds its own limit, the answer is 429 (RFC 6585 §4). If the limit for all clients is
reached, the answer is 503 (RFC 9110 §15.6.4). Both have ``Retry-After``.
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

_LATER = 5.0  # seconds of Retry-After if a quota is full
_ORDERS = 1000  # orders remembered for guests that are connecting
# If orders were lost, all users must reconnect. _PACE guests are ended a second, to spread the
# reconnects, but all within _LONGEST seconds: a lost order may have been for one of them.
_PACE = 100
_LONGEST = 30.0


class _QuotaRefusal(NamedTuple):
    """Why a guest is refused.

    :ivar limit: field of :class:`Rules` with the limit that is reached.
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
    """Admits, counts and disconnects the guests of one application in this process.

    :param counters: the application's counters.

    :ivar connections: open WebSockets.
    :ivar streams: open event streams.
    :ivar unattended: streams whose client has left, but whose generator has not ended.
    """

    def __init__(self, counters: Counters) -> None:
        self.connections: set[Any] = set()
        self.streams: set[Any] = set()
        self.unattended: set[Any] = set()
        self._counters = counters
        self._log = ThrottledLog(logger)
        # Guards all below, and changes of the sets above. Under this lock, code must not wait,
        # because brokers deliver orders in any thread.
        self._lock = native_lock()
        self._guests: dict[Any, Guest] = {}  # remarkable guests, by connection or stream
        self._networks: Counter[str] = Counter()
        self._users: dict[str, dict[Guest, None]] = {}
        self._rate: TokenBucket | None = None
        self._rates = Buckets()
        self._ages: WeakKeyDictionary[Clock, Ages] = WeakKeyDictionary()  # a hub may end
        self._heard = 0  # number of all orders so far
        self._orders: deque[tuple[int, str]] = deque(maxlen=_ORDERS)  # last ones: number and user
        self._obeyed: dict[str, None] = {}  # ids of the last orders

    def expect(self, rules: Rules, address: str | None, what: str) -> Guest:
        """Check the rate limits and quotas for a request, and return its guest.

        :param address: address of the client, None if the server knows none.
        :param what: description of the request, for the log.
        :raises HandshakeError: if a limit is reached; 429 or 503.
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
        """Take a token of each rate limit; the address first, so that one client cannot use up
        the tokens of all."""
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
        """Check the quotas before the guest costs anything.

        :raises HandshakeError: if a quota is full.
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
        """Count and log a refusal, and return the error to answer with."""
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

    # -- admitted guests -------------------------------------------------------------------

    def enter(
        self,
        here: set[Any],
        one: Any,
        guest: Guest,
        clock: Clock | None,
        close: Callable[[int, str], bool],
    ) -> None:
        """Check the quotas and count a guest in one step, so that two cannot take the last place.

        :param here: :attr:`connections` or :attr:`streams`.
        :param clock: the hub or selector thread that may close the guest; None if the guest is not
            :attr:`~Guest.remarkable`.
        :param close: function called there with code and reason; returns False if too early.
        :raises HandshakeError: if a quota is full, or the user was disconnected meanwhile.
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
        """Stop counting a connection or stream; can be repeated.

        :param works: whether a greenlet or thread still works for a stream without a client. If so,
            the stream counts for ``max_connections`` until a call without ``works``.
        :returns: whether the connection or stream was counted as open.
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
        """Disconnect the user of an order; called in the broker's thread, does not wait.

        An order with a known id is ignored: this process may have given the order, or it was
        published twice. The user may have reconnected by now.
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
        """Close all connections of users, at a limited pace, since an order may have been lost.
        The clients reconnect and are authorized again."""
        with self._lock:
            self._heard += 2  # makes connecting guests too old to know, see _was_disconnected()
            self._orders.clear()
            self._orders.append((self._heard, ""))
            guests = [guest for of_user in self._users.values() for guest in of_user]
        if not guests:
            return
        pace = min(_PACE, guests[0].rules.max_handshake_rate or _PACE)  # faster ones are refused
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
        """Whether an order for the guest's user came since the request arrived."""
        if guest.user is None or guest.heard == self._heard:
            return False
        if self._orders[0][0] > guest.heard + 1:
            return True  # orders since then are forgotten: assume that one was for this user
        return any(heard > guest.heard and user == guest.user for heard, user in self._orders)


def _end(guests: Iterable[Guest], code: int, reason: str, step: float = 0.0) -> None:
    """End guests, ``step`` seconds apart."""
    for number, guest in enumerate(guests):
        try:
            guest.clock.call_soon(partial(guest.end_later, number * step, code, reason))
        except Exception:  # the hub has ended; the other guests must still be ended
            logger.exception("a connection of user %.200r could not be ended", guest.user)


def _by(guest: Guest, refusal: _QuotaRefusal) -> str:
    """Return the user or address that reached a limit, for the log."""
    if refusal is _OF_USER:
        return f" by user {guest.user!r:.200}"
    if refusal.status == 429:
        return f" by {guest.address!r:.200}; if that is a proxy, use ProxyFix"
    return ""
