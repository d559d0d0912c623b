"""HTTP requests that our handler has under way in this process, and those that it has cut off.

A request counts from the end of its head, before a byte of its body is read, to the end of its
response; one that becomes a WebSocket or an event stream only until then. So a form that stalls is
seen, although no view knows it yet.
"""

from __future__ import annotations

import os
from threading import Lock

__all__ = ["begin", "cut", "cut_off", "end", "requests"]

_requests: set[object] = set()  # handlers
_cut = 0
_lock = Lock()  # guards that number: servers may run in several threads


def begin(handler: object) -> None:
    """Count the request of a handler."""
    _requests.add(handler)


def end(handler: object) -> None:
    """Count it no longer; can be repeated."""
    _requests.discard(handler)


def cut() -> None:
    """Count a request whose client was too slow."""
    global _cut
    with _lock:
        _cut += 1


def requests() -> int:
    """Return how many requests are under way."""
    return len(_requests)


def cut_off() -> int:
    """Return how many requests have been cut off, ever, since their clients were too slow."""
    return _cut


def _after_fork() -> None:
    """Begin anew in a child."""
    global _cut, _lock
    _requests.clear()
    _cut = 0
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
