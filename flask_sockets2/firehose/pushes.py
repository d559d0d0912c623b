"""Pushes: links that a request adds to its response, and the memory of links pushed before.

Differences from Flask-Firehose, which has the same interface:

- An existing ``Link`` of the response stays; pushed links follow in the same field, without a
  trailing comma.
- The session is read only if the request pushed a link: other responses have no ``Vary: Cookie``.
  Without ``SECRET_KEY``, and for a response that shared caches store, no links are remembered.
- ``rel`` defaults to ``preload``, and ``as`` to the type that the URL's ending tells. Fonts get
  ``crossorigin``, since browsers would fetch them twice otherwise.
- A character that must not stand in a header field raises ValueError.
- Without a request, for example in the template of an e-mail, ``push`` has no effect.
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
"""An endpoint, with the host and the prefix of the request."""

_SESSION_KEY = "h2-pushed"
_MAX_REMEMBERED = 1024  # characters of a cookie, which may have 4096 in all
_MAX_HEADER = 3072  # characters of all links; nginx accepts heads up to 4 KiB
_IN_ENVIRON = "flask_sockets2.firehose"


class Memory(Protocol):
    """Remembers the URLs that were pushed to a client; Flask-Firehose calls this a connector."""

    def get_pushed(self) -> Iterable[str] | None:
        """Return the URLs that were pushed to the client of the current request."""

    def set_pushed(self, inset: set[str], /) -> object:
        """Store the set, extended by the URLs of the current response."""


class Connector:
    """Remembers pushed URLs in the session, under ``h2-pushed``, separated by commas.

    A comma in a URL is stored as ``%2C``, and ``%`` as ``%25``. URLs beyond 1 KiB are forgotten,
    and will be pushed again.
    """

    @staticmethod
    def get_pushed() -> set[str]:
        """Return the URLs in the session."""
        kept = session.get(_SESSION_KEY)
        if not isinstance(kept, str) or not kept:
            return set()
        return {each.replace("%2C", ",").replace("%25", "%") for each in kept.split(",")}

    @staticmethod
    def set_pushed(inset: set[str]) -> None:
        """Store the URLs in the session, if the session is writable."""
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
    """The state of Firehose in one application.

    :param memory: memory of pushed URLs; if None, each response has all of its links.
    :ivar learned: links that the last page of each place pushed; places requested again stand in
        front. An entry is replaced as a whole, so that threads need no lock.
    :ivar unmarked: names of flushed templates without ``{{ flush() }}``, each logged once.
    """

    memory: Memory | None
    learned: OrderedDict[Place, tuple[Link, ...]] = field(default_factory=OrderedDict)
    unmarked: set[str | None] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Record:
    """The links that a request has pushed and hinted at.

    :ivar pushed: pushed links, by URL as given.
    :ivar hinted: hinted links, which the response's header repeats.
    :ivar unfinished: whether the response has begun before the page is complete.
    """

    pushed: dict[str, Link] = field(default_factory=dict)
    hinted: list[Link] = field(default_factory=list)
    unfinished: bool = False


def state_of(app: Flask) -> FirehoseState:
    """Return the state of Firehose in an application.

    :raises RuntimeError: if the application has no Firehose.
    """
    state = app.extensions.get(EXTENSION)
    if state is None:
        raise RuntimeError(f"{app.name!r} has no Firehose; call Firehose(app) or init_app(app)")
    return cast(FirehoseState, state)


def record_of(app: Flask) -> Record:
    """Return the links of the current request.

    The WSGI environ holds the record, because one ``g`` may serve several requests.
    """
    records = request.environ.setdefault(_IN_ENVIRON, WeakKeyDictionary())  # applications may nest
    found: Record = records.setdefault(app, Record())
    return found


def push(url: URL, *args: str, **kwargs: object) -> URL:
    """Add a URL to the response's Link header, and return the URL unchanged.

    ::

        <link rel="stylesheet" href="{{ push('/static/css/main.css', as='style') }}">

    :param args: attributes in the format of the header: ``"nopush"``, ``"as=style"``.
    :param kwargs: attributes by name, ``as_`` in place of the keyword ``as``. See
        :func:`~flask_sockets2.firehose.link`.
    :raises ValueError: if the URL or an attribute holds a character that no header field may.
    :raises RuntimeError: if the application of the request has no Firehose.
    """
    made = link(str(url), *args, **kwargs)
    if has_request_context():
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        state_of(app)
        record_of(app).pushed.setdefault(str(url), made)
    return url


def write_links(app: Flask, response: Response, hinted: Iterable[Link]) -> None:
    """Add the links of the current request to its response, after the existing links.

    Links that were pushed to the client before are left out, and the new links are remembered. A
    response for shared caches (``Cache-Control: public``) has all links and uses no session.
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
    """Add links to a response, and return the links beyond the size limit."""
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
    """Whether a cache may send the response, with its cookie and its missing links, to others."""
    control = response.cache_control
    return bool(control.public) or control.s_maxage is not None
