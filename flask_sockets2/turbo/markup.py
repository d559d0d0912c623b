"""Markup of Turbo Streams: the elements that turbo.js executes.

::

    <turbo-stream action="append" target="todos"><template>…</template></turbo-stream>

Targets and attributes are escaped, unlike in Turbo-Flask; content is not escaped.
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
"""MIME type of a response that turbo.js executes."""

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
    """Return one ``<turbo-stream>`` element.

    :param action: ``append``, ``prepend``, ``replace``, ``update``, ``before``, ``after``,
        ``remove``, ``refresh`` or a custom action of the page.
    :param content: HTML, which is not escaped; None for no ``<template>``. A ``refresh`` has none.
    :param target: id of the element to change.
    :param targets: CSS selector of several elements, instead of ``target``.
    :param attributes: further attributes. In names ``_`` becomes ``-``. True is an attribute
        without a value; None and False leave the attribute out.
    :raises TypeError: if both targets are given.
    :raises ValueError: if the name of an attribute is invalid.

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
    # str(): a Markup that is safe as HTML is not safe within quotes.
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def joined(stream: str | Iterable[str]) -> str:
    """Return one stream or several as one string.

    :raises TypeError: if ``stream`` is neither a string nor an iterable of strings.
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
    """Return whether a message is blank, or has a ``<turbo-stream>`` that turbo.js executes."""
    return not markup.strip() or _TAG.search(markup.lower()) is not None


def key_of(markup: str) -> str:
    """Return a message's key for ``coalesce``: a slow client skips all but the newest of a key. The
    key is empty unless the message is a single ``replace`` or ``update`` of one target.
    """
    match = _KEYED.match(markup)
    if match is None or len(list(islice(_TAG.finditer(markup), 2))) > 1:
        return ""
    key = f"{match[1]} {unescape(match[2])}"
    return key if len(key) <= _LONGEST_KEY else ""


def with_sender(markup: str, sender: str) -> str:
    """Return a message that the page which sent a request ignores.

    The attribute ``data-sender`` is for ``turbo-streams.js``; turbo.js ignores the attribute.

    :param sender: return value of :func:`sender_of`.
    """
    for found in _COMMENT_OR_TAG.finditer(markup):
        if not found[0].startswith("<!--"):
            end = found.end()
            return f'{markup[:end]} data-sender="{escape(str(sender))}"{markup[end:]}'
    return markup


def sender_of(request_id: str) -> str:
    """Return the name by which a message refers to the request that caused the message: a hash.

    If another client knew the id itself, that client could send the id with its own requests. The
    page would then ignore their messages.

    :param request_id: id that turbo.js gave the request, ``X-Turbo-Request-Id``.
    """
    return sha256(request_id.encode()).hexdigest()[:32]  # turbo-streams.js does the same
