"""A proxy whose server is away for a while, as in a restart."""

from __future__ import annotations

import contextlib
import socket

from tests.turbo.browser import Network

AWAY = (
    b"HTTP/1.1 %d Away\r\nContent-Type: text/html\r\nContent-Length: 4\r\nLocation: /login\r\n"
    b"Connection: close\r\n\r\nAway"
)


class Proxy(Network):
    """A proxy that answers by itself while its server is away.

    :ivar status: of its answers; 0 while the server is there.
    :ivar refused: requests for a stream that it has answered so.
    """

    def __init__(self, port: int) -> None:
        self.status = 0
        self.refused = 0
        super().__init__(port)

    def leave(self, status: int) -> None:
        """Lose the server, and all connections with it."""
        self.refused = 0
        self.status = status
        self.drop()

    def _serve(self, client: socket.socket) -> None:
        if not self.status:
            super()._serve(client)
            return
        with client, contextlib.suppress(OSError):
            line = client.recv(65536).split(b"\r\n", 1)[0]
            if line:
                client.sendall(AWAY % (200 if b"/login" in line else self.status))
                self.refused += b"/stream" in line
