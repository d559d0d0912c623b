"""A thread that outlives the tests of its module fails the last of them.

It would go on beside the tests that follow: draw from the random generator that Hypothesis watches,
allocate memory that another test measures, use the processor that another test waits for.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Generator

import pytest

from tests.processes import wait_until

_PATIENCE = 30.0  # seconds for threads that are about to end

_MAY_STAY = {
    "pytest_timeout ": "a timer for the test that is about to end",
    "execnet/gateway_base.py": "of pytest-xdist",
    "gevent/threadpool.py": "of a hub, which keeps it for the next name that is to be resolved",
    "flask_sockets2/transports/threaded.py": "the selector thread, one for all of a process",
    "concurrency/delayed_calls.py": "it waits until an application that is over may forget",
}
"""What stands in the description of a thread that may stay, and why."""

_known: set[int] = set()


def _strangers() -> dict[int, str]:
    """Descriptions of the threads that were not here before, without those that may stay."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = {}
    for ident, frame in sys._current_frames().items():
        if ident not in _known:
            stack = "".join(traceback.format_stack(frame))
            text = f"thread {names.get(ident, '')!r}:\n{stack}"
            if not any(part in text for part in _MAY_STAY):
                found[ident] = text
    return found


def _none_is_left() -> bool:
    if not _strangers():
        return True
    gc.collect()  # some end with what they work for
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    if not _known:
        _known.update(sys._current_frames())
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    result = yield
    if nextitem is None or nextitem.path != item.path:
        try:
            wait_until(_none_is_left, "its threads to end", _PATIENCE)
        except TimeoutError:
            left = _strangers()
            _known.update(left)  # the next module is not to blame
            text = "\n".join(left.values())
            pytest.fail(f"{item.path.name} left threads behind\n{text}", pytrace=False)
    return result
