"""``broadcast()`` of websockets' asyncio implementation: ``python push_websockets.py PORT``."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from http import HTTPStatus

from pacing import Order
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.http11 import Request, Response

clients: set[ServerConnection] = set()


async def listen(connection: ServerConnection) -> None:
    """Keep the connection in the set while it is open."""
    clients.add(connection)
    try:
        await connection.wait_closed()
    finally:
        clients.discard(connection)


async def publish(connection: ServerConnection, request: Request) -> Response | None:
    """Broadcast what is asked for, where it is no WebSocket that is."""
    if not request.path.startswith("/publish"):
        return None
    order = Order.of(request.path)
    text = order.text()
    began = time.monotonic()
    for wait in order.waits():
        if wait is not None:
            await asyncio.sleep(wait)
        broadcast(clients, text)
    answer = json.dumps({"seconds": time.monotonic() - began})
    return connection.respond(HTTPStatus.OK, answer)


async def main(port: int) -> None:
    """Serve until killed; everything at its default but compression and the handshake's limit."""
    async with serve(
        listen,
        "127.0.0.1",
        port,
        compression=None,
        backlog=2048,
        process_request=publish,
        open_timeout=None,
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
