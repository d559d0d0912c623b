"""The open WebSockets of a server, for gevent-websocket programs: ``handler.server.clients``.

A program may loop over the mapping to send to all clients. The loop reaches one process only, and
one slow client delays the others. A channel and ``publish()`` have neither limit.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

from ..connection.connection import Connection
from ..connection.lifecycle import opened

__all__ = ["Client", "Clients", "client_of"]


class Client:
    """One connected client; your program may set attributes of its own.

    :ivar address: address of the client, as the server reports it.
    :ivar ws: connection of the client.
    """

    def __init__(self, address: Any, ws: Connection) -> None:
        self.address = address
        self.ws = ws


class Clients(Mapping[Any, Client]):
    """Live mapping from address to :class:`Client`, for all clients connected to a server.

    The mapping omits connections that are not accepted yet, since a view may still refuse them.

    :param server: server of the clients.
    """

    def __init__(self, server: object) -> None:
        self._server = server

    def _now(self) -> dict[Any, Client]:
        found = {}
        for lifecycle in opened():
            if lifecycle.open and getattr(lifecycle, "server", None) is self._server:
                client = client_of(lifecycle)
                # All clients of a Unix socket have the same, empty address.
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
    """Return the client of a connection, the same object each time.

    :param lifecycle: lifecycle of the connection, made by our own handler.
    """
    if lifecycle.client is None:
        lifecycle.client = Client(lifecycle.address, lifecycle.ws)
    client: Client = lifecycle.client
    return client
