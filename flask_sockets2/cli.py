"""``flask sockets routes`` lists the WebSocket rules; ``flask sockets doctor URL`` finds out why a
browser cannot connect, without an application at hand.
"""

from __future__ import annotations

import re
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup
from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from .doctor import Case, examine
from .findings import Finding
from .view import View

__all__ = ["sockets_cli"]

sockets_cli = AppGroup("sockets", help="Look after the WebSockets of the application.")


@sockets_cli.command("routes")
def routes() -> None:
    """List the WebSocket rules of the application."""
    rows = [("Rule", "Endpoint", "Options")]
    for rule in current_app.url_map.iter_rules():
        if rule.websocket:
            view = current_app.view_functions.get(rule.endpoint)
            domain = rule.subdomain or rule.host
            rows.append(
                (f"{domain}|{rule}" if domain else str(rule), rule.endpoint, _options(view))
            )
    if len(rows) == 1:
        click.echo("There are no WebSocket rules. Register a handler with @sockets.route('/echo').")
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * len("Options")))
    for first, second, third in rows:
        click.echo(f"{first:{widths[0]}}  {second:{widths[1]}}  {third}".rstrip())


def _options(view: Any) -> str:
    """The options of a route that differ from the application's; a foreign view has none."""
    options: dict[str, Any] = {}
    if isinstance(view, View):
        if not view.accept:
            options["accept"] = False
        for name, value in (("subprotocols", view.subprotocols), ("origins", view.origins)):
            if value:
                options[name] = ",".join(value)
        options.update(sorted(view.limits.items()))
    return " ".join(f"{name}={value}" for name, value in options.items())


def _parse_url(context: click.Context, parameter: click.Parameter, value: str) -> WebSocketURI:
    try:
        return parse_uri(re.sub("^http", "ws", value.strip().partition("#")[0]))
    except (InvalidURI, ValueError) as exc:
        raise click.BadParameter(
            f"expected an address such as wss://example.com/echo, got {value!r}"
        ) from exc


def _parse_headers(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    headers = []
    for value in values:
        name, colon, content = value.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+\-.^_`|~\w]+", name, re.ASCII):
            raise click.BadParameter(f"expected 'Name: value', got {value!r}")
        if not content.isprintable() or not content.isascii():
            raise click.BadParameter(
                f"the value of {name} holds a line break or a special character"
            )
        headers.append((name, content.strip()))
    return tuple(headers)


@sockets_cli.command("doctor", with_appcontext=False)
@click.argument("url", callback=_parse_url)
@click.option("--origin", help="Origin of the page; by default the URL's own, '' for none.")
@click.option(
    "--header", "headers", multiple=True, callback=_parse_headers, help="As 'Cookie: a=b'."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each step.",
)
@click.option("--insecure", is_flag=True, help="Do not check the certificate.")
@click.pass_context
def doctor(
    context: click.Context,
    url: WebSocketURI,
    origin: str | None,
    headers: tuple[tuple[str, str], ...],
    timeout: float,
    insecure: bool,
) -> None:
    """Open a WebSocket at URL as a browser does, and name the hop that breaks it."""
    case = Case(url, origin, headers, timeout, insecure)
    try:
        examine(case, _report)
    except Finding as finding:
        what, remedy = finding.explain(**case.facts())
        click.echo(f"{click.style('FAIL', fg='red')}  {what}")
        click.echo(f"What to do: {remedy}")
        context.exit(1)
    click.echo("The WebSocket works.")


def _report(step: str, text: str) -> None:
    click.echo(f"{click.style('ok', fg='green')}    {step}: {text}")
