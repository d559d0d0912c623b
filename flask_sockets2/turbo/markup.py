"""Markup of Turbo Streams: what turbo.js executes.

::

    <turbo-stream action="append" target="todos"><template>…</template></turbo-stream>

Of the elements all but the content is escaped, which Turbo-Flask does not do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from html import unescape
from itertools import islice
from typing import Any

from markupsafe import Markup, escape

__all__ = ["MIMETYPE", "is_shown", "joined", "key_of", "sender_of", "stream_tag", "with_sender"]

MIMETYPE = "text/vnd.turbo-stream.html"
"""Type of an answer that turbo.js executes."""

_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*")
_TAG = re.compile(r"<turbo-stream(?=[\s>])")
_COMMENT_OR_TAG = re.compile(r"<!--.*?-->|<turbo-stream(?=[\s>])", re.DOTALL | re.IGNORECASE)
_KEYED = re.compile(r'\s*<turbo-stream action="(replace|update)" target="([^"]*)"')
_LONGEST_KEY = 256  # characters, at most 1,024 bytes


def stream_tag(
    action: str,
    content: Any = "",
    *,
    target: Any = None,
    targets: Any = None,
    **attributes: Any,
) -> Markup:
    """Return one stream element.

    :param action: ``append``, ``prepend``, ``replace``, ``update``, ``before``, ``after``,
        ``remove``, ``refresh`` or one of the page's own.
    :param content: HTML, as it is; None for no ``<template>``. A ``refresh`` has none.
    :param target: id of the element that it is for.
    :param targets: or a CSS selector of several.
    :param attributes: ``_`` becomes ``-``; True is an attribute without a value, None and False
        are none.
    :raises TypeError: when both targets are given.
    :raises ValueError: when an attribute's name is none.

    ::

        stream_tag("update", "<b>4</b>", target="count")
    """
    if target is not None and targets is not None:
        raise TypeError("a stream has either target= (an id) or targets= (a CSS selector)")
    named = {"action": action, "target": target, "targets": targets}
    named |= {name.replace("_", "-"): value for name, value in attributes.items()}
    tag = "".join(_attribute(name, value) for name, value in named.items())
    inner = "" if content is None or action == "refresh" else f"<template>{content}</template>"
    return Markup(f"<turbo-stream{tag}>{inner}</turbo-stream>")


def _attribute(name: str, value: Any) -> str:
    if not _ATTRIBUTE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an attribute; use letters, digits and hyphens")
    if value is None or value is False:
        return ""
    # str(): what is safe as HTML is not safe within quotes.
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def joined(stream: str | Iterable[str]) -> str:
    """Return one stream or several as one text.

    :raises TypeError: when it is something else.
    """
    if isinstance(stream, str):
        return str(stream)
    streams = list(stream) if isinstance(stream, Iterable) else [stream]
    for each in streams:
        if not isinstance(each, str):
            raise TypeError(
                f"a stream is a text, such as turbo.append(…) returns, got {type(each).__name__}"
            )
    return "".join(streams)


def is_shown(markup: str) -> bool:
    """Tell whether turbo.js does anything with a message: it has a stream, or nothing at all."""
    return not markup.strip() or _TAG.search(markup.lower()) is not None


def key_of(markup: str) -> str:
    """Return the key of a message for ``coalesce``: of two replaces of one target a slow client
    needs the newer only. Empty for what has to come in full: all other actions, and several.
    """
    match = _KEYED.match(markup)
    if match is None or len(list(islice(_TAG.finditer(markup), 2))) > 1:
        return ""
    key = f"{match[1]} {unescape(match[2])}"
    return key if len(key) <= _LONGEST_KEY else ""


def with_sender(markup: str, sender: str) -> str:
    """Return a message that the page which sent a request will drop.

    turbo.js takes no notice of the attribute, ``turbo-streams.js`` does.

    :param sender: what :func:`sender_of` returned.
    """
    for found in _COMMENT_OR_TAG.finditer(markup):
        if not found[0].startswith("<!--"):
            end = found.end()
            return f'{markup[:end]} data-sender="{escape(str(sender))}"{markup[end:]}'
    return markup


def sender_of(request_id: str) -> str:
    """Return how a message names the request that has caused it.

    A client that knew the id itself could send it with a request of its own, and the page would
    drop the messages which that one causes.

    :param request_id: that turbo.js gave the request, ``X-Turbo-Request-Id``.
    """
    return sha256(request_id.encode()).hexdigest()[:32]  # turbo-streams.js does the same
