"""Pushes and broadcasts: streams sent to pages, from anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from flask import has_request_context, request
from werkzeug.local import LocalProxy

from ..application.answers import UserId
from ..application.sockets import Sockets
from ..brokers.base import Position
from ..channels.publisher import Publisher
from .after_commit import after_commit
from .builders import Builders
from .markup import is_shown, joined, key_of, sender_of, with_sender
from .refresh_debounce import Debounce, Refresh
from .stream_names import ALL, Part, StreamSigner, stream_channel, user_channel

__all__ = ["Broadcasting"]

logger = logging.getLogger("flask_sockets2.turbo")

_LONGEST_REQUEST_ID = 100  # characters; turbo.js sends a UUID

Self = TypeVar("Self", bound="Broadcasting")


class Broadcasting(Builders):
    """What sends streams; see :class:`~flask_sockets2.Turbo`."""

    def __init__(self) -> None:
        #: Sockets of the program's own that are pushed to as well, by ids of users.
        self.clients: dict[Any, list[Any]] = {}
        #: Whose channels the streams are, once there is an application.
        self.sock: Sockets | None = None
        # By an application's channels, of which a process that was forked has others.
        self._debounces: WeakKeyDictionary[Publisher, Debounce] = WeakKeyDictionary()

    def identifies(self) -> bool:
        """Tell whether the application says who its users are."""
        raise NotImplementedError

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
        recipients = _recipients(to)
        if recipients and not (self.identifies() or self.clients):
            raise RuntimeError(
                "cannot push to a user: no function says who the user of a page is; register one "
                "that returns the id of the current user with @turbo.user_id"
            )
        markup = self._markup(stream, exclude_sender)
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
        [position] = self._publish([channel], self._markup(stream, exclude_sender))
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
        return self.broadcast_to(
            *parts, stream=_built(self.append, options), exclude_sender=exclude_sender
        )

    def broadcast_prepend_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`prepend` to a stream; see :meth:`broadcast_append_to`."""
        return self.broadcast_to(
            *parts, stream=_built(self.prepend, options), exclude_sender=exclude_sender
        )

    def broadcast_replace_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`replace` to a stream; see :meth:`broadcast_append_to`."""
        return self.broadcast_to(
            *parts, stream=_built(self.replace, options), exclude_sender=exclude_sender
        )

    def broadcast_update_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send an :meth:`update` to a stream; see :meth:`broadcast_append_to`."""
        return self.broadcast_to(
            *parts, stream=_built(self.update, options), exclude_sender=exclude_sender
        )

    def broadcast_before_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`before` to a stream; see :meth:`broadcast_append_to`."""
        return self.broadcast_to(
            *parts, stream=_built(self.before, options), exclude_sender=exclude_sender
        )

    def broadcast_after_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send an :meth:`after` to a stream; see :meth:`broadcast_append_to`."""
        return self.broadcast_to(
            *parts, stream=_built(self.after, options), exclude_sender=exclude_sender
        )

    def broadcast_remove_to(
        self, *parts: Part, exclude_sender: bool = False, **options: Any
    ) -> Position:
        """Send a :meth:`remove` to a stream; see :meth:`broadcast_append_to`."""
        return self.broadcast_to(
            *parts, stream=_built(self.remove, options), exclude_sender=exclude_sender
        )

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
        if exclude_sender and request_id is None:
            request_id = _request_id()
        for_all = self.refresh(**options)
        if request_id is None:
            refresh = Refresh(for_all, for_all)
        else:
            sender = sender_of(str(request_id))
            refresh = Refresh(with_sender(for_all, sender), for_all, sender)
        [position] = self._publish([stream_channel(*parts)], refresh)
        return position

    def _markup(self, stream: str | Iterable[str], exclude_sender: bool) -> str:
        markup = joined(stream)
        if not is_shown(markup) and self._serving()._app().debug:
            logger.warning(
                "what is pushed has no <turbo-stream>, so no page shows it: %.100r; say what to "
                "do with it, as turbo.append(…, target=…) does",
                markup,
            )
        markup = self._for_others(markup)
        sender = _request_id() if exclude_sender else None
        return markup if sender is None else with_sender(markup, sender_of(sender))

    def _for_others(self, markup: str) -> str:
        """Return markup without names that only the user of the current request could use."""
        if "<turbo-stream-from" not in markup:
            return markup
        app = self._serving()._app()
        return StreamSigner(app).rebind(markup) if app.secret_key else markup

    def after_commit(self: Self, session: Any) -> Self:
        """Return a Turbo that pushes and broadcasts when a session of SQLAlchemy commits.

        Markup is made at once, and sent only if the transaction of now commits; see ``commit.py``.

        :param session: a session, or ``db.session`` of Flask-SQLAlchemy.
        :raises RuntimeError: when SQLAlchemy is not installed.
        :raises TypeError: when it is something else.

        ::

            turbo.after_commit(db.session).push(turbo.append(template="_todo.html", todo=todo,
                                                             target="todos"))
        """
        return after_commit(self, session)

    def _publish(
        self, channels: list[str], stream: str | Refresh, sockets: Sequence[Any] = ()
    ) -> Sequence[Position | None]:
        """Send to channels and to sockets of the program's own; all that is pushed passes here.

        :param stream: markup; a refresh is for one channel.
        :returns: the position in each channel.
        """
        return self._send(self._serving().publisher, channels, stream, sockets)

    def _send(
        self,
        publisher: Publisher,
        channels: list[str],
        stream: str | Refresh,
        sockets: Sequence[Any] = (),
    ) -> Sequence[Position | None]:
        """Send through the channels of one application; see :meth:`_publish`."""
        if isinstance(stream, Refresh):
            [channel] = channels
            debounce = self._debounces.get(publisher)
            if debounce is None:
                debounce = self._debounces.setdefault(publisher, Debounce())
            return [debounce.send(publisher, channel, stream)]
        positions = publisher.publish_many(
            ((channel, stream) for channel in channels), key=key_of(stream)
        )
        for socket in sockets:  # last: what is tried again, after an error, has not been sent
            _send_to(socket, stream)
        return positions

    def _serving(self) -> Sockets:
        if self.sock is None:
            raise RuntimeError("this Turbo serves no application; call init_app(app) first")
        return self.sock


def _built(build: Callable[..., str], options: dict[str, Any]) -> str:
    """Return the stream of a broadcast.

    :raises TypeError: when no target is named.
    """
    if options.keys().isdisjoint({"target", "targets"}):
        raise TypeError(
            f"broadcast_{build.__name__}_to() has no target: name the element's id by "
            'target="todos", or a CSS selector by targets=".todo". It takes the parts of the '
            "stream's name, and all else by keyword"
        )
    return build(**options)


def _recipients(to: Any) -> list[Any] | None:
    """Return the ids that ``to`` means, None for all; among others None is nobody."""
    if isinstance(to, LocalProxy):  # whose value need not be iterable as it is
        to = to._get_current_object()
    if to is None:
        return None
    if isinstance(to, str | bytes) or not isinstance(to, Iterable):
        return [to]
    return [each for each in to if each is not None]


def _send_to(socket: Any, markup: str) -> None:
    """Send to a socket of the program's own; others must not miss it when one is dead."""
    try:
        socket.send(markup)
    except OSError as exc:
        logger.debug("a socket of turbo.clients has ended: %s", exc)
    except Exception:  # whatever library it is of
        logger.exception("a socket of turbo.clients cannot be sent to")


def _request_id() -> str | None:
    """Return the id that turbo.js gave the current request, None without one."""
    given = request.headers.get("X-Turbo-Request-Id", "") if has_request_context() else ""
    return given if 0 < len(given) <= _LONGEST_REQUEST_ID else None
