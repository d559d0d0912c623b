"""``flask firehose check URL``: tests whether Early Hints pass through a deployment."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from ..settings import read
from .check import PASSES, check, speaks_http2
from .probe import token
from .settings import FirehoseSettings

__all__ = ["firehose_cli"]

firehose_cli = AppGroup("firehose", help="Look after Early Hints.")


def _parse_url(context: click.Context, parameter: click.Parameter, value: str) -> SplitResult:
    try:
        url = urlsplit(value)
        url.port  # noqa: B018  # the access parses the port
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is no URL: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.hostname or not value.isascii():
        raise click.BadParameter(f"expected https://host/path, got {value!r}")
    if any(letter <= " " for letter in value):
        raise click.BadParameter("a URL has no spaces and no line breaks")
    return url


@firehose_cli.command("check")
@click.argument("url", callback=_parse_url)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=10.0,
    show_default=True,
    help="Seconds for the answer.",
)
@click.option("--insecure", is_flag=True, help="Do not check the certificate.")
@click.pass_context
def check_command(context: click.Context, url: SplitResult, timeout: float, insecure: bool) -> None:
    """Find out whether a 103 of the application gets through to URL.

    The application that runs there has to have the same SECRET_KEY; it answers by itself, no view
    is run. The request is made by HTTP/1.1, for the proxies are what is tested.

    Ends with 0 if it passes, with 1 if it does not, with 2 if that cannot be told.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    try:
        signed = token(app)
    except RuntimeError as exc:
        raise click.UsageError(str(exc)) from exc
    finding = check(url, signed, timeout, insecure)
    click.echo(f"{url.hostname}: {finding.text}")
    if finding == PASSES:
        _advise(app, speaks_http2(url, timeout, insecure))
    context.exit(finding.status)


def _advise(app: Flask, http2: bool) -> None:
    if not http2:
        click.echo(
            "But it does not offer HTTP/2 to browsers, and Chromium heeds a response 103 over "
            "nothing else: turn HTTP/2 on in the proxy, which needs https."
        )
    values = read(FirehoseSettings, app.config)
    name = values.hop_header
    if values.early_hints == "auto":
        click.echo(
            f"Pages get them where the proxy sets the header {name}."
            if name
            else "Pages do not get them yet: have the proxy set a header, say X-Early-Hints: 1, "
            "and name it by FIREHOSE_HOP_HEADER."
        )
