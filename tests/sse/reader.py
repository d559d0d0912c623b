"""What takes a stream as a server does, without one."""

from __future__ import annotations

from typing import Any

from flask import Flask

from tests.event_client import Dispatcher, Event


class Reader:
    """One request for a stream, and the events that it brings.

    :param path: of the request.
    :param last_event_id: that a browser comes back with.
    """

    def __init__(self, app: Flask, path: str = "/stream", last_event_id: str = "") -> None:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self.response = app.test_client().get(path, headers=headers)
        assert self.response.status_code == 200, self.response.text
        self._chunks: Any = iter(self.response.response)
        self._text = ""
        self._dispatcher = Dispatcher()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.response.close()

    @property
    def last_id(self) -> str:
        return self._dispatcher.last_id

    @property
    def retry(self) -> int | None:
        return self._dispatcher.retry

    def block(self) -> str:
        """The next block of lines; the server takes pieces until there is one."""
        while "\n\n" not in self._text:
            self._text += next(self._chunks).decode()
        block, _, self._text = self._text.partition("\n\n")
        return block

    def next(self) -> Event:
        """The next event that a browser would dispatch."""
        while (event := self._dispatcher.take(self.block())) is None:
            pass
        return event

    def opened(self) -> Reader:
        """Take what the stream begins with."""
        while not self.last_id:
            assert self._dispatcher.take(self.block()) is None
        return self

    def data(self, number: int) -> list[str]:
        """The data of the next events."""
        return [self.next().data for _ in range(number)]
