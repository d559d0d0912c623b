"""Turbo: streams for the pages of a Flask application, as answers and pushed from anywhere.

Differences from Turbo-Flask, whose interface this is:

- Targets and attributes are escaped; the content is HTML as it is.
- :meth:`Turbo.can_stream` is True only where the type of streams is named, see ``forms.py``.
- Recipients that are not there are no error: what is pushed to them waits in the history of their
  channel for a page that comes back.
- ``clients`` has only what a program puts there; connections are subscribers of channels, in all
  processes. An id and its text are the same user.
- The id of a user is asked for when the page is made, and the page carries it, signed. It is a
  text, a whole number or a UUID; None is nobody. Without ``SECRET_KEY`` it is asked for by the
  connection, as there.
- ``sock`` is a :class:`~flask_sockets2.Sockets`, and is there without ``TURBO_WEBSOCKET_ROUTE``,
  too: an application without pages of its own may push.
- ``None`` as content is an error instead of the text "None".
- The page is different, see ``page.py``, and the endpoint, see ``endpoint.py``.
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
    """Turbo Streams of one or several applications.

    :param app: the application, or None to call :meth:`init_app` later.

    ::

        turbo = Turbo(app)

        @app.post("/todos")
        def add():
            todo = save(request.form["text"])
            turbo.push(turbo.append(render_template("_todo.html", todo=todo), "todos"))
            return redirect(url_for("index"), 303)

    All but what answers the current request may be called by any thread or greenlet. What pushes
    raises :class:`~flask_sockets2.BrokerError` when the broker cannot be reached, unless
    ``SOCKETS_PUBLISH_ERRORS`` is ``"log"``, and ValueError for more than
    ``SOCKETS_MAX_MESSAGE_SIZE`` bytes.
    """

    def __init__(self, app: Flask | None = None) -> None:
        #: Sockets of the program's own that are pushed to as well, by ids of users.
        self.clients: dict[Any, list[Any]] = {}
        #: Whose channels the streams are, once there is an application.
        self.sock: Sockets | None = None
        self._broadcaster = Broadcaster()
        self._send: Send = self._broadcaster.send  # the one way out; another after a commit
        #: Returns the id of the user of the current request, None for nobody.
        self.user_id_callback: Identify = self.default_user_id
        #: Says who may have a stream; see :meth:`authorize`.
        self.authorizer: Permit | None = None
        self._jobs = Jobs()
        self._log = ThrottledLog(logger)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve an application: its pages' connections, and ``turbo`` in its templates.

        :raises RuntimeError: when another Turbo serves it.
        :raises ValueError: when a setting is not what is expected, naming it.
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
        """Return what connects a page; templates call it as ``{{ turbo() }}`` in ``<head>``.

        :param version: of turbo.js to load from the CDN; by default the version, and the copy if
            there is one, that comes with this package. None = the newest.
        :param url: of another copy of turbo.js, its UMD build.
        :param nonce: of the page's Content-Security-Policy.
        :param connect: False for a page to which nothing is pushed, as that of a login: it gets
            turbo.js alone.
        :param user: False for a page that several users are given, as from a cache: it gets the
            pushes to all, and none to its user.
        """
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        route = read(TurboSettings, app.config).websocket_route
        if has_request_context():  # not what a command or a task renders
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
        """Do as :meth:`turbo`: templates have the object itself under that name."""
        return self.turbo(version, url, nonce, connect=connect, user=user)

    def stream_from(
        self,
        *parts: Part,
        position: Position | str | None = None,
        bind: str | None = "user",
    ) -> Markup:
        """Return what a page gets a stream by; as ``{{ turbo.stream_from("room", room.id) }}``.

        :param parts: of the stream's name: texts, whole numbers, UUIDs.
        :param position: after which the page wants everything; by default the one that
            :meth:`position` returned in this request, else the present one.
        :param bind: who may use it: by default connections of the page's user, if there is one;
            ``"session"`` for those of its session; None for any client that has the page.
        :raises RuntimeError: when the application has no ``SECRET_KEY``, or the page no session.
        :raises ValueError: when ``position`` or ``bind`` is something else.
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
        # Without one the page begins with what comes from now on, and may come back to that.
        earliest = known if known != "" else positions_for_page([channel], self._serving)[0]
        holder = state_of().holder(bind)
        return stream_element(signer.permit(channel, earliest, holder), known)

    def position(self, *parts: Part) -> Position:
        """Return the position of a stream, before the page reads what it shows.

        What is pushed between the reading and the rendering is then on the page, too. Without
        parts it is that of the pushes to all, and those to the user are remembered with it. The
        rest of the request remembers it. Where the broker is away it is that of no log, "-" in the
        page, which is told of a gap by that.

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
        """Return the positions of many streams, asked for at once; see :meth:`position`.

        A page with ``stream_from`` for each of a hundred rows waits for Redis once, not a hundred
        times::

            turbo.positions(("order", order.id) for order in orders)

        :param names: the parts of each stream's name.
        """
        channels = [stream_channel(*parts) for parts in names]
        return positions_for_page(channels, self._serving, remember=True)

    def _user_of_page(self) -> str | None:
        """Return the channel of the user of the current request, None without."""
        if not self.identifies() or not has_request_context():
            return None
        try:
            user_id = self._ask_user_id()
        except WrongAnswer:
            raise  # whoever writes the function sees it at the first page
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
        """Return the id of the user of the current request; raises what the callback does."""
        return self._ask_user_id() if self.identifies() else None

    def subscribers(self, *parts: Part) -> int:
        """Return how many pages have a stream, in all processes; it may be a second ago.

        :raises BrokerError: when the broker cannot be reached.
        """
        return self._serving().subscribers(stream_channel(*parts))

    # -- streams ---------------------------------------------------------------------------

    # Their docstrings are there.
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
        """Send one stream or several to the pages of all, or of some users.

        :param to: id of a user, or an iterable of such; None for all. Who is not there is no
            error.
        :param exclude_sender: not to the page that has sent the current request.
        :raises RuntimeError: when it is for users, and no function says who the user of a page is.
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

        :param parts: of the name: texts, whole numbers, UUIDs.
        :param exclude_sender: not to the page that has sent the current request.
        :returns: the position in its channel.

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

        :param parts: of the stream's name; the same for ``exclude_sender`` as in
            :meth:`broadcast_to`.
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
        """Send a :meth:`refresh` to a stream; of many the first and one last, see ``refresh.py``.

        :param exclude_sender: not to the page that has sent the current request, or that of
            ``request_id``.
        :param options: of :meth:`refresh`.
        :returns: the position in its channel, None where one that is sent soon stands for it.
        """
        request_id = options.pop("request_id", None)
        refresh = refresh_of(self.refresh(**options), request_id, exclude_sender=exclude_sender)
        [position] = self._publish([stream_channel(*parts)], refresh)
        return position

    def after_commit(self, session: Any) -> Self:
        """Return a Turbo that pushes and broadcasts when a session of SQLAlchemy commits.

        Markup is made at once, and sent only if the transaction of now commits; see
        ``after_commit.py``.

        :param session: a session, or ``db.session`` of Flask-SQLAlchemy.
        :raises RuntimeError: when SQLAlchemy is not installed.
        :raises TypeError: when it is something else.

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
        """Send to channels and to sockets of the program's own; all that is pushed passes here.

        :param stream: markup; a refresh is for one channel.
        :returns: the position in each channel.
        """
        # Of the application of now: at a commit there may be another one, or none.
        return self._send(self._serving().publisher, channels, stream, sockets)

    def _serving(self) -> Sockets:
        if self.sock is None:
            raise RuntimeError("this Turbo serves no application; call init_app(app) first")
        return self.sock

    # -- users -----------------------------------------------------------------------------

    def user_id(self, f: UserFunction) -> UserFunction:
        """Register what returns the id of the user of the current request, for ``push(to=…)``.

        None is nobody. What it raises refuses a connection, and so does a response that refuses; a
        page is rendered without its user. An answer that is no id is a TypeError.

        ::

            @turbo.user_id
            def get_user_id():
                return current_user.id

        :returns: the function as it is.
        """
        self.user_id_callback = f
        return f

    def default_user_id(self) -> str:
        """Return another id at each call: nobody can be pushed to alone."""
        return uuid.uuid4().hex

    def _ask_user_id(self) -> str | None:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        return identity(app, self.user_id_callback, by="@turbo.user_id")

    def user_of_connection(self) -> str | None:
        """Return the id of the user of the current request, None without; for all connections.

        One whose user cannot be told is refused. As nobody's it could stay when its user is
        disconnected, and take a place beyond what the user may have.

        :raises werkzeug.exceptions.HTTPException: what the callback answers, or 500 where it
            raises anything else.
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
            # Pages come again and again: not a traceback for each, as Flask would log it.
            self._log.error(
                "refused a connection: the user id callback raised; return None if no user is "
                "logged in",
                error=exc,
            )
            raise InternalServerError(original_exception=exc) from exc
        request.environ[USER_ID] = user_id
        return user_id

    def identifies(self) -> bool:
        """Whether the application says who its users are."""
        function = getattr(self.user_id_callback, "__func__", None)
        return function is not Turbo.default_user_id

    def authorize(self, f: PermitFunction) -> PermitFunction:
        """Register what is asked, at each connect, for each stream of ``stream_from``.

        ::

            @turbo.authorize
            def may_have(kind, *parts):
                return kind == "room" and current_user.is_in(int(parts[0]))

        :param f: called in the connection's request with the parts of the name, as texts. True
            permits; False and None refuse, and so do a response that it returns and what it
            raises, which are sent. Anything else is a TypeError.
        :returns: the function as it is.
        """
        self.authorizer = f
        return f

    # -- the request -----------------------------------------------------------------------

    def context_processor(self) -> dict[str, Any]:
        """Return what templates have: ``turbo``."""
        return {"turbo": self}

    # Their docstrings are there.
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
        """Return whether a page is connected, in any process; it may be a second ago.

        False if the broker cannot be reached: nothing can be pushed then.

        :param to: id of a user, None for anybody.
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
        """Register a job that runs every so many seconds, in one of all workers; see ``every.py``.

        It runs in the application's context, without a request. What it raises is logged, and it
        goes on.

        :param name: the same in all processes, and no other application's on the same Redis; by
            default the function's.
        :raises ValueError: when the time is none, or another function has a job of that name.
        :raises TypeError: when it has no name.

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
        """Begin the jobs in this process; called with each page and connection that it serves.

        None begin while ``app.testing``: tests call the functions.
        """
        if self._jobs.registered and not app.testing:
            self._jobs.start(app, state_of(app).publisher)
