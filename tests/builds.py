"""Wheels and source distributions built from a copy of the checkout, as pip builds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENDORED = "flask_sockets2/turbo/vendored"

BUILT_FROM = (
    "CHANGES.rst",
    "LICENSE",
    "MANIFEST.in",
    "README.rst",
    "pyproject.toml",
    "requirements.txt",
    "setup.py",
)


def checkout(folder: Path) -> Path:
    """What the package is built from, in a folder that a build may write into."""
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "flask_sockets2", folder / "flask_sockets2", ignore=without_caches)
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, folder)
    return folder


def run(
    command: list[str | Path], folder: Path, timeout: float = 100, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a program, without what this process has of the tests' settings."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def build(kind: str, folder: Path, **environ: str) -> Path:
    """Build as pip and ``python -m build`` do, yet with the tools that are here.

    :param kind: ``wheel``, ``sdist`` or ``editable``.
    :returns: what was built.
    """
    out = folder / "dist"
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    out.mkdir(exist_ok=True)
    before = set(out.iterdir())
    ran = run([sys.executable, "-c", program], folder, **environ)
    assert ran.returncode == 0, ran.stdout
    (built,) = set(out.iterdir()) - before
    return built


def members(wheel: Path) -> dict[str, bytes]:
    """The files in a wheel by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
