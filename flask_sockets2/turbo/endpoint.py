"""The endpoint of a page's connection: one WebSocket or event stream for all its Turbo Streams.

``GET /turbo-stream?s=<name>&at=<position>&s=<name>&at=<position>…``: two parallel lists. An ``at``
may be empty, and the last ones may be missing. Servers accept URLs of a few KiB, about 20 streams.
If a page has more, ``more=<number>`` announces them. A WebSocket sends them as its first message,
within ten seconds; for Server-Sent Events they are the body of a ``POST``::

    {"streams": [["<name>", "<position>"], …]}

Names are verified before their channels are subscribed to. ``@turbo.authorize`` is asked about
streams of ``stream_from``. A user's stream is only for the user that ``@turbo.user_id`` returns.
A name in the URL is verified before the accept, so that a refusal is an HTTP status. For a name
that follows, the WebSocket is closed with a close code.

======  =====  ==================================================================================
status  code
======  =====  ==================================================================================
400     4400   the request is malformed, or names too many streams
403     4403   a name is forged or another user's, or ``@turbo.authorize`` refuses. A redirect by
               ``@turbo.authorize`` is 4403, too; its other responses follow this table
410     4410   a name is older than ``TURBO_STREAM_MAX_AGE``; a reloaded page has a new one
429            the address or user has too many connections, or connects too often
503     1013   the broker is unreachable, or the announced names did not arrive in time
======  =====  ==================================================================================

A WebSocket of gevent-websocket is accepted already and cannot subscribe. The page is sent
``{"event": "unsupported"}``, the connection is closed, and the page uses Server-Sent Events.

When all names are verified, the server sends JSON messages: the channels, one for each requested
stream; the newest position of each channel; and envelopes of :mod:`flask_sockets2.encoding`.
Envelopes between ``at`` and the newest position may arrive after the message with that position::

    {"event": "streams", "channels": ["turbo:all", "turbo:stream:room:5"]}
    {"event": "subscribed", "channel": "turbo:all", "position": "9f86d081884c7d65-42"}
    {"channel": "turbo:all", "position": "9f86d081884c7d65-43", "data": "<turbo-stream …"}

A name that is bound to a user or session works only for connections of that user or session.

A signed name carries the position at which its page was rendered, and an earlier ``at`` is a gap:
a page receives no messages from before its rendering. ``turbo:all`` is not signed: a client that
may open the URL may read the whole history of that channel.

If the request accepts ``text/event-stream``, the same messages are sent as Server-Sent Events. A
client without ``s``, as turbo.js' own ``Turbo.connectStreamSource(new WebSocket(url))``, receives
plain markup for all pages and for its user, and a ``refresh`` after a gap.

The ``POST`` changes nothing, and pages of other origins cannot send it: ``Origin`` is checked as
for a WebSocket. The ``POST`` is therefore exempt from Flask-WTF's CSRF check, whose token expires
after an hour, before the streams do. Flask-WTF would not check QUERY, but firewalls and CDNs block
that method. Clients behind firewalls and CDNs are the ones that need Server-Sent Events.

Differences from Turbo-Flask: the endpoint is called ``flask_sockets2_turbo_stream``; the user id
is also read when the page is rendered, and a connection of another user is refused.
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
"""Key of the environ: id of the connecting user, if ``@turbo.user_id`` was called already."""

_ENDPOINT = "flask_sockets2_turbo_stream"
_EVENTS_ENDPOINT = "flask_sockets2_turbo_events"
_POLICY = "coalesce"
_REFRESH = str(stream_tag("refresh"))

# Limits against a hostile client.
_MAX_FOLLOWING = 2**19  # bytes of names that do not fit into the URL
_FOLLOWING_TIMEOUT = 10.0  # seconds until they arrive over a WebSocket

_REFUSALS = frozenset({400, 401, 403, 404, 410})
"""Statuses that become close codes, plus 4000: the client need not retry."""

Asked = list[tuple[str, str]]
"""Names from a client, each with the position up to which the client has seen everything."""

Subscriptions = list[tuple[str, str]]
"""Channels that the client may subscribe to, with the same positions."""


def serve_streams(app: Flask, route: str) -> None:
    """Add the URL rules of the connection; a second call changes nothing."""
    if _ENDPOINT in app.view_functions:
        return
    # Separate Sockets, since a route on shared Sockets is added to each application they serve.
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
    # Runs before all before_request functions, in whatever order extensions were set up.
    app.url_value_preprocessor(_exempt_from_tokens)


def _exempt_from_tokens(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Exempt the endpoint of Server-Sent Events from Flask-WTF's CSRF check; see above."""
    if endpoint == _EVENTS_ENDPOINT:
        csrf: Any = current_app.extensions.get("csrf")
        if hasattr(csrf, "exempt"):
            csrf.exempt(_events)


def accepts(mimetype: str) -> bool:
    """Return whether ``Accept`` of the current request names a type; ``*/*`` names none."""
    return any(
        quality > 0 and accepted.partition(";")[0].strip().lower() == mimetype
        for accepted, quality in request.accept_mimetypes
    )


def _connect(ws: Any, **_: str) -> None:
    """Serve a WebSocket; the connection stays open after this function returns."""
    if not hasattr(ws, "subscribe"):  # of gevent-websocket
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
    state_of().channels.check(subscriptions[0][0])  # before the accept, so that it can be a 503
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
    """Receive the names that did not fit into the URL; None if the connection is over."""
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
        status = exc.get_response(request.environ).status_code  # exc.code is None for a response
        if 300 <= status < 400:  # cannot redirect a WebSocket; the page is redirected on reload
            status = 403
        if status not in _REFUSALS:
            raise
        ws.close(4000 + status)
        return None


def _events(**_: str) -> Any:
    """Serve Server-Sent Events; any other request is told to open a WebSocket."""
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
    """Return the application's Turbo and start its jobs, since a page uses this process now."""
    turbo = current_app.extensions[EXTENSION]
    turbo.start_jobs(current_app._get_current_object())  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    return turbo


def _own_channels(turbo: Any) -> list[str]:
    """Return the channels of a client that names no streams."""
    user = _user_of_connection(turbo)
    return [ALL] if user is None else [ALL, user]


def _user_of_connection(turbo: Any) -> str | None:
    """Return the channel of the connecting user, or None."""
    if USER_ID in request.environ:  # set at admission
        user_id = request.environ[USER_ID]
    else:
        user_id = turbo.user_of_connection()
    return None if user_id is None else user_channel(user_id)


# -- the requested streams ---------------------------------------------------------------------


def _asked_in_url() -> tuple[Asked, int]:
    """Return the streams in the URL of the current request, and how many more follow."""
    names, positions = request.args.getlist("s"), request.args.getlist("at")
    following = request.args.get("more", 0, type=int)
    most = read(AppSettings, current_app.config).max_channels
    if following < 0 or len(names) + following > most or len(positions) > len(names):
        abort(400, f"expected up to {most} s= (SOCKETS_MAX_CHANNELS), and no more at= than those")
    positions += [""] * (len(names) - len(positions))
    return list(zip(names, map(_position, positions), strict=True)), following


def _position(text: str) -> str:
    """Return a client's position; an invalid one becomes a gap, never the whole history."""
    return text if not text or Position.parse(text) else str(NOWHERE)


def _body() -> bytes:
    """Return the body of the current request, up to a size limit."""
    size = request.content_length
    if size is None:
        abort(411)
    if size > _MAX_FOLLOWING:
        abort(413)
    return request.get_data()


def _parsed(text: str | bytes, number: int) -> Asked:
    """Return the streams that follow the URL.

    :param number: number of streams that the URL announced.
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
    """Return the channels of the requested streams, once all of them are verified."""
    signer = StreamSigner(current_app) if current_app.secret_key else None
    user_of_connection = cache(partial(_user_of_connection, turbo))
    one_log = state_of().one_log
    subscriptions: Subscriptions = []
    for name, position in asked:
        if name == USER and signer is None:
            channel = user_of_connection()
            # None: the client has logged out, and its position was in the user's channel.
            subscriptions.append((channel, position) if channel else (ALL, ""))
        else:
            permission = _verified(signer, name)
            _check_holder(permission)
            since = not_before(position, permission.earliest, one_log=one_log)
            subscriptions.append((permission.channel, since))
    for channel in dict.fromkeys(_channels(subscriptions)):  # once each: may cost a query
        if is_user(channel):
            _check_user(channel, user_of_connection())
        else:
            _authorize(turbo, channel)
    return subscriptions


def _verified(signer: StreamSigner | None, name: str) -> StreamPermission:
    """Return the permission in a name that a client sent."""
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
    """Refuse a client if the name is bound to another user or session."""
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
    """Refuse a client if the stream belongs to another user."""
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
    """Ask ``@turbo.authorize`` about a stream of ``stream_from``."""
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
    """Return one channel for each stream, in the order of the request."""
    return [channel for channel, _ in subscriptions]


def _together(subscriptions: Subscriptions) -> dict[str, str]:
    """Return each channel once, with the earliest position that the client asked for."""
    found: dict[str, str] = {}
    for channel, position in subscriptions:
        found[channel] = _earlier(found[channel], position) if channel in found else position
    return found


def _earlier(one: str, other: str) -> str:
    """Return the earlier of two positions, or a gap if they are in different logs."""
    if not (one and other):
        return one or other  # an empty position stands for the present
    first, second = Position.parse(one), Position.parse(other)
    if first is None or second is None or first.epoch != second.epoch:
        return str(NOWHERE)
    return str(min(first, second))
