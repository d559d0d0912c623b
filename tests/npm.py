"""Packages of npm for tests: fetched once, and never in the repository."""

from __future__ import annotations

import functools
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "npm"
TIMEOUT = 180.0  # seconds


def npm_file(package: str, version: str, path: str) -> str:
    """Return a file of a package; the test is skipped if the package cannot be had."""
    tarball = CACHE / f"{package.replace('/', '+')}-{version}.tgz"
    if not tarball.is_file():
        reason = _fetch(package, version, tarball)
        if reason:
            pytest.skip(f"no {package} {version}: {reason}")
    with tarfile.open(tarball) as archive:
        stream = archive.extractfile(f"package/{path}")
        assert stream is not None
        return io.TextIOWrapper(stream, encoding="utf-8").read()


@functools.cache
def _fetch(package: str, version: str, tarball: Path) -> str:
    """Fetch a package; return why that failed, or nothing."""
    npm = shutil.which("npm")
    if npm is None:
        return "there is no npm"
    with TemporaryDirectory() as folder:
        command = [npm, "pack", f"{package}@{version}", "--ignore-scripts", "--prefix", folder]
        command += ["--loglevel", "error", "--no-update-notifier", "--prefer-offline"]
        command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
        try:
            ran = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"npm pack has not ended after {TIMEOUT:g} s"
        found = list(Path(folder).glob("*.tgz"))
        if ran.returncode or len(found) != 1:
            return f"npm pack ended with {ran.returncode}: {ran.stderr.strip()[-200:]}"
        tarball.parent.mkdir(parents=True, exist_ok=True)
        beside = tarball.with_suffix(f".{os.getpid()}")
        shutil.copyfile(found[0], beside)
        beside.replace(tarball)  # other processes test, too
    return ""
