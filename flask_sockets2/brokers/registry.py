"""The broker of a URL: by its scheme."""

from __future__ import annotations

from importlib.metadata import entry_points

from ..exceptions import BrokerError
from .base import Broker, BrokerOptions, Receiver
from .memory import MemoryBroker

__all__ = ["open_broker"]

_ENTRY_POINTS = "flask_sockets2.brokers"
_REDIS = ("redis", "rediss", "unix")


def open_broker(url: str, options: BrokerOptions, receiver: Receiver | None = None) -> Broker:
    """Return the broker of a URL; nothing is opened before its first call.

    :raises BrokerError: when the scheme is unknown, or what serves it is not installed.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        raise BrokerError(
            "expected a broker's URL such as memory:// or redis://localhost:6379/0, got one "
            "without a scheme (SOCKETS_BROKER_URL)"
        )
    if scheme == "memory":
        return MemoryBroker(url, options, receiver)
    if scheme in _REDIS:
        from .redis import RedisBroker

        return RedisBroker(url, options, receiver)
    for entry in entry_points(group=_ENTRY_POINTS, name=scheme):
        broker: Broker = entry.load()(url, options, receiver)
        return broker
    raise BrokerError(
        f"no broker serves {scheme}:// (SOCKETS_BROKER_URL); this package has memory, "
        f"{', '.join(_REDIS)}, and others may come by the entry point {_ENTRY_POINTS}"
    )
