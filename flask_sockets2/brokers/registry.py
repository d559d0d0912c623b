"""Open a broker by the scheme of its URL."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

from ..exceptions import BrokerError
from .base import Broker, BrokerOptions, Receiver
from .memory import MemoryBroker

__all__ = ["open_broker"]

_ENTRY_POINTS = "flask_sockets2.brokers"
_REDIS = ("redis", "rediss", "unix")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")  # RFC 3986 §3.1


def open_broker(url: str, options: BrokerOptions, receiver: Receiver | None = None) -> Broker:
    """Return the broker for a URL; nothing is opened before its first call.

    :raises BrokerError: if the URL is malformed, its scheme is unknown, or the broker's package is
        not installed.
    """
    if not isinstance(url, str) or not url:
        shown = repr(url) if not url else f"a {type(url).__name__}"
        raise BrokerError(
            f"expected a broker's URL such as redis://localhost:6379/0, got {shown}; if it comes "
            "from an environment variable, set the variable"
        )
    scheme, found, _ = url.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        raise BrokerError(
            "expected a broker's URL such as memory:// or redis://localhost:6379/0, got one "
            "without a scheme"
        )
    if scheme == "memory":
        return MemoryBroker(url, options, receiver)
    if scheme in _REDIS:
        from .redis.broker import RedisBroker

        return RedisBroker(url, options, receiver)
    for entry in entry_points(group=_ENTRY_POINTS, name=scheme):
        broker: Broker = entry.load()(url, options, receiver)
        return broker
    raise BrokerError(
        f"no broker serves {scheme}://; this package has memory, "
        f"{', '.join(_REDIS)}, and others may come by the entry point {_ENTRY_POINTS}"
    )
