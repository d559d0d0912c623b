"""Origin checks: the pages that may connect, and the requests that may have an event stream.

A browser sends ``Origin`` with a WebSocket, and with a request to another origin in mode cors. The
request of an ``EventSource`` of the same origin has no ``Origin``, nor has that of an
``<iframe>``. Two headers tell these pages apart:

- ``Sec-Fetch-Site``, if the URL is ``https://`` or on the browser's machine;
- ``Referer``, the only one over plain HTTP. A page can suppress its ``Referer``, so a browser's
  request with neither header is refused.

Clients other than browsers send none of the three, and may connect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from flask import Flask, abort, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from ..settings import ROWS
from ..throttled_log import ThrottledLog
from ..wire.origins import (
    Origins,
    can_be_rebound,
    origin_of_url,
    parse_hosts,
    parse_origins,
    same_origin,
)
from .state import EXTENSION, State

__all__ = [
    "ANY_HOST",
    "check_origin",
    "check_stream",
    "entries",
    "origins_of",
    "warn_of_every_site",
]

logger = logging.getLogger("flask_sockets2.sockets")

ANY_HOST = "<flask_sockets2_host>"
"""Host of our own rules if an application matches hosts: any host that has a page."""

_SETTING = "SOCKETS_ALLOWED_ORIGINS"
_SCRIPT = "empty"  # the Sec-Fetch-Dest of an EventSource, and of fetch()
_EVENTS = "text/event-stream"
_ELEMENTS = ("text/html", "text/css", "image/", "video/", "audio/")
"""Types in ``Accept`` if a browser loads a page, style sheet, image, film or sound."""

_without_state = ThrottledLog(logger)
"""The log of applications without ``Sockets``."""


def entries(given: Iterable[str] | str, called: str) -> tuple[str, ...]:
    """Return the entries of a list of origins; a text, as in the environment, may hold several.

    :param called: name of the list in errors.
    :raises ValueError: if the list is empty, or an entry can match no page. The error names the
        list and the entry.
    """
    found = tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(given)
    if not found:
        default = "pages of the same origin" if called == _SETTING else f"the pages of {_SETTING}"
        raise ValueError(
            f"{called} is empty, so no page could connect; leave it out, or use None, for {default}"
        )
    try:
        for entry in found:
            if not isinstance(entry, str):
                raise ValueError(f"{entry!r} is no origin; expected 'https://example.com'")
            if "@" in entry:  # perhaps a URL with a password, which must not be logged
                raise ValueError(
                    "an entry with an @ is no origin; expected it without a user, as in "
                    "'https://example.com'"
                )
        parse_origins(found)
    except ValueError as exc:
        raise ValueError(f"{called}: {exc}") from exc
    return found


def origins_of(app: Flask) -> Origins | None:
    """Return the origins that may connect to an application; None for its own host only.

    :raises ValueError: if the setting is invalid; the error names the setting and the entry.
    """
    given = ROWS[_SETTING].of(app.config)  # one row, since each handshake asks
    return None if given is None else parse_origins(entries(given, _SETTING))


def warn_of_every_site(app: Flask) -> None:
    """Warn once if the setting lets the pages of every site connect."""
    state: State | None = app.extensions.get(EXTENSION)
    if state is None or state.warned_of_every_site:
        return
    allowed = origins_of(app)
    if allowed is not None and (allowed.every or allowed.opaque):
        state.warned_of_every_site = True
        logger.warning(
            "%s has %r: pages of every site may connect, with the cookies of their visitors. Name "
            "the origins there, and give origins='*' to the routes that are public",
            _SETTING,
            "*" if allowed.every else "null",
        )


# -- requests ----------------------------------------------------------------------------------


def check_origin(app: Flask, allowed: Origins | None = None) -> None:
    """Check that the page that sent the current request may connect.

    :param allowed: origins of the route, in place of the application's setting.
    :raises werkzeug.exceptions.Forbidden: if the page may not connect.
    """
    origin = request.environ.get("HTTP_ORIGIN")
    if origin is None:  # not a browser, or a GET by a page of the same origin
        return
    setting = "origins= of its route"
    if allowed is None:
        setting, allowed = _SETTING, origins_of(app)
        if allowed is not None and (allowed.every or allowed.opaque):
            warn_of_every_site(app)  # the setting may have changed after init_app()
    if allowed is not None and allowed.include(origin):
        return
    by_default = allowed is None or allowed.same
    if not (by_default and same_origin(origin, _host(), secure=request.is_secure)):
        _refuse_origin(app, origin, setting)
    _check_host(app)


def check_stream(app: Flask) -> None:
    """Check that the page that sent the current request may have an event stream.

    CORS keeps a page of another site from reading a stream. CORS does not keep the page from
    holding a stream open with the visitor's cookies, and from using up the visitor's limits.

    :raises werkzeug.exceptions.Forbidden: if the page may not connect.
    :raises werkzeug.exceptions.NotAcceptable: if the browser loads a page or an image, or
        prefetches. A script sends no such request.
    """
    environ = request.environ
    if "HTTP_ORIGIN" in environ:
        check_origin(app)
    else:
        _check_page(app, environ)
        _check_host(app)
    if _is_browser(environ):
        _check_purpose(environ)


def _is_browser(environ: Mapping[str, Any]) -> bool:
    """Tell whether a browser sent a request; a page can set neither header field."""
    return "HTTP_SEC_FETCH_SITE" in environ or environ.get("HTTP_USER_AGENT", "").startswith(
        "Mozilla/"
    )


def _check_page(app: Flask, environ: Mapping[str, Any]) -> None:
    """Check the page of a request without an ``Origin``."""
    site, referer = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_REFERER")
    if site is not None:
        if site not in ("same-origin", "none"):  # none: the user entered the URL
            _refuse_page(app, "pages of other sites have to ask in mode cors, with an Origin")
        return
    allowed = origins_of(app)
    if referer is not None:
        page = origin_of_url(referer)
        ours = same_origin(page, _host(), secure=request.is_secure)
        if not ours and (allowed is None or not allowed.include(page)):
            _refuse_origin(app, page, _SETTING)
    elif _is_browser(environ) and not (allowed is not None and allowed.every):
        _refuse_page(
            app,
            "the browser does not say which page asks; over http:// it has to send a Referer: use "
            "https://, or the header field Referrer-Policy: same-origin",
        )


def _check_purpose(environ: Mapping[str, Any]) -> None:
    """Check that a browser's request is for a stream, not for a page or an image."""
    early = environ.get("HTTP_SEC_PURPOSE") or environ.get("HTTP_PURPOSE") or ""
    if "prefetch" in early:
        abort(406, "an event stream cannot be fetched in advance")
    accept = environ.get("HTTP_ACCEPT", "").lower()
    if _EVENTS in accept:
        return
    # Over plain HTTP, only Range tells a <video> of Chromium from fetch().
    shown = "HTTP_RANGE" in environ or any(each in accept for each in _ELEMENTS)
    if shown or environ.get("HTTP_SEC_FETCH_DEST", _SCRIPT) != _SCRIPT:
        abort(406, "this is an event stream: open it with new EventSource(url), or with curl -N")


def _host() -> str:
    """Return the ``Host`` of the current request; Werkzeug's is empty if it has an underscore."""
    return request.host or request.environ.get("HTTP_HOST", "")


def _check_host(app: Flask) -> None:
    """Check that the current request is for one of the application's hosts, if these are known.

    An attacker can bind a name to our address (DNS rebinding). For a browser, pages of that name
    and this application then have the same origin.
    """
    names, setting = app.config.get("TRUSTED_HOSTS"), "TRUSTED_HOSTS"  # Flask's from 3.1 on
    if names:
        known = parse_hosts((names,) if isinstance(names, str) else tuple(names))
        if not known.include(_host()):
            _refuse_host(app, setting)
        return
    if app.url_map.host_matching:  # the rules name the hosts
        rule = request.url_rule
        if rule is not None and rule.host == ANY_HOST and not _has_page_at(app, _host()):
            _refuse_host(app, "host= of any rule")
        return
    name, setting = app.config.get("SERVER_NAME"), "SERVER_NAME"
    if name:
        host = _host()
        if can_be_rebound(host) and not parse_hosts((name, f".{name}")).include(host):
            _refuse_host(app, setting)


def _has_page_at(app: Flask, host: str) -> bool:
    """Tell whether an application has rules for a host, other than our own rules."""
    hosts = {rule.host for rule in app.url_map.iter_rules() if rule.host} - {ANY_HOST}
    rules = [Rule("/", endpoint=each, host=each) for each in hosts]
    alone = Map(rules, converters=app.url_map.converters, host_matching=True)
    try:
        alone.bind(host).match("/")
    except HTTPException:
        return False
    return True


# -- refusals ----------------------------------------------------------------------------------


def _refuse_origin(app: Flask, origin: str, setting: str) -> NoReturn:
    host = _host()
    _log_of(app).warning(
        "origin",
        "refused a page of origin %.200r on host %.200r; if that page may connect, add its origin "
        "to %s, or, behind a proxy, use ProxyFix",
        origin,
        host,
        setting,
        extra={
            "event": "refused",
            "reason": "origin",
            "origin": origin[:200],
            "host": host[:200],
        },
    )
    abort(403, f"pages of this origin may not connect ({setting})")


def _refuse_page(app: Flask, why: str) -> NoReturn:
    host = _host()
    _log_of(app).warning(
        "site",
        "refused an event stream on host %.200r: %s",
        host,
        why,
        extra={"event": "refused", "reason": "site", "host": host[:200]},
    )
    abort(403, why)


def _refuse_host(app: Flask, setting: str) -> NoReturn:
    host = _host()
    _log_of(app).warning(
        "host",
        "refused a page on host %.200r, which is not in %s; if it is a host of the application, "
        "name all of its hosts in TRUSTED_HOSTS, or, behind a proxy, use ProxyFix",
        host,
        setting,
        extra={"event": "refused", "reason": "host", "host": host[:200]},
    )
    abort(403, f"pages of this host may not connect ({setting})")


def _log_of(app: Flask) -> ThrottledLog:
    state: State | None = app.extensions.get(EXTENSION)
    return _without_state if state is None else state.seldom_log(logger)
