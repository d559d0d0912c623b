"""``flask turbo vendor`` puts a copy of turbo.js into the application's static folder.

Use the command if the installation has no copy, such as one built without npm. Use it also to get
another version, or to let a server of static files deliver turbo.js.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from .npm import (
    PACKAGE,
    UMD,
    VERSION,
    NpmFailed,
    Unobtainable,
    check_version,
    fetch,
    files_in,
    files_of,
    integrity_of,
    write,
)

__all__ = ["turbo_cli"]

turbo_cli = AppGroup("turbo", help="Look after what Turbo needs.")


def _check_version(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return check_version(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@turbo_cli.command("vendor")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write into; by default vendor in the application's static folder.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="A tarball of npm pack, node_modules or the package's folder, instead of npm.",
)
@click.option(
    "--version",
    callback=_check_version,
    default=VERSION,
    show_default=True,
    help="Of turbo.js; only of the default one is the hash known.",
)
def vendor(folder: Path | None, source: Path | None, version: str) -> None:
    """Write a copy of turbo.js and its licence into a folder.

    It is fetched by npm, and its hash is checked.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    if folder is None:
        folder = _default_folder(app)
    files = _obtain(source, version)
    try:
        paths = write(files, folder)
    except OSError as exc:
        raise click.ClickException(
            f"cannot write to {folder}: {exc.strerror}; name another folder with --to"
        ) from exc
    for path in paths:
        click.echo(f"wrote {path}")
    if version != VERSION:
        click.echo(f"no hash of {version} is known; that of {UMD} is {integrity_of(files[UMD])}")
    _explain(app, folder / UMD)


def _default_folder(app: Flask) -> Path:
    if app.static_folder is None:
        raise click.UsageError("the application has no static folder; name one with --to")
    return Path(app.static_folder, "vendor")


def _obtain(source: Path | None, version: str) -> dict[str, bytes]:
    try:
        if source is None:
            return files_of(fetch(version), version)
        if source.is_dir():
            return files_in(source, version)
        return files_of(source.read_bytes(), version, str(source))
    except NpmFailed as exc:
        raise click.ClickException(
            f"{exc}; on a machine where it works run 'npm pack {PACKAGE}@{version}', "
            "and name the file that it writes with --from"
        ) from exc
    except Unobtainable as exc:
        remedy = "" if source is None else "; name the version that it holds with --version"
        raise click.ClickException(f"{exc}; nothing was written{remedy}") from exc
    except OSError as exc:
        raise click.ClickException(f"cannot read {exc.filename}: {exc.strerror}") from exc


def _explain(app: Flask, path: Path) -> None:
    """Tell the user which setting makes the pages load the copy."""
    url = _static_url(app, path)
    if url is None:
        click.echo(
            f"It is not in the application's static folder; where a server delivers {path}, "
            "set its address:\n\n    TURBO_JS_URL = '…'"
        )
        return
    click.echo(f"Now set, in the application's configuration:\n\n    TURBO_JS_URL = {url!r}")


def _static_url(app: Flask, path: Path) -> str | None:
    """Return the URL at which the application serves a file, or None."""
    if app.static_folder is None or app.static_url_path is None:
        return None
    try:
        inner = path.resolve().relative_to(Path(app.static_folder).resolve())
    except ValueError:
        return None
    root = app.config["APPLICATION_ROOT"].rstrip("/")
    return f"{root}{app.static_url_path}/{quote(inner.as_posix())}"
