"""Memory that no budget counts goes back to the system when connections and requests have ended.

A :class:`~.budget.Budget` counts the bytes that connections hold. It cannot count the message that
a handler works on, the form of a request that has not come to its end, or the text of a page. When
their clients have left, glibc keeps that memory, and does not tell how much of it is resident. So
freed memory is returned a moment after connections or requests have ended: seldom, as long as that
finds little, and again soon if it finds much.
"""

from __future__ import annotations

import os
from time import monotonic

from .budget import give_back
from .clock import Clock

__all__ = ["ended"]

_MUCH = 8 * 2**20  # bytes
_MOMENT = 1.0  # seconds after an end: whatever ends meanwhile is returned, too
_SOON = 5.0  # seconds after much was found
_SELDOM = 10.0  # seconds after little was found
_LOST = 5.0  # seconds after which a call is made again: a hub may end before it makes the call

_due_by = 0.0  # when a call that was asked for counts as lost; 0 without one
_not_before = 0.0  # the time of the next call, at the earliest


def ended(clock: Clock) -> None:
    """Note that a connection or a request has ended; any thread.

    :param clock: of the hub or selector thread that served it.
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
    """Return the bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux, or no descriptor is left
        return 0
