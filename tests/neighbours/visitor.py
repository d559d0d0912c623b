"""A visitor of one application of the matrix: the other end of :mod:`tests.neighbours.parts`.

It shares no code with the package. Every wait has a deadline.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from html import unescape
from typing import Any, NamedTuple
from urllib.parse import urlencode

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.event_client import EventClient
from tests.processes import Server
from tests.wire_client import WireClient, request

TIMEOUT = 30.0  # seconds, for each step: a busy machine may be slow

FOREIGN = "gevent-websocket"
"""The server whose ``ws`` is not ours: it accepts before the application is asked."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


class Visitor:
    """A browser, as far as a server sees it: it keeps cookies and follows no redirect.

    :param server: the server that it visits.
    :param kind: of the server, as the tests name it.
    :param prefix: of all paths.
    :param headers: sent with every request.
    """

    def __init__(
        self, server: Server, kind: str, *, prefix: str = "", headers: Mapping[str, str] = {}
    ) -> None:
        self.server = server
        self.kind = kind
        self.prefix = prefix
        self.headers = dict(headers)
        self.cookies: dict[str, str] = {}

    @property
    def foreign(self) -> bool:
        return self.kind == FOREIGN

    def another(self, **headers: str) -> Visitor:
        """Another visitor of the same server, without cookies; see :meth:`get` for the names."""
        return Visitor(self.server, self.kind, prefix=self.prefix, headers=_named(headers))

    def _fields(self, headers: Mapping[str, str]) -> dict[str, str]:
        fields = {**self.headers, **_named(headers)}
        if self.cookies:
            fields["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return fields

    def _keep_cookies(self, headers: Message) -> None:
        for line in headers.get_all("Set-Cookie", []):
            name, _, value = line.partition(";")[0].partition("=")
            if value:
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)

    # -- HTTP ------------------------------------------------------------------------------

    def get(self, path: str, **headers: str) -> Answer:
        """Ask for a page; header fields are named as in ``Accept_Encoding="gzip"``."""
        return self._ask(path, None, headers)

    def post(self, path: str, form: Mapping[str, str] = {}, **headers: str) -> Answer:
        return self._ask(path, urlencode(form).encode(), headers)

    def _ask(self, path: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        asked = urllib.request.Request(
            self.server.url(self.prefix + path), data=data, headers=self._fields(headers)
        )
        try:
            response = _opener.open(asked, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            self._keep_cookies(response.headers)
            return Answer(response.status, response.headers, response.read())

    # -- WebSockets ------------------------------------------------------------------------

    @contextmanager
    def websocket(self, path: str, **headers: str) -> Iterator[ClientConnection]:
        with connect(
            self.server.ws_url(self.prefix + path),
            additional_headers=self._fields(headers),
            open_timeout=TIMEOUT,
            close_timeout=TIMEOUT,
            compression=None,
            proxy=None,
        ) as ws:
            yield ws

    def refusal(self, path: str, **headers: str) -> Answer:
        """The response to a handshake that is refused before the 101."""
        with WireClient(self.server.port) as client:
            client.send(request(self.prefix + path, {**self._fields(headers)}))
            response = client.response(TIMEOUT)
        assert response.status != 101, f"{path} was accepted"
        return Answer(response.status, response.headers, response.body.encode())

    def is_refused(self, path: str, status: int, **headers: str) -> None:
        """See that a handshake is refused with a status, or cut off after the 101 where the server
        has accepted already."""
        if not self.foreign:
            assert self.refusal(path, **headers).status == status
            return
        with self.websocket(path, **headers) as ws:
            assert rest(ws) == []

    # -- streams ---------------------------------------------------------------------------

    def events(self, path: str = "/events", last: str = "", **headers: str) -> EventClient:
        """Open a stream; its head has come when this returns."""
        client = EventClient(
            self.server.port,
            self.prefix + path,
            last_event_id=last,
            headers=self._fields(headers),
        )
        return client.read_head(TIMEOUT)

    # -- Turbo -----------------------------------------------------------------------------

    @contextmanager
    def page(self, path: str = "/page", page: str = "") -> Iterator[TurboPage]:
        """Open a page with Turbo and its connection, as ``turbo-streams.js`` does.

        :param page: of that path, if it has been fetched already.
        """
        html = page or self.get(path).text
        url = self._connection_of(html)
        if self.foreign:  # the WebSocket says "unsupported", and the page takes events
            with self.events(url, Accept="text/event-stream") as events:
                yield TurboPage(html, lambda: events.event(TIMEOUT)).begin()
        else:
            with self.websocket(url) as ws:
                yield TurboPage(html, lambda: json.loads(ws.recv(timeout=TIMEOUT))).begin()

    def page_is_refused(self, html: str, status: int) -> None:
        """See that the connection of a page is refused, as one that a cache kept for somebody else
        should be."""
        url = self._connection_of(html)
        if self.foreign:
            with self.events(url, Accept="text/event-stream") as events:
                assert events.status == status
        else:
            self.is_refused(url, status)

    def _connection_of(self, html: str) -> str:
        """The path that a page connects to, with the names of its streams."""
        route = re.search(r'data-url="([^"]+)"', html)
        assert route is not None, html
        streams = re.findall(
            r'<(?:meta name="turbo-stream-from" content|turbo-stream-from name)="([^"]+)"'
            r' (?:data-)?position="([^"]+)"',
            html,
        )
        pairs = [pair for name, at in streams for pair in (("s", unescape(name)), ("at", at))]
        return f"{unescape(route[1]).removeprefix(self.prefix)}?{urlencode(pairs)}"

    # -- all four --------------------------------------------------------------------------

    def finds_all_four_working(self) -> None:
        """An echo and its close codes, events and those missed, a push, and a page."""
        self.finds_sockets_working()
        self.finds_streams_working()
        answer = self.get("/")
        assert (answer.status, answer.text) == (200, "an ordinary page")

    def finds_sockets_working(self) -> None:
        with self.websocket("/echo") as ws:
            for message in ("hello", b"\x00\xff", "x" * 100_000):
                ws.send(message)
                assert ws.recv(timeout=TIMEOUT) == message
        assert ws.close_code == (1005 if self.foreign else 1000)  # that one names no code
        with self.websocket("/echo") as ws:
            ws.send("bye")
            assert rest(ws) == []
        if not self.foreign:  # its close frames have no code
            assert (ws.close_code, ws.close_reason) == (4001, "bye")

    def finds_streams_working(self) -> None:
        with self.page() as page, self.events() as events:
            assert events.status == 200
            assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
            self.says("first")
            assert events.next(TIMEOUT)[:2] == ("message", "first")
            assert page.push() == _appended("first")
            last = events.opened().dispatcher.last_id
        self.says("missed")
        with self.events(last=last) as events, self.page(page=page.html) as again:
            assert events.next(TIMEOUT).data == "missed"
            assert [again.push() for _ in range(2)] == [_appended("first"), _appended("missed")]

    def publishes_until_heard(self, ws: ClientConnection) -> None:
        """Publish to a socket of ``/listens`` until it hears of it, for it may not listen yet."""
        for _ in range(100):
            self.post("/publish")
            with suppress(TimeoutError):
                assert ws.recv(timeout=TIMEOUT / 100) == "published"
                return
        raise AssertionError("nothing was heard")

    def says(self, text: str) -> None:
        """Post something that goes to all streams and pages."""
        answer = self.post("/say", {"text": text})
        assert (answer.status, answer.text) == (200, "said")


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def rest(ws: ClientConnection) -> list[str | bytes]:
    """All messages up to the end of a connection."""
    messages = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(ws.recv(timeout=TIMEOUT))
    return messages


class TurboPage:
    """A page that is open, with its connection.

    :ivar html: of the page.
    """

    def __init__(self, html: str, receive: Any) -> None:
        self.html = html
        self._receive = receive
        self._early: list[str] = []

    def begin(self) -> TurboPage:
        told = self._receive()
        assert told["event"] == "streams", told
        waiting = set(told["channels"])
        while waiting:
            told = self._receive()
            if "data" in told:  # of a channel that it has, while it waits for the next one
                self._early.append(told["data"])
            else:
                assert told["event"] == "subscribed", told
                waiting.remove(told["channel"])
        return self

    def push(self) -> str:
        """The markup of the next push."""
        if self._early:
            return self._early.pop(0)
        told = self._receive()
        assert "data" in told, told
        data: str = told["data"]
        return data


def _appended(text: str) -> str:
    return (
        '<turbo-stream action="append" target="news">'
        f"<template><li>{text}</li></template></turbo-stream>"
    )
