"""Turbo: adds Turbo Streams to a Flask application, in responses and pushed to open pages.

Differences from Turbo-Flask, which has the same interface:

- Targets and attributes are escaped; content is HTML, which is not escaped.
- :meth:`Turbo.can_stream` is True only if ``Accept`` names the type of streams: ``responses.py``.
- Offline recipients are no error: a page that reconnects receives earlier pushes from the history
  of its channel, as far as the history reaches.
- ``clients`` has only sockets that the application puts there; connections are subscribers of
  channels, in all processes. An id and its text are the same user.
- The user id is read when the page is rendered, and the page carries the id, signed. The id is a
  str, an int or a UUID, or None for no user. Without ``SECRET_KEY`` the connection reads the id,
  as in Turbo-Flask.
- ``sock`` is a :class:`~flask_sockets2.Sockets`, also without ``TURBO_WEBSOCKET_ROUTE``: an
  application without pages of its own may push.
- ``None`` as content is an error instead of the text "None".
- The page is different (``page.py``), and so is the endpoint (``endpoint.py``).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any, Self, TypeVar

from flask import Flask, current_app, has_request_context, request
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, InternalServerError

from ..application.answers import Identify, Permit, UserId, WrongAnswer, identity
from ..application.signing import check_keys
from ..application.sockets import Sockets
from ..application.state import state_of
from ..brokers.base import Position
from ..exceptions import BrokerError
from ..settings import read, shown
from ..throttled_log import ThrottledLog
from . import builders
from . import responses as forms
from .after_commit import flushed, send_after_commit
from .broadcasts import Broadcaster, Send, for_pages, recipients_of, refresh_of
from .endpoint import EXTENSION, USER_ID, serve_streams
from .jobs import Jobs, check_seconds
from .page import head, keep_private, mark_private, serve_files, stream_element
from .page_streams import is_position, positions_for_page, streams_of_page
from .refresh_debounce import Refresh
from .settings import TurboSettings
from .stream_names import ALL, Part, StreamSigner, stream_channel, user_channel
from .turbo_js import VERSION

__all__ = ["Turbo"]

logger = logging.getLogger("flask_sockets2.turbo")

UserFunction = TypeVar("UserFunction", bound=Identify)
PermitFunction = TypeVar("PermitFunction", bound=Permit)
JobFunction = TypeVar("JobFunction", bound=Callable[[], object])


class Turbo:
    """Turbo Streams for one or several applications: builds, answers with, and pushes streams.

    :param app: the application, or None to call :meth:`init_app` later.

    ::

        turbo = Turbo(app)

        @app.post("/todos")
        def add():
            todo = save(request.form["text"])
            turbo.push(turbo.append(render_template("_todo.html", todo=todo), "todos"))
            return redirect(url_for("index"), 303)

    Any thread or greenlet may call all methods, except methods that answer the current request. A
    push raises :class:`~flask_sockets2.BrokerError` if the broker cannot be reached, unless
    ``SOCKETS_PUBLISH_ERRORS`` is ``"log"``. A push of more than ``SOCKETS_MAX_MESSAGE_SIZE`` bytes
    raises ValueError.
    """

    def __init__(self, app: Flask | None = None) -> None:
        #: The application's own sockets, by user id, which receive pushes as well.
        self.clients: dict[Any, list[Any]] = {}
        #: Sockets whose channels carry the streams; None before :meth:`init_app`.
        self.sock: Sockets | None = None
        self._broadcaster = Broadcaster()
        self._send: Send = self._broadcaster.send  # all pushes use it; after_commit() has another
        #: Function that returns the id of the current request's user, None for no user.
        self.user_id_callback: Identify = self.default_user_id
        #: Function that authorizes a subscription to a stream; see :meth:`authorize`.
        self.authorizer: Permit | None = None
        self._jobs = Jobs()
        self._log = ThrottledLog(logger)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up an application: the endpoint for its pages, and ``turbo`` in its templates.

        :raises RuntimeError: if the application has another Turbo already.
        :raises ValueError: if a setting is invalid; the error names the setting.
        """
        check_keys(app)
        route = read(TurboSettings, app.config).websocket_route
        if app.extensions.get(EXTENSION, self) is not self:
            raise RuntimeError("this application has a Turbo already; use that one everywhere")
        app.config.setdefault("TURBO_WEBSOCKET_ROUTE", route)
        if self.sock is None:
            self.sock = Sockets()
        self.sock.init_app(app)
        if EXTENSION not in app.extensions:
            forms.init_forms(app)
            keep_private(app)
        app.extensions[EXTENSION] = self
        state = state_of(app)
        state.turbo_user_id, state.turbo_page_user = self.user_of_connection, self._page_user
        state.turbo_identifies = self.identifies
        if route:
            serve_streams(app, route)
        serve_files(app)
        app.context_processor(self.context_processor)

    # -- pages -----------------------------------------------------------------------------

    def turbo(
        self,
        version: str | None = VERSION,
        url: str | None = None,
        nonce: str | None = None,
        *,
        connect: bool = True,
        user: bool = True,
    ) -> Markup:
        """Return the tags that connect a page; write ``{{ turbo() }}`` in ``<head>``.

        :param version: version of turbo.js to load from the CDN, None for the newest; by default
            the version of this package, from the installed copy if there is one.
        :param url: URL of another copy of turbo.js, its UMD build.
        :param nonce: nonce of the page's Content-Security-Policy.
        :param connect: False for a page without pushes, such as a login page, which loads turbo.js
            alone.
        :param user: False for a page that users share, as from a cache: the page receives pushes
            to all users, and none to its own user.
        """
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        route = read(TurboSettings, app.config).websocket_route
        if has_request_context():  # no jobs in a command or a task that renders a page
            self.start_jobs(app)
        streams: list[tuple[str, object]] = []
        if route and connect:
            streams = streams_of_page(app, self._user_of_page() if user else None, self._serving)
        return head(app, route, streams, version=version, url=url, nonce=nonce, connect=connect)

    def __call__(
        self,
        version: str | None = VERSION,
        url: str | None = None,
        nonce: str | None = None,
        *,
        connect: bool = True,
        user: bool = True,
    ) -> Markup:
        """Return the tags of :meth:`turbo`: in templates ``turbo`` is this object."""
        return self.turbo(version, url, nonce, connect=connect, user=user)

    def stream_from(
        self,
        *parts: Part,
        position: Position | str | None = None,
        bind: str | None = "user",
    ) -> Markup:
        """Return the tag that subscribes a page: ``{{ turbo.stream_from("room", room.id) }}``.

        :param parts: parts of the stream's name: str, int or UUID.
        :param position: position after which the page receives all messages; by default the one
            that :meth:`position` returned in this request, else the present one.
        :param bind: connections that may use the tag. ``"user"``: connections of the page's user,
            if there is one; ``"session"``: of the page's session; None: of any client.
        :raises RuntimeError: if the application has no ``SECRET_KEY``, or the page no session.
        :raises ValueError: if ``position`` or ``bind`` is something else.
        """
        if position is not None and not is_position(position):
            raise ValueError(
                f"position= must be what turbo.position() returned, got {shown(position)}; leave "
                "it out for the present one"
            )
        channel = stream_channel(*parts)
        signer = StreamSigner(current_app)
        mark_private()
        known = positions_for_page([channel], self._serving)[0] if position is None else position
        # With "" the page begins at the present, and may go back to that point on a reconnect.
        earliest = known if known != "" else positions_for_page([channel], self._serving)[0]
        holder = state_of().holder(bind)
        return stream_element(signer.permit(channel, earliest, holder), known)

    def position(self, *parts: Part) -> Position:
        """Return a stream's position; call this before you query the data that the page shows.

        The rest of the request uses this position, so the page also receives messages pushed
        between the query and the rendering. Without parts, the position is that of pushes to all;
        the position of pushes to the user is then remembered, too. If the broker is unreachable,
        the position is "-", which stands for a gap.

        ::

            @app.get("/room/<int:number>")
            def room(number):
                turbo.position("room", number)
                return render_template("room.html", messages=messages_of(number))
        """
        if parts:
            return self.positions([parts])[0]
        channels = [ALL, *filter(None, [self._user_of_page()])]
        return positions_for_page(channels, self._serving, remember=True)[0]

    def positions(self, names: Iterable[Sequence[Part]]) -> list[Position]:
        """Return the positions of many streams with one request to the broker.

        A page with ``stream_from`` for each of a hundred rows then waits for Redis once, not a
        hundred times; see :meth:`position`::

            turbo.positions(("order", order.id) for order in orders)

        :param names: parts of each stream's name.
        """
        channels = [stream_channel(*parts) for parts in names]
        return positions_for_page(channels, self._serving, remember=True)

    def _user_of_page(self) -> str | None:
        """Return the channel of the current request's user, or None."""
        if not self.identifies() or not has_request_context():
            return None
        try:
            user_id = self._ask_user_id()
        except WrongAnswer:
            raise  # the developer sees the mistake at the first page
        except HTTPException as exc:
            self._log.warning(
                "page", "the user id callback answers a page with %s: it has no user", exc
            )
            return None
        except Exception as exc:
            self._log.error(
                "the user id callback raised, so a page has no stream of its user", error=exc
            )
            return None
        return None if user_id is None else user_channel(user_id)

    def _page_user(self) -> str | None:
        """Return the id of the current request's user; errors of the callback are raised."""
        return self._ask_user_id() if self.identifies() else None

    def subscribers(self, *parts: Part) -> int:
        """Return the number of pages with a stream, in all processes, up to a second old.

        :raises BrokerError: if the broker cannot be reached.
        """
        return self._serving().subscribers(stream_channel(*parts))

    # -- streams ---------------------------------------------------------------------------

    append = staticmethod(builders.append)
    prepend = staticmethod(builders.prepend)
    replace = staticmethod(builders.replace)
    update = staticmethod(builders.update)
    after = staticmethod(builders.after)
    before = staticmethod(builders.before)
    remove = staticmethod(builders.remove)
    refresh = staticmethod(builders.refresh)
    action = staticmethod(builders.action)
    stream = staticmethod(builders.stream)

    # -- sending ---------------------------------------------------------------------------

    def push(
        self,
        stream: str | Iterable[str],
        to: UserId | Iterable[UserId | None] | None = None,
        *,
        exclude_sender: bool = False,
    ) -> None:
        """Send one stream or several to the pages of all users, or of some users.

        :param to: id of a user, or an iterable of ids; None for all users. An offline user is no
            error.
        :param exclude_sender: whether the page that sent the current request ignores the stream.
        :raises RuntimeError: if ``to`` names users, and no ``@turbo.user_id`` is registered.
        """
        recipients = recipients_of(to)
        if recipients and not (self.identifies() or self.clients):
            raise RuntimeError(
                "cannot push to a user: no function says who the user of a page is; register one "
                "that returns the id of the current user with @turbo.user_id"
            )
        markup = for_pages(stream, self._serving, exclude_sender)
        if recipients is None:
            channels = [ALL]
            sockets = [socket for each in list(self.clients.values()) for socket in each]
        else:
            channels = list(dict.fromkeys(map(user_channel, recipients)))
            sockets = [socket for each in recipients for socket in self.clients.get(each, ())]
        self._publish(channels, markup, sockets)

    def broadcast_to(
        self, *parts: Part, stream: str | Iterable[str], exclude_sender: bool = False
    ) -> Position:
        """Send one stream or several to all pages with ``stream_from`` of that name.

        :param parts: parts of the stream's name: str, int or UUID.
        :param exclude_sender: whether the page that sent the current request ignores the stream.
        :returns: the message's position in its channel.

        ::

            turbo.broadcast_to("room", 5, stream=turbo.append("<li>Hello</li>", "messages"))
        """
        channel = stream_channel(*parts)
        markup = for_pages(stream, self._serving, exclude_sender)
        [position] = self._publish([channel], markup)
        assert position is not None
        return position

    def broadcast_append_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send an :meth:`append` to a stream.

        :param parts: parts of the stream's name, as for :meth:`broadcast_to`.
        :param exclude_sender: as for :meth:`broadcast_to`.
        :param options: ``content``, ``target`` and all others of :meth:`append`.

        ::

            turbo.broadcast_append_to("room", 5, content="<li>Hello</li>", target="messages")
        """
        return self._broadcast(self.append, parts, options, exclude_sender)

    def broadcast_prepend_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`prepend` to a stream; see :meth:`broadcast_append_to`."""
        return self._broadcast(self.prepend, parts, options, exclude_sender)

    def broadcast_replace_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`replace` to a stream; see :meth:`broadcast_append_to`."""
        return self._broadcast(self.replace, parts, options, exclude_sender)

    def broadcast_update_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send an :meth:`update` to a stream; see :meth:`broadcast_append_to`."""
        return self._broadcast(self.update, parts, options, exclude_sender)

    def broadcast_before_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`before` to a stream; see :meth:`broadcast_append_to`."""
        return self._broadcast(self.before, parts, options, exclude_sender)

    def broadcast_after_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send an :meth:`after` to a stream; see :meth:`broadcast_append_to`."""
        return self._broadcast(self.after, parts, options, exclude_sender)

    def broadcast_remove_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`remove` to a stream; see :meth:`broadcast_append_to`."""
        return self._broadcast(self.remove, parts, options, exclude_sender)

    def broadcast_refresh_to(
        self, *parts: Part, exclude_sender: bool = True, **options: Any
    ) -> Position | None:
        """Send a :meth:`refresh` to a stream; frequent ones are combined: ``refresh_debounce.py``.

        :param exclude_sender: whether the page that sent the current request, or the request with
            ``request_id``, ignores the refresh.
        :param options: options of :meth:`refresh`.
        :returns: the position in its channel, None if the refresh is combined with a later one.
        """
        request_id = options.pop("request_id", None)
        refresh = refresh_of(self.refresh(**options), request_id, exclude_sender=exclude_sender)
        [position] = self._publish([stream_channel(*parts)], refresh)
        return position

    def after_commit(self, session: Any) -> Self:
        """Return a Turbo whose pushes and broadcasts wait until a SQLAlchemy session commits.

        Markup is built at once, and sent only if the current transaction commits; see
        ``after_commit.py``.

        :param session: a session, or ``db.session`` of Flask-SQLAlchemy.
        :raises RuntimeError: if SQLAlchemy is not installed.
        :raises TypeError: if ``session`` is something else.

        ::

            turbo.after_commit(db.session).push(turbo.append(template="_todo.html", todo=todo,
                                                             target="todos"))
        """
        later = copy(self)
        later._send = partial(send_after_commit, flushed(session), self._broadcaster.send)
        return later

    def _broadcast(
        self,
        build: Callable[..., str],
        parts: Sequence[Part],
        options: dict[str, Any],
        exclude_sender: bool,
    ) -> Position:
        if options.keys().isdisjoint({"target", "targets"}):
            raise TypeError(
                f"broadcast_{build.__name__}_to() has no target: name the element's id by "
                'target="todos", or a CSS selector by targets=".todo". It takes the parts of the '
                "stream's name, and all else by keyword"
            )
        stream = build(**options)
        return self.broadcast_to(*parts, stream=stream, exclude_sender=exclude_sender)

    def _publish(
        self, channels: list[str], stream: str | Refresh, sockets: Sequence[Any] = ()
    ) -> Sequence[Position | None]:
        """Send to channels and to the application's own sockets; every push passes here.

        :param stream: markup, or a refresh for one channel.
        :returns: the position in each channel.
        """
        # Take the publisher now: at a commit the current application may be another one, or none.
        return self._send(self._serving().publisher, channels, stream, sockets)

    def _serving(self) -> Sockets:
        if self.sock is None:
            raise RuntimeError("this Turbo serves no application; call init_app(app) first")
        return self.sock

    # -- users -----------------------------------------------------------------------------

    def user_id(self, f: UserFunction) -> UserFunction:
        """Register the function that returns the current user's id, for ``push(to=…)``.

        The function returns None if no user is logged in. An exception or a returned response
        refuses a connection; a page is rendered without its user. Any other value is a TypeError.

        ::

            @turbo.user_id
            def get_user_id():
                return current_user.id

        :returns: the function, unchanged.
        """
        self.user_id_callback = f
        return f

    def default_user_id(self) -> str:
        """Return a new id at each call, so that no user can be pushed to alone."""
        return uuid.uuid4().hex

    def _ask_user_id(self) -> str | None:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        return identity(app, self.user_id_callback, by="@turbo.user_id")

    def user_of_connection(self) -> str | None:
        """Return the user id for a connection, None if no user is logged in; for all connections.

        If the callback fails, the connection is refused. An anonymous connection could survive
        ``disconnect`` of its user, and would not count for the limit of connections per user.

        :raises werkzeug.exceptions.HTTPException: the response of the callback, or 500 if the
            callback raises anything else.
        """
        if not self.identifies():
            return None
        try:
            user_id = self._ask_user_id()
        except HTTPException as exc:
            self._log.warning(
                "connection",
                "refused a connection: the user id callback answers %s",
                exc,
                extra={"event": "refused", "reason": "no_user"},
            )
            raise
        except Exception as exc:
            # Pages retry, so a traceback for each attempt, as Flask logs, would fill the log.
            self._log.error(
                "refused a connection: the user id callback raised; return None if no user is "
                "logged in",
                error=exc,
            )
            raise InternalServerError(original_exception=exc) from exc
        request.environ[USER_ID] = user_id
        return user_id

    def identifies(self) -> bool:
        """Return whether the application has registered ``@turbo.user_id``."""
        function = getattr(self.user_id_callback, "__func__", None)
        return function is not Turbo.default_user_id

    def authorize(self, f: PermitFunction) -> PermitFunction:
        """Register the function that authorizes each stream of ``stream_from`` at each connect.

        ::

            @turbo.authorize
            def may_have(kind, *parts):
                return kind == "room" and current_user.is_in(int(parts[0]))

        :param f: function of the name's parts, as strings, called in the connection's request.
            True permits the stream; False and None refuse. A returned response or a raised
            HTTPException refuses, too, and is sent. Any other value is a TypeError.
        :returns: the function, unchanged.
        """
        self.authorizer = f
        return f

    # -- the request -----------------------------------------------------------------------

    def context_processor(self) -> dict[str, Any]:
        """Return the variables for templates: ``turbo``."""
        return {"turbo": self}

    requested_frame = staticmethod(forms.requested_frame)
    can_stream = staticmethod(forms.can_stream)
    render_form = staticmethod(forms.render_form)
    redirect = staticmethod(forms.redirect)
    flashes = staticmethod(forms.flashes)
    csrf_meta = staticmethod(forms.csrf_meta)
    layout = staticmethod(forms.layout)
    refreshes_with = staticmethod(forms.refreshes_with)
    exempts_page_from_cache = staticmethod(forms.exempts_page_from_cache)
    exempts_page_from_preview = staticmethod(forms.exempts_page_from_preview)
    page_requires_reload = staticmethod(forms.page_requires_reload)

    def can_push(self, to: UserId | None = None) -> bool:
        """Return whether a page is connected to any process, as of at most a second ago.

        False if the broker cannot be reached, because no push is possible then.

        :param to: id of a user, or None for any user.
        """
        if to in self.clients or (to is None and self.clients):
            return True
        if self.sock is None:
            return False
        try:
            return self.sock.subscribers(ALL if to is None else user_channel(to)) > 0
        except BrokerError as exc:
            self._log.failure("can_push", "nothing can be pushed: %s", exc)
            return False

    def every(
        self, seconds: float, *, name: str | None = None
    ) -> Callable[[JobFunction], JobFunction]:
        """Register a job that runs every so many seconds, in one of all workers; see ``jobs.py``.

        The job runs in an application context, without a request. If the job raises, the error is
        logged, and the job runs again at its next time.

        :param name: name of the job, equal in all processes and unique among the applications of a
            Redis; by default the function's name.
        :raises ValueError: if ``seconds`` is not above 0 and finite, or another job has the name.
        :raises TypeError: if ``seconds`` is no number, or the function has no name.

        ::

            @turbo.every(5)
            def load():
                turbo.push(turbo.replace(render_template("_load.html"), "load"))
        """

        def register(function: JobFunction) -> JobFunction:
            self._jobs.register(seconds, function, name)
            return function

        check_seconds(seconds)
        return register

    def start_jobs(self, app: Flask) -> None:
        """Start the jobs in this process; each page and connection calls this.

        With ``app.testing`` no job starts: call the functions in tests.
        """
        if self._jobs.registered and not app.testing:
            self._jobs.start(app, state_of(app).publisher)
