"""The interface of ``environ["wsgi.websocket"]``, under this package's servers and others."""

from __future__ import annotations

from typing import Protocol, overload, runtime_checkable

Message = str | bytes
"""One message: text as ``str``, binary as ``bytes``."""


@runtime_checkable
class WebSocket(Protocol):
    """The interface that a handler can use under every server, that of gevent-websocket.

    A connection served by this package offers more, see :class:`flask_sockets2.Connection`.
    """

    closed: bool

    def receive(self) -> str | bytes | bytearray | None:
        """Return the next message, or None if the connection has ended."""

    def send(self, message: str | bytes | bytearray | None, binary: bool | None = None) -> None:
        """Send one message. If the connection has ended, None is allowed and ignored."""

    # The second parameter has another name in a Connection.
    @overload
    def close(self, code: int = 1000, message: str | bytes = b"", /) -> None:
        """Close the connection."""

    @overload
    def close(self, code: int = 1000, *, message: str | bytes = b"") -> None: ...
