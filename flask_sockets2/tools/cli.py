"""Commands: ``flask sockets routes``, ``publish``, ``listen``, ``top`` and ``doctor``.

``publish``, ``listen`` and ``top`` read the settings of the application. If ``--url`` is given,
these commands need no application. ``doctor`` never needs one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from time import sleep
from typing import Any, TypeVar

import click
from flask import Flask, current_app
from flask.cli import AppGroup, NoAppException, ScriptInfo
from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from ..application.settings import broker_options_of
from ..application.sockets import unserved
from ..application.state import broker_url_of
from ..application.view import View
from ..brokers.base import NOWHERE, History, Message, Position, Receiver
from ..channels.publisher import Publisher, check_channel, dumps_of
from ..exceptions import BrokerError
from ..fanout.encoding import Frames, gap_message
from ..settings import ROWS
from .doctor import Case, examine
from .findings import Finding
from .top import INTERVAL, Top

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
    for said in unserved():
        click.echo(f"{said[0].upper()}{said[1:]}.", err=True)
    if len(rows) == 1:
        click.echo("There are no WebSocket rules. Register a handler with @sockets.route('/echo').")
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * len("Options")))
    for first, second, third in rows:
        click.echo(f"{first:{widths[0]}}  {second:{widths[1]}}  {third}".rstrip())


def _options(view: Any) -> str:
    """Return the options of a route that differ from the application's; none if foreign."""
    options: dict[str, Any] = {}
    if isinstance(view, View):
        if not view.accept:
            options["accept"] = False
        for name, value in (("subprotocols", view.subprotocols), ("origins", view.origins)):
            if value:
                options[name] = ",".join(value)
        options.update(sorted(view.limits.items()))
    return " ".join(f"{name}={value}" for name, value in options.items())


Command = TypeVar("Command", bound=Callable[..., Any])


def _of_channels(command: Command) -> Command:
    """Add ``--url`` and ``--prefix`` to a command; :func:`_publisher` takes both options.

    The command loads no application before :func:`_publisher` runs.
    """
    url = "URL of the broker, such as redis://localhost:6379/0; no application is loaded then."
    prefix = "Prefix of all names on the broker, with --url: the value of SOCKETS_CHANNEL_PREFIX."
    return click.option("--url", help=url)(click.option("--prefix", help=prefix)(command))


@sockets_cli.command("publish", with_appcontext=False)
@click.argument("channel")
@click.argument("data")
@click.option("--json", "is_json", is_flag=True, help="DATA is JSON, and is checked.")
@click.option("--binary", is_flag=True, help="Send DATA unchanged, as a binary message.")
@click.option(
    "--key", default="", help="A slow client receives only the newest message of each key."
)
@click.option(
    "--transient",
    is_flag=True,
    help="Send to present listeners only; do not keep the message in the history.",
)
@_of_channels
@click.option(
    "--history-size",
    type=click.IntRange(0),
    help="Number of messages kept, with --url: the value of SOCKETS_HISTORY_SIZE.",
)
@click.option(
    "--history-ttl",
    type=click.FloatRange(1),
    help="Seconds for which messages are kept, with --url: the value of SOCKETS_HISTORY_TTL.",
)
def publish(
    channel: str,
    data: str,
    is_json: bool,
    binary: bool,
    key: str,
    transient: bool,
    **broker: Any,
) -> None:
    """Publish DATA to CHANNEL, and print the position of the message.

    With '-' as DATA, standard input is read. A line break at the end of text, as echo adds, is
    removed; --binary keeps it.
    """
    if is_json and binary:
        raise click.UsageError("--json and --binary exclude each other")
    message: Any = _binary(data) if binary else _text(data)
    try:
        with _publisher(**broker) as publisher:
            if is_json:
                message = _loads(message)
            position = publisher.publish(channel, message, key=key, transient=transient)
    except (BrokerError, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(str(position))


def _loads(data: str) -> Any:
    try:
        return current_app.json.loads(data) if current_app else json.loads(data)
    except ValueError as exc:
        raise click.BadParameter(f"DATA is no JSON: {exc}") from exc


def _binary(data: str) -> bytes:
    """Return the argument, or standard input if the argument is ``-``, as bytes."""
    return sys.stdin.buffer.read() if data == "-" else os.fsencode(data)


def _text(data: str) -> str:
    """Return the argument, or standard input without its last line break, as text.

    :raises click.ClickException: if the text is not UTF-8.
    """
    try:
        if data != "-":
            data.encode()  # fails if Python put half surrogate pairs in place of wrong bytes
            return data
        text = _binary(data).decode()
    except UnicodeError as exc:
        raise click.ClickException(
            "DATA is no UTF-8, so it cannot be sent as text; publish it with --binary"
        ) from exc
    return text.removesuffix("\n").removesuffix("\r")


@sockets_cli.command("listen", with_appcontext=False)
@click.argument("channel")
@click.option(
    "--since",
    default="",
    help="Position to resume from, or 'start' for the whole history; by default only new messages.",
)
@click.option("--count", type=click.IntRange(1), help="End after this number of messages.")
@_of_channels
def listen(channel: str, since: str, count: int | None, **broker_options: Any) -> None:
    """Print the messages of CHANNEL, until Ctrl-C.

    Each message is a JSON object on a line of its own.
    """
    receiver = _Receiver()
    encoding = Frames.of(envelope=True, presence=True)
    try:
        check_channel(channel)
        publisher = _publisher(receiver, **broker_options)
        broker = publisher.broker
        with publisher:
            broker.subscribe(channel)
            history = None
            if since:
                position = None if since == "start" else Position.parse(since) or NOWHERE
                history = broker.history(channel, position)
            for number, message in enumerate(receiver.messages(channel, history), 1):
                click.echo(encoding.text(message))
                if number == count:
                    return
    except (BrokerError, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    except KeyboardInterrupt:
        pass


@sockets_cli.command("top", with_appcontext=False)
@click.option("--once", is_flag=True, help="Print the table once, after two seconds, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@_of_channels
def top(once: bool, as_json: bool, **broker: Any) -> None:
    """Show what each worker does, every second until Ctrl-C."""
    shown = Top()
    if (broker["url"] or broker_url_of(_app())).startswith("memory:"):
        raise click.ClickException(
            "with memory:// no worker can be asked from here; set SOCKETS_BROKER_URL to a "
            "redis:// URL, the same for the workers and this command"
        )
    try:
        with _publisher(shown, **broker) as publisher:
            while True:
                try:
                    for _ in range(2 if once else 1):  # a rate needs two reports
                        shown.look(publisher.broker)
                        sleep(INTERVAL)
                except BrokerError as exc:
                    if once:
                        raise
                    _show(f"{exc}; trying again", clear=not as_json, err=True)
                    sleep(INTERVAL)
                    continue
                text = json.dumps(shown.as_dict()) if as_json else shown.table()
                _show(text, clear=not (as_json or once))
                if once:
                    return
    except (BrokerError, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    except KeyboardInterrupt:
        pass


def _show(text: str, *, clear: bool, err: bool = False) -> None:
    if clear:
        click.clear()  # does nothing without a terminal
    click.echo(text, err=err)


def _publisher(
    receiver: Receiver | None = None, *, url: str | None = None, **options: Any
) -> Publisher:
    """Return a publisher with the application's settings, or with the options beside a URL.

    :param options: options of a publisher; None if an option is not given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if url is not None:
        return Publisher(url, receiver=receiver, **given)
    for name in given:
        raise click.UsageError(
            f"--{name.replace('_', '-')} goes with --url; without it the application's setting "
            "counts"
        )
    app = _app()
    config = app.config
    own = broker_options_of(config)
    return Publisher(
        broker_url_of(app),
        prefix=own.prefix,
        history_size=own.history_size,
        history_ttl=own.history_ttl,
        max_message_size=ROWS["SOCKETS_MAX_MESSAGE_SIZE"].of(config),
        dumps=dumps_of(app),
        receiver=receiver,
    )


def _app() -> Flask:
    """Return the application, and load the application if necessary."""
    context = click.get_current_context()
    if not current_app:
        try:
            app = context.ensure_object(ScriptInfo).load_app()
        except NoAppException as exc:
            raise NoAppException(
                f"{exc.message} Or name the broker by --url redis://localhost:6379/0."
            ) from exc
        context.with_resource(app.app_context())
    return current_app._get_current_object()  # type: ignore[attr-defined, no-any-return]  # a proxy, as Flask documents it


class _Receiver:
    """Takes the messages of one channel from its broker, for the main thread to print."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Message] = SimpleQueue()

    def deliver(self, message: Message) -> None:
        self._queue.put(message)

    def missed(self, channel: str, position: Position) -> None:
        self._queue.put(gap_message(channel, position))

    def resumed(self, channel: str) -> None:
        pass  # the command does not list presence

    def reconnected(self) -> None:
        click.echo("connected to the broker again", err=True)

    def messages(self, channel: str, history: History | None) -> Iterator[Message]:
        """Yield the history, then delivered messages, each message once."""
        if history is not None:
            if not history.complete:
                yield gap_message(channel, history.position)
            yield from history.messages
        while True:
            message = self._queue.get()
            if history is None or message.transient or _is_after(message, history.position):
                yield message


def _is_after(message: Message, position: Position) -> bool:
    return message.position.epoch != position.epoch or message.position.offset > position.offset


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
@click.option("--origin", help="Origin of the page; by default the URL's own origin, '' for none.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_parse_headers,
    help="Header field to send, such as 'Cookie: a=b'.",
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
    """Open a WebSocket at URL, and name the hop that breaks it.

    The WebSocket is opened as a browser does.
    """
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
