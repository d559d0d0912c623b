"""Who comes after a worker that has stopped accepting.

At a reload gunicorn ends the old workers as soon as it has forked the new ones, which then import
the application: for seconds nobody accepts. And all old workers are told at once, but each notices
within a second: clients that the first of them closes would come back to another, which closes
them again.

So a worker tries its own address as a client does. What it does not accept any more waits in the
kernel, which all processes with that socket share, until one of them takes it, or until the last of
them closes it, which resets what waits. With ``--reuse-port`` each worker has a socket of its own,
so that a reset tells nothing of the others: it tries again.

A service manager that has passed the socket in, as systemd does, keeps it. It would start a server
that was stopped again for who waits in there, so that nobody is asked then.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gevent
from gevent import socket

__all__ = ["await_successor"]

_UNISON = 1.5  # seconds in which all who were told at once to end have noticed
_AGAIN = 0.1  # seconds until the next attempt


def await_successor(family: int, address: Any, seconds: float, *, kept: bool = False) -> None:
    """Wait until another process accepts connections which is going to stay.

    It returns at once where nobody has the socket any more, as when the whole server stops.

    :param family: of the socket that this process has closed.
    :param address: of that one.
    :param seconds: to wait at the most.
    :param kept: a service manager keeps the socket; it is only waited for who was told as well.
    """
    with suppress(gevent.Timeout), gevent.Timeout(max(0.0, seconds)):
        if kept:
            gevent.sleep(_UNISON)
        elif _is_accepted(family, address):
            gevent.sleep(_UNISON)
            _is_accepted(family, address)


def _is_accepted(family: int, address: Any) -> bool:
    """Connect without a word, and wait for the end of it; False where nobody has the socket."""
    while True:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.connect(address)
                sock.shutdown(socket.SHUT_WR)  # no request follows, so that none is logged
                sock.recv(1)  # nothing, or how TLS complains of it
                return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            gevent.sleep(_AGAIN)
