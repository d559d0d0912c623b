"""ServerSentEventsBlueprint: Flask-SSE's interface over channels.

::

    from flask_sockets2.sse import sse

    app.register_blueprint(sse, url_prefix="/stream")

    @app.route("/send")
    def send():
        sse.publish({"message": "Hello!"}, type="greeting")
        return "Message sent!"

Differences from Flask-SSE:

- Redis is not needed: the broker is the application's, see ``settings.py``.
- What is published is kept for a while, and a browser that comes back gets what it missed.
- A stream may have several channels; which ones anybody may have, is told in ``access.py``.
- A stream has heartbeats, an id in each event, and outlives its request: no context is kept.
- ``publish`` does not raise redis-py's errors but :class:`~flask_sockets2.BrokerError`.
- A page of another origin has a stream where ``SOCKETS_ALLOWED_ORIGINS`` names it.
- ``redis`` is there for programs that use it, and nothing here does.
- What is wrong with an event is refused when it is published, see ``message.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flask import Blueprint, Response, current_app, url_for

from ..event_stream import expect
from ..view import check_site
from . import streams
from .access import DEFAULT, MOST_CHANNELS, asked_for, is_open, sign
from .generators import stream_func, stream_generator
from .message import Message
from .progress import Progress
from .settings import Site, redis_url_of, settings_of

__all__ = ["ServerSentEventsBlueprint", "sse"]

Function = TypeVar("Function", bound=Callable[..., Any])


class ServerSentEventsBlueprint(Blueprint):
    """A blueprint that publishes events and streams them.

    One may be registered in several applications. What needs an application takes the current one.
    """

    #: Says who may have a channel; see :meth:`authorize`.
    authorizer: Callable[[str], Any] | None = None

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
        settings_of(app.config)
        site = Site.of(app)
        super().register(app, options)
        prefix, name = options.get("name_prefix", ""), options.get("name", self.name)
        site.endpoints[self] = f"{prefix}.{name}.stream".lstrip(".")
        app.context_processor(lambda: {name: self})

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self, data: Any, type: Any = None, id: Any = None, retry: Any = None, channel: str = DEFAULT
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
        return streams.publish(Site.current(), channel, Message(data, type, id, retry))

    def progress(self, channel: str, total: float | None = None, **how: Any) -> Progress:
        """Return the progress of a long job; see :class:`Progress`.

        ::

            with sse.progress(f"job:{job.id}", total=len(rows)) as bar:
                for row in rows:
                    work(row)
                    bar.advance()
        """
        return Progress(Site.current().state.channels, channel, total=total, **how)

    # -- streams ---------------------------------------------------------------------------

    def stream(self) -> Response:
        """Answer the current request with the events of the channels that it names.

        It goes on after ``Last-Event-ID``, or ``?last_event_id=`` where there is none.
        """
        site = Site.current()
        check_site()  # first: what other sites' pages ask for does not count
        guest = expect(site.app)
        names = asked_for(site.app, self.authorizer, guarded=self._guarded)
        return streams.respond(site, names, streams.last_event_id(), guest)

    def messages(self, channel: str = DEFAULT) -> Iterator[Message]:
        """Yield what is published to a channel from now on, each as :class:`Message`.

        It subscribes at the first ``next``, within an application context, and waits for messages
        without a bound; who takes them too slowly is told of no more. Lost ones are told by one of
        the type ``gap``.
        """
        yield from streams.messages(Site.current(), channel)

    stream_func = staticmethod(stream_func)
    stream_generator = staticmethod(stream_generator)

    # -- who may have what -----------------------------------------------------------------

    def authorize(self, f: Function) -> Function:
        """Register what is asked, at each connect, for each channel of a stream.

        ::

            @sse.authorize
            def may_have(channel):
                return channel == "news" or channel == f"user:{current_user.id}"

        :param f: called in the request; False refuses, and so does what it raises. The one that was
            registered last counts, in all applications that have the blueprint: where they differ,
            each needs a blueprint of its own.
        :returns: the function as it is.
        """
        self.authorizer = f
        return f

    def url(self, *channels: str, since: str | None = None, last: int = 0) -> str:
        """Return the address of a stream for a page: ``EventSource({{ sse.url("news")|tojson }})``.

        It is signed where the channels are not open, and counts for ``SSE_MAX_AGE`` seconds. It
        holds their positions, so that nothing published after the page was made is missing.

        :param channels: by default ``sse``.
        :param since: what :meth:`position` has returned, before the page read what it shows.
        :param last: so many events of each channel that were published before, at most.
        :raises RuntimeError: when it has to be signed, and the application has no ``SECRET_KEY``.
        :raises ValueError: when they are more than a stream may have.
        """
        site = Site.current()
        names = list(dict.fromkeys(channels)) or [DEFAULT]
        if len(names) > MOST_CHANNELS:
            raise ValueError(f"a stream has up to {MOST_CHANNELS} channels, got {len(names)}")
        values: dict[str, Any] = {"channel": names}
        if not is_open(site.app, names, self.authorizer, guarded=self._guarded):
            values = {"signed": sign(site.app, names)}
        elif names == [DEFAULT]:
            values = {}
        seen = self.position(*names, last=last) if since is None else since
        endpoint = site.endpoints.get(self, f"{self.name}.stream")
        return url_for(endpoint, **values, last_event_id=seen)

    def position(self, *channels: str, last: int = 0) -> str:
        """Return where channels are now, as the id of an event that goes on there.

        :param last: so many events of each are to come once more, at most.
        """
        names = list(dict.fromkeys(channels)) or [DEFAULT]
        return streams.position(Site.current(), names, last)

    @property
    def _guarded(self) -> bool:
        return bool(self.before_request_funcs.get(None))

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
