"""pytest's fixture ``sockets_client``, found by its entry point once the package is installed."""

from __future__ import annotations

import pytest
from flask import Flask

from .testing import SocketsClient

__all__ = ["sockets_client"]


@pytest.fixture
def sockets_client(app: Flask) -> SocketsClient:
    """A client of the application that the test suite's own fixture ``app`` returns."""
    return SocketsClient(app)
