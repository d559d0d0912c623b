"""Allowed origins of pages (RFC 6454) and allowed host names.

A list is parsed once and checked at each handshake::

    allowed = parse_origins(("https://example.com", "http://localhost:*"))
    allowed.include("http://localhost:5173")

An entry of a list is one of these:

- ``https://example.com``, with ``:8443`` if the port is not the usual one, or ``:*`` for all;
- ``https://*.example.com``: all subdomains, not the domain itself;
- ``capacitor://localhost``, ``chrome-extension://<id>``: the scheme of an application or extension;
  ``moz-extension://*`` is all hosts of a scheme;
- ``file://``, ``null``: pages without an origin of their own;
- ``same-origin``: pages of the host that they connect to, see :func:`same_origin`;
- ``*``: every page.

Host names are compared in ASCII (RFC 5890 §2.3.2.5), however both sides write them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from unicodedata import normalize

__all__ = [
    "Hosts",
    "Origins",
    "can_be_rebound",
    "origin_of_url",
    "parse_hosts",
    "parse_origins",
    "same_origin",
]

# Excluded: characters that the URL standard forbids in a host, and the separators of a list.
_HOST = r"\[[0-9a-f:.]+\]|[^\x00-\x20\x7f\[\]<>\\^|%/?#@:*,\"]+"
_SCHEME = r"[a-z][a-z0-9+.-]*"

# RFC 6454 §6.2: scheme, host and perhaps a port. urlsplit() would let control characters and a
# path pass.
_ORIGIN = re.compile(rf"({_SCHEME})://({_HOST})(?::([0-9]{{1,5}}))?")
_ENTRY = re.compile(
    rf"({_SCHEME})://(\*\.(?!\[|\*)(?:{_HOST})|{_HOST}|\*)(?::([0-9]{{1,5}}|\*))?/?"
)
_OF_URL = re.compile(rf"{_SCHEME}://[^/?#\\]*", re.IGNORECASE)
_NETLOC = re.compile(rf"({_HOST})(?::[0-9]{{0,5}})?")

_FILE = "file://"
_SAME = "same-origin"
_WORDS = frozenset(("*", "null", _FILE, "file:///", _SAME))  # entries of no scheme and host
_WEB = {"ws": "http", "wss": "https"}  # some clients send the scheme of the WebSocket
_PORTS = {"http": 80, "https": 443}
_NO_PAGES = frozenset(("about", "blob", "data", "file", "filesystem", "ftp", "javascript"))
"""Schemes of URLs that are not pages, or of pages without an origin."""

_EXPECTED = (
    "'https://example.com', 'https://example.com:8443', 'https://*.example.com', "
    "'http://localhost:*', 'capacitor://localhost', 'file://', 'null', 'same-origin' or '*'"
)

_MOST_LISTS = 256  # parsed lists in the cache: one for an application, and some for routes

_Key = tuple[str, str, int | None]
"""Scheme, host and port of an origin; the port may be None for a scheme other than HTTP's."""


@dataclass(frozen=True, slots=True)
class Origins:
    """A parsed list of allowed origins.

    :ivar every: whether every page is allowed.
    :ivar opaque: whether pages without an origin are allowed; any site can make such a page.
    :ivar same: whether the same origin is allowed; :meth:`include` does not know the host.
    """

    every: bool
    opaque: bool
    same: bool
    _file: bool
    _exact: frozenset[_Key]
    _patterns: tuple[tuple[str, str, int | None], ...]  # "" any host, ".x" below x; -1 any port

    def include(self, origin: str) -> bool:
        """Tell whether a page of this origin may connect.

        :param origin: value of an ``Origin`` header field.
        """
        if self.every:
            return True
        origin = _text(origin)
        if origin == "null":
            return self.opaque
        if origin == _FILE:
            return self._file
        key = _key(origin)
        if key is None:
            return False
        return key in self._exact or any(_fits(key, pattern) for pattern in self._patterns)


def _fits(key: _Key, pattern: _Key) -> bool:
    scheme, host, port = pattern
    return (
        key[0] == scheme
        and (port == -1 or key[2] == port)
        and (not host or key[1] == host or (host[0] == "." and key[1].endswith(host)))
    )


@lru_cache(_MOST_LISTS)
def parse_origins(entries: tuple[str, ...]) -> Origins:
    """Parse a list of origins.

    :raises ValueError: if an entry can match no page; with the entry and the expected forms.
    """
    exact: set[_Key] = set()
    patterns: list[_Key] = []
    for entry in entries:
        if entry.lower() in _WORDS:
            continue
        scheme, host, port = _parse_entry(entry)
        if port == -1 or not host or host[0] == ".":
            patterns.append((scheme, host, port))
        else:
            exact.add((scheme, host, port))
    plain = {entry.lower() for entry in entries}
    return Origins(
        every="*" in plain,
        opaque="null" in plain,
        same=_SAME in plain,
        _file=not plain.isdisjoint((_FILE, "file:///")),
        _exact=frozenset(exact),
        _patterns=tuple(patterns),
    )


def _parse_entry(entry: str) -> _Key:
    """Return scheme, host and port: "" is any host, ".x" all below x, and -1 any port."""
    parts = _ENTRY.fullmatch(entry.lower())
    if parts is None or parts[1] in _NO_PAGES:
        raise ValueError(f"{entry!r} is no origin; expected {_EXPECTED}")
    scheme = _WEB.get(parts[1], parts[1])
    meant = get_close_matches(scheme, _PORTS, 1, 0.75)
    if meant and scheme not in _PORTS:
        raise ValueError(f"{entry!r} is no origin; did you mean '{meant[0]}://'?")
    port = parts[3]
    if port and port != "*" and not 0 < int(port) < 65536:
        raise ValueError(f"{entry!r} is no origin; expected a port from 1 to 65535, or '*'")
    host = _host_of_entry(entry, scheme, parts[2])
    return scheme, host, -1 if port == "*" else int(port) if port else _PORTS.get(scheme)


def _host_of_entry(entry: str, scheme: str, host: str) -> str:
    if host == "*":
        if scheme in _PORTS:
            raise ValueError(
                f"{entry!r} is no origin; expected '*' for the pages of every site, or a domain "
                f"as in '{scheme}://*.example.com'"
            )
        return ""
    below, name = (".", host[2:]) if host.startswith("*.") else ("", host)
    try:
        return below + _to_ascii(name)
    except ValueError as exc:
        raise ValueError(
            f"the host name of {entry!r} cannot be read in one way only; expected it in ASCII, as "
            "in 'https://xn--bcher-kva.example', which is what location.origin says in a browser"
        ) from exc


def _key(origin: str) -> _Key | None:
    """Return scheme, host and port of an origin from :func:`_text`; None if it is not one."""
    parts = _ORIGIN.fullmatch(origin)
    if parts is None:
        return None
    scheme, host, port = parts.groups()
    if not host.isascii():
        try:
            host = _to_ascii(host)
        except ValueError:
            return None
    scheme = _WEB.get(scheme, scheme)
    return scheme, host, int(port) if port else _PORTS.get(scheme)


def _text(field: str) -> str:
    """Return a header field in lower case; WSGI passes UTF-8 as Latin-1 (PEP 3333)."""
    if not field.isascii():
        try:
            field = field.encode("latin-1").decode()
        except ValueError:
            pass  # not sent by a browser
    return field.lower()


def _to_ascii(host: str) -> str:
    """Return a host name in ASCII.

    Python implements IDNA 2003 (RFC 3490), browsers a newer version. If both differ, as for ``ß``,
    decoding yields another name. That name is refused, because another site may own it.

    :raises ValueError: if the ASCII form is not certain.
    """
    if host.isascii():
        return host
    host = normalize("NFC", host.lower())
    encoded = host.encode("idna").decode("ascii").lower()
    if encoded.encode("ascii").decode("idna") != host:
        raise ValueError(f"{host!r} and {encoded!r} are not the same name")
    return encoded


# -- the host of a request ---------------------------------------------------------------------


def same_origin(origin: str, host: str, *, secure: bool = False) -> bool:
    """Tell whether a page belongs to the host and port that it connects to.

    :param origin: value of an ``Origin`` header field.
    :param host: value of the ``Host`` header field, after ProxyFix.
    :param secure: whether the request came by HTTPS; if so, pages of plain HTTP are refused. An
        HTTPS page on plain HTTP is accepted, since many proxies end TLS without saying so.
    """
    page = _key(_text(origin))
    if page is None or page[0] not in _PORTS or (secure and page[0] == "http"):
        return False
    return page == _key(f"{page[0]}://{_text(host).removesuffix(':')}")


def origin_of_url(url: str) -> str:
    """Return the origin of a URL, for example of a ``Referer`` field; "" if there is no host."""
    found = _OF_URL.match(url)
    return found[0] if found else ""


@dataclass(frozen=True, slots=True)
class Hosts:
    """A parsed list of host names; ports are ignored."""

    _exact: frozenset[str]
    _suffixes: tuple[str, ...]

    def include(self, host: str) -> bool:
        """Tell whether a host is in the list.

        :param host: value of a ``Host`` header field.
        """
        name = _name_of(_text(host))
        return name is not None and (name in self._exact or name.endswith(self._suffixes))


@lru_cache(_MOST_LISTS)
def parse_hosts(names: tuple[str, ...]) -> Hosts:
    """Parse host names; a name with a leading dot stands for a domain and its subdomains.

    An invalid name matches nothing.
    """
    known = {name: _name_of(name.lower().removeprefix(".")) for name in names}
    return Hosts(
        frozenset(filter(None, known.values())),
        tuple(f".{host}" for name, host in known.items() if host and name.startswith(".")),
    )


def can_be_rebound(host: str) -> bool:
    """Tell whether a host's name could be an attacker's that points here (DNS rebinding).

    False for an IP address, for ``localhost`` (RFC 6761 §6.3) and for a name without a dot, as in a
    local network: an attacker's pages cannot have these hosts.

    :param host: value of a ``Host`` header field.
    """
    name = _name_of(_text(host))
    if name is None:
        return True
    last = name.rpartition(".")[2]
    if name[0] == "[" or last == name or last == "localhost":
        return False
    return not (last.isdigit() or last.startswith("0x"))  # an address, as browsers read it


def _name_of(host: str) -> str | None:
    """Return a host in ASCII without its port; None if it is not a host."""
    found = _NETLOC.fullmatch(host)
    try:
        return found and _to_ascii(found[1])
    except ValueError:
        return None
