"""Exceptions that this package raises.

::

    OSError
    ├── WebSocketError             an error of one WebSocket
    │   ├── ConnectionClosed       send(), or a second receive(), after the connection has ended
    │   └── HandshakeError         the opening handshake is refused, with an HTTP status
    │       └── WebSocketRejected  the test client received an HTTP response instead of a WebSocket
    └── BrokerError                the broker cannot be used or reached

``WebSocketError`` is an :class:`OSError`, as gevent-websocket's is, so that programs written for
Flask-Sockets catch it under either name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from werkzeug.test import TestResponse


class WebSocketError(OSError):
    """An error of one WebSocket; other connections are not affected."""


class ConnectionClosed(WebSocketError):
    """The connection has ended, so that no more messages can be sent or received.

    :param connection: the connection that ended; a handler can tell its own from another's.
    :param code: close code (RFC 6455 §7.4); 1006 if the connection was lost, None if the code is
        not known yet.
    :param reason: close reason, possibly empty.
    """

    #: Whether the connection was closed because its handler returned.
    handler_returned = False

    def __init__(self, connection: object, code: int | None, reason: str) -> None:
        super().__init__(code, reason)
        self.connection = connection
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        ended = f"the connection is closed with code {self.code}"
        if self.handler_returned:
            return (
                f"{ended}, since its handler has returned: stay in the handler as long as another "
                "thread sends, or call ws.subscribe(channel) in it and publish to that channel"
            )
        return f"{ended} ({self.reason})" if self.reason else ended


class HandshakeError(WebSocketError):
    """The opening handshake cannot be accepted.

    :param status: HTTP status of the response.
    :param description: text that names the error and the remedy.
    :param headers: further header fields of the response.
    """

    def __init__(
        self, status: int, description: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(status, description)
        self.status = status
        self.description = description
        self.headers = headers

    def __str__(self) -> str:
        return self.description


class WebSocketRejected(HandshakeError):
    """The test client asked for a WebSocket and received an ordinary HTTP response.

    :param response: the response, a :class:`werkzeug.test.TestResponse`.
    """

    def __init__(self, response: TestResponse) -> None:
        super().__init__(response.status_code, f"refused with {response.status}")
        self.response = response


class BrokerError(OSError):
    """The broker cannot be used or reached; connections stay open.

    If ``publish`` raises this error, the message may have been published all the same.

    :param description: text that names the error and the remedy; never a password.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description

    def __str__(self) -> str:
        return self.description
