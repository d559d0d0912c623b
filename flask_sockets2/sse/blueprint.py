"""ServerSentEventsBlueprint: Flask-SSE's interface over channels.

::

    from flask_sockets2.sse import sse

    app.register_blueprint(sse, url_prefix="/stream")

    @app.route("/send")
    def send():
        sse.publish({"message": "Hello!"}, type="greeting")
        return "Message sent!"

Differences from Flask-SSE:

- Redis is not needed: the broker is the application's, see ``application/settings.py``.
- What is published is kept for a while, and a browser that comes back gets what it missed.
- A stream may have several channels; which ones anybody may have, is told in ``access.py``.
  Functions of ``before_request`` refuse, and open none.
- Several blueprints of an application share no channel, see :meth:`Site.distinct_name_of`.
- A stream has heartbeats, an id in each event, and outlives its request: no context is kept.
- ``publish`` does not raise redis-py's errors but :class:`~flask_sockets2.BrokerError`.
- A page of another origin has a stream where ``SOCKETS_ALLOWED_ORIGINS`` names it.
- ``redis`` is there for programs that use it, and nothing here does.
- What is wrong with an event is refused when it is published, see ``message.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

from flask import Blueprint, Response, current_app, url_for

from ..application.answers import Permit, PermitAnswer
from ..application.event_stream import expect
from ..application.signing import check_bind
from ..settings import is_number, shown
from . import streams
from .access import DEFAULT, asked_for, is_open, most_channels, sign
from .encoding import is_id
from .generators import stream_func, stream_generator
from .message import Message
from .progress import INTERVAL, Progress
from .settings import Site, redis_url_of

__all__ = ["ServerSentEventsBlueprint", "sse"]

PermitFunction = TypeVar("PermitFunction", bound=Callable[[str], PermitAnswer])


class ServerSentEventsBlueprint(Blueprint):
    """A blueprint that publishes events and streams them.

    One may be registered in several applications. What needs an application takes the current one.
    """

    #: Says who may have a channel; see :meth:`authorize`.
    authorizer: Permit | None = None

    def register(self, app: Any, options: dict[str, Any]) -> None:  # a Flask
        """Do what Flask does, and give the application channels.

        :raises BrokerError: when no broker serves the URL of a setting.
        :raises ValueError: when a setting is not what is expected, naming it, or there is no
            ``url_prefix`` for ``sse``.
        """
        if self is sse and not (options.get("url_prefix") or self.url_prefix):
            raise ValueError(
                "sse has no address of its own; give it one: "
                'app.register_blueprint(sse, url_prefix="/stream")'
            )
        site = Site.of(app)
        super().register(app, options)
        prefix, name = options.get("name_prefix", ""), options.get("name", self.name)
        registered = f"{prefix}.{name}".lstrip(".")
        site.names.setdefault(self, registered)
        site.endpoints[self] = f"{registered}.stream"
        app.context_processor(lambda: {name: self})

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self,
        data: Any,
        type: str | None = None,
        id: str | int | UUID | None = None,
        retry: int | None = None,
        channel: str = DEFAULT,
    ) -> int:
        """Publish an event to all streams of a channel, in all processes.

        :param data: text, or what becomes JSON.
        :param type: of the event, for ``addEventListener``.
        :param id: what the browser has as ``event.lastEventId``; by default the position.
        :param retry: milliseconds after which browsers come back from now on.
        :param channel: whose streams get it.
        :returns: how many listen, at most seconds ago.
        :raises BrokerError: when the broker cannot be reached.
        :raises TypeError: when the data cannot become JSON.
        :raises ValueError: when it can be no event, or is too big.
        """
        site = Site.current()
        message = Message(data, type, id, retry)
        return streams.publish(site, site.distinct_name_of(self), channel, message)

    def progress(
        self, channel: str, total: float | None = None, *, interval: float = INTERVAL
    ) -> Progress:
        """Return the progress of a long job; see :class:`Progress`.

        ::

            with sse.progress(f"job:{job.id}", total=len(rows)) as bar:
                for row in rows:
                    work(row)
                    bar.advance()
        """
        site = Site.current()
        blueprint = site.distinct_name_of(self)
        return Progress(
            site.state.publisher, channel, total, interval=interval, blueprint=blueprint
        )

    # -- streams ---------------------------------------------------------------------------

    def stream(self) -> Response:
        """Answer the current request with the events of the channels that it names.

        The stream resumes after the header ``Last-Event-ID``; without the header after
        ``?lastEventId=``, and without both after ``?last_event_id=``.

        A view of your own may return it. ``@sse.authorize`` is asked there, too; functions of
        ``before_request`` are not, since Flask calls them for the blueprint's own requests.

        :raises RuntimeError: when the blueprint is not registered in the application.
        """
        site = Site.current()
        site.endpoint_of(self)
        guest = expect(site.app)
        permission = asked_for(site.app, site.name_of(self), self.authorizer)
        blueprint = site.distinct_name_of(self)
        return streams.respond(site, blueprint, permission, streams.last_event_id(), guest)

    def messages(self, channel: str = DEFAULT) -> Iterator[Message]:
        """Yield what is published to a channel from now on, each as :class:`Message`.

        It subscribes at the first ``next``, within an application context, and waits for messages
        without a bound; who takes them too slowly is told of no more. Lost ones are told by one of
        the type ``gap``.
        """
        site = Site.current()
        yield from streams.messages(site, site.distinct_name_of(self), channel)

    stream_func = staticmethod(stream_func)
    stream_generator = staticmethod(stream_generator)

    # -- who may have what -----------------------------------------------------------------

    def authorize(self, f: PermitFunction) -> PermitFunction:
        """Register what is asked, at each connect, for each channel of a stream.

        ::

            @sse.authorize
            def may_have(channel):
                return channel == "news" or channel == f"user:{current_user.id}"

        :param f: called in the request. True permits; False and None refuse, and so do a response
            that it returns and what it raises, which are sent. Anything else is a TypeError. The
            one that was registered last counts, in all applications that have the blueprint: where
            they differ, each needs a blueprint of its own.
        :returns: the function as it is.
        """
        self.authorizer = f
        return f

    def url(
        self,
        *channels: str,
        since: str | None = None,
        last: int = 0,
        bind: str | None = "user",
    ) -> str:
        """Return the address of a stream for a page: ``EventSource({{ sse.url("news")|tojson }})``.

        It is signed where the channels are not open, and counts for ``SSE_MAX_AGE`` seconds. It
        holds their positions, so that nothing published after the page was made is missing. A
        signed one permits nothing that was published before.

        :param channels: by default ``sse``.
        :param since: what :meth:`position` has returned, before the page read what it shows;
            ``"start"`` for all that is kept.
        :param last: so many events of each channel that were published before, at most.
        :param bind: who may use it if it is signed: by default requests of the page's user, if
            there is one; ``"session"`` for those of its session; None for any client that has it.
        :raises RuntimeError: when the blueprint is not registered, or has no rule for its stream;
            when the address has to be signed, and the application has no ``SECRET_KEY``, or the
            page no session.
        :raises ValueError: when they are more than a stream may have, or ``since``, ``last`` or
            ``bind`` is something else.
        """
        check_bind(bind)
        site = Site.current()
        names = list(dict.fromkeys(channels)) or [DEFAULT]
        most = most_channels(site.app)
        if len(names) > most:
            raise ValueError(
                f"a stream has up to {most} channels (SOCKETS_MAX_CHANNELS, at most 100), "
                f"got {len(names)}"
            )
        if since and not is_id(since, len(names)):
            raise ValueError(
                f"since= must be what sse.position() returned for the same {len(names)} channels, "
                f'or "start", got {shown(since)}'
                if len(names) > 1
                else 'since= must be what sse.position() returned for the channel, or "start", got '
                f"{shown(since)}"
            )
        name, endpoint = site.name_of(self), site.endpoint_of(self)
        if endpoint not in site.app.view_functions:
            raise RuntimeError(
                f"the blueprint {self.name!r} has no address for its stream; before it is "
                'registered, call its add_url_rule("", endpoint="stream", view_func=…) with its '
                "method stream"
            )
        seen = self.position(*names, last=last) if since is None else since
        if not is_open(site.app, name, self.authorizer, names):
            # It begins at those positions, unless the browser says that it has seen more.
            earliest = streams.since(site, site.distinct_name_of(self), names, seen)
            return url_for(endpoint, signed=sign(site.app, names, earliest, name, bind))
        values: dict[str, Any] = {} if names == [DEFAULT] else {"channel": names}
        return url_for(endpoint, **values, last_event_id=seen)

    def position(self, *channels: str, last: int = 0) -> str:
        """Return where channels are now, as the id of an event that goes on there.

        :param last: so many events of each are to come once more, at most.
        :raises ValueError: when that is no whole number, or below 0.
        """
        if not is_number(last, whole=True) or last < 0:
            raise ValueError(f"last= must be a whole number, at least 0, got {shown(last)}")
        names = list(dict.fromkeys(channels)) or [DEFAULT]
        site = Site.current()
        return streams.position(site, site.distinct_name_of(self), names, last)

    # -- Redis -----------------------------------------------------------------------------

    @property
    def redis(self) -> Any:
        """A client of the Redis of ``SSE_REDIS_URL`` or ``REDIS_URL``, as in Flask-SSE.

        :raises KeyError: when neither is set.
        """
        url = redis_url_of(current_app.config)
        if not url:
            raise KeyError("Must set a redis connection URL in app config.")
        from .interop import redis_of

        return redis_of(url)


sse = ServerSentEventsBlueprint("sse", __name__)
"""The blueprint to register where one is enough; ``url_for("sse.stream", channel="news")``."""

sse.add_url_rule(rule="", endpoint="stream", view_func=sse.stream)
