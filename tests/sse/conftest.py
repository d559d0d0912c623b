from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.brokers.servers import RedisServer, redis_or_skip


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A Redis of one test."""
    yield from redis_or_skip()
