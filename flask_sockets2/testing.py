"""Test WebSocket routes without a server and without a port.

The handler runs in a thread of its own. A socket pair replaces the network, so a test runs the same
code as in production::

    def test_echo():
        client = sockets.test_client(app)
        with client.connect("/echo") as ws:
            ws.send("hello")
            assert ws.receive() == "hello"

With pytest, use the fixture ``sockets_client`` and a fixture ``app`` that returns your application.
"""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as WireHeaders
from websockets.exceptions import ConnectionClosed as WireClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.headers import build_extension
from websockets.protocol import State
from websockets.sync.connection import Connection as WireConnection
from websockets.uri import parse_uri
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from .exceptions import ConnectionClosed, WebSocketRejected
from .servers.takeover import RAISE

__all__ = ["SocketsClient", "WebSocketSession"]

DEADLINE = 5.0
"""Default timeout in seconds."""


class SocketsClient:
    """A test client that opens WebSockets of an application.

    :param app: the application, or a client of its ``test_client()`` to share cookies with. If you
        log in with that client, the WebSockets are logged in, too.
    """

    def __init__(self, app: Flask | FlaskClient) -> None:
        #: The Flask test client that shares its cookies.
        self.http: FlaskClient = app.test_client() if isinstance(app, Flask) else app

    def connect(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        subprotocols: Iterable[str] = (),
        origin: str | None = None,
        compression: bool = False,
        timeout: float = DEADLINE,
        **options: Any,
    ) -> WebSocketSession:
        """Open a WebSocket.

        :param path: path of the route, with its query string.
        :param headers: further header fields of the request.
        :param subprotocols: subprotocols to offer, in order of preference.
        :param origin: origin of the page; None for a client that is not a browser.
        :param compression: whether to offer permessage-deflate.
        :param timeout: seconds to wait for the application's response.
        :param options: arguments of :class:`werkzeug.test.EnvironBuilder`, as ``environ_base``.
        :raises WebSocketRejected: if the application sends an ordinary HTTP response, which is the
            exception's ``response``.
        :raises TimeoutError: if the application does not respond in time.
        """
        fields = Headers(list(headers.items()) if isinstance(headers, Mapping) else list(headers))
        fields["Connection"], fields["Upgrade"] = "Upgrade", "websocket"
        fields.setdefault("Sec-WebSocket-Version", "13")
        fields.setdefault("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode())
        if subprotocols:
            fields["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
        if origin is not None:
            fields["Origin"] = origin
        protocol = ClientProtocol(
            parse_uri("ws://localhost/"),
            extensions=[ClientPerMessageDeflateFactory()] if compression else None,
            state=State.OPEN,
        )
        if compression:
            offer = ClientPerMessageDeflateFactory()
            fields["Sec-WebSocket-Extensions"] = build_extension(
                [(offer.name, list(offer.get_request_params()))]
            )
        call = _Call(self.http, path, {"headers": fields, **options})
        response = call.head(monotonic() + timeout)
        protocol.extensions = protocol.process_extensions(response)
        # The receive queue is unbounded, or close() might never reach the close frame behind it.
        connection = WireConnection(call.socket, protocol, max_queue=None)
        return WebSocketSession(call, connection, response)


class _Call:
    """Runs the application for one request, in a thread of its own."""

    def __init__(self, client: FlaskClient, path: str, options: dict[str, Any]) -> None:
        self.socket, self._far_end = socket.socketpair()
        self.response: TestResponse | None = None
        self.error: BaseException | None = None
        overrides = options.setdefault("environ_overrides", {})
        overrides.update({"werkzeug.socket": self._far_end, RAISE: True})
        options.setdefault("multithread", True)
        options.setdefault("buffered", True)  # so that the response is closed
        self._arguments = (client, path, options)
        self._thread = threading.Thread(target=self._run, name=f"handler of {path}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client, path, options = self._arguments
        try:
            self.response = client.open(path, **options)
        except BaseException as exc:
            self.error = exc
        finally:
            self._far_end.close()

    def head(self, deadline: float) -> WireHeaders:
        """Return the header fields of the 101 response."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            self.socket.settimeout(max(0.001, deadline - monotonic()))
            try:
                byte = self.socket.recv(1)
            except TimeoutError:
                self.socket.close()
                raise TimeoutError("the application did not answer the request in time") from None
            if not byte:
                self.socket.close()
                self.join(deadline)
                assert self.response is not None
                raise WebSocketRejected(self.response)
            head += byte
        self.socket.settimeout(None)
        lines = head.decode("latin-1").split("\r\n")[1:-2]
        return WireHeaders([(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)])

    def join(self, deadline: float) -> None:
        """Wait for the handler to return, and raise its exception."""
        self._thread.join(max(0.0, deadline - monotonic()))
        if self._thread.is_alive():
            raise TimeoutError(
                "the handler did not end in time; does it receive, or look at closed?"
            )
        error, self.error = self.error, None
        if error is not None:
            raise error


class WebSocketSession:
    """The client's end of a WebSocket; as a context manager, closes the connection.

    :ivar headers: header fields of the 101 response.
    """

    def __init__(self, call: _Call, connection: WireConnection, headers: WireHeaders) -> None:
        self._call = call
        self._connection = connection
        self.headers = headers

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the application selected."""
        return self.headers.get("Sec-WebSocket-Protocol")

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.protocol.state is State.CLOSED

    @property
    def close_code(self) -> int | None:
        """Close code from the application; 1006 if the connection was lost, None before."""
        return self._connection.protocol.close_code

    @property
    def close_reason(self) -> str | None:
        """Close reason from the application, None before."""
        return self._connection.protocol.close_reason

    def send(self, message: str | bytes) -> None:
        """Send one message.

        :raises ConnectionClosed: if the connection has ended.
        """
        try:
            self._connection.send(message)
        except WireClosed as exc:
            raise self._closed_error() from exc

    def receive(self, timeout: float = DEADLINE) -> str | bytes | None:
        """Return the next message, ``str`` or ``bytes``, or None once the connection has ended.

        :raises TimeoutError: if no message arrives in time.
        """
        try:
            return self._connection.recv(timeout)
        except WireClosed:
            return None

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages until the connection has ended."""
        return iter(self.receive, None)

    def ping(self, payload: bytes = b"", timeout: float = DEADLINE) -> bool:
        """Send a ping and return whether its pong arrived in time."""
        return self._connection.ping(payload or os.urandom(4)).wait(timeout)

    def close(self, code: int = 1000, reason: str = "", timeout: float = DEADLINE) -> None:
        """Close the connection, wait for the handler to return and raise its exception."""
        try:
            self._connection.close(code, reason)
            self._call.join(monotonic() + timeout)
        finally:
            self._call.socket.close()

    def _closed_error(self) -> ConnectionClosed:
        return ConnectionClosed(self, self.close_code, self.close_reason or "")

    def __enter__(self) -> WebSocketSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        self._connection.close()  # the test has failed already: do not hide its error
        self._call.socket.close()
