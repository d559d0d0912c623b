"""``flask turbo vendor``, and what it takes from npm."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask

from flask_sockets2.turbo import npm
from flask_sockets2.turbo.cli import turbo_cli
from flask_sockets2.turbo.npm import ESM, INTEGRITY, LICENCE, UMD, VERSION
from tests.turbo_js import OFFLINE, TARBALL, fake_npm, package, turbo_files, turbo_tarball

Vendor = Callable[..., Result]

OTHER = "8.0.20"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return Flask(__name__, root_path=str(tmp_path / "app"))


@pytest.fixture
def vendor(app: Flask) -> Vendor:
    """``vendor("--to", folder)``: run the command in the application."""
    runner = app.test_cli_runner()
    return lambda *options: runner.invoke(turbo_cli, ["vendor", *map(str, options)])


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def fails(result: Result, *words: str) -> None:
    """The command ended with these words in one line, and nothing was written."""
    assert result.exit_code != 0, result.output
    line = result.output.splitlines()[-1]
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


def test_the_package_of_npm_is_what_we_know_of_it() -> None:
    """The hashes here are npm's and those of the files, and it names the licence that we write."""
    tarball = turbo_tarball().read_bytes()
    assert npm.integrity_of(tarball, "sha512") == npm.TARBALL_INTEGRITY
    files = npm.files_of(tarball)
    assert {name: npm.integrity_of(content) for name, content in files.items()} == INTEGRITY
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        described = archive.extractfile("package/package.json")
        assert described is not None
        assert b'"license": "MIT"' in described.read()
        assert [name for name in archive.getnames() if "LICENSE" in name.upper()] == []
    assert b"37signals LLC" in files[UMD][:100]
    assert "37signals LLC" in npm.LICENCE_TEXT


def test_by_default_both_builds_and_the_licence_go_into_the_static_folder(
    vendor: Vendor, tmp_path: Path
) -> None:
    turbo_tarball()  # or skip
    result = vendor()
    assert result.exit_code == 0, result.output
    folder = tmp_path / "app" / "static" / "vendor"
    assert written(folder) == {UMD, ESM, LICENCE}
    for name, content in turbo_files().items():
        assert (folder / name).read_bytes() == content
    assert (folder / LICENCE).read_text() == npm.LICENCE_TEXT
    assert f"TURBO_JS_URL = '/static/vendor/{UMD}'" in result.output


def test_a_page_loads_the_copy_from_the_url_that_the_command_names(
    app: Flask, vendor: Vendor
) -> None:
    result = vendor("--from", turbo_tarball())
    url = result.output.rpartition("TURBO_JS_URL = '")[2].partition("'")[0]
    with app.test_client().get(url) as answer:
        assert answer.status_code == 200
        assert npm.integrity_of(answer.data) == INTEGRITY[UMD]


def test_npm_runs_no_scripts_and_is_asked_for_one_version(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / TARBALL
    packed.write_bytes(package(OTHER))
    fake = fake_npm(tmp_path / "bin", packs=packed)
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    result = vendor("--version", OTHER)
    assert result.exit_code == 0, result.output
    (call,) = fake.calls
    assert call.startswith(f"pack @hotwired/turbo@{OTHER} --ignore-scripts ")
    # Another version's cache entry may be stale; ours is told by its hash.
    assert "--prefer-offline" not in call
    vendor()
    assert "--prefer-offline" in fake.calls[-1]


@pytest.mark.parametrize("shape", ["package", "dist", "node_modules", "project", "unpacked"])
def test_a_folder_takes_the_place_of_npm(shape: str, vendor: Vendor, tmp_path: Path) -> None:
    inner = {
        "package": ".",
        "dist": ".",
        "node_modules": "@hotwired/turbo",
        "project": "node_modules/@hotwired/turbo",
        "unpacked": "package",
    }[shape]
    source = tmp_path / "source"
    root = source / inner
    (root / "dist").mkdir(parents=True)
    (root / "package.json").write_text(f'{{"name": "{npm.PACKAGE}", "version": "{VERSION}"}}')
    for name, content in turbo_files().items():
        (root / "dist" / name).write_bytes(content)
    result = vendor("--to", tmp_path / "to", "--from", source / ("dist" if shape == "dist" else ""))
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "to") == {UMD, ESM, LICENCE}


def test_another_version_is_taken_on_demand_and_its_hash_told(
    vendor: Vendor, tmp_path: Path
) -> None:
    source = tmp_path / "other.tgz"
    source.write_bytes(package(OTHER))
    result = vendor("--from", source, "--to", tmp_path / "to")
    fails(result, "hash of", "nothing was written; name the version that it holds with --version")
    result = vendor("--from", source, "--to", tmp_path / "to", "--version", OTHER)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "to" / UMD).read_text() == f"umd {OTHER}"
    assert f"no hash of {OTHER} is known" in result.output
    assert npm.integrity_of(f"umd {OTHER}".encode()) in result.output


@pytest.mark.parametrize("version", ["latest", "^8", "8", "8.0.23 ", "git+ssh://x", "8.0.1/../x"])
def test_only_an_exact_version_is_one(version: str, vendor: Vendor) -> None:
    fails(vendor("--version", version), "expected an exact version such as", version)


@pytest.mark.usefixtures("no_npm")
def test_without_npm_the_way_around_is_named(vendor: Vendor, tmp_path: Path) -> None:
    result = vendor("--to", tmp_path / "to")
    fails(result, "there is no npm", f"npm pack @hotwired/turbo@{VERSION}", "--from")
    assert written(tmp_path / "to") == set()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (OFFLINE, ["npm cannot reach its registry (ENOTFOUND)", "--from"]),
        (OFFLINE.replace("error", "ERR!"), ["npm cannot reach its registry (ENOTFOUND)"]),
        (
            "npm error code ETARGET\nnpm error notarget No matching version\n",
            [f"npm knows no @hotwired/turbo {VERSION}"],
        ),
        ("npm error code EINTEGRITY\nnpm error sha512-x is not\n", ["EINTEGRITY sha512-x is not"]),
        ("Segmentation fault", ["npm failed: Segmentation fault"]),
        ("", ["npm pack ended with 3"]),
    ],
)
def test_what_npm_says_is_told_in_a_line(
    says: str, words: list[str], vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_npm(tmp_path / "bin", says=says, status=3)
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    fails(vendor("--to", tmp_path / "to"), *words)


def test_a_real_npm_without_a_network_is_told_to_be_offline(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("npm") is None:
        pytest.skip("no npm: apt-get install npm")
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    fails(vendor("--to", tmp_path / "to"), "npm cannot reach its registry (ENOTCACHED)")


def test_an_npm_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(npm.NpmFailed, match=r"npm pack has not ended after 0\.2 s"):
        npm.fetch(timeout=0.2)


def test_an_npm_that_cannot_be_run_or_packs_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_npm(tmp_path)
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    with pytest.raises(npm.NpmFailed, match="npm pack has left 0 tarballs"):
        npm.fetch()
    (tmp_path / "npm").write_text("#!/no/such/shell\n")
    with pytest.raises(npm.NpmFailed, match="npm cannot be run: No such file"):
        npm.fetch()


def test_a_tarball_of_npm_with_another_hash_is_refused(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / TARBALL
    packed.write_bytes(package(VERSION))
    fake = fake_npm(tmp_path / "bin", packs=packed)
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    result = vendor("--to", tmp_path / "to")
    fails(result, "the hash of npm's tarball is sha512-", f"expected {npm.TARBALL_INTEGRITY}")
    assert written(tmp_path / "to") == set()


def test_a_changed_file_in_a_folder_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "dist").mkdir(parents=True)
    (source / "package.json").write_text(f'{{"name": "{npm.PACKAGE}", "version": "{VERSION}"}}')
    files = turbo_files()
    (source / "dist" / UMD).write_bytes(files[UMD])
    (source / "dist" / ESM).write_bytes(files[ESM] + b"\n")
    result = vendor("--from", source, "--to", tmp_path / "to")
    fails(result, f"the hash of {ESM} of {source}", "nothing was written")
    assert written(tmp_path / "to") == set()


SOMETHING_ELSE = {
    "nothing": (b"", "is no package of npm"),
    "no tarball": (b"no tarball", "is no package of npm"),
    "cut short": (package(OTHER)[:-20], "is no package of npm"),
    "changed": (package(OTHER)[:-8] + bytes(8), "is no package of npm"),
    "without a build": (package(OTHER, umd=""), f"holds no dist/{UMD}"),
    "without a description": (package(OTHER, package_json=""), "holds no package.json"),
    "with another description": (package(OTHER, package_json="[]"), "the package.json of"),
    "another package": (
        package(OTHER, package_json='{"name": "evil", "version": "1"}'),
        "is 'evil', not @hotwired/turbo",
    ),
    "another version": (package("8.0.1"), f"is version '8.0.1', expected {OTHER}"),
}


@pytest.mark.parametrize("what", SOMETHING_ELSE)
def test_a_tarball_of_something_else_is_refused(what: str, vendor: Vendor, tmp_path: Path) -> None:
    content, words = SOMETHING_ELSE[what]
    source = tmp_path / "source.tgz"
    source.write_bytes(content)
    result = vendor("--from", source, "--to", tmp_path / "to", "--version", OTHER)
    fails(result, words, "nothing was written")
    assert written(tmp_path / "to") == set()


def test_a_tarball_that_unzips_to_more_than_it_should_is_refused_in_time() -> None:
    bomb = package(OTHER, umd="x" * npm.MAX_UNZIPPED_SIZE)
    with pytest.raises(npm.Unobtainable, match="or of more than 16777216 bytes"):
        npm.files_of(bomb, OTHER)


def test_a_link_in_a_tarball_is_no_file(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/package.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(npm.Unobtainable, match=r"package\.json in the tarball is no file"):
        npm.files_of(packed.getvalue(), OTHER)


def test_a_folder_of_something_else_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    fails(vendor("--from", tmp_path), "holds no @hotwired/turbo", "name node_modules")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / UMD).write_text("")
    fails(vendor("--from", tmp_path), "holds no package.json")


def test_a_folder_that_cannot_be_written_is_told(vendor: Vendor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = vendor("--from", turbo_tarball(), "--to", tmp_path / "file" / "vendor")
    fails(result, "cannot write to", "Not a directory", "--to")


def test_a_full_disk_leaves_the_copy_that_was_there(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "to"
    assert vendor("--from", turbo_tarball(), "--to", folder).exit_code == 0

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    fails(vendor("--from", turbo_tarball(), "--to", folder), "No space left on device")
    assert written(folder) == {UMD, ESM, LICENCE}
    assert npm.integrity_of((folder / UMD).read_bytes()) == INTEGRITY[UMD]


def test_a_folder_elsewhere_has_no_url_that_we_know(vendor: Vendor, tmp_path: Path) -> None:
    result = vendor("--from", turbo_tarball(), "--to", tmp_path / "elsewhere")
    assert "not in the application's static folder" in result.output
    assert "TURBO_JS_URL = '…'" in result.output


def test_an_application_without_a_static_folder_needs_one_to_be_named(tmp_path: Path) -> None:
    runner = Flask(__name__, static_folder=None).test_cli_runner()
    fails(runner.invoke(turbo_cli, ["vendor"]), "no static folder; name one with --to")
    options = ["--from", str(turbo_tarball()), "--to", str(tmp_path / "to")]
    assert runner.invoke(turbo_cli, ["vendor", *options]).exit_code == 0


def test_the_url_has_the_prefix_and_the_escapes_of_the_application(tmp_path: Path) -> None:
    app = Flask(__name__, static_folder=str(tmp_path), static_url_path="/files")
    app.config["APPLICATION_ROOT"] = "/shop"
    options = ["--from", str(turbo_tarball()), "--to", str(tmp_path / "a b")]
    result = app.test_cli_runner().invoke(turbo_cli, ["vendor", *options])
    assert f"TURBO_JS_URL = '/shop/files/a%20b/{UMD}'" in result.output
