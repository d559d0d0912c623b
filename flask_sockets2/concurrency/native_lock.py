"""Locks between native threads, also if gevent has patched :mod:`threading`."""

from __future__ import annotations

import _thread
import sys
from typing import Any

__all__ = ["native_lock", "native_rlock"]


def native_lock() -> Any:
    """Return a lock between native threads.

    The lock blocks the whole thread. Hold it only if no greenlet can be switched away from.
    """
    return _original("allocate_lock")()


def native_rlock() -> Any:
    """Return a reentrant :func:`native_lock`."""
    return _original("RLock")()


def _original(name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    return getattr(_thread, name) if monkey is None else monkey.get_original("_thread", name)
