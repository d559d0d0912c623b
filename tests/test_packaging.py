"""The metadata agrees with itself, builds go as they are told, and importing stays cheap."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import flask_sockets2
from flask_sockets2.turbo import npm
from tests.builds import ROOT, VENDORED, build, checkout, members, run
from tests.turbo_js import OFFLINE, FakeNpm, fake_npm


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_oldest_environment_has_exactly_the_lower_bounds_of_what_users_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    bounds = lines((ROOT / "requirements.txt").read_text())
    bounds += [bound for extra in ("metrics", "redis", "sqlalchemy") for bound in extras[extra]]
    oldest = [re.sub(r"\[.*]", "", bound).replace(">=", "==") for bound in bounds]
    assert lines((ROOT / "tests" / "oldest.txt").read_text()) == oldest


def test_the_version_is_the_one_that_the_change_log_describes() -> None:
    changes = (ROOT / "CHANGES.rst").read_text()
    newest = re.search(r"^Version (\S+)$", changes, re.MULTILINE)
    assert newest is not None
    assert flask_sockets2.__version__ == newest[1]


def test_the_page_for_contributors_lists_each_command_there_is() -> None:
    listed = re.findall(
        r"^   \* - ``make ([\w-]+)``", (ROOT / "CONTRIBUTING.rst").read_text(), re.M
    )
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)", makefile, re.M)
    assert set(listed) == set(phony.split()) - {"help", "oldest-installed"}
    helped = re.findall(r"^# make ([\w-]+) ", makefile, re.M) + re.findall(
        r"make (\w+)", re.findall(r"also: (.*)'", makefile)[0]
    )
    assert sorted(helped) == sorted(listed)


@pytest.mark.parametrize("python", [["3.13", "3.11"], ["3.12"], []])
def test_continuous_integration_runs_the_newest_and_the_oldest_python_there_is(
    python: list[str], tmp_path: Path
) -> None:
    """With programs in place of Pythons and make."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        **{f"python{version}": "exit 0" for version in python},
        "make": 'echo "$PYTHON $OLDEST_PYTHON: $*"',
        "dirname": 'exec /usr/bin/dirname "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    bash = shutil.which("bash")
    assert bash is not None
    ran = run([bash, ROOT / ".ci" / "run"], tmp_path, PATH=str(folder), PYENV_ROOT=str(tmp_path))
    newest, oldest = (f"python{python[0]}", f"python{python[-1]}") if python else ["python3"] * 2
    said = [line.removeprefix(f"{newest} {oldest}: ") for line in ran.stdout.splitlines()]
    assert [words.split()[-1] for words in said] == [
        "oldest-installed",
        "test",
        "oldest",
    ]
    assert said[-1] == "-j 2 --output-sync test-slow neighbours oldest"
    assert {"fuzz", "lint", "types", "audit"} <= set(said[0].split())


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
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == ""


SKIPS = {
    "a test": "def test_it():\n    pytest.skip('no moon tonight')\n",
    "a module": "pytest.skip('no moon tonight', allow_module_level=True)\n",
    "an expected failure": "def test_it():\n    pytest.xfail('no moon tonight')\n",
}


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
def test_a_thread_that_outlives_its_module_fails_it(ends: bool, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests import plugin_no_threads\n"
        "from tests.plugin_no_threads import *\n"
        "plugin_no_threads._PATIENCE = 0.1\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import threading\n"
        "import pytest\n"
        "end = threading.Event()\n"
        "@pytest.fixture(scope='module')\n"
        "def thread():\n"
        "    made = threading.Thread(target=end.wait, daemon=True)\n"
        "    made.start()\n"
        "    yield made\n"
        f"    if {ends}:\n"
        "        end.set()\n"
        "        made.join()\n"
        "def test_one(thread): pass\n"
        "def test_two(thread): pass\n"
    )
    (tmp_path / "test_next.py").write_text("def test_next(): pass\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ends:
        assert ran.returncode == 0, ran.stdout
    else:
        assert "3 passed, 1 error" in ran.stdout
        assert "ERROR at teardown of test_two" in ran.stdout
        assert "test_it.py left threads behind" in ran.stdout


@pytest.mark.slow
def test_the_source_distribution_holds_no_turbo_js(tmp_path: Path) -> None:
    """Nor where a copy lies in the checkout."""
    folder = checkout(tmp_path)
    npm.write({npm.UMD: b"stray"}, folder / VENDORED)
    fake = fake_npm(tmp_path / "bin", says=OFFLINE, status=1)
    with tarfile.open(build("sdist", folder, PATH=path_with(fake))) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "flask_sockets2/turbo/npm.py" in names
    assert "flask_sockets2/turbo/static/turbo-streams.js" in names
    assert [name for name in names if "vendored" in name or "es2017" in name] == []
    assert fake.calls == []


def path_with(fake: FakeNpm) -> str:
    return f"{fake.folder}{os.pathsep}{os.environ['PATH']}"


def build_py(folder: Path, fake: FakeNpm, mode: str = "") -> subprocess.CompletedProcess[str]:
    """The step of a build that packs turbo.js, in a fraction of the time."""
    return run(
        [sys.executable, "setup.py", "build_py"],
        folder,
        PATH=path_with(fake),
        FLASK_SOCKETS2_TURBO=mode,
    )


def vendored(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "build" / "lib" / VENDORED).glob("*"))


def test_a_build_without_turbo_js_warns_and_takes_none_of_an_earlier_one(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    npm.write({npm.UMD: b"of an earlier build"}, folder / "build" / "lib" / VENDORED)
    fake = fake_npm(tmp_path / "bin", says=OFFLINE, status=1)
    ran = build_py(folder, fake)
    assert ran.returncode == 0, ran.stdout
    assert "npm cannot reach its registry (ENOTFOUND); built without turbo.js" in ran.stdout
    assert vendored(folder) == []


def test_a_build_that_requires_turbo_js_fails_without_it(tmp_path: Path) -> None:
    fake = fake_npm(tmp_path / "bin", says=OFFLINE, status=1)
    ran = build_py(checkout(tmp_path / "checkout"), fake, "require")
    assert ran.returncode == 1
    assert "error: npm cannot reach its registry (ENOTFOUND); FLASK_SOCKETS2_TURBO=" in ran.stdout


def test_a_build_takes_no_turbo_js_with_another_hash(tmp_path: Path) -> None:
    packed = tmp_path / "hotwired-turbo.tgz"
    packed.write_bytes(b"changed on the way")
    folder = checkout(tmp_path / "checkout")
    ran = build_py(folder, fake_npm(tmp_path / "bin", packs=packed), "require")
    assert ran.returncode == 1
    assert "error: the hash of npm's tarball is sha512-" in ran.stdout
    assert vendored(folder) == []


def test_a_build_that_skips_turbo_js_does_not_call_npm(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    npm.write({npm.UMD: b"of an earlier build"}, folder / "build" / "lib" / VENDORED)
    fake = fake_npm(tmp_path / "bin", says=OFFLINE, status=1)
    ran = build_py(folder, fake, "skip")
    assert ran.returncode == 0, ran.stdout
    assert fake.calls == []
    assert vendored(folder) == []


def test_an_unknown_mode_of_the_build_is_an_error(tmp_path: Path) -> None:
    ran = build_py(checkout(tmp_path / "checkout"), fake_npm(tmp_path / "bin"), "requrie")
    assert ran.returncode == 1
    assert "error: expected FLASK_SOCKETS2_TURBO to be one of auto, require, skip" in ran.stdout


@pytest.mark.slow
def test_an_editable_installation_does_not_call_npm(tmp_path: Path) -> None:
    fake = fake_npm(tmp_path / "bin", says=OFFLINE, status=1)
    built = build(
        "editable",
        checkout(tmp_path / "checkout"),
        PATH=path_with(fake),
        FLASK_SOCKETS2_TURBO="require",
    )
    assert [name for name in members(built) if VENDORED in name] == []
    assert fake.calls == []
