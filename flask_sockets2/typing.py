"""The contract of ``environ["wsgi.websocket"]``, whoever put it there."""

from __future__ import annotations

from typing import Protocol, overload, runtime_checkable

Message = str | bytes
"""One message: text as ``str``, binary as ``bytes``."""


@runtime_checkable
class WebSocket(Protocol):
    """What a handler may rely on under every server (gevent-websocket's interface).

    A connection served by this package offers more, see :class:`flask_sockets2.Connection`.
    """

    closed: bool

    def receive(self) -> str | bytes | bytearray | None:
        """Return the next message, None once the connection has ended."""

    def send(self, message: str | bytes | bytearray | None, binary: bool | None = None) -> None:
        """Send one message; None is for a connection that has ended, where nothing is sent."""

    # The second parameter has another name in a Connection.
    @overload
    def close(self, code: int = 1000, message: str | bytes = b"", /) -> None:
        """Close the connection."""

    @overload
    def close(self, code: int = 1000, *, message: str | bytes = b"") -> None: ...
