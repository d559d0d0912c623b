"""103 Early Hints: the browser loads a page's files while the view still works (RFC 8297).

A server with Early Hints offers ``environ["wsgi.early_hints"]``, a function that takes header
fields: our own handler, and gunicorn's workers from version 25 on. The proxy in front may not
support a 103, however. nginx before 1.29 mistakes a 103 for the final response, so that pages
break; Python's HTTP clients make the same mistake. With ``FIREHOSE_EARLY_HINTS = "auto"`` only
navigations of a browser receive a 103, and only if the next hop passes it on. The next hop does if
the server speaks HTTP/2 itself, or the proxy sets the header that ``FIREHOSE_HOP_HEADER`` names.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.security import safe_join

from ..settings import read
from .links import Link, joined, link_of
from .pushes import Place, record_of, state_of
from .settings import FirehoseSettings

__all__ = ["EarlyHints", "early_hints", "hints"]

logger = logging.getLogger("flask_sockets2.firehose")

EarlyHints = Callable[[list[tuple[str, str]]], Any]

Function = TypeVar("Function", bound=Callable[..., Any])

_MAX_HINTS = 2048  # characters; Chromium looks at the first response 103 only
_MAX_LEARNED = 20  # links of an endpoint
_MAX_PLACES = 1000  # endpoints, counted once for each requested host and prefix
_LEARNED_KINDS = ("style", "script", "font")
_NAVIGATIONS = (None, "navigate")  # Sec-Fetch-Mode, None if the client sends none
_MARK = "_firehose_hints"


class Declared:
    """The hints that ``@hints`` declares for a view."""

    __slots__ = ("learn", "links")

    def __init__(self, links: tuple[Link | Callable[[], str | Link], ...], learn: bool) -> None:
        self.links = links
        self.learn = learn

    def made(self) -> list[Link]:
        """Return the links; functions among the declared hints run in the current request."""
        return [each if isinstance(each, Link) else link_of(each()) for each in self.links]


def hints(
    *links: str | Link | Callable[[], str | Link], learn: bool = True
) -> Callable[[Function], Function]:
    """Declare files that the pages of a view always need, so that browsers load them early.

    The links are sent before the view runs, see :func:`early_hints`. The response's Link header
    repeats the links, and some CDNs make their own 103 from the header.

    ::

        @app.get("/report")
        @hints("/static/app.css", lambda: url_for("static", filename="app.js"))
        def report():
            return render_template("report.html", rows=slow_query())

    :param links: links as for :func:`early_hints`, or functions that return one.
    :param learn: whether to send also the links that the view's last page pushed.
    :raises ValueError: if a browser cannot use one of the links.
    """
    made = tuple(each if callable(each) else link_of(each) for each in links)

    def declare(view: Function) -> Function:
        setattr(view, _MARK, Declared(made, learn))
        return view

    return declare


def early_hints(*links: str | Link) -> bool:
    """Send links to the browser now, before the response, so that files load early.

    ::

        early_hints("/static/app.css", "https://cdn.example.com", "</data>; rel=preload; as=fetch")

    :param links: URLs with an ending that tells the type; origins to connect to; links in the
        format of the Link header.
    :returns: whether the server was asked to send a 103, which works until the response begins.
        The response's Link header has the links in either case.
    :raises ValueError: if a browser cannot use one of the links.
    :raises RuntimeError: if the application has no Firehose.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    state_of(app)
    made = [link_of(each) for each in links]
    record_of(app).hinted.extend(made)
    return _send(app, made)


def begin(app: Flask) -> None:
    """Send the declared and learned links of the requested view in one response 103."""
    declared = _declared(app)
    if declared is not None:
        record_of(app).hinted.extend(declared.made())
    links = list(record_of(app).hinted)
    if _learns(app, declared):
        links += _known(app)
    _send(app, links)


def learn(app: Flask, response: Response) -> None:
    """Remember the links that a page pushed, as hints for the next request of its endpoint.

    Only files that are the same for every user are learned: the application's static styles,
    scripts and fonts, separately for each host and prefix, since each tenant may have its own.
    Other files and URLs may concern one user.

    A visitor must not choose the files that other visitors load. Therefore a page with a query and
    a file missing from its folder are not learned. For made-up hosts see :func:`_keep`.
    """
    record = record_of(app)
    page = request.method == "GET" and response.status_code == 200
    if not page or response.mimetype != "text/html" or record.unfinished:
        return
    if request.headers.get("Sec-Fetch-Mode") not in _NAVIGATIONS:  # perhaps a part of a page
        return
    if request.endpoint is None or not _learns(app, _declared(app)):
        return
    if request.query_string:
        return
    learned, place = state_of(app).learned, _place()
    known = {each.key for each in learned.get(place, ())}
    pushed = record.pushed.values()
    found = [each for each in pushed if each.key in known or _is_for_everybody(app, each)]
    if found:
        _keep(learned, place, tuple(found[:_MAX_LEARNED]))
    else:
        learned.pop(place, None)


def _known(app: Flask) -> tuple[Link, ...]:
    """Return the links learned for the current place, and mark the place as used."""
    learned, place = state_of(app).learned, _place()
    links = learned.get(place, ())
    if links:
        with suppress(KeyError):  # another thread has just removed the place
            learned.move_to_end(place, last=False)
    return links


def _keep(learned: OrderedDict[Place, tuple[Link, ...]], place: Place, links: Any) -> None:
    """Store the links of a place; if there are too many places, replace the newest one.

    Any client can make up hosts: each made-up host replaces only the one before. A place that was
    requested again has moved to the front, and stays.
    """
    if place not in learned:
        while len(learned) >= _MAX_PLACES:
            with suppress(KeyError):  # another thread was faster
                learned.popitem()
    learned[place] = links


def server_function(environ: dict[str, Any]) -> EarlyHints | None:
    """Return the server's function that sends a 103, or None if the server has none."""
    send = environ.get("wsgi.early_hints")
    return send if callable(send) else None


def _declared(app: Flask) -> Declared | None:
    view = app.view_functions.get(request.endpoint or "")
    return getattr(view, _MARK, None)


def _learns(app: Flask, declared: Declared | None) -> bool:
    return read(FirehoseSettings, app.config).learn and (declared is None or declared.learn)


def _send(app: Flask, links: list[Link]) -> bool:
    if not links or not _may_send(app):
        return False
    send = server_function(request.environ)
    value, _ = joined((), links, _MAX_HINTS)
    if send is None or not value:
        return False
    try:
        send([("Link", value)])
    except OSError as exc:  # the client has left; the response will fail, too
        logger.info("no early hints could be sent: %s", exc)
        return False
    except Exception:  # the server's function; the page works without hints
        logger.exception(
            "wsgi.early_hints of the server failed; FIREHOSE_EARLY_HINTS = False does without it"
        )
        return False
    return True


def _may_send(app: Flask) -> bool:
    """Whether the settings and the current request permit a response 103."""
    setting = read(FirehoseSettings, app.config).early_hints
    protocol = request.environ.get("SERVER_PROTOCOL", "")
    if not setting or protocol < "HTTP/1.1" or request.method != "GET":
        return False
    if "Upgrade" in request.headers:
        return False
    mode = request.headers.get("Sec-Fetch-Mode")
    if setting == "auto":
        return mode == "navigate" and _hop_is_known(app, protocol)
    return mode in _NAVIGATIONS


def _hop_is_known(app: Flask, protocol: str) -> bool:
    """Whether the next hop is known to pass a response 103 on, or is a browser with HTTP/2."""
    name = read(FirehoseSettings, app.config).hop_header
    said = request.headers.get(name, "") if name else ""
    return protocol >= "HTTP/2" or said not in ("", "0")


def _place() -> Place:
    """Return the endpoint, host and prefix of the current request."""
    return request.endpoint or "", request.host.lower(), request.root_path


def _is_for_everybody(app: Flask, each: Link) -> bool:
    rel = each.get("rel")
    kind = {"preload": each.get("as"), "modulepreload": "script"}.get(rel or "")
    return kind in _LEARNED_KINDS and _is_static(app, each.url)


def _is_static(app: Flask, url: str) -> bool:
    """Whether a URL belongs to one of the application's static files.

    If the static folder exists, the file must be in the folder. If a proxy or a CDN serves the
    files, the application may have no folder.
    """
    parts = urlsplit(url)
    root = request.root_path
    if parts.netloc or not parts.path.startswith(f"{root}/"):
        return False
    adapter = app.create_url_adapter(request)
    try:
        endpoint, values = adapter.match(  # type: ignore[union-attr]  # never None in a request
            unquote(parts.path.removeprefix(root)), method="GET"
        )
    except HTTPException:  # also a redirect of the router
        return False
    name, _, last = f".{endpoint}".rpartition(".")
    if last != "static":
        return False
    scaffold = app.blueprints.get(name[1:]) if name else app
    folder = scaffold.static_folder if scaffold else None
    if folder is None or not os.path.isdir(folder) or "filename" not in values:
        return True
    path = safe_join(folder, values["filename"])
    return path is not None and os.path.isfile(path)
