"""No public name returns ``Any``; ``tests/installed/test_types.py`` has what type checkers see."""

from __future__ import annotations

import inspect
from importlib import import_module

from tests.test_site import NOT_FOR_USERS, PUBLIC, members

OF_OTHERS = {
    "flask_sockets2.WebSocketHandler.handle_one_request",  # gevent's
    "flask_sockets2.WebSocketServer.do_read",  # gevent's
    "flask_sockets2.sse.ServerSentEventsBlueprint.redis",  # redis-py's, an extra
}
"""What is of another project, and so has no type of ours."""


def returned() -> dict[str, str]:
    """What public functions, methods and properties return, as it is written."""
    found = {}
    for module in PUBLIC:
        for name in import_module(module).__all__:
            whole = f"{module}.{name}"
            value = getattr(import_module(module), name)
            if whole in NOT_FOR_USERS:
                continue
            named = {whole: value}
            if inspect.isclass(value):
                named = {f"{whole}.{each}": getattr(value, each) for each in members(value)}
            for called, function in named.items():
                function = getattr(function, "fget", function)
                if inspect.isfunction(function) or inspect.ismethod(function):
                    found[called] = str(inspect.signature(function).return_annotation)
    return found


def test_no_public_name_returns_anything() -> None:
    found = returned()
    assert {"flask_sockets2.Connection.receive", "flask_sockets2.sse.stream_func"} <= found.keys()
    assert {name for name, type_ in found.items() if type_ == "Any"} == OF_OTHERS
