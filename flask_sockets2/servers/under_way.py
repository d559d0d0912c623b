"""Counts of HTTP requests in progress in this process, and of requests that were cut off.

A request counts from the end of its head to the end of its response. If the request becomes a
WebSocket or an event stream, the request counts until then. A stalled upload counts, too, although
Flask has not called a view yet.
"""

from __future__ import annotations

import os
from threading import Lock

__all__ = ["begin", "cut", "cut_off", "end", "requests"]

_requests: set[object] = set()  # handlers
_cut = 0
_lock = Lock()  # guards _cut: servers may run in several threads


def begin(handler: object) -> None:
    """Count a handler's request as in progress."""
    _requests.add(handler)


def end(handler: object) -> None:
    """Remove a handler's request from the count; may be called again."""
    _requests.discard(handler)


def cut() -> None:
    """Count a request that was cut off, since its client was too slow."""
    global _cut
    with _lock:
        _cut += 1


def requests() -> int:
    """Return the number of requests in progress."""
    return len(_requests)


def cut_off() -> int:
    """Return the number of requests of slow clients that were cut off since the process began."""
    return _cut


def _after_fork() -> None:
    """Reset the counts in a forked child."""
    global _cut, _lock
    _requests.clear()
    _cut = 0
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
