"""Responses that turbo.js expects to forms and frames, and metas with a page's settings.

A form and its responses::

    @app.route("/todos/new", methods=["GET", "POST"])
    def new_todo():
        form = TodoForm()
        if not form.validate_on_submit():
            return turbo.render_form("new_todo.html", form=form)
        save(form)
        return turbo.redirect(url_for("todos"))

turbo.js accepts three responses to a form that is not ``GET``: a redirect, streams, and HTML with
an error status. turbo.js shows nothing of HTML with status 200 (``Form responses must redirect to
another location``); debug mode logs a warning once per endpoint. In a frame, 200 is accepted.

Differences from Turbo-Flask, which has only ``requested_frame()`` and ``can_stream()`` of these:
``Accept: */*`` does not mean streams, because neither curl nor a script can use them. ``Vary``
names the headers that a response depends on, so that no cache serves a part as the page.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import Any

from flask import Flask, Response, current_app, make_response, render_template, request, session
from flask import redirect as flask_redirect
from jinja2 import Environment, Template, TemplateSyntaxError
from markupsafe import Markup
from werkzeug.wrappers import Response as AnyResponse

from .endpoint import accepts
from .markup import MIMETYPE, stream_tag

__all__ = [
    "can_stream",
    "csrf_meta",
    "exempts_page_from_cache",
    "exempts_page_from_preview",
    "flashes",
    "init_forms",
    "layout",
    "page_requires_reload",
    "redirect",
    "refreshes_with",
    "render_form",
    "requested_frame",
]

logger = logging.getLogger("flask_sockets2.turbo")

_VARY = "flask_sockets2.turbo.vary"  # in the environ: headers that the response depends on
_LAYOUTS = "flask_sockets2.turbo.layouts"  # in app.extensions: slim layouts by their blocks
_FLASHES = "flask_sockets2.turbo.flashes"  # in the environ: messages to keep for the reload
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_REDIRECTS = frozenset({301, 302, 303, 305, 307, 308})
_BLOCK = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_BLOCKS = re.compile(r"{%[-+]?\s*block\s+(\w+)")
_EXTENDS = re.compile(r"""\s*{%[-+]?\s*extends\s+(["'])(?P<name>[^"'\\]+)\1\s*[-+]?%}""")


# -- forms -------------------------------------------------------------------------------------


def render_form(template: str, /, **context: Any) -> Response:
    """Render the page with a form: with status 200 for ``GET``, with 422 if a form was sent.

    One call serves both cases of a view: the empty form for ``GET``, and the form with its errors
    if a ``POST`` is not valid.

    :param template: name of the template.
    :param context: variables of the template.
    :returns: a response, whose headers may still be set.
    :raises jinja2.TemplateNotFound: if there is no such template.

    turbo.js shows an HTML response to a form only if the status is 4xx or 5xx. turbo-rails uses
    422, too.
    """
    return make_response(
        render_template(template, **context), 200 if request.method in _SAFE else 422
    )


def redirect(location: str, code: int = 303) -> AnyResponse:
    """Return the redirect that answers a form with the page to show next.

    :param location: URL of that page.
    :param code: status, by default 303: the next request is a ``GET`` for any method of the form.
        After 302 a browser repeats ``PUT``, ``PATCH`` and ``DELETE`` at the new URL (Fetch §4.4).
    :returns: a response.
    :raises ValueError: if the code is not the status of a redirect.
    """
    if code not in _REDIRECTS:
        raise ValueError(f"a redirect has a code such as 303, got {code!r}")
    return flask_redirect(location, code)


def can_stream() -> bool:
    """Return whether you may answer the current request with streams.

    :returns: True if ``Accept`` names ``text/vnd.turbo-stream.html`` and prefers no other type.
        turbo.js sends that for forms that are not ``GET``, and for elements with
        ``data-turbo-stream``. ``*/*`` names no type.

    The response gets ``Vary: Accept``.
    """
    _depends_on("Accept")
    return _accepts_streams()


def _accepts_streams() -> bool:
    best = request.accept_mimetypes.best_match([MIMETYPE, "text/html"])
    return best == MIMETYPE and accepts(MIMETYPE)


def flashes(target: str = "flashes", template: str = "_flashes.html", **context: Any) -> str:
    """Return a stream that shows the flashed messages, for a response that loads no page.

    The stream replaces the content of the target; without messages the target is then empty. The
    template calls ``get_flashed_messages()``, and the page includes the template, too::

        <div id="flashes">{% include "_flashes.html" %}</div>

    ::

        flash("Saved.")
        return turbo.stream([turbo.append(template="_todo.html", todo=todo, target="todos"),
                             turbo.flashes()])

    :param target: id of the element.
    :param template: name of the template for the content of the element.
    :param context: further variables of the template.
    :raises jinja2.TemplateNotFound: if there is no such template.
    """
    return str(stream_tag("update", render_template(template, **context), target=target))


def csrf_meta() -> Markup:
    """Return the meta ``csrf-token`` for ``<head>``, whose token turbo.js sends with each form.

    turbo.js sends the token in the header ``X-CSRF-Token``, which Flask-WTF's ``CSRFProtect``
    accepts. Forms then need no hidden field. A broadcast form must not have a hidden field, whose
    token would belong to the user that caused the broadcast.

    :returns: the tag, or nothing if no extension offers ``csrf_token()`` to templates. Flask-WTF
        is not required.
    """
    csrf_token = current_app.jinja_env.globals.get("csrf_token")
    if not callable(csrf_token):
        return Markup()
    return Markup('<meta name="csrf-token" content="{}">').format(csrf_token())


# -- frames ------------------------------------------------------------------------------------


def requested_frame() -> str | None:
    """Return the id of the frame that sent the request, or None for a page.

    turbo.js names the frame in the header ``Turbo-Frame``, and uses only the ``<turbo-frame>`` with
    that id from the response. The response gets ``Vary: Turbo-Frame``.
    """
    _depends_on("Turbo-Frame")
    return request.headers.get("Turbo-Frame")


def layout(full: str, /, *blocks: str) -> str | Template:
    """Return the layout for a template to extend: the full layout, or a slim one for a frame.

    ::

        {% extends turbo.layout("base.html") %}
        {% block content %}<turbo-frame id="todo">…</turbo-frame>{% endblock %}

    A frame needs neither navigation nor footer, and they may cost more to render than the frame.
    The layout for a frame is the part of the full layout before ``<body``, plus the named blocks;
    other blocks are not rendered. turbo-rails has the layout ``turbo_rails/frame`` for this.

    The head stays complete, because turbo.js makes it the page's head if the frame changes the URL
    (``data-turbo-action``): the title and all metas are then needed.

    :param full: name of the layout for pages.
    :param blocks: names of the blocks that contain frames, by default ``content``.
    :returns: the name ``full``, or a template; the response gets ``Vary: Turbo-Frame``.
    :raises ValueError: if a name is not valid for a block.
    :raises jinja2.TemplateNotFound: if there is no such layout.
    """
    return full if requested_frame() is None else _slim(full, blocks or ("content",))


def _slim(full: str, blocks: tuple[str, ...]) -> Template:
    for name in blocks:
        if not _BLOCK.fullmatch(name):
            raise ValueError(f"expected the name of a block such as 'content', got {name!r}")
    environment = current_app.jinja_env
    layouts: dict[tuple[str, ...], tuple[str, Template]]
    layouts = current_app.extensions.setdefault(_LAYOUTS, {})
    key = (full, *blocks)
    if key in layouts and not environment.auto_reload:
        return layouts[key][1]
    assert environment.loader is not None  # Flask's
    source = environment.loader.get_source(environment, full)[0]
    if key not in layouts or layouts[key][0] != source:
        layouts[key] = (source, _without_body(environment, source, blocks))
    return layouts[key][1]


def _without_body(environment: Environment, source: str, blocks: tuple[str, ...]) -> Template:
    """Return a layout whose body contains only the named blocks."""
    extends = _EXTENDS.match(source)
    if extends is not None:  # the blocks of this layout are for the layout that it extends
        names = ", ".join(f'"{name}"' for name in blocks)
        parent = f'{{% extends turbo.layout("{extends["name"]}", {names}) %}}'
        return environment.from_string(parent + source[extends.end() :])
    head, tag, _ = source.partition("<body")
    if tag:
        with suppress(TemplateSyntaxError):  # <body> within a block or a condition
            return environment.from_string(head + _body(head, blocks))
    head = f"<!doctype html>\n<html><head>{_block('head')}</head>"
    return environment.from_string(head + _body(head, blocks))


def _body(head: str, blocks: tuple[str, ...]) -> str:
    in_head = set(_BLOCKS.findall(head))
    inner = "".join(_block(name) for name in blocks if name not in in_head)
    return f"<body>{inner}</body></html>\n"


def _block(name: str) -> str:
    return f"{{% block {name} %}}{{% endblock %}}"


# -- settings of a page ------------------------------------------------------------------------


def refreshes_with(method: str = "replace", scroll: str = "reset") -> Markup:
    """Return the metas for ``<head>`` that set how turbo.js refreshes a page.

    The model is ``turbo_refreshes_with`` of turbo-rails::

        {{ turbo.refreshes_with(method="morph", scroll="preserve") }}

    :param method: ``morph`` changes only the elements that differ; ``replace`` the whole body.
    :param scroll: ``preserve`` keeps the scroll position; ``reset`` scrolls to the top.
    :raises ValueError: if either is something else.
    """
    _check("method", method, "replace", "morph")
    _check("scroll", scroll, "reset", "preserve")
    return _meta("turbo-refresh-method", method) + _meta("turbo-refresh-scroll", scroll)


def exempts_page_from_cache() -> Markup:
    """Return the meta that keeps a page out of turbo.js' cache of pages to go back to or preview.

    The model is ``turbo_exempts_page_from_cache`` of turbo-rails.
    """
    return _meta("turbo-cache-control", "no-cache")


def exempts_page_from_preview() -> Markup:
    """Return the meta that makes turbo.js show the cached page on going back, not as a preview.

    The model is ``turbo_exempts_page_from_preview`` of turbo-rails.
    """
    return _meta("turbo-cache-control", "no-preview")


def page_requires_reload() -> Markup:
    """Return the meta that makes turbo.js load the page in full, on a visit or in a frame.

    The model is ``turbo_page_requires_reload`` of turbo-rails. Use the meta for a login page that
    may answer a frame's request, for example. With :func:`layout`, put the meta into the block
    ``head``. In a response to a form the result is empty, since a reload would lose the errors.

    turbo.js shows nothing of the response, and requests the page again. Flashed messages are kept
    for that request.
    """
    if request.method not in _SAFE:
        return Markup()
    if "X-Turbo-Request-Id" in request.headers and session.get("_flashes"):
        request.environ.setdefault(_FLASHES, list(session["_flashes"]))
    return _meta("turbo-visit-control", "reload")


def _meta(name: str, content: str) -> Markup:
    return Markup('<meta name="{}" content="{}">').format(name, content)


def _check(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise ValueError(f"{name}= is one of {', '.join(choices)}; got {value!r}")


# -- the responses of an application -----------------------------------------------------------


def init_forms(app: Flask) -> None:
    """Complete an application's responses: ``Turbo.init_app`` calls this once."""
    warned: set[str | None] = set()  # endpoints; two threads may at worst log one of them twice

    @app.after_request
    def turbo_answer(response: Response) -> Response:
        for field in request.environ.get(_VARY, ()):
            response.vary.add(field)
        if _FLASHES in request.environ:
            session["_flashes"] = request.environ[_FLASHES]
        if app.debug and _is_refused(response) and request.endpoint not in warned:
            warned.add(request.endpoint)
            _warn()
        return response


def _depends_on(field: str) -> None:
    # Not in g, which outlives the request if a test has pushed an application context.
    fields: set[str] = request.environ.setdefault(_VARY, set())
    fields.add(field)


def _is_refused(response: Response) -> bool:
    """Return whether turbo.js shows nothing (8.0.23, ``requestSucceededWithResponse``).

    turbo.js refuses exactly status 200, and only for forms of the page, not for forms of a frame.
    """
    return (
        response.status_code == 200
        and response.mimetype in _HTML
        and request.method not in _SAFE
        and "Turbo-Frame" not in request.headers
        and _accepts_streams()
    )


def _warn() -> None:
    logger.warning(
        "%s %.200r (endpoint %r) answered a Turbo form with HTML and status 200, so turbo.js shows "
        "nothing (Form responses must redirect to another location); return "
        "turbo.render_form(template, form=form) where the form is shown again, "
        "turbo.redirect(url) where it is done, or turbo.stream(...)",
        request.method,
        request.path,
        request.endpoint,
    )
