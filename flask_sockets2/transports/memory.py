"""Memory: returns freed memory to the system after connections and requests have ended.

A :class:`~.budget.Budget` counts the bytes that connections hold. The budget cannot count messages
in handlers, incomplete forms and texts of pages. When the clients have left, glibc keeps this
memory and does not report how much of it is resident. So freed memory is returned a moment after
connections or requests have ended. If a call finds much memory, the next call may follow sooner.
"""

from __future__ import annotations

import os
from time import monotonic

from .budget import give_back
from .clock import Clock

__all__ = ["ended"]

_MUCH = 8 * 2**20  # bytes
_MOMENT = 1.0  # seconds after an end, so that one call covers all ends meanwhile
_SOON = 5.0  # seconds after a call that found much memory
_SELDOM = 10.0  # seconds after a call that found little
_LOST = 5.0  # seconds after which a call is repeated: a hub may end before it makes the call

_due_by = 0.0  # when the pending call counts as lost; 0 if none is pending
_not_before = 0.0  # the time of the next call, at the earliest


def ended(clock: Clock) -> None:
    """Schedule the return of memory, since a connection or request has ended; from any thread.

    :param clock: hub or selector thread that served the connection or request.
    """
    global _due_by
    now = monotonic()
    if now < _due_by:
        return
    delay = max(_MOMENT, _not_before - now)
    _due_by = now + delay + _LOST
    clock.call_soon(lambda: clock.call_later(delay, _give_back))


def _give_back() -> None:
    global _due_by, _not_before
    _due_by = 0.0
    before = _resident()
    give_back()
    found = before - _resident()
    _not_before = monotonic() + (_SOON if found >= _MUCH else _SELDOM)


def _resident() -> int:
    """Return the resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux, or no descriptor is left
        return 0
