"""Warning if a process publishes to the in-memory broker but serves no clients.

The messages of this process reach no subscriber. Examples: a script, a shell, a Celery task.

A process serves clients if one of its sockets accepts connections. A server may open its socket
after a thread of the application has begun to publish. So the check repeats for a while, and once
more when the process ends.

A process that ``multiprocessing`` has forked from a server serves no clients, although the process
has inherited the socket.
"""

from __future__ import annotations

import atexit
import os
import stat
import sys
import threading
import time
from _socket import socket
from collections.abc import Callable
from socket import SO_ACCEPTCONN, SOL_SOCKET, getdefaulttimeout
from typing import Any

__all__ = ["Unheard", "is_listening", "works_for_a_server"]

_GRACE = 30.0  # seconds that a process may publish before its server listens
_PAUSE = 0.5  # seconds between two checks
_FILES = "/dev/fd"


class Unheard:
    """Warns once if the process publishes but serves no clients.

    :param heard: function that returns True if this process has served a client.
    :param warn: function to call with the channel of the first message.
    :param helps: True if this process is a child of a server; see :func:`works_for_a_server`.

    :ivar settled: True after the check has ended.
    """

    def __init__(
        self, heard: Callable[[], bool], warn: Callable[[str], None], *, helps: bool = False
    ) -> None:
        self.settled = False
        self._heard = heard
        self._warn = warn
        self._helps = helps
        self._channel: str | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()  # guards the two attributes that change

    def published(self, channel: str) -> None:
        """Check the process, since a message was published; any thread."""
        if self._helps:
            if self._settle():
                self._warn(channel)
            return
        if self._heard():
            self._settle()
            return
        with self._lock:
            if self.settled or self._channel is not None:
                return
            self._channel = channel
        if _is_interactive():  # the process does not end soon, and the user reads the warning
            self._decide()
            return
        atexit.register(self._decide)
        _at_the_end_of_a_child(self._decide)
        try:
            threading.Thread(target=self._watch, name="flask_sockets2-serving", daemon=True).start()
        except RuntimeError:  # the interpreter shuts down
            pass

    def _watch(self) -> None:
        until = time.monotonic() + _GRACE
        while not self.settled and time.monotonic() < until:
            if self._heard() or is_listening():
                self._settle()
            else:
                time.sleep(_PAUSE)
        self._decide()

    def _settle(self) -> bool:
        """End the check; return False if another thread has already ended it."""
        with self._lock:
            settled, self.settled = self.settled, True
        atexit.unregister(self._decide)
        return not settled

    def _decide(self) -> None:
        serves = self._process != os.getpid() or self._heard() or is_listening()
        if self._settle() and not serves:
            self._warn(self._channel or "")


def works_for_a_server(was_server: bool) -> bool:
    """Return whether ``multiprocessing`` has forked this process from one that serves clients.

    :param was_server: True if this process was forked from a process that served clients.
    """
    parent = _multiprocessing_parent()
    return was_server and parent is not None and parent.pid == os.getppid()


def _multiprocessing_parent() -> Any:
    """Return the ``multiprocessing`` parent of this process, None if there is none."""
    process = sys.modules.get("multiprocessing.process")
    return None if process is None else process.parent_process()


def _at_the_end_of_a_child(call: Callable[[], None]) -> None:
    """Call a function at the end of a ``multiprocessing`` child, which runs no ``atexit``."""
    if _multiprocessing_parent() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, call, exitpriority=0)


def _is_interactive() -> bool:
    """Return whether this process is Python's prompt or ``flask shell``."""
    return hasattr(sys, "ps1") and not is_listening()


def is_listening() -> bool:
    """Return whether this process accepts connections; True if the check is impossible."""
    # A new socket object applies the default timeout to its descriptor. The timeout would change
    # the server's socket as well, since both share one state in the kernel.
    if getdefaulttimeout() is not None or not os.path.isdir(_FILES):
        return True
    return any(_accepts(int(name)) for name in os.listdir(_FILES))


def _accepts(descriptor: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        copy = os.dup(descriptor)
    except OSError:  # closed meanwhile
        return False
    try:
        looked_at = socket(fileno=copy)  # gevent's class would make the socket non-blocking
    except OSError:
        os.close(copy)
        return False
    try:
        return bool(looked_at.getsockopt(SOL_SOCKET, SO_ACCEPTCONN))
    except OSError:
        return False
    finally:
        looked_at.close()
