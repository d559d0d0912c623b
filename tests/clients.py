"""WebSocket and HTTP clients that share no code with the package, for talking to real servers."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

TIMEOUT = 5.0  # seconds, for each step


@contextmanager
def websocket(url: str, **options: Any) -> Iterator[ClientConnection]:
    """A connection of the websockets library, with deadlines.

    :param options: see :func:`websockets.sync.client.connect`.
    """
    with connect(url, open_timeout=TIMEOUT, close_timeout=TIMEOUT, **options) as client:
        yield client


def echoed(url: str, message: str | bytes, **options: Any) -> str | bytes:
    """What a server answers to one message."""
    with websocket(url, **options) as client:
        client.send(message)
        return client.recv(timeout=TIMEOUT)


def http(
    url: str,
    *,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, str, Any]:
    """Ask for a URL; an error status is an answer like any other.

    :returns: status, body and headers.
    """
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT, context=context)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, response.read().decode(), response.headers
