"""The requests that are counted, without a server."""

from __future__ import annotations

import os

import pytest

from flask_sockets2.servers import under_way


def test_a_child_of_a_fork_has_none_of_its_parents_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(under_way, "_requests", {object()})
    monkeypatch.setattr(under_way, "_cut", 1)
    assert (under_way.requests(), under_way.cut_off()) == (1, 1)
    child = os.fork()
    if not child:
        os._exit(bool(under_way.requests() or under_way.cut_off()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
