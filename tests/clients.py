"""WebSocket and HTTP clients that share no code with the package, for talking to real servers."""

from __future__ import annotations

import asyncio
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from websockets.asyncio.client import connect as asyncio_connect
from websockets.sync.client import ClientConnection, connect

TIMEOUT = 60.0  # seconds, for each step


@contextmanager
def websocket(url: str, **options: Any) -> Iterator[ClientConnection]:
    """A connection of the websockets library, with deadlines.

    :param options: see :func:`websockets.sync.client.connect`.
    """
    with connect(url, **{"open_timeout": TIMEOUT, "close_timeout": TIMEOUT, **options}) as client:
        yield client


def echoed(url: str, message: str | bytes, **options: Any) -> str | bytes:
    """What a server answers to one message."""
    if "ssl" in options:
        # The client with threads reads and writes one TLS object in two of them; with Python 3.11
        # to 3.13 about one connection in 300 then hangs, whatever the server. In a thread of its
        # own, for Playwright's event loop may be running in this one.
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, _echoed(url, message, options)).result()
    with websocket(url, **options) as client:
        client.send(message)
        return client.recv(timeout=TIMEOUT)


async def _echoed(url: str, message: str | bytes, options: dict[str, Any]) -> str | bytes:
    async with asyncio.timeout(2 * TIMEOUT), asyncio_connect(url, **options) as client:
        await client.send(message)
        return await client.recv()


def http(
    url: str,
    *,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    timeout: float = TIMEOUT,
) -> tuple[int, str, Any]:
    """Ask for a URL; an error status is an answer like any other.

    :returns: status, body and headers.
    """
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout, context=context)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, response.read().decode(), response.headers
