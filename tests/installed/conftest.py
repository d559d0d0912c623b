"""A source distribution, the wheel made of it, and an environment that has nothing but the wheel.

Each is made once and then only read: together they take half a minute.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builds import ROOT, build, run
from tests.turbo_js import turbo_tarball

EXTRAS = "redis,metrics,sqlalchemy"
OF_README = re.findall(r"# pip install ([\w-]+)$", (ROOT / "README.rst").read_text(), re.MULTILINE)
UNREACHABLE = ("NewConnectionError", "NameResolutionError", "Temporary failure in name")


@dataclass(frozen=True)
class Environment:
    """An environment that a user has installed the package into.

    :param folder: of its own, outside the checkout; programs are started in it.
    :param log: what pip said.
    """

    folder: Path
    log: str

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def package(self) -> Path:
        (site_packages,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return site_packages / "flask_sockets2"

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run Python there; fail where that fails.

        :returns: what it wrote.
        """
        ran = run([self.python, *arguments], cwd or self.folder)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout


@pytest.fixture(scope="session")
def tracked() -> list[str]:
    """The files that git has of the checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"not a checkout of git: {exc}")
    return listed.stdout.rstrip("\0").split("\0")


@pytest.fixture(scope="session")
def sdist(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return build("sdist", folder)


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, with a real npm."""
    turbo_tarball()  # or skip
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build("wheel", unpacked, FLASK_SOCKETS2_TURBO="require")


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with all extras for users, what pip chooses with it, and what README asks for."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv")
    made = Environment(folder, "")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", made.python]
    ran = run([*pip, "install", f"{wheel}[{EXTRAS}]", *OF_README], folder, timeout=170)
    if any(reason in ran.stdout for reason in UNREACHABLE):
        pytest.skip("pip does not reach its index")
    assert ran.returncode == 0, ran.stdout
    return Environment(folder, ran.stdout)
