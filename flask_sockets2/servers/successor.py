"""Rolling restart: a stopping worker waits until a new worker accepts its clients.

At a reload gunicorn stops the old workers as soon as the new ones are forked. The new workers still
import the application, so no worker accepts for seconds. The signal reaches all old workers at
once, but each notices within a second. Clients that the first worker closes could reconnect to
another old worker, and would be closed again.

So a stopping worker connects to its own address. The connection waits in the kernel's queue, which
all processes with the socket share, until a process accepts the connection. If the last process
closes the socket, the kernel resets the connection. With ``--reuse-port`` each worker has its own
socket, so a reset says nothing about the other workers: the worker tries again.

If a service manager such as systemd has passed the socket in, the manager keeps the socket open.
A connection would make the manager start a stopped server again, so the worker does not connect.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gevent
from gevent import socket

__all__ = ["await_successor"]

_UNISON = 1.5  # seconds until all old workers have noticed the signal
_AGAIN = 0.1  # seconds until the next attempt


def await_successor(family: int, address: Any, seconds: float, *, kept: bool = False) -> None:
    """Wait until a process accepts connections that is not about to stop.

    If no process has the socket any more, because the whole server stops, the function returns.

    :param family: address family of the socket that this process has closed.
    :param address: address of that socket.
    :param seconds: maximum seconds to wait.
    :param kept: True if a service manager keeps the socket; then the wait lasts 1.5 s.
    """
    with suppress(gevent.Timeout), gevent.Timeout(max(0.0, seconds)):
        if kept:
            gevent.sleep(_UNISON)
        elif _is_accepted(family, address):
            gevent.sleep(_UNISON)
            _is_accepted(family, address)


def _is_accepted(family: int, address: Any) -> bool:
    """Connect, send nothing, and wait for the end; return False if no process has the socket."""
    while True:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.connect(address)
                sock.shutdown(socket.SHUT_WR)  # no request follows, so that none is logged
                sock.recv(1)  # nothing, or a TLS alert
                return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            gevent.sleep(_AGAIN)
