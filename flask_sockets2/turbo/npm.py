"""turbo.js: the release that this package supports, and functions that get it from npm.

The repository and the source distribution contain no copy. ``setup.py`` packs a copy into wheels,
and ``flask turbo vendor`` writes a copy into an application's static folder. Both use this module.
For the supported release, no byte is written before its hash is checked.

``setup.py`` loads this file by its path, possibly without Flask installed, so the module imports
the standard library only. npm runs no scripts, and its tarball is read in memory, never unpacked.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = "@hotwired/turbo"

UMD = "turbo.es2017-umd.js"
"""The build for a classic script, which sets ``window.Turbo``."""
ESM = "turbo.es2017-esm.js"
"""The build for ``import * as Turbo from "@hotwired/turbo"``, by an import map or a bundler."""

VERSION = "8.0.23"
INTEGRITY = {
    UMD: "sha384-2ePXINFSJiSCWUJkjFJGYdr2kyM132s7uBi9k+JISp4P+AjN9DXn4H/1enWEHu36",
    ESM: "sha384-WTluvbYIlhW14A7J29od7iOv+SFs1XBKjEIBArVARW9ppIbzWZPq/MYZ2OatIIFC",
}
"""Hashes of the files of ``VERSION``, as the attribute ``integrity`` has them (W3C SRI §3.1)."""
TARBALL_INTEGRITY = (
    "sha512-GZ7cijxEZ6Ig71u7rD6LHaRv/wcE/hNsc+nEfiWOkLNqUgLOwo5MNGWO"
    "y5ZV9ZUDSiQx1no7YxjTNnT4O6//cQ=="
)
"""Hash of npm's package of ``VERSION``, as npm states it (``npm view … dist.integrity``)."""

LICENCE = "turbo.LICENSE.txt"
LICENCE_TEXT = """\
turbo.js (https://turbo.hotwired.dev) is distributed under the MIT licence:

Copyright (c) 37signals LLC

Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE
LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION
OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
"""Licence of turbo.js' repository; the package on npm names the licence, but has no file of it."""

NPM_TIMEOUT = 120.0  # seconds
MAX_UNZIPPED_SIZE = 16 * 1024 * 1024  # bytes; 8.0.23 has 0.4 MiB

_EXACT_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")
_UNREACHABLE = frozenset(
    {
        "EAI_AGAIN",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ENOTCACHED",
        "ENOTFOUND",
        "ERR_SOCKET_TIMEOUT",
        "ETIMEDOUT",
    }
)


class Unobtainable(Exception):
    """turbo.js is unavailable, or the copy is not the expected one; no file was written."""


class NpmFailed(Unobtainable):
    """npm is missing or could not fetch the package; a copy from another source would work."""


def check_version(version: str) -> str:
    """Return a version unchanged if it is exact.

    :raises ValueError: if the version is a range, a tag or any other expression that npm accepts.
    """
    if not _EXACT_VERSION.fullmatch(version):
        raise ValueError(f"expected an exact version such as {VERSION}, got {version!r}")
    return version


def fetch(version: str = VERSION, *, timeout: float = NPM_TIMEOUT) -> bytes:
    """Return npm's package of turbo.js, a tarball.

    :param version: an exact version.
    :param timeout: seconds until npm is killed.
    :raises NpmFailed: if npm is missing or fails.
    :raises Unobtainable: if the version is ``VERSION`` and the hash differs.
    """
    check_version(version)
    npm = shutil.which("npm")
    if npm is None:
        raise NpmFailed(f"there is no npm to fetch {PACKAGE} {version} with")
    with TemporaryDirectory(prefix="flask_sockets2-") as folder:
        _run_npm([npm, *_arguments(version, folder)], version, folder, timeout)
        found = list(Path(folder).glob("*.tgz"))
        if len(found) != 1:
            raise NpmFailed(f"npm pack has left {len(found)} tarballs instead of one")
        tarball = found[0].read_bytes()
    _check_tarball(tarball, version, "npm's tarball")
    return tarball


def _arguments(version: str, folder: str) -> list[str]:
    """Return arguments for ``npm pack``; ``--prefix`` hides the settings of parent folders."""
    arguments = ["pack", f"{PACKAGE}@{version}", "--ignore-scripts", "--prefix", folder]
    arguments += ["--loglevel", "error", "--no-update-notifier"]
    # By default npm retries for more than a minute, and a build without a network would wait.
    arguments += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
    if version == VERSION:
        arguments.append("--prefer-offline")  # npm's cache cannot be stale: the hash is known
    return arguments


def _run_npm(command: list[str], version: str, folder: str, timeout: float) -> None:
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise NpmFailed(f"npm pack has not ended after {timeout:g} s") from exc
    except OSError as exc:
        raise NpmFailed(f"npm cannot be run: {exc.strerror or exc}") from exc
    if ran.returncode:
        raise NpmFailed(_reason(ran.stderr, version) or f"npm pack ended with {ran.returncode}")


def _reason(stderr: str, version: str) -> str:
    """Return npm's error in one line, or an empty string if npm printed none."""
    lines = [line[1] for line in re.finditer(r"^npm (?:error|ERR!) (.+)$", stderr, re.MULTILINE)]
    code = next((line.split()[-1] for line in lines if line.startswith("code ")), "")
    if code in _UNREACHABLE:
        return f"npm cannot reach its registry ({code})"
    if code in ("E404", "ETARGET"):
        return f"npm knows no {PACKAGE} {version} ({code})"
    text = next((line for line in lines if not line.startswith("code ")), stderr.strip()[-200:])
    return f"npm failed: {code} {text}" if code else text and f"npm failed: {text}"


def files_of(tarball: bytes, version: str = VERSION, name: str = "the tarball") -> dict[str, bytes]:
    """Return the two builds in a tarball of npm, by their file names.

    :param name: name of the tarball, for error messages.
    :raises Unobtainable: if the tarball is invalid or of another version, or a hash differs.
    """
    _check_tarball(tarball, version, name)
    try:
        with tarfile.open(fileobj=io.BytesIO(_unzipped(tarball)), mode="r:") as archive:
            _check_package(_member(archive, "package.json", name), version, name)
            files = {file: _member(archive, f"dist/{file}", name) for file in INTEGRITY}
    except (tarfile.TarError, zlib.error) as exc:
        raise Unobtainable(f"{name} is no package of npm: {exc}") from exc
    _check_files(files, version, name)
    return files


def _unzipped(tarball: bytes) -> bytes:
    """Return the unzipped bytes, with gzip's checksum verified; refuse a decompression bomb."""
    decompressor = zlib.decompressobj(wbits=31)  # gzip's format
    unzipped = decompressor.decompress(tarball, MAX_UNZIPPED_SIZE)
    if not decompressor.eof:
        raise tarfile.ReadError(f"cut short, or of more than {MAX_UNZIPPED_SIZE} bytes")
    return unzipped


def _member(archive: tarfile.TarFile, path: str, name: str) -> bytes:
    try:
        member = archive.getmember(f"package/{path}")
    except KeyError:
        raise Unobtainable(f"{name} holds no {path}") from None
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None:
        raise Unobtainable(f"{path} in {name} is no file")
    return stream.read()


def files_in(folder: Path, version: str = VERSION) -> dict[str, bytes]:
    """Return the two builds in a folder, by their file names.

    :param folder: folder of the package, its ``dist``, ``node_modules``, or the parent of that.
    :raises Unobtainable: if a build is missing or of another version, or a hash differs.
    :raises OSError: if a file cannot be read.
    """
    root = _package_in(folder)
    name = str(root)
    try:
        _check_package((root / "package.json").read_bytes(), version, name)
        files = {file: (root / "dist" / file).read_bytes() for file in INTEGRITY}
    except FileNotFoundError as exc:
        raise Unobtainable(f"{name} holds no {Path(exc.filename).name}") from exc
    _check_files(files, version, name)
    return files


def _package_in(folder: Path) -> Path:
    if folder.name == "dist" and (folder / UMD).is_file():
        return folder.parent
    for inner in (".", "package", PACKAGE, f"node_modules/{PACKAGE}"):
        if (folder / inner / "dist" / UMD).is_file():
            return folder / inner
    raise Unobtainable(
        f"{folder} holds no {PACKAGE}; name node_modules, the package's folder or its tarball"
    )


def _check_package(package_json: bytes, version: str, name: str) -> None:
    try:
        described = json.loads(package_json)
        package, found = described["name"], described["version"]
    except (ValueError, KeyError, TypeError) as exc:
        raise Unobtainable(f"the package.json of {name} names no package") from exc
    if package != PACKAGE:
        raise Unobtainable(f"{name} is {package!r}, not {PACKAGE}")
    if found != version:
        raise Unobtainable(f"{name} is version {found!r}, expected {version}")


def _check_tarball(tarball: bytes, version: str, name: str) -> None:
    if version == VERSION:
        _check_hash(tarball, TARBALL_INTEGRITY, name)


def _check_files(files: Mapping[str, bytes], version: str, name: str) -> None:
    if version == VERSION:
        for file, content in files.items():
            _check_hash(content, INTEGRITY[file], f"{file} of {name}")


def _check_hash(content: bytes, expected: str, name: str) -> None:
    found = integrity_of(content, expected.partition("-")[0])
    if found != expected:
        raise Unobtainable(f"the hash of {name} is {found}, expected {expected}")


def integrity_of(content: bytes, algorithm: str = "sha384") -> str:
    """Return the hash of content in the format of npm and of the attribute ``integrity``."""
    digest = hashlib.new(algorithm, content).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"


def write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files and the licence into a folder, which is created if missing; return their paths.

    An existing file is replaced atomically: a reader gets either the old or the new file.

    :raises OSError: if the folder cannot be created or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in {**files, LICENCE: LICENCE_TEXT.encode()}.items():
        path = folder / name
        beside = folder / f".{name}.new"
        try:
            beside.write_bytes(content)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        paths.append(path)
    return paths
