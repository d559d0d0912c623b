"""turbo.js for tests: fetched by npm once, and npms that do what a test wants."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import pytest

from flask_sockets2.turbo import npm

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "turbo"
OFFLINE = """\
npm error code ENOTFOUND
npm error syscall getaddrinfo
npm error network request to https://npm.example/ failed
"""
"""What npm says without a network."""

TARBALL = f"hotwired-turbo-{npm.VERSION}.tgz"


def turbo_tarball() -> Path:
    """The package of the version that is ours; the test is skipped where it cannot be had."""
    path = CACHE / TARBALL
    if not path.is_file():
        reason = _fetch(path)
        if reason:
            pytest.skip(f"no turbo.js: {reason}")
    return path


@functools.cache
def _fetch(path: Path) -> str:
    """Fetch it; return why that failed, or nothing."""
    try:
        tarball = npm.fetch()
    except npm.NpmFailed as exc:
        return str(exc)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_bytes(tarball)
    beside.replace(path)  # other processes test, too
    return ""


def turbo_files() -> dict[str, bytes]:
    """Its two builds by their file names; the test is skipped where they cannot be had."""
    return npm.files_of(turbo_tarball().read_bytes())


def package(version: str, **members: str) -> bytes:
    """A tarball as npm packs them, with files that name their version.

    :param members: other contents for ``package_json``, ``umd``, ``esm``; an empty one is left out.
    """
    contents = {
        "package.json": members.get(
            "package_json", json.dumps({"name": npm.PACKAGE, "version": version})
        ),
        f"dist/{npm.UMD}": members.get("umd", f"umd {version}"),
        f"dist/{npm.ESM}": members.get("esm", f"esm {version}"),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in contents.items():
            if content:
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


@dataclass(frozen=True)
class FakeNpm:
    """A program ``npm`` in a folder of its own, for PATH."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        """The arguments of each call."""
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []


def fake_npm(
    folder: Path, *, packs: Path | None = None, says: str = "", status: int = 0
) -> FakeNpm:
    """Write a program that takes npm's place.

    :param packs: file that it leaves in its working directory, as ``npm pack`` does.
    :param says: what it writes to its standard error.
    :param status: what it exits with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#!/bin/sh", f'echo "$*" >> {quote(str(folder / "calls"))}']
    if packs is not None:
        lines.append(f"cp {quote(str(packs))} .")
    lines += [f"printf %s {quote(says)} >&2", f"exit {status}"]
    program = folder / "npm"
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return FakeNpm(folder)
