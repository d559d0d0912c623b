"""Early heads: the part of a page above ``{{ flush() }}`` is sent before the rest is rendered.

The browser loads styles and scripts meanwhile, as after Early Hints, but through every proxy and
over every version of HTTP. Pass slow data to the template as a function, and call the function
below the mark::

    return flush("report.html", rows=slow_query)    {{ flush() }} … {% for row in rows() %}

The status, the headers and the session are sent with the head. Later changes are lost; a change of
the session is logged. The request lasts up to the end of the page. Its teardown functions, which
for example close a database connection, run only then.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Iterator
from typing import Any

from flask import (
    Flask,
    Response,
    after_this_request,
    before_render_template,
    current_app,
    got_request_exception,
    has_request_context,
    request,
    session,
    template_rendered,
)
from flask.ctx import RequestContext
from flask.globals import request_ctx
from jinja2 import Template
from markupsafe import Markup

from .early import learn
from .pushes import record_of, state_of

__all__ = ["flush", "flush_mark"]

logger = logging.getLogger("flask_sockets2.firehose")

_FLUSHED = "flask_sockets2.firehose.flushed"
_PIECE = 8192  # characters

CUT_SHORT = (
    '\n<p role="alert">The rest of this page could not be made. '
    '<a href="">Try again</a></p>\n<!-- cut short by an error -->\n'
)
"""The note on a page in place of the part that an error has cut off."""


def flush(template: str | Template | list[str | Template], /, **context: Any) -> Response:
    """Return a response that sends a template up to ``{{ flush() }}`` at once, then the rest.

    Above the mark a template behaves as usual: an error gives a 500, ``push`` adds to the header,
    and the session is saved. An error below the mark is logged. The page then ends with a note, and
    the HTTP message stays incomplete, so that no cache stores the page.

    :param template: template as for :func:`flask.render_template`.
    :param context: context of the template, with functions for slow data.
    :raises RuntimeError: if the application has no Firehose.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
    state = state_of(app)
    chosen = app.jinja_env.get_or_select_template(template)
    pieces = _pieces(app, chosen, context)
    head = "".join(_head(pieces))
    if not request.environ[_FLUSHED] and chosen.name not in state.unmarked:
        state.unmarked.add(chosen.name)
        logger.warning(
            "%r has no {{ flush() }} where its head ends, so nothing of it is sent first",
            chosen.name,
        )
    response = app.response_class(mimetype="text/html")
    kept: RequestContext = request_ctx._get_current_object()  # type: ignore[attr-defined]  # a proxy
    response.response = body = _within(kept, _body(app, response, head, pieces))
    response.headers["X-Accel-Buffering"] = "no"  # else nginx would buffer the head

    @after_this_request
    def hold_request(answer: Response) -> Response:
        if answer.response is body:  # returned by the view
            next(body)
            record_of(app).unfinished = True
        elif record_of(app).unfinished:  # an error response replaces the page
            body.close()
        return answer

    return response


def _pieces(app: Flask, template: Template, context: dict[str, Any]) -> Iterator[str]:
    """Render a template in pieces. Flask's ``stream_template`` would run all pieces in a request
    context of its own; here the first pieces run in the view's context."""
    app.update_template_context(context)
    wrapper = app.ensure_sync
    before_render_template.send(app, _async_wrapper=wrapper, template=template, context=context)
    yield from template.generate(context)
    template_rendered.send(app, _async_wrapper=wrapper, template=template, context=context)


def flush_mark() -> Markup:
    """Mark the end of a page's head, as ``{{ flush() }}`` in a template.

    The mark has no effect in a template that is rendered as a whole.
    """
    if has_request_context():
        request.environ[_FLUSHED] = True
    return Markup("")


def _head(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces up to the mark."""
    request.environ[_FLUSHED] = False
    for piece in pieces:
        yield piece
        if request.environ[_FLUSHED]:
            return


def _within(context: RequestContext, body: Iterator[str]) -> Generator[str, None, None]:
    """Keep the view's request context up to the end of the body; the first piece is empty.

    From Flask 3.1.2 on, ``stream_with_context`` restores a request after its teardown functions
    have run. The context is entered after the view has returned, since the view may be a coroutine
    with context variables of its own.
    """
    with context:
        yield ""
        yield from body


def _body(app: Flask, response: Response, head: str, pieces: Iterator[str]) -> Iterator[str]:
    yield head
    saved = dict(session)
    waiting: list[str] = []  # pieces for one write of some size, or up to another mark
    size = 0
    request.environ[_FLUSHED] = False
    try:
        for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= _PIECE or request.environ[_FLUSHED]:
                request.environ[_FLUSHED] = False
                yield "".join(waiting)
                waiting, size = [], 0
    except Exception as exc:
        got_request_exception.send(app, _async_wrapper=app.ensure_sync, exception=exc)
        app.log_exception(sys.exc_info())
        yield "".join([*waiting, CUT_SHORT])
        raise  # the server drops the connection, so that a cache sees an incomplete page
    yield "".join(waiting)
    if dict(session) != saved:
        logger.error(
            "the session was changed below {{ flush() }} of %.200r, after its cookie was sent, and "
            "the change is lost: do it in the view or above the mark, and call csrf_token() and "
            "get_flashed_messages() there, too",
            request.path,
        )
    record_of(app).unfinished = False
    learn(app, response)
