"""The package's metadata agrees with itself, and importing it stays cheap."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flask_sockets2

ROOT = Path(__file__).parents[1]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_tox_pins_exactly_the_lower_bounds_of_the_requirements() -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    bounds = lines((ROOT / "requirements.txt").read_text())
    assert lines(tox["testenv:oldest"]["deps"]) == [bound.replace(">=", "==") for bound in bounds]


def test_the_version_is_the_one_that_the_change_log_describes() -> None:
    changes = (ROOT / "CHANGES.rst").read_text()
    newest = re.search(r"^Version (\S+)$", changes, re.MULTILINE)
    assert newest is not None
    assert flask_sockets2.__version__ == newest[1]


def test_every_supported_python_is_declared_and_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    tested = re.findall(r"py(3)(\d+)", tox["tox"]["env_list"])
    assert declared == [".".join(version) for version in tested]
    assert project["requires-python"] == f">={declared[0]}"


def test_importing_the_package_imports_no_server_and_no_broker() -> None:
    program = (
        "import sys, flask_sockets2\n"
        "print(*sorted({'gevent', 'gunicorn', 'redis', 'geventwebsocket'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert ran.stdout.strip() == ""


SKIPS = {
    "a test": "def test_it():\n    pytest.skip('no moon tonight')\n",
    "a module": "pytest.skip('no moon tonight', allow_module_level=True)\n",
    "an expected failure": "def test_it():\n    pytest.xfail('no moon tonight')\n",
}


@pytest.mark.parametrize(
    ("what", "ci", "fails"),
    [
        ("a test", "true", True),
        ("a test", "", False),
        ("a module", "true", True),
        ("a module", "", False),
        ("an expected failure", "true", False),
    ],
)
def test_a_skip_is_a_failure_in_continuous_integration_only(
    what: str, ci: str, fails: bool, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text("from tests.plugin_no_skips import *\n")
    (tmp_path / "test_it.py").write_text(f"import pytest\n{SKIPS[what]}")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rsx", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "no moon tonight" in ran.stdout
    closing_line = ran.stdout.splitlines()[-1]
    assert bool(re.search(r"\d+ (failed|error)", closing_line)) == fails, ran.stdout
