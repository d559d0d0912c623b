"""A vulnerability, a clean result and a database out of reach are three different things."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests import audit

VULNERABLE = {
    "name": "flask",
    "version": "0.12",
    "vulns": [{"id": "PYSEC-2018-66", "fix_versions": ["0.12.3"], "aliases": []}],
}
CLEAN = {"name": "gevent", "version": "26.9.0", "vulns": []}
EDITABLE = {"name": "flask-sockets2", "skip_reason": "distribution marked as editable"}
UNKNOWN = {"name": "gunicorn", "skip_reason": "Dependency not found on PyPI and could not be …"}


@pytest.mark.parametrize(
    ("dependencies", "status", "says"),
    [
        ([CLEAN, EDITABLE], audit.CLEAN, "audited: 1 packages, no known vulnerabilities"),
        ([CLEAN, VULNERABLE], audit.VULNERABLE, "flask 0.12 has PYSEC-2018-66; mended in 0.12.3"),
        ([UNKNOWN, VULNERABLE], audit.VULNERABLE, "vulnerable: 1"),
        ([CLEAN, UNKNOWN], audit.UNKNOWN, "NOT audited: 1 of 2 packages"),
    ],
)
def test_what_follows_from_a_report(
    dependencies: list[dict[str, Any]], status: int, says: str
) -> None:
    found, lines = audit.verdict({"dependencies": dependencies})
    assert found == status
    assert says in "\n".join(lines)


@pytest.mark.parametrize(("arguments", "status"), [([], audit.UNKNOWN), (["--reached-or-not"], 0)])
def test_a_database_out_of_reach_passes_for_none_but_who_asks_for_it(
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback …\nConnectionError\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert audit.main(arguments) == status
    assert "NOT audited" in capsys.readouterr().out
    vulnerable = '{"dependencies": [{"name": "a", "version": "1", "vulns": ['
    answer.stdout = vulnerable + '{"id": "X-1", "fix_versions": []}]}]}'
    assert audit.main(arguments) == audit.VULNERABLE
