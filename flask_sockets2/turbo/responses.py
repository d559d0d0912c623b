"""Answers that turbo.js expects: to forms, to frames, and what a page tells about itself.

A form and its answers::

    @app.route("/todos/new", methods=["GET", "POST"])
    def new_todo():
        form = TodoForm()
        if not form.validate_on_submit():
            return turbo.render_form("new_todo.html", form=form)
        save(form)
        return turbo.redirect(url_for("todos"))

turbo.js takes three answers to a form that is not ``GET``: a redirect, streams, and HTML with an
error status. HTML with status 200 it refuses, ``Form responses must redirect to another location``;
in debug mode that is logged once for each endpoint. A form within a frame may be answered with 200.

Differences from Turbo-Flask, which has only ``requested_frame()`` and ``can_stream()`` of these:
``Accept: */*`` does not mean streams, for neither curl nor a script can do anything with them; what
an answer depended on stands in its ``Vary``, so that no cache gives a part for the page.
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

_VARY = "flask_sockets2.turbo.vary"  # in the environ: what the answer depends on so far
_LAYOUTS = "flask_sockets2.turbo.layouts"  # in app.extensions: slim layouts by their blocks
_FLASHES = "flask_sockets2.turbo.flashes"  # in the environ: messages that the answer does not show
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_REDIRECTS = frozenset({301, 302, 303, 305, 307, 308})
_BLOCK = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_BLOCKS = re.compile(r"{%[-+]?\s*block\s+(\w+)")
_EXTENDS = re.compile(r"""\s*{%[-+]?\s*extends\s+(["'])(?P<name>[^"'\\]+)\1\s*[-+]?%}""")


# -- forms -------------------------------------------------------------------------------------


def render_form(template: str, /, **context: Any) -> Response:
    """Render the page with a form: with 422 where a form was sent, else with 200.

    One call serves both ends of a view: the empty form for ``GET``, and for ``POST``, which comes
    here because something was not valid, the form with its errors.

    :param template: name of the template.
    :param context: its variables.
    :returns: a response, whose headers may still be set.
    :raises jinja2.TemplateNotFound: when there is no such template.

    turbo.js shows HTML in answer to a form only where its status is 4xx or 5xx. 422 is what
    turbo-rails uses, too.
    """
    return make_response(
        render_template(template, **context), 200 if request.method in _SAFE else 422
    )


def redirect(location: str, code: int = 303) -> AnyResponse:
    """Answer a form with the page to show next.

    :param location: its URL.
    :param code: 303, so that the next request is a ``GET`` whatever the form's method was; after
        302 a browser repeats ``PUT``, ``PATCH`` and ``DELETE`` at the new location (Fetch §4.4).
    :returns: a response.
    :raises ValueError: when the code is none of a redirect.
    """
    if code not in _REDIRECTS:
        raise ValueError(f"a redirect has a code such as 303, got {code!r}")
    return flask_redirect(location, code)


def can_stream() -> bool:
    """Tell whether this request may be answered with streams.

    :returns: True when its ``Accept`` names ``text/vnd.turbo-stream.html`` itself and prefers
        nothing to it, as turbo.js does for forms that are not ``GET`` and for elements with
        ``data-turbo-stream``. ``*/*`` names nothing.

    The answer gets ``Vary: Accept``.
    """
    _depends_on("Accept")
    return _accepts_streams()


def _accepts_streams() -> bool:
    best = request.accept_mimetypes.best_match([MIMETYPE, "text/html"])
    return best == MIMETYPE and accepts(MIMETYPE)


def flashes(target: str = "flashes", template: str = "_flashes.html", **context: Any) -> str:
    """Return a stream that shows the flashed messages, for an answer that loads no page.

    The element of the target then holds the messages of now; with none it is emptied. The template
    asks for them with ``get_flashed_messages()``, and the page includes it, too::

        <div id="flashes">{% include "_flashes.html" %}</div>

    ::

        flash("Saved.")
        return turbo.stream([turbo.append(template="_todo.html", todo=todo, target="todos"),
                             turbo.flashes()])

    :param target: id of the element.
    :param template: name of the template for its content.
    :param context: further variables of it.
    :raises jinja2.TemplateNotFound: when there is no such template.
    """
    return str(stream_tag("update", render_template(template, **context), target=target))


def csrf_meta() -> Markup:
    """Return the meta ``csrf-token``, for ``<head>``: turbo.js sends it with each form.

    It goes into the header ``X-CSRF-Token``, which Flask-WTF's ``CSRFProtect`` takes as it is. So
    forms need no hidden field; and what is broadcast must not have one, for its token would be that
    of who caused the broadcast.

    :returns: the tag, or nothing where no extension offers ``csrf_token()`` to templates. Flask-WTF
        is not needed.
    """
    csrf_token = current_app.jinja_env.globals.get("csrf_token")
    if not callable(csrf_token):
        return Markup()
    return Markup('<meta name="csrf-token" content="{}">').format(csrf_token())


# -- frames ------------------------------------------------------------------------------------


def requested_frame() -> str | None:
    """Return the id of the frame that asks, from the header ``Turbo-Frame``; None for a page.

    turbo.js takes nothing but the ``<turbo-frame>`` of that id out of the answer, which gets
    ``Vary: Turbo-Frame``.
    """
    _depends_on("Turbo-Frame")
    return request.headers.get("Turbo-Frame")


def layout(full: str, /, *blocks: str) -> str | Template:
    """Return what a template extends: its layout, or for a frame next to nothing.

    ::

        {% extends turbo.layout("base.html") %}
        {% block content %}<turbo-frame id="todo">…</turbo-frame>{% endblock %}

    A frame needs neither navigation nor footer, and to render them may cost more than the frame.
    So for a frame the layout is what stands before ``<body`` in the full one, and the blocks named
    here; what the template puts elsewhere is not rendered. turbo-rails has its layout
    ``turbo_rails/frame`` for the same purpose.

    The head is the full one, because turbo.js makes it the page's head if the frame changes the URL
    (``data-turbo-action``). Then the title has to be there, and so have all metas.

    :param full: name of the layout for pages.
    :param blocks: names of the blocks that frames are in, by default ``content``.
    :returns: that name, or a template; the answer gets ``Vary: Turbo-Frame``.
    :raises ValueError: when a name cannot be that of a block.
    :raises jinja2.TemplateNotFound: when there is no such layout.
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
    """Return a layout with nothing but blocks in its body."""
    extends = _EXTENDS.match(source)
    if extends is not None:  # its own blocks are for the layout that it extends
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


# -- what a page tells about itself ------------------------------------------------------------


def refreshes_with(method: str = "replace", scroll: str = "reset") -> Markup:
    """Return the metas that say how a page is refreshed, for its ``<head>``.

    As ``turbo_refreshes_with`` of turbo-rails::

        {{ turbo.refreshes_with(method="morph", scroll="preserve") }}

    :param method: ``morph`` changes only what differs; ``replace`` the whole body.
    :param scroll: ``preserve`` or ``reset`` the place that is scrolled to.
    :raises ValueError: when either is something else.
    """
    _check("method", method, "replace", "morph")
    _check("scroll", scroll, "reset", "preserve")
    return _meta("turbo-refresh-method", method) + _meta("turbo-refresh-scroll", scroll)


def exempts_page_from_cache() -> Markup:
    """Return the meta by which turbo.js keeps no copy of the page, for going back or a preview.

    As ``turbo_exempts_page_from_cache`` of turbo-rails.
    """
    return _meta("turbo-cache-control", "no-cache")


def exempts_page_from_preview() -> Markup:
    """Return the meta by which turbo.js shows the page's copy only when going back.

    As ``turbo_exempts_page_from_preview`` of turbo-rails.
    """
    return _meta("turbo-cache-control", "no-preview")


def page_requires_reload() -> Markup:
    """Return the meta by which a visit of the page, or a frame that gets it, loads it in full.

    As ``turbo_page_requires_reload`` of turbo-rails: for a login page that may come in answer to a
    frame, for example. With :func:`layout` it belongs into the block ``head``. It is empty in
    answer to a form, whose errors a reload would not show.

    turbo.js shows nothing of such an answer, and asks for the page again. The messages flashed
    before are kept until then.
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


# -- the answers of an application -------------------------------------------------------------


def init_forms(app: Flask) -> None:
    """Have an application's answers looked at: once, by ``Turbo.init_app``."""
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
    # Not in g, which outlives the request where a test has pushed an application context.
    fields: set[str] = request.environ.setdefault(_VARY, set())
    fields.add(field)


def _is_refused(response: Response) -> bool:
    """Whether turbo.js shows nothing of an answer (8.0.23, ``requestSucceededWithResponse``).

    Status 200 exactly is what it refuses, and from the page's forms only: a frame takes it.
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
