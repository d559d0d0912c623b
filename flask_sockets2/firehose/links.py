"""Links for the Link header: the files that a page needs, and their types (RFC 8288).

This module alone validates and quotes outgoing links. Characters that a URI must not contain are
percent-encoded. Commas and semicolons stay: between ``<`` and ``>`` they are part of the URL. To
a browser's cache a URL with ``%2C`` is a different one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from posixpath import splitext
from urllib.parse import quote, urlsplit

__all__ = ["Link", "joined", "link", "link_of", "parse"]

Attributes = tuple[tuple[str, str | None], ...]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_IN_URLS = ":/?#[]@!$&'()*+,;=%"  # reserved, or already percent-encoded, RFC 3986 §2

_TARGET = re.compile(r"(?:[\s;]*,)?[\s,]*<([^>]*)>")
_ATTRIBUTE = re.compile(
    r"""\s*(?:;\s*)+([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s";,]*)))?"""
)

_DESTINATIONS = {
    "style": ("css",),
    "script": ("js", "mjs"),
    "font": ("woff2", "woff", "ttf", "otf"),
    "image": ("avif", "gif", "ico", "jpeg", "jpg", "png", "svg", "webp"),
}
_OF_ENDINGS = {ending: kind for kind, endings in _DESTINATIONS.items() for ending in endings}

# For <script type="module">, which does not use a preload: browsers would fetch the file twice.
_MODULE_ENDING = "mjs"
_MODULE = "module"

# Browsers fetch these with CORS; after a preload without CORS they would fetch the file twice.
_BY_CORS = ("font", "fetch")


@dataclass(frozen=True, slots=True)
class Link:
    """One link of a Link header, made by :func:`link`.

    :param url: a URI reference, percent-encoded.
    :param attributes: names and values in their order; None for an attribute without a value.
    """

    url: str
    attributes: Attributes = ()

    def get(self, name: str) -> str | None:
        """Return the first value of an attribute (RFC 8288 §3.3), or None if there is none."""
        return next((value for each, value in self.attributes if each == name), None)

    @property
    def key(self) -> tuple[str, str | None]:
        """The identity of a link: two links with the same key are duplicates."""
        return self.url, self.get("rel")

    def __str__(self) -> str:
        parts = [f"<{self.url}>"]
        for name, value in self.attributes:
            parts.append(name if value is None else f"{name}={_quoted(value)}")
        return "; ".join(parts)


def link(url: str, *flags: str, **attributes: object) -> Link:
    """Make a link; ``rel`` defaults to ``preload``, and to ``modulepreload`` for a module.

    A module has a URL that ends in ``.mjs``, or ``type="module"`` as in its element in the page.
    The link omits ``type="module"``, which is not a media type.

    ::

        link("/static/app.css", as_="style")  # </static/app.css>; rel=preload; as=style
        link("/static/app.js", type="module")  # </static/app.js>; rel=modulepreload

    :param url: URL as in the page.
    :param flags: attributes after the others: ``"nopush"``, or with a value, ``"as=style"``.
    :param attributes: ``as_`` stands for ``as``; True means no value, None and False no attribute.
    :raises ValueError: if the URL is empty, or a character must not stand in a header field.
    """
    found: dict[str, str | None] = {}
    for name, value in attributes.items():
        if value is not None and value is not False:
            found[_name(name.removesuffix("_"))] = None if value is True else _text(name, value)
    for flag in flags:
        name, equals, text = flag.partition("=")
        found.setdefault(_name(name), _text(name, text.strip('"')) if equals else None)
    encoded = _encoded(url)
    is_module = (found.get("type") or "").strip().lower() == _MODULE
    if is_module and found.get("rel", "preload") == "preload":
        del found["type"]  # browsers ignore a preload of an unknown type
        found["rel"] = "modulepreload"
    if "rel" not in found:
        module = _ending(encoded) == _MODULE_ENDING and found.get("as", "script") == "script"
        found = {"rel": "modulepreload" if module else "preload", **found}
    if "preload" in (found["rel"] or "").split():
        if "as" not in found and (kind := _destination(encoded)):
            found["as"] = kind
        if found.get("as") in _BY_CORS:
            found.setdefault("crossorigin", None)
    return Link(encoded, tuple(found.items()))


def link_of(what: str | Link) -> Link:
    """Return the link for a URL, an origin or a value in the format of the Link header.

    :param what: ``"/static/app.css"``; ``"https://cdn.example.com"``, an origin to connect to;
        ``"</data>; rel=preload; as=fetch"``.
    :raises ValueError: if the value is not a link, or is a preload that no browser can use.
    """
    if isinstance(what, Link):
        return what
    if what.startswith("<"):
        found = parse(what)
        if len(found) != 1:
            raise ValueError(f"expected one link, got {len(found)}; give each as its own argument")
        made = link(found[0].url, **{name: value or True for name, value in found[0].attributes})
    elif _is_origin(what):
        made = link(what, rel="preconnect")
    else:
        made = link(what)
    if made.get("rel") == "preload" and not made.get("as"):
        raise ValueError(
            f"cannot tell what {made.url} is, and browsers ignore a preload that does not say it: "
            f"write '<{made.url}>; rel=preload; as=…' with style, script, font, image or fetch"
        )
    return made


def parse(value: str) -> list[Link]:
    """Parse the value of a Link header into its links.

    :raises ValueError: if the value is malformed.
    """
    links = []
    end = 0
    while target := _TARGET.match(value, end):
        end = target.end()
        attributes: list[tuple[str, str | None]] = []
        while attribute := _ATTRIBUTE.match(value, end):
            end = attribute.end()
            name, quoted, token = attribute.groups()
            text = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            attributes.append((name.lower(), text))
        links.append(Link(target[1].strip(), tuple(attributes)))
    if value[end:].strip(" \t,;"):
        raise ValueError("expected '<URL>; name=value', links separated by commas (RFC 8288 §3)")
    return links


def joined(existing: Sequence[str], links: Iterable[Link], limit: int) -> tuple[str, list[Link]]:
    """Append links to existing Link headers, without duplicates.

    :param existing: values of the response's Link headers, which stay unchanged.
    :param limit: maximum length of the result in characters; further links are left out.
    :returns: one header value, and the links that were left out.
    """
    parts = [value.strip(" \t,") for value in existing if value.strip(" \t,")]
    known = set()
    for value in parts:
        try:
            known |= {each.key for each in parse(value)}
        except ValueError:  # set by other code
            continue
    size = sum(len(part) + 2 for part in parts)
    left_out = []
    for each in links:
        if each.key in known:
            continue
        known.add(each.key)
        text = str(each)
        if size + len(text) > limit:
            left_out.append(each)
            continue
        size += len(text) + 2
        parts.append(text)
    return ", ".join(parts), left_out


def _encoded(url: str) -> str:
    if not url:
        raise ValueError("expected a URL, got an empty text")
    if _CONTROL.search(url):
        raise ValueError(
            "a URL in a Link header field must not hold line breaks or other control characters; "
            "build it with url_for(), or encode its parts with urllib.parse.quote()"
        )
    return quote(url, safe=_IN_URLS)


def _name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a link's attribute: letters, digits and hyphens can"
        )
    return name.lower()


def _text(name: str, value: object) -> str:
    text = str(value)
    if _CONTROL.search(text) or not text.isascii():
        raise ValueError(
            f"the attribute {name!r} of a link may hold visible ASCII characters and spaces only; "
            "leave out what else there is"
        )
    return text


def _quoted(value: str) -> str:
    if _TOKEN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _destination(url: str) -> str | None:
    """Return the ``as`` value of a file by its ending, or None if unknown."""
    return _OF_ENDINGS.get(_ending(url))


def _ending(url: str) -> str:
    return splitext(urlsplit(url).path)[1][1:].lower()


def _is_origin(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.netloc) and parts.path in ("", "/") and not parts.query
