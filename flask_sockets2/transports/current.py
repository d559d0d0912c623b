"""Current: the clock of the caller, and whether the caller is a greenlet or a thread."""

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
    """Return the hub of the calling greenlet; for other threads, the selector thread."""
    if on_gevent():
        from .green import hub_clock

        return hub_clock()
    from .threaded import selector_clock

    return selector_clock()
