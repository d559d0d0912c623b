"""Keeps requests that became WebSockets from saving their sessions.

The session of a WebSocket holds the values from the time of the handshake. If Flask saved the
session when the connection ends, perhaps hours later, the save would undo later changes by pages,
such as a logout. A cookie could not be sent either, because the response was the 101.

So the session interface of the application is changed, not replaced: extensions and applications
look at its class. An ``after_request`` or teardown function may call ``save_session``, as Flask
does. Extensions may set another interface at any time, so the guard is put in place at each
handshake, and again when the handler has returned.

A refused request for a connection saves its session like any other, but without the messages
flashed in that request, because no page shows the response. If a user must log in, a page asks for
a WebSocket and for an event stream, and then reloads. ``login_required`` flashes each time, and the
login page should show that message once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import getattr_static
from typing import Any

from flask import Flask, Response, has_request_context, message_flashed, request, session

from ..connection.connection import Connection

__all__ = ["drop_flashes_of_connections", "guard_sessions", "mark_ended", "serving"]

_ENDED = "flask_sockets2.was_websocket"  # in the environ after the connection was removed from it

_FLASHED = "flask_sockets2.flashed"  # in the environ: number of flashed messages

# The environ of the WebSocket that is being served, for functions of ``teardown_appcontext``: they
# run after the request context.
_serving: ContextVar[dict[str, Any] | None] = ContextVar("flask_sockets2.serving", default=None)


def drop_flashes_of_connections(app: Flask) -> None:
    """Drop messages flashed in a request for a WebSocket or an event stream if it is refused."""
    message_flashed.connect(_count_flash, app)
    app.after_request(_drop_flashes)


def _count_flash(app: Flask, **_: Any) -> None:
    if has_request_context():
        request.environ[_FLASHED] = request.environ.get(_FLASHED, 0) + 1


def _drop_flashes(response: Response) -> Response:
    number = request.environ.get(_FLASHED, 0)
    if number and response.status_code >= 300 and _is_for_connection():
        kept = session.get("_flashes", [])[:-number]
        session["_flashes"] = kept
        if not kept:
            del session["_flashes"]
    return response


def _is_for_connection() -> bool:
    is_websocket = request.url_rule is not None and request.url_rule.websocket
    return is_websocket or "text/event-stream" in request.headers.get("Accept", "")


@contextmanager
def serving(environ: dict[str, Any]) -> Iterator[None]:
    """Mark a request for a WebSocket as being served within the block.

    :param environ: WSGI environ of the request.
    """
    token = _serving.set(environ)
    try:
        yield
    finally:
        _serving.reset(token)


def mark_ended(environ: dict[str, Any]) -> None:
    """Remember that a request became a WebSocket after its connection leaves the environ.

    A copy of the request context may outlive the request.
    """
    environ[_ENDED] = True


def guard_sessions(app: Flask) -> None:
    """Keep an application's session interface from saving sessions of WebSockets; can be repeated.

    Call it within the request, because an application may have one interface for each tenant.

    :raises RuntimeError: if the interface cannot be changed.
    """
    if _is_guarded(app):
        return
    interface = app.session_interface
    try:
        interface.save_session = _SaveSession(interface.save_session)  # type: ignore[method-assign]  # see above
    except AttributeError:
        pass  # the object takes no attributes
    if _is_guarded(app):
        return
    # The application may return a new object on each access, so the class is changed.
    kind = interface.__class__  # not type(): the interface may be a LocalProxy
    try:
        kind.save_session = _SaveMethod(getattr_static(kind, "save_session"))  # type: ignore[method-assign, assignment]  # see above
    except (AttributeError, TypeError):
        pass  # written in C, for example
    if not _is_guarded(app):
        raise RuntimeError(
            f"save_session of the session interface {kind.__module__}.{kind.__qualname__} cannot "
            "be replaced, so a WebSocket that ends would save the session that it began with; "
            "define save_session as a method of the class"
        )


def _is_guarded(app: Flask) -> bool:
    return isinstance(app.session_interface.save_session, _SaveSession)


class _SaveSession:
    """Stands in for ``save_session`` of a session interface.

    :param save: the interface's own method.
    """

    def __init__(self, save: Callable[..., Any]) -> None:
        self._save = save

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if _is_websocket() else self._save(*args, **kwargs)


class _SaveMethod:
    """Stands in for ``save_session`` of a class of session interfaces.

    :param save: the class's own attribute: a function, or another descriptor.
    """

    def __init__(self, save: Any) -> None:
        self._save = save

    def __get__(self, instance: Any, owner: type | None = None) -> _SaveSession:
        bind = getattr(type(self._save), "__get__", None)
        return _SaveSession(self._save if bind is None else bind(self._save, instance, owner))


def _is_websocket() -> bool:
    """Tell whether the current request has become a WebSocket."""
    environ = request.environ if has_request_context() else _serving.get()
    if environ is None:
        return False
    if _ENDED in environ:
        return True
    ws = environ.get("wsgi.websocket")
    # gevent-websocket has accepted its connection before the application ran.
    return ws.accepted if isinstance(ws, Connection) else ws is not None
