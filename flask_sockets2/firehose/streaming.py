"""The head of a page first: what stands above ``{{ flush() }}`` is sent before the rest is made.

The browser loads styles and scripts meanwhile, as after Early Hints, but through every proxy and
over every version of HTTP. What takes time is given to the template as a function, which it calls
below the mark::

    return flush("report.html", rows=slow_query)    {{ flush() }} … {% for row in rows() %}

The status, the header and the session are sent with the head. What would change them later comes
too late, and is logged. The request lasts up to the end of the page: only then its teardown
functions run, which close the connection to a database that the head has used.
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
"""What a visitor sees in the place of what an error has kept from being made."""


def flush(template: str | Template | list[str | Template], /, **context: Any) -> Response:
    """Answer with a template whose beginning is sent at once, up to ``{{ flush() }}``.

    Up to there all is as ever: an error is answered with 500, ``push`` adds to the header, and the
    session is saved. After an error in the rest the page says so and ends without the end of an
    HTTP message, so that no cache keeps it; the error is logged.

    :param template: as for :func:`flask.render_template`.
    :param context: of the template; functions for what takes time.
    :raises RuntimeError: when the application has no Firehose.
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
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep the head back

    @after_this_request
    def hold_request(answer: Response) -> Response:
        if answer.response is body:  # the view has returned it
            next(body)
            record_of(app).unfinished = True
        elif record_of(app).unfinished:  # an error since then, which is answered instead
            body.close()
        return answer

    return response


def _pieces(app: Flask, template: Template, context: dict[str, Any]) -> Iterator[str]:
    """As Flask's ``stream_template``, whose pieces come with a request context of their own: here
    that of the view serves the first of them."""
    app.update_template_context(context)
    wrapper = app.ensure_sync
    before_render_template.send(app, _async_wrapper=wrapper, template=template, context=context)
    yield from template.generate(context)
    template_rendered.send(app, _async_wrapper=wrapper, template=template, context=context)


def flush_mark() -> Markup:
    """Mark where the head of a page ends; templates call it as ``{{ flush() }}``.

    In a template that is rendered as a whole it does nothing.
    """
    if has_request_context():
        request.environ[_FLUSHED] = True
    return Markup("")


def _head(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces up to the mark."""
    request.environ[_FLUSHED] = False
    for piece in pieces:
        yield piece
        if request.environ[_FLUSHED]:
            return


def _within(context: RequestContext, body: Iterator[str]) -> Generator[str, None, None]:
    """Keep the request of the view up to the end of the body; its first piece is empty.

    Flask's ``stream_with_context`` brings a request back whose teardown functions have run, from
    version 3.1.2 on. It is kept when the view has returned, which may have been a coroutine with
    context variables of its own.
    """
    with context:
        yield ""
        yield from body


def _body(app: Flask, response: Response, head: str, pieces: Iterator[str]) -> Iterator[str]:
    yield head
    saved = dict(session)
    waiting: list[str] = []  # one write for pieces of some size, up to another mark
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
        raise  # the server drops the connection, which tells a cache that the page is not whole
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
