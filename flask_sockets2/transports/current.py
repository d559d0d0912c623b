"""Current: whether the caller is a greenlet or a thread, and the clock that serves it."""

from __future__ import annotations

import sys

from .clock import Clock

__all__ = ["current_clock", "on_gevent"]


def on_gevent() -> bool:
    """Return whether the caller is a greenlet, which shares its native thread with others."""
    if "gevent" not in sys.modules:
        return False
    from .green import is_green

    return is_green()


def current_clock() -> Clock:
    """Return the hub of the greenlet that calls, or the selector thread for any other thread."""
    if on_gevent():
        from .green import hub_clock

        return hub_clock()
    from .threaded import selector_clock

    return selector_clock()
