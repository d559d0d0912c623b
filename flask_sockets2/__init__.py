"""Server push for Flask: WebSocket routes that run on every server.

Importing this package imports neither gevent nor gunicorn. The classes that need them are imported
on first access (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .application.sockets import Sockets
from .brokers.base import Broker, Position
from .channels.publisher import Publisher
from .connection.connection import Connection
from .connection.limits import Limits
from .exceptions import (
    BrokerError,
    ConnectionClosed,
    HandshakeError,
    WebSocketError,
    WebSocketRejected,
)
from .fanout.fanout import Subscription
from .firehose import Firehose, push
from .turbo import Turbo
from .typing import WebSocket

if TYPE_CHECKING:
    from .servers.gevent import WebSocketHandler, WebSocketServer
    from .servers.gunicorn import Worker

    worker = Worker

__all__ = [
    "Broker",
    "BrokerError",
    "Connection",
    "ConnectionClosed",
    "Firehose",
    "HandshakeError",
    "Limits",
    "Position",
    "Publisher",
    "Sockets",
    "Subscription",
    "Turbo",
    "WebSocket",
    "WebSocketError",
    "WebSocketHandler",
    "WebSocketRejected",
    "WebSocketServer",
    "Worker",
    "__version__",
    "push",
    "worker",
]

_LAZY = {
    "WebSocketHandler": ("servers.gevent", "WebSocketHandler"),
    "WebSocketServer": ("servers.gevent", "WebSocketServer"),
    "Worker": ("servers.gunicorn", "Worker"),
    "worker": ("servers.gunicorn", "Worker"),  # gunicorn -k flask_sockets2.worker
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(f".{module}", __name__), attribute)
