"""ServerSentEventsBlueprint: Flask-SSE's interface over channels.

::

    from flask_sockets2.sse import sse

    app.register_blueprint(sse, url_prefix="/stream")

    @app.route("/send")
    def send():
        sse.publish({"message": "Hello!"}, type="greeting")
        return "Message sent!"

Differences from Flask-SSE:

- Redis is optional: events use the application's broker, see ``application/settings.py``.
- The broker keeps events for a while, and a reconnecting browser receives the ones it missed.
- A stream may have several channels. ``access.py`` lists the channels that are open to every
  client. ``before_request`` functions can refuse a request, but open no channel.
- Several blueprints of an application share no channel, see :meth:`Site.distinct_name_of`.
- A stream has heartbeats and an id in each event. The request context ends before the stream does.
- ``publish`` raises :class:`~flask_sockets2.BrokerError` in place of redis-py's errors.
- A page of another origin may stream if ``SOCKETS_ALLOWED_ORIGINS`` names the origin.
- ``redis`` exists for programs that use the attribute; this package does not use it.
- ``publish`` refuses an invalid event, see ``message.py``.
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
    """A blueprint that publishes events and streams them to browsers.

    You may register one blueprint in several applications: methods use the current application.
    """

    #: The function that authorizes channels; see :meth:`authorize`.
    authorizer: Permit | None = None

    def register(self, app: Any, options: dict[str, Any]) -> None:  # a Flask
        """Register the blueprint as Flask does, and set up channels in the application.

        :raises BrokerError: if no broker serves the URL of a setting.
        :raises ValueError: if a setting is invalid, which the error names, or if ``sse`` has no
            ``url_prefix``.
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

        :param data: text, or an object to serialize as JSON.
        :param type: event type, for ``addEventListener``.
        :param id: id that the page reads as ``event.lastEventId``; by default the position.
        :param retry: milliseconds that browsers wait before they reconnect, from now on.
        :param channel: channel to publish to.
        :returns: number of subscribers, at most a few seconds old.
        :raises BrokerError: if the broker cannot be reached.
        :raises TypeError: if the data cannot be serialized as JSON.
        :raises ValueError: if the event is invalid or too big.
        """
        site = Site.current()
        message = Message(data, type, id, retry)
        return streams.publish(site, site.distinct_name_of(self), channel, message)

    def progress(
        self, channel: str, total: float | None = None, *, interval: float = INTERVAL
    ) -> Progress:
        """Report the progress of a long job to a channel; see :class:`Progress`.

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
        """Return a response that streams the channels which the current request names.

        The stream resumes after the header ``Last-Event-ID``; without the header after
        ``?lastEventId=``, and without both after ``?last_event_id=``.

        Your own view may return this response. ``@sse.authorize`` is called there, too. The
        blueprint's ``before_request`` functions are not: Flask calls them for its own routes only.

        :raises RuntimeError: if the blueprint is not registered in the application.
        """
        site = Site.current()
        site.endpoint_of(self)
        guest = expect(site.app)
        permission = asked_for(site.app, site.name_of(self), self.authorizer)
        blueprint = site.distinct_name_of(self)
        return streams.respond(site, blueprint, permission, streams.last_event_id(), guest)

    def messages(self, channel: str = DEFAULT) -> Iterator[Message]:
        """Yield each :class:`Message` that is published to a channel from now on.

        The iterator subscribes at the first ``next``, which needs an application context. Each
        ``next`` waits without a timeout. By default the iterator ends if the consumer is too slow.
        A message of the type ``gap`` says that messages were lost.
        """
        site = Site.current()
        yield from streams.messages(site, site.distinct_name_of(self), channel)

    stream_func = staticmethod(stream_func)
    stream_generator = staticmethod(stream_generator)

    # -- authorization ---------------------------------------------------------------------

    def authorize(self, f: PermitFunction) -> PermitFunction:
        """Register the function that authorizes each channel when a client connects.

        ::

            @sse.authorize
            def may_have(channel):
                return channel == "news" or channel == f"user:{current_user.id}"

        :param f: function that is called in the request. True permits the channel; False and None
            refuse. A returned response refuses, too, and is sent. Flask handles an exception as in
            a view. Any other result is a TypeError. The function registered last counts, in all
            applications of the blueprint. If they differ, give each its own blueprint.
        :returns: the function unchanged.
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
        """Return the URL of a stream for a page: ``EventSource({{ sse.url("news")|tojson }})``.

        If the channels are not open, the URL is signed and valid for ``SSE_MAX_AGE`` seconds. The
        URL holds the channels' positions, so that the stream includes every event published after
        the page was rendered. A signed URL permits no events before these positions.

        :param channels: channels of the stream, by default ``sse``.
        :param since: result of :meth:`position`, called before the page read its data;
            ``"start"`` for the whole history.
        :param last: maximum number of earlier events to replay, per channel.
        :param bind: clients that may use a signed URL: by default requests of the page's user, if
            there is one; ``"session"`` for the page's session; None for every client.
        :raises RuntimeError: if the blueprint is not registered or has no rule for its stream; if
            the URL must be signed, but the application has no ``SECRET_KEY`` or the page no
            session.
        :raises ValueError: if a stream may not have so many channels, or if ``since``, ``last`` or
            ``bind`` is invalid.
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
            # The stream begins at these positions, unless the browser sends a later event id.
            earliest = streams.since(site, site.distinct_name_of(self), names, seen)
            return url_for(endpoint, signed=sign(site.app, names, earliest, name, bind))
        values: dict[str, Any] = {} if names == [DEFAULT] else {"channel": names}
        return url_for(endpoint, **values, last_event_id=seen)

    def position(self, *channels: str, last: int = 0) -> str:
        """Return the current position of channels, as an event id from which a stream resumes.

        :param last: maximum number of earlier events to replay, per channel.
        :raises ValueError: if ``last`` is not a whole number or is below 0.
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

        :raises KeyError: if neither setting is set.
        """
        url = redis_url_of(current_app.config)
        if not url:
            raise KeyError("Must set a redis connection URL in app config.")
        from .interop import redis_of

        return redis_of(url)


sse = ServerSentEventsBlueprint("sse", __name__)
"""The ready-made blueprint, if you need only one: ``url_for("sse.stream", channel="news")``."""

sse.add_url_rule(rule="", endpoint="stream", view_func=sse.stream)
