"""What the views and templates of a request push, and what a client has been pushed before.

Differences from Flask-Firehose, whose interface this is:

- A ``Link`` that the response has stays; ours come behind it, in one field, without a last comma.
- The session is read where something was pushed, and nowhere else, so that other responses have no
  ``Vary: Cookie``. Without ``SECRET_KEY``, and of a response that caches share, nothing is
  remembered, and every response has its links.
- ``rel=preload`` is added where nothing is said, ``as`` where the ending of the URL tells it, and
  ``crossorigin`` for fonts, which are fetched twice otherwise.
- What cannot stand in a header field raises ValueError.
- Without a request, in a template for an e-mail say, ``push`` does nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from flask import Flask, Response, current_app, has_request_context, request, session

from .links import Link, joined, link

__all__ = [
    "EXTENSION",
    "Connector",
    "FirehoseState",
    "Memory",
    "Place",
    "Record",
    "push",
    "record_of",
    "state_of",
]

logger = logging.getLogger("flask_sockets2.firehose")

EXTENSION = "flask_sockets2_firehose"

URL = TypeVar("URL")

Place = tuple[str, str, str]
"""An endpoint, and the host and prefix at which it was asked for."""

_SESSION_KEY = "h2-pushed"
_MAX_REMEMBERED = 1024  # characters of a cookie, which has 4096 for everything
_MAX_HEADER = 3072  # characters of all links; nginx wants a whole head within 4 KiB
_IN_ENVIRON = "flask_sockets2.firehose"


class Memory(Protocol):
    """Remembers what a client has been pushed; a connector, as Flask-Firehose calls it."""

    def get_pushed(self) -> Iterable[str] | None:
        """Return a set of URLs that the client of this request has been pushed."""

    def set_pushed(self, inset: set[str], /) -> object:
        """Keep the set, which now has those of this response, too."""


class Connector:
    """Remembers in the session, under ``h2-pushed``: URLs, separated by commas.

    A comma in a URL is kept as ``%2C``, and ``%`` as ``%25``. What does not fit into 1 KiB is
    forgotten, and will be pushed again.
    """

    @staticmethod
    def get_pushed() -> set[str]:
        """Return what the session knows."""
        kept = session.get(_SESSION_KEY)
        if not isinstance(kept, str) or not kept:
            return set()
        return {each.replace("%2C", ",").replace("%25", "%") for each in kept.split(",")}

    @staticmethod
    def set_pushed(inset: set[str]) -> None:
        """Put it into the session, where there is one to write to."""
        if current_app.session_interface.is_null_session(session._get_current_object()):  # type: ignore[attr-defined]  # a proxy
            return
        kept = ""
        for url in sorted(inset):
            longer = f"{kept},{url.replace('%', '%25').replace(',', '%2C')}".lstrip(",")
            if len(longer) <= _MAX_REMEMBERED:
                kept = longer
        session[_SESSION_KEY] = kept


@dataclass(slots=True, eq=False)
class FirehoseState:
    """What an application has of Firehose.

    :param memory: None: each response has all of its links.
    :ivar learned: what the last page of each place has pushed. Those asked for again stand in
        front. An entry is replaced as a whole, so that threads need no lock.
    :ivar unmarked: names of templates without ``{{ flush() }}`` that were flushed; logged once.
    """

    memory: Memory | None
    learned: OrderedDict[Place, tuple[Link, ...]] = field(default_factory=OrderedDict)
    unmarked: set[str | None] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Record:
    """What a request has pushed and hinted at.

    :ivar pushed: by URLs as they were given.
    :ivar hinted: what the response is to have, too.
    :ivar unfinished: the page is still being made when the response begins.
    """

    pushed: dict[str, Link] = field(default_factory=dict)
    hinted: list[Link] = field(default_factory=list)
    unfinished: bool = False


def state_of(app: Flask) -> FirehoseState:
    """Return what an application has of Firehose.

    :raises RuntimeError: when it has nothing.
    """
    state = app.extensions.get(EXTENSION)
    if state is None:
        raise RuntimeError(f"{app.name!r} has no Firehose; call Firehose(app) or init_app(app)")
    return cast(FirehoseState, state)


def record_of(app: Flask) -> Record:
    """Return what is known of the current request.

    It lives with the request: ``g`` may be that of an application context around several.
    """
    records = request.environ.setdefault(_IN_ENVIRON, WeakKeyDictionary())  # applications may nest
    found: Record = records.setdefault(app, Record())
    return found


def push(url: URL, *args: str, **kwargs: object) -> URL:
    """Say in the response's Link header that the page needs a URL; return the URL as it is.

    ::

        <link rel="stylesheet" href="{{ push('/static/css/main.css', as='style') }}">

    :param args: attributes as they stand in the header: ``"nopush"``, ``"as=style"``.
    :param kwargs: attributes; where ``as`` cannot be written, ``as_``. See
        :func:`~flask_sockets2.firehose.link`.
    :raises ValueError: when the URL or an attribute holds what no header field may.
    :raises RuntimeError: when the application of the request has no Firehose.
    """
    made = link(str(url), *args, **kwargs)
    if has_request_context():
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        state_of(app)
        record_of(app).pushed.setdefault(str(url), made)
    return url


def write_links(app: Flask, response: Response, hinted: Iterable[Link]) -> None:
    """Put the links of this request into its response, behind those that it has.

    What the client has been pushed before is left out, and what it is pushed now is remembered. A
    response that is everybody's, by ``Cache-Control: public``, has all links and no session.
    """
    memory, pushed = state_of(app).memory, record_of(app).pushed
    if memory is None or not pushed or _is_shared(response):
        _add_links(response, [*hinted, *pushed.values()])
        return
    known = set(memory.get_pushed() or ())
    new = {url: each for url, each in pushed.items() if url not in known}
    left_out = _add_links(response, [*hinted, *new.values()])
    if written := {url for url, each in new.items() if each not in left_out}:
        memory.set_pushed(known | written)


def _add_links(response: Response, links: list[Link]) -> list[Link]:
    """Return those for which there was no room."""
    if not links:
        return []
    value, left_out = joined(response.headers.getlist("Link"), links, _MAX_HEADER)
    if value:
        response.headers["Link"] = value
    if left_out:
        logger.warning(
            "%s: %d links were left out, since proxies refuse heads of responses that are longer "
            "than some 4 KiB; push less, or by shorter URLs",
            request.endpoint,
            len(left_out),
        )
    return left_out


def _is_shared(response: Response) -> bool:
    """Whether a cache may give it to somebody else, with its cookie and without its links."""
    control = response.cache_control
    return bool(control.public) or control.s_maxage is not None
