"""103 Early Hints: what a page needs goes to the browser before the view works (RFC 8297).

A server that can says so by ``environ["wsgi.early_hints"]``, a function of header fields: our own
handler, and gunicorn's workers from 25 on. Whether a response 103 may be sent is another question.
nginx before 1.29 takes it for the answer, so that pages break, and so do Python's own clients. With
``FIREHOSE_EARLY_HINTS = "auto"`` it is sent to navigations of a browser only, and only where the
hop in front is known to pass it: the server speaks HTTP/2 itself, or the proxy sets the header that
``FIREHOSE_HOP_HEADER`` names.
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
_MAX_PLACES = 1000  # endpoints, each at every host that it was asked for
_LEARNED_KINDS = ("style", "script", "font")
_NAVIGATIONS = (None, "navigate")  # Sec-Fetch-Mode, where the client has it
_MARK = "_firehose_hints"


class Declared:
    """What ``@hints`` says of a view."""

    __slots__ = ("learn", "links")

    def __init__(self, links: tuple[Link | Callable[[], str | Link], ...], learn: bool) -> None:
        self.links = links
        self.learn = learn

    def made(self) -> list[Link]:
        """Return the links, now that there is a request to make them in."""
        return [each if isinstance(each, Link) else link_of(each()) for each in self.links]


def hints(
    *links: str | Link | Callable[[], str | Link], learn: bool = True
) -> Callable[[Function], Function]:
    """Say what the pages of a view always need.

    It is sent before the view works, see :func:`early_hints`, and stands in the header of the
    response, from which some CDNs make a response 103 of their own.

    ::

        @app.get("/report")
        @hints("/static/app.css", lambda: url_for("static", filename="app.js"))
        def report():
            return render_template("report.html", rows=slow_query())

    :param links: as those of :func:`early_hints`, or functions that return one.
    :param learn: also send what the last page of the view has pushed.
    :raises ValueError: when one of them is no link that a browser can use.
    """
    made = tuple(each if callable(each) else link_of(each) for each in links)

    def declare(view: Function) -> Function:
        setattr(view, _MARK, Declared(made, learn))
        return view

    return declare


def early_hints(*links: str | Link) -> bool:
    """Tell the browser now what the page will need, before the response.

    ::

        early_hints("/static/app.css", "https://cdn.example.com", "</data>; rel=preload; as=fetch")

    :param links: URLs whose ending says what they are; origins to connect to; links as they stand
        in a header field.
    :returns: whether the server was told to send it, which it does up to the beginning of the
        response. The links stand in the header of the response anyhow.
    :raises ValueError: when one of them is no link that a browser can use.
    :raises RuntimeError: when the application has no Firehose.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    state_of(app)
    made = [link_of(each) for each in links]
    record_of(app).hinted.extend(made)
    return _send(app, made)


def begin(app: Flask) -> None:
    """Send what is known of the view that a request is for, in one response 103."""
    declared = _declared(app)
    if declared is not None:
        record_of(app).hinted.extend(declared.made())
    links = list(record_of(app).hinted)
    if _learns(app, declared):
        links += _known(app)
    _send(app, links)


def learn(app: Flask, response: Response) -> None:
    """Keep what the page has pushed for the next request of its endpoint.

    Only what is the same for everybody, as a rule: styles, scripts and fonts among the static files
    of the application, at this host and below this prefix, since tenants may have one each. Other
    files and other URLs may be about one user.

    A visitor must not choose what others load. So a page with a query teaches nothing, and no file
    is learned that is missing in its folder. Hosts are in the request, too: see :func:`_keep`.
    """
    record = record_of(app)
    page = request.method == "GET" and response.status_code == 200
    if not page or response.mimetype != "text/html" or record.unfinished:
        return
    if request.headers.get("Sec-Fetch-Mode") not in _NAVIGATIONS:  # a part of a page, maybe
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
    """Return what the pages of the place that is asked for have taught."""
    learned, place = state_of(app).learned, _place()
    links = learned.get(place, ())
    if links:
        with suppress(KeyError):  # another thread has just forgotten it
            learned.move_to_end(place, last=False)
    return links


def _keep(learned: OrderedDict[Place, tuple[Link, ...]], place: Place, links: Any) -> None:
    """Keep what a place has taught; when there are too many, in the room of the newest one.

    Anybody can make up hosts. Each of them takes the room of the one before. A place that was asked
    for once more has moved to the front, and stays.
    """
    if place not in learned:
        while len(learned) >= _MAX_PLACES:
            with suppress(KeyError):  # another thread was faster
                learned.popitem()
    learned[place] = links


def server_function(environ: dict[str, Any]) -> EarlyHints | None:
    """Return what sends a response 103, None where the server has nothing of the kind."""
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
    except OSError as exc:  # the client has left; the response will find out
        logger.info("no early hints could be sent: %s", exc)
        return False
    except Exception:  # a server's own function: the page does not depend on it
        logger.exception(
            "wsgi.early_hints of the server failed; FIREHOSE_EARLY_HINTS = False does without it"
        )
        return False
    return True


def _may_send(app: Flask) -> bool:
    """Whether a response 103 is wanted and harmless."""
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
    """Whether the next hop passes a response 103 on, or is the browser itself by HTTP/2."""
    name = read(FirehoseSettings, app.config).hop_header
    said = request.headers.get(name, "") if name else ""
    return protocol >= "HTTP/2" or said not in ("", "0")


def _place() -> Place:
    """Where this page was asked for."""
    return request.endpoint or "", request.host.lower(), request.root_path


def _is_for_everybody(app: Flask, each: Link) -> bool:
    rel = each.get("rel")
    kind = {"preload": each.get("as"), "modulepreload": "script"}.get(rel or "")
    return kind in _LEARNED_KINDS and _is_static(app, each.url)


def _is_static(app: Flask, url: str) -> bool:
    """Whether a URL is that of one of the application's static files.

    If the folder is there, the file must be in it. Where a proxy or a CDN serves the files, the
    application may have no folder.
    """
    parts = urlsplit(url)
    root = request.root_path
    if parts.netloc or not parts.path.startswith(f"{root}/"):
        return False
    adapter = app.create_url_adapter(request)
    try:
        endpoint, values = adapter.match(  # type: ignore[union-attr]  # there is one for a request
            unquote(parts.path.removeprefix(root)), method="GET"
        )
    except HTTPException:  # a redirect of the router is one, too
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
