"""Tags of a page, which load turbo.js and name the page's streams; and the URLs of their files.

``{{ turbo() }}`` in ``<head>``::

    <script data-turbo-eval="false" src="…turbo.js"></script>
    <script type="module" src="/_flask_sockets2/turbo-streams-….js"></script>
    <meta name="turbo-stream-from" content="turbo:all" data-position="9f86d081884c7d65-42"
          data-url="/turbo-stream">

``{{ turbo.stream_from("room", 5) }}`` in ``<body>``::

    <turbo-stream-from name="InR1…" position="9f86d081884c7d65-7" hidden></turbo-stream-from>

``{{ turbo(nonce=…) }}`` puts the nonce on both scripts, and into the meta ``csp-nonce`` before
them. turbo.js uses the meta for its style sheet, and for every script in a body or stream that it
renders. A policy with a nonce therefore does not stop injected scripts there. A policy with
``script-src 'self'`` stops injected scripts, and needs no nonce.

Differences from Turbo-Flask: there is no inline script, so that a Content-Security-Policy need not
allow any. File URLs change with the content, so that browsers cache the files for a year. In a
rolling restart a page of a new worker may request a file from an old worker. The old worker sends
its own version, uncached. No element has ``data-turbo-track``: Flask's error pages would lack the
element, and turbo.js would then reload the form's page and hide the error. If a visit brings
another version of our module, the browser follows the next link without turbo.js.

A signed name is a permission, so a page with signed names gets ``Cache-Control: private``, unless
the application sets ``public``, ``private`` or ``no-store`` itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, has_request_context, request, send_file
from markupsafe import Markup

from ..application.origins import ANY_HOST
from .markup import MIMETYPE, is_shown
from .turbo_js import PREFIX, hashed_name, library_tag, local_url, vendored_path

__all__ = [
    "everywhere",
    "head",
    "keep_private",
    "mark_private",
    "serve_files",
    "stream_element",
]

logger = logging.getLogger("flask_sockets2.turbo")

_MODULE = Path(__file__).parent / "static" / "turbo-streams.js"
_ENDPOINT = "flask_sockets2_file"
_FILE = re.compile(r"(?P<stem>[A-Za-z0-9._-]+)-[0-9a-f]{16}(?P<suffix>\.[a-z]+)")
_YEAR = 31536000  # seconds
_CONNECTS = f"{PREFIX}{_MODULE.stem}-".encode()
_WHOLE_PAGE = re.compile(rb"<(!doctype|html|head|body)[\s>]", re.IGNORECASE)
_PRIVATE = "flask_sockets2.turbo.private"  # in the environ


def head(
    app: Flask,
    route: str | None,
    streams: Iterable[tuple[str, object]],
    *,
    version: Any,
    url: str | None,
    nonce: str | None,
    connect: bool = True,
) -> Markup:
    """Return the tags of ``{{ turbo() }}``.

    :param route: path of the connection, None for turbo.js alone.
    :param connect: False for turbo.js alone on this page, by the same element as on other pages.
    :param streams: streams of the page: pairs of a name, signed by
        :meth:`.stream_names.StreamSigner.permit` or public, and a position.
    :param version: as for :func:`.turbo_js.library_tag`; likewise ``url`` and ``nonce``.
    """
    # First, because turbo.js looks for the nonce as soon as it runs.
    lines = [Markup('<meta name="csp-nonce" content="{}">').format(nonce)] if nonce else []
    if not route:
        return Markup("\n").join([*lines, library_tag(app, version, url, nonce, module=True)])
    lines.append(library_tag(app, version, url, nonce))
    if connect:
        lines.append(_module_tag(app, nonce))
    endpoint = _with_root(app, route)
    lines += [_stream_meta(*stream, endpoint) for stream in streams]
    return Markup("").join(line + "\n" for line in lines)


def _module_tag(app: Flask, nonce: str | None) -> Markup:
    tag = Markup('<script type="module" src="{}"').format(local_url(app, hashed_name(_MODULE)))
    if app.debug:
        tag += Markup(" data-debug")
    if nonce:
        tag += Markup(' nonce="{}"').format(nonce)
    return tag + Markup("></script>")


def _stream_meta(name: str, position: object, endpoint: str) -> Markup:
    return Markup(
        '<meta name="turbo-stream-from" content="{}" data-position="{}" data-url="{}">'
    ).format(name, position, endpoint)


def _with_root(app: Flask, route: str) -> str:
    """Return the path of a rule with the prefix that the application is mounted at."""
    return local_url(app, "").removesuffix(PREFIX) + route


def stream_element(name: str, position: object) -> Markup:
    """Return the element of ``{{ turbo.stream_from(…) }}``."""
    # hidden: a flex container would leave a gap for the empty element.
    return Markup('<turbo-stream-from name="{}" position="{}" hidden></turbo-stream-from>').format(
        name, position
    )


def mark_private() -> None:
    """Keep the response to the current request out of shared caches."""
    if has_request_context():
        request.environ[_PRIVATE] = True


def keep_private(app: Flask) -> None:
    """Make marked responses of an application private; in debug mode, warn of mistakes."""

    @app.after_request
    def turbo_private(response: Response) -> Response:
        control = response.cache_control
        said = control.public or control.private or control.no_store
        if _PRIVATE in request.environ and not said:
            control.private = True
        if app.debug and not response.is_streamed and not response.direct_passthrough:
            _warn_of_nothing_shown(response)
        return response


def _warn_of_nothing_shown(response: Response) -> None:
    """Log why turbo.js would show nothing of a response, or of pushes to its page."""
    if response.mimetype == MIMETYPE and not is_shown(response.get_data(as_text=True)):
        logger.warning(
            "the answer of %.200s has the type of streams, but no <turbo-stream>, so no page shows "
            "it; say what to do with it, as turbo.append(…, target=…) does",
            request.path,
        )
    elif response.mimetype == "text/html" and _PRIVATE in request.environ:
        page = response.get_data()
        # A frame or a fragment is inserted into a page, and that page has the tags.
        whole = "Turbo-Frame" not in request.headers and _WHOLE_PAGE.search(page)
        if whole and b"<turbo-stream-from " in page and _CONNECTS not in page:
            logger.warning(
                "the page %.200s has stream_from(), but nothing connects it, so it receives "
                "nothing; put {{ turbo() }} into its <head>, without connect=False, and set "
                "TURBO_WEBSOCKET_ROUTE if it is None",
                request.path,
            )


def everywhere(app: Flask) -> list[dict[str, Any]]:
    """Return options of URL rules that match on each host or subdomain of an application.

    Pages on any host use our paths without a host.
    """
    if app.url_map.host_matching:
        return [{"host": ANY_HOST}]
    return [{}, {"subdomain": "<turbo_subdomain>"}] if app.subdomain_matching else [{}]


def serve_files(app: Flask) -> None:
    """Add the URL rule of this package's files; a second call changes nothing."""
    if _ENDPOINT not in app.view_functions:
        for options in everywhere(app):
            app.add_url_rule(f"{PREFIX}<name>", _ENDPOINT, _file, **options)


def _file(name: str, **_: str) -> Response:
    path = _path_of(name)
    if path is None:
        abort(404)
    response = send_file(path, "text/javascript", conditional=True)
    response.headers["X-Content-Type-Options"] = "nosniff"
    if name == hashed_name(path):
        response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable"
    else:  # the page is from another version of this package
        response.headers["Cache-Control"] = "no-store"
    return response


def _path_of(name: str) -> Path | None:
    """Return the file with this name, whatever the hash in the name."""
    match = _FILE.fullmatch(name)
    wanted = match["stem"] + match["suffix"] if match else ""
    files = (path for path in (_MODULE, vendored_path()) if path is not None)
    return next((path for path in files if path.name == wanted), None)
