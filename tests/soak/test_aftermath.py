"""The proofs that the soak finds what is left of clients that have gone."""

from __future__ import annotations

import socket

import psutil
import pytest

from tests.connections import listening
from tests.soak.aftermath import client_connections, open_in_metrics

METRICS = """\
# HELP flask_sockets2_streams Event streams that are open
# TYPE flask_sockets2_streams gauge
flask_sockets2_streams 2.0
flask_sockets2_streams_opened_total 40.0
flask_sockets2_connections_opened_total{route="/echo"} 70.0
flask_sockets2_connections{route="/echo"} 1.0
flask_sockets2_connections{route="/people/<int:room>"} 4.0
"""


def test_a_connection_that_a_process_keeps_is_found() -> None:
    this = psutil.Process()
    with listening() as listener:
        port = listener.getsockname()[1]
        assert client_connections(this, port) == 0
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            with accepted:
                assert client_connections(this, port) == 1
                client.close()
                assert client_connections(this, port) == 1  # its end was not noticed yet
        assert client_connections(this, port) == 0


def test_connections_that_are_counted_as_open_are_found() -> None:
    assert open_in_metrics(METRICS) == 7


def test_metrics_that_say_nothing_of_connections_do_not_pass_for_none() -> None:
    with pytest.raises(AssertionError, match="flask_sockets2_streams"):
        open_in_metrics("# TYPE other gauge\nother 0.0\n")
