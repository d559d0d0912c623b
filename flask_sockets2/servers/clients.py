"""The WebSockets of a server as gevent-websocket's server lists them: ``handler.server.clients``.

Programs written for it send to all clients so. This reaches one process only, and one slow client
makes the others wait; a channel and ``publish()`` do neither.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

from ..connection.connection import Connection
from ..connection.lifecycle import opened

__all__ = ["Client", "Clients", "client_of"]


class Client:
    """One client; programs may set attributes of their own.

    :ivar address: of the client, as the server has it.
    :ivar ws: its connection.
    """

    def __init__(self, address: Any, ws: Connection) -> None:
        self.address = address
        self.ws = ws


class Clients(Mapping[Any, Client]):
    """The clients that are connected to a server by their addresses, as they are at each look.

    A connection that is not accepted yet is not among them: it may still be refused.

    :param server: whose they are.
    """

    def __init__(self, server: object) -> None:
        self._server = server

    def _now(self) -> dict[Any, Client]:
        found = {}
        for lifecycle in opened():
            if lifecycle.open and getattr(lifecycle, "server", None) is self._server:
                client = client_of(lifecycle)
                # All clients of a Unix socket have the same address, an empty one.
                found[client.address or id(client.ws)] = client
        return found

    def __getitem__(self, address: Any) -> Client:
        return self._now()[address]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def values(self) -> ValuesView[Client]:
        return self._now().values()

    def items(self) -> ItemsView[Any, Client]:
        return self._now().items()


def client_of(lifecycle: Any) -> Client:
    """Return the client of a connection, the same each time.

    :param lifecycle: of the connection, made by our own handler.
    """
    if lifecycle.client is None:
        lifecycle.client = Client(lifecycle.address, lifecycle.ws)
    client: Client = lifecycle.client
    return client
