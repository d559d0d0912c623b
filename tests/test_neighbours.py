"""The page about other extensions says what is tested, and with which versions."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from tests.test_docs import ROOT

FOLDER = ROOT / "tests" / "neighbours"

PAGE = (ROOT / "docs" / "neighbours.rst").read_text()

ROWS = dict(re.findall(r"^   \* - (\S.*)\n     - (.+)$", PAGE, re.MULTILINE))
del ROWS["Extension"]
_, _, _SENTENCE = PAGE.partition("Nothing needs to be set for ")
ROWS |= dict(re.findall(r"([A-Z]\S+)\s(\d[\d.]*\d)", _SENTENCE.partition("\n\n")[0]))

PACKAGES = {
    "Sentry SDK": ("sentry-sdk",),
    "OpenTelemetry": ("opentelemetry-instrumentation-flask", "opentelemetry-instrumentation-wsgi"),
}
"""The packages of a row, if it does not have the name of one."""

TESTS = {
    "Sentry SDK": "sentry",
    "``ProxyFix``": "proxyfix",
    "``DispatcherMiddleware``": "dispatcher_middleware",
}


def test_the_versions_are_those_that_are_tested() -> None:
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    required = map(Requirement, (line for line in lines if line and not line.startswith("#")))
    pinned = {of.name: pin[2:] for of in required if (pin := str(of.specifier)).startswith("==")}
    named = {
        package: version
        for row, version in ROWS.items()
        if version != "Werkzeug's"
        for package in PACKAGES.get(row, (row.lower(),))
    }
    assert named == pinned


@pytest.mark.parametrize("row", ROWS)
def test_each_extension_has_its_test(row: str) -> None:
    name = TESTS.get(row, row.lower().replace("-", "_"))
    sources = [path.read_text() for path in FOLDER.glob("test_*.py")]
    assert any(f"\ndef test_{name}(cell" in source for source in sources)
