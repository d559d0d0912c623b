"""The connection of a page: one for all its streams, as a WebSocket or as Server-Sent Events.

``GET /turbo-stream?s=<name>&at=<position>&s=<name>&at=<position>…``: parallel lists, of which
``at`` may be empty or short. Servers take URLs of a few KiB, some twenty streams. What goes beyond
is announced by ``more=<number>`` and follows: as the first message of the WebSocket, within ten
seconds, or as the body of a ``POST`` that asks for Server-Sent Events::

    {"streams": [["<name>", "<position>"], …]}

Every name is verified, the application asked for those it named, and the stream of a user given
only to a connection that ``@turbo.user_id`` says is that user's, before anything is subscribed
to: those in the URL before the connection is accepted, so that a refusal is an HTTP status. One of
those that follow is told by the close code of a WebSocket.

======  =====  ==================================================================================
status  code
======  =====  ==================================================================================
400     4400   what was asked for makes no sense, or is too much
403     4403   a name is forged or another user's, or ``@turbo.authorize`` says no; a redirect by
               which it answers is 4403, too, and other responses as their status is here
410     4410   a name is older than ``TURBO_STREAM_MAX_AGE``; a page loaded anew has a new one
429            its address or user has too many connections, or connects too often
503     1013   the broker is away, or what was announced did not come in time
======  =====  ==================================================================================

The WebSocket of gevent-websocket's handler, which has accepted it already and cannot be subscribed,
is told ``{"event": "unsupported"}`` and closed; the page then takes Server-Sent Events.

Then come JSON texts: first the channels, one for each stream asked for; for each channel its newest
position at that time; and the envelopes of :mod:`flask_sockets2.encoding`, of which those between
``at`` and that position may come after the text that names it::

    {"event": "streams", "channels": ["turbo:all", "turbo:stream:room:5"]}
    {"event": "subscribed", "channel": "turbo:all", "position": "9f86d081884c7d65-42"}
    {"channel": "turbo:all", "position": "9f86d081884c7d65-43", "data": "<turbo-stream …"}

A name that is bound to a user or to a session is for connections of that one only.

A signed name carries the position that its page was rendered at, and an earlier one is a gap: no
page is sent what was pushed before it was made. ``turbo:all`` is not signed: a client that may open
the URL may have all that is kept of it.

As Server-Sent Events, for a request that accepts ``text/event-stream``, the same texts come. A
client without ``s``, as turbo.js' own ``Turbo.connectStreamSource(new WebSocket(url))``, gets the
markup for all and for its user as it is, and for a gap a ``refresh``.

The ``POST`` changes nothing, and pages of other origins may not send it: ``Origin`` is looked at as
for a WebSocket. So it needs no token against forged requests, and Flask-WTF is told so: a page's
token is over after an hour, its streams are not. A method that Flask-WTF passes over, as QUERY, is
one that firewalls and CDNs refuse, and Server-Sent Events are there for who sits behind such.

Differences from Turbo-Flask: the endpoint is called ``flask_sockets2_turbo_stream``; the id of the
user is asked for when the page is made, too, and a connection of another one is refused.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache, partial
from typing import Any

from flask import Flask, abort, current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing.exceptions import WebsocketMismatch

from ..application.answers import permits
from ..application.event_stream import expect, stream_response
from ..application.settings import AppSettings
from ..application.signing import START, Expired, Forged, InvalidName, not_before
from ..application.sockets import Sockets
from ..application.state import state_of
from ..application.view import mismatch
from ..brokers.base import NOWHERE, Position
from ..connection.limits import Limits
from ..settings import read
from .markup import stream_tag
from .page import everywhere
from .stream_names import (
    ALL,
    USER,
    StreamPermission,
    StreamSigner,
    is_user,
    parts_of_channel,
    user_channel,
)

__all__ = ["EXTENSION", "USER_ID", "accepts", "serve_streams"]

EXTENSION = "flask_sockets2.turbo"
"""Key of ``app.extensions``."""

logger = logging.getLogger("flask_sockets2.turbo")

USER_ID = "flask_sockets2.turbo.user_id"
"""Key of the environ: the id of who connects, where the callback has said so already."""

_ENDPOINT = "flask_sockets2_turbo_stream"
_EVENTS_ENDPOINT = "flask_sockets2_turbo_events"
_POLICY = "coalesce"
_REFRESH = str(stream_tag("refresh"))

# What a hostile client can ask for, and how long it can take.
_MAX_FOLLOWING = 2**19  # bytes of what does not fit into the URL
_FOLLOWING_TIMEOUT = 10.0  # seconds for it to come over a WebSocket

_REFUSALS = frozenset({400, 401, 403, 404, 410})
"""Statuses that become close codes, 4000 more: a client need not try again."""

Asked = list[tuple[str, str]]
"""Names as a client gave them, and the positions that it has seen everything up to."""

Subscriptions = list[tuple[str, str]]
"""The same of channels that it may have."""


def serve_streams(app: Flask, route: str) -> None:
    """Add the rules of the connection; can be repeated."""
    if _ENDPOINT in app.view_functions:
        return
    # Sockets of its own: routes of those that serve several applications go to all of them.
    sockets = Sockets(app)
    for options in everywhere(app):
        sockets.add_url_rule(
            route,
            _ENDPOINT,
            _connect,
            accept=False,
            slow_client=_POLICY,
            max_message_size=_MAX_FOLLOWING,
            **options,
        )
        app.add_url_rule(route, _EVENTS_ENDPOINT, _events, methods=["GET", "POST"], **options)
    # Before all functions of before_request, in whatever order the extensions came.
    app.url_value_preprocessor(_exempt_from_tokens)


def _exempt_from_tokens(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Have Flask-WTF ask for no token, see above."""
    if endpoint == _EVENTS_ENDPOINT:
        csrf: Any = current_app.extensions.get("csrf")
        if hasattr(csrf, "exempt"):
            csrf.exempt(_events)


def accepts(mimetype: str) -> bool:
    """Whether the client of the current request names a type; ``*/*`` does not."""
    return any(
        quality > 0 and accepted.partition(";")[0].strip().lower() == mimetype
        for accepted, quality in request.accept_mimetypes
    )


def _connect(ws: Any, **_: str) -> None:
    """Serve a WebSocket, which goes on when this returns."""
    if not hasattr(ws, "subscribe"):  # a warning says how to start a server whose do
        ws.send(json.dumps({"event": "unsupported"}))
        ws.close()
        return
    turbo = _turbo()
    if "s" not in request.args:
        for channel in _own_channels(turbo):
            ws.subscribe(channel, gap=_REFRESH)
        return
    asked, following = _asked_in_url()
    subscriptions = _permitted(turbo, asked)
    state_of().channels.check(subscriptions[0][0])  # while there is no answer, it can be 503
    ws.accept()
    if following:
        further = _received(ws, turbo, following)
        if further is None:
            return
        subscriptions += further
    ws.send(json.dumps({"event": "streams", "channels": _channels(subscriptions)}))
    for channel, since in _together(subscriptions).items():
        begun = ws.subscribe(channel, since, envelope=True)
        told = {"event": "subscribed", "channel": channel, "position": str(begun.position)}
        ws.send(json.dumps(told))


def _received(ws: Any, turbo: Any, number: int) -> Subscriptions | None:
    """Wait for what did not fit into the URL; None where the connection is over."""
    try:
        message = ws.receive(_FOLLOWING_TIMEOUT)
    except TimeoutError:
        logger.info("a page did not name its streams within %s seconds", _FOLLOWING_TIMEOUT)
        ws.close(1013, "the names of the streams did not come in time; connect again")
        return None
    if message is None:
        return None
    try:
        return _permitted(turbo, _parsed(message, number))
    except HTTPException as exc:
        status = exc.get_response(request.environ).status_code  # code is None for a response
        if 300 <= status < 400:  # a WebSocket cannot be redirected, but its page is, loaded again
            status = 403
        if status not in _REFUSALS:
            raise
        ws.close(4000 + status)
        return None


def _events(**_: str) -> Any:
    """Serve Server-Sent Events; any other request should have been for a WebSocket."""
    if not accepts("text/event-stream"):
        return mismatch(WebsocketMismatch())
    guest = expect(current_app)
    if "s" not in request.args:
        abort(400, "name the streams: ?s=<name>&at=<position>")
    turbo = _turbo()
    asked, following = _asked_in_url()
    if following or request.method == "POST":
        asked += _parsed(_body(), following)
    subscriptions = _permitted(turbo, asked)
    limits = replace(read(Limits, current_app.config), slow_client=_POLICY)
    return stream_response(
        current_app,
        _together(subscriptions).items(),
        told=_channels(subscriptions),
        limits=limits,
        guest=guest,
    )


def _turbo() -> Any:  # Turbo, whose module imports this one
    """Return the application's Turbo, with its jobs begun: in this process there is a page now."""
    turbo = current_app.extensions[EXTENSION]
    turbo.start_jobs(current_app._get_current_object())  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    return turbo


def _own_channels(turbo: Any) -> list[str]:
    """Return the channels of a client that names none."""
    user = _user_of_connection(turbo)
    return [ALL] if user is None else [ALL, user]


def _user_of_connection(turbo: Any) -> str | None:
    """Return the channel of who connects."""
    if USER_ID in request.environ:  # as it was admitted
        user_id = request.environ[USER_ID]
    else:
        user_id = turbo.user_of_connection()
    return None if user_id is None else user_channel(user_id)


# -- what is asked for -------------------------------------------------------------------------


def _asked_in_url() -> tuple[Asked, int]:
    """Return what the URL of the current request asks for, and how many more are to follow."""
    names, positions = request.args.getlist("s"), request.args.getlist("at")
    following = request.args.get("more", 0, type=int)
    most = read(AppSettings, current_app.config).max_channels
    if following < 0 or len(names) + following > most or len(positions) > len(names):
        abort(400, f"expected up to {most} s= (SOCKETS_MAX_CHANNELS), and no more at= than those")
    positions += [""] * (len(names) - len(positions))
    return list(zip(names, map(_position, positions), strict=True)), following


def _position(text: str) -> str:
    """Return a position as a client gave it; what is none is a gap, and never all that is kept."""
    return text if not text or Position.parse(text) else str(NOWHERE)


def _body() -> bytes:
    """Return the body of the current request, which must not be endless."""
    size = request.content_length
    if size is None:
        abort(411)
    if size > _MAX_FOLLOWING:
        abort(413)
    return request.get_data()


def _parsed(text: str | bytes, number: int) -> Asked:
    """Return what follows the URL.

    :param number: how many were announced.
    """
    try:
        asked = [(name, position) for name, position in json.loads(text)["streams"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        asked = []
    texts = all(isinstance(each, str) for pair in asked for each in pair)
    if len(asked) != number or not texts:
        abort(400, f'expected {number} further streams: {{"streams": [[name, position], …]}}')
    return [(name, _position(position)) for name, position in asked]


def _permitted(turbo: Any, asked: Asked) -> Subscriptions:
    """Return the channels that were asked for, once all of it is verified."""
    signer = StreamSigner(current_app) if current_app.secret_key else None
    user_of_connection = cache(partial(_user_of_connection, turbo))
    one_log = state_of().one_log
    subscriptions: Subscriptions = []
    for name, position in asked:
        if name == USER and signer is None:
            channel = user_of_connection()
            # None: it is nobody any more, and what its position was in is not for it.
            subscriptions.append((channel, position) if channel else (ALL, ""))
        else:
            permission = _verified(signer, name)
            _check_holder(permission)
            since = not_before(position, permission.earliest, one_log=one_log)
            subscriptions.append((permission.channel, since))
    for channel in dict.fromkeys(_channels(subscriptions)):  # once: it may cost a query
        if is_user(channel):
            _check_user(channel, user_of_connection())
        else:
            _authorize(turbo, channel)
    return subscriptions


def _verified(signer: StreamSigner | None, name: str) -> StreamPermission:
    """Return what a name that a client gave permits."""
    if name == ALL:
        return StreamPermission(ALL, START)
    try:
        if signer is None:
            raise Forged("there is no SECRET_KEY that it could be signed with")
        return signer.permitted(name)
    except InvalidName as exc:
        state_of().seldom_log(logger).warning(
            "not_valid",
            "refused the stream %.80r: %s",
            name,
            exc,
            extra={"event": "refused", "reason": "not_valid"},
        )
        if isinstance(exc, Expired):
            abort(410, "the name of a stream has expired; load the page again")
        abort(403, "the name of a stream is not valid")


def _check_holder(permission: StreamPermission) -> None:
    """See that the client is the one that a name is bound to."""
    state = state_of()
    if state.holds(permission.holder) and state.holds(permission.old_holder):
        return
    state.seldom_log(logger).warning(
        "other_holder",
        "refused the stream %.80r: its name is bound to another user or session. Give each user a "
        "page of its own; if users share one, as from a cache, use "
        "stream_from(…, bind=None)",
        permission.channel,
        extra={
            "event": "refused",
            "reason": "other_holder",
            "channel": permission.channel[:200],
        },
    )
    abort(403, "the page is another user's or session's; load it again")


def _check_user(channel: str, user: str | None) -> None:
    """See that a stream is that of the user of the connection."""
    if channel != user:
        state_of().seldom_log(logger).warning(
            "other_user",
            "refused the stream %.80r: by @turbo.user_id the connection is that of %.80r. After a "
            "logout that is expected, and the page loads again. Without one the function has to "
            "return the same at each request of a user. If the page came from a cache that users "
            "share, leave the user out of the page: {{ turbo(user=False) }}",
            channel,
            user or "nobody",
            extra={"event": "refused", "reason": "other_user", "channel": channel[:200]},
        )
        abort(403, "the page is another user's; load it again")


def _authorize(turbo: Any, channel: str) -> None:
    """Ask the application about a stream that it named."""
    parts = parts_of_channel(channel)
    if parts is None or turbo.authorizer is None:
        return
    if not permits(current_app, turbo.authorizer, *parts, by="@turbo.authorize"):
        state_of().seldom_log(logger).warning(
            "not_authorized",
            "refused the stream %.80r: not authorized",
            ":".join(parts),
            extra={"event": "refused", "reason": "not_authorized", "channel": channel[:200]},
        )
        abort(403, "this stream is not for you")


def _channels(subscriptions: Subscriptions) -> list[str]:
    """Return one channel for each stream, in the order in which they were asked for."""
    return [channel for channel, _ in subscriptions]


def _together(subscriptions: Subscriptions) -> dict[str, str]:
    """Return each channel once, with the position that nothing is missing after."""
    found: dict[str, str] = {}
    for channel, position in subscriptions:
        found[channel] = _earlier(found[channel], position) if channel in found else position
    return found


def _earlier(one: str, other: str) -> str:
    """Of two positions the earlier; of those in different logs one that is a gap."""
    if not (one and other):
        return one or other  # one of the two begins with what comes from now on
    first, second = Position.parse(one), Position.parse(other)
    if first is None or second is None or first.epoch != second.epoch:
        return str(NOWHERE)
    return str(min(first, second))
