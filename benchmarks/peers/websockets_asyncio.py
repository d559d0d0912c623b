"""An echo server of websockets' asyncio implementation: ``python websockets_asyncio.py PORT``."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, serve


async def echo(connection: ServerConnection) -> None:
    """Send back what came."""
    async for message in connection:
        await connection.send(message)


async def main(port: int) -> None:
    """Serve until killed; everything at its default but compression, which nobody here uses."""
    async with serve(echo, "127.0.0.1", port, compression=None, backlog=2048) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
