"""WSGI middleware from PyPI, inside and outside of ours, on every server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes import Server, servers_in, wait_until
from tests.sites import on
from tests.test_middleware import ENDS, OTHERS, OURS, Wrapped, start, talk, where

__all__ = ["where"]

WRITES = {  # what it has to say of a WebSocket
    "request_logger": "101 GET 0\n",
    "translogger": "101 GET\n",
    "webob": "101\n",
    "sentry": "101\n",
    "opentelemetry": "101\n",
    "beaker": "",
}


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that lasts as long as the tests of its kind."""
    with servers_in(tmp_path_factory.mktemp("middleware")) as servers:
        yield start(servers, request.param, "tests.neighbours.middleware")


@on(*OURS, *OTHERS)
@pytest.mark.parametrize("name", WRITES)
def test_a_websocket_goes_through_middleware(name: str, where: str, running: Server) -> None:
    wrapped = Wrapped(running, f"/{name}/{where}")
    talk(wrapped, name)
    wait_until(lambda: WRITES[name] in wrapped.seen("/echo")["written"], "a line", ENDS)
    with wrapped.connect("/listen") as client:
        assert client.message() == b"ready"
        assert wrapped.http("/publish/hello") == (200, "")
        assert client.message() == b"hello"
    assert wrapped.http("/page") == (200, "page")
