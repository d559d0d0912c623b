"""turbo.js: the release that this package is made for, and how to get it from npm.

The repository and the source distribution hold no copy. ``setup.py`` packs one into wheels, and
``flask turbo vendor`` puts one into an application's static folder; both come through here, and
neither writes a byte whose hash has not been checked.

``setup.py`` loads this file by its path, where Flask may not be installed: it imports the standard
library only. npm is told to run no scripts; what it fetched is read in memory, never unpacked.
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
"""For a classic script: of the two builds the one that sets ``window.Turbo``."""
ESM = "turbo.es2017-esm.js"
"""For ``import * as Turbo from "@hotwired/turbo"``, by an import map or a bundler."""

VERSION = "8.0.23"
INTEGRITY = {
    UMD: "sha384-2ePXINFSJiSCWUJkjFJGYdr2kyM132s7uBi9k+JISp4P+AjN9DXn4H/1enWEHu36",
    ESM: "sha384-WTluvbYIlhW14A7J29od7iOv+SFs1XBKjEIBArVARW9ppIbzWZPq/MYZ2OatIIFC",
}
"""Of the files of ``VERSION``, as the attribute ``integrity`` wants it (W3C SRI §3.1)."""
TARBALL_INTEGRITY = (
    "sha512-GZ7cijxEZ6Ig71u7rD6LHaRv/wcE/hNsc+nEfiWOkLNqUgLOwo5MNGWO"
    "y5ZV9ZUDSiQx1no7YxjTNnT4O6//cQ=="
)
"""Of the package that npm has of ``VERSION``, as npm states it (``npm view … dist.integrity``)."""

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
"""The package on npm names the licence and has no file of it; this is the repository's."""

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
    """turbo.js cannot be had, or what was found is not what it should be; nothing was written."""


class NpmFailed(Unobtainable):
    """There is no npm, or it could not fetch the package; a copy from elsewhere would do."""


def check_version(version: str) -> str:
    """Return an exact version as it is.

    :raises ValueError: when it is a range, a tag or something else that npm would understand.
    """
    if not _EXACT_VERSION.fullmatch(version):
        raise ValueError(f"expected an exact version such as {VERSION}, got {version!r}")
    return version


def fetch(version: str = VERSION, *, timeout: float = NPM_TIMEOUT) -> bytes:
    """Return the package as npm has it, a tarball.

    :param version: an exact one.
    :param timeout: seconds until npm is ended.
    :raises NpmFailed: when there is no npm, or it fails.
    :raises Unobtainable: when the hash of ``VERSION`` is another.
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
    """Those of ``npm pack``; the folder keeps it from a project's settings in the ones above."""
    arguments = ["pack", f"{PACKAGE}@{version}", "--ignore-scripts", "--prefix", folder]
    arguments += ["--loglevel", "error", "--no-update-notifier"]
    # By default npm tries for more than a minute, while a build without a network waits.
    arguments += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
    if version == VERSION:
        arguments.append("--prefer-offline")  # its cache cannot be stale: the hash is known
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
    """What npm says, in a line; empty where it says nothing."""
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

    :param name: of the tarball, for messages.
    :raises Unobtainable: when it is none, holds another version, or a hash is not the known one.
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
    """Return all that gzip has packed, so that its checksum counts, or refuse a bomb."""
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

    :param folder: the package itself, its ``dist``, ``node_modules``, or what holds that.
    :raises Unobtainable: when they are not there, another version is, or a hash is not the known
        one.
    :raises OSError: when a file cannot be read.
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
    """Return the hash as npm and the attribute ``integrity`` write it."""
    digest = hashlib.new(algorithm, content).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"


def write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files and the licence into a folder, which is made; return their paths.

    A file that is there is replaced at once: who reads it meanwhile gets the old or the new one.

    :raises OSError: when the folder cannot be made, or not be written.
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
