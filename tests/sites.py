"""An application on a server, each test with a channel of its own.

The application has ``/state/<name>``, which tells in JSON what there is, ``subscribers`` among it,
and ``/publish/<name>``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients import http
from tests.processes import Server, wait_until
from tests.wire_client import TIMEOUT


@dataclass(frozen=True, slots=True)
class Site:
    """A server of the application, and one channel that no other test uses.

    :ivar name: of the channel.
    """

    server: Server
    name: str = "news"

    def state(self) -> dict[str, Any]:
        status, body, _ = http(self.server.url(f"/state/{self.name}"))
        assert status == 200
        found: dict[str, Any] = json.loads(body)
        return found

    def publish(self, text: str) -> str:
        """Publish to the channel; return the position."""
        status, body, _ = http(self.server.url(f"/publish/{self.name}"), data=text.encode())
        assert status == 200
        return body

    def wait_for_subscribers(self, number: int = 1, timeout: float = TIMEOUT) -> None:
        what = f"{number} subscribers"
        wait_until(lambda: self.state()["subscribers"] == number, what, timeout)


def on(*kinds: str) -> pytest.MarkDecorator:
    """Run a test on each of these servers, which the fixture ``running`` starts."""
    return pytest.mark.parametrize("running", kinds, indirect=True)
