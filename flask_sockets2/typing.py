"""The contract of ``environ["wsgi.websocket"]``, whoever put it there."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

Message = str | bytes
"""One message: text as ``str``, binary as ``bytes``."""


@runtime_checkable
class WebSocket(Protocol):
    """What a handler may rely on under every server (gevent-websocket's interface).

    A connection served by this package offers more, see :class:`flask_sockets2.Connection`.
    """

    closed: bool

    def receive(self) -> Any:
        """Return the next message, None once the connection has ended."""

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Send one message."""

    def close(self, code: int = 1000, message: Any = b"") -> None:
        """Close the connection."""
