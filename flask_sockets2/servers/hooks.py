"""Requests and responses for gunicorn's hooks and loggers, with gunicorn's own attributes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

__all__ = ["Elapsed", "Request", "Response"]


class Request:
    """A request, for ``pre_request``, ``post_request`` and a logger's ``access``.

    The object has all attributes of gunicorn's ``Request`` except the body. ``pre_request`` may
    change attributes, for example ``headers``.

    :param handler: the handler, after the handler has read the request or refused its head.
    :param fields: the header fields for the application.
    :param scheme: ``http`` or ``https``.
    """

    def __init__(self, handler: Any, fields: list[tuple[str, str]], scheme: str) -> None:
        self.scheme = scheme
        self.method, _, rest = handler.requestline.partition(" ")
        #: The target as the client sent it, a path or a URL.
        self.uri, _, version = rest.rpartition(" ")
        self.version = (1, 0) if version == "HTTP/1.0" else (1, 1)
        target: str = handler.path or ""
        target, _, self.fragment = target.partition("#")
        self.path, _, self.query = target.partition("?")
        self._fields = fields
        self._headers: list[tuple[str, str]] | None = None
        self.trailers: list[tuple[str, str]] = []
        self.peer_addr = self.remote_addr = handler.peer
        header = handler.proxy_header
        self.proxy_protocol_info = header.info() if header is not None else {}
        self.must_close: bool = handler.close_connection

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Header fields: names in upper case, and values; the list is made at its first use."""
        if self._headers is None:
            self._headers = [(name.upper(), value) for name, value in self._fields]
        return self._headers

    @headers.setter
    def headers(self, headers: list[tuple[str, str]]) -> None:
        self._headers = headers

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields, including changes by ``pre_request``."""
        return self._fields if self._headers is None else self._headers

    def force_close(self) -> None:
        """Close the connection after the response; for ``pre_request``."""
        self.must_close = True

    def should_close(self) -> bool:
        return self.must_close


class Response:
    """A response, for ``post_request`` and a logger's ``access``.

    :param handler: the handler, after the response.
    :param shown: function that makes texts printable, for a log.
    """

    def __init__(self, handler: Any, shown: Callable[[str], str] = str) -> None:
        status = handler.status or b"000 "
        self.status: str = shown(status.decode("latin-1") if isinstance(status, bytes) else status)
        self.status_code = int(self.status.split(None, 1)[0])
        self._shown = shown
        self._headers: list[tuple[bytes, bytes]] = handler.response_headers or []
        self.headers_sent: bool = handler.headers_sent
        #: Bytes of the body that were sent.
        self.sent: int = handler.sent
        self.response_length: int = handler.sent

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Header fields: names and values."""
        return [
            (name.decode("latin-1"), self._shown(value.decode("latin-1")))
            for name, value in self._headers
        ]


class Elapsed(timedelta):
    """Duration of a request; ``seconds``, which gunicorn logs, includes the days of a WebSocket."""

    @property
    def seconds(self) -> int:
        return self.days * 86400 + super().seconds
