"""Origins of pages (RFC 6454) and names of hosts: which of them may connect.

A list is parsed once and asked at each handshake::

    allowed = parse_origins(("https://example.com", "http://localhost:*"))
    allowed.include("http://localhost:5173")

An entry of a list is one of these:

- ``https://example.com``, with ``:8443`` where the port is not the usual one, or ``:*`` for all;
- ``https://*.example.com``: all subdomains, not the domain itself;
- ``capacitor://localhost``, ``chrome-extension://<id>``: an application's or extension's own
  scheme; ``moz-extension://*`` is all hosts of one;
- ``file://``, ``null``: pages without an origin of their own;
- ``same-origin``: pages of the host that they ask, as :func:`same_origin` tells;
- ``*``: every page.

Host names are compared in ASCII (RFC 5890 §2.3.2.5), whichever way both sides write them.
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

# What a host cannot hold by the URL standard, and what a list needs for itself.
_HOST = r"\[[0-9a-f:.]+\]|[^\x00-\x20\x7f\[\]<>\\^|%/?#@:*,\"]+"
_SCHEME = r"[a-z][a-z0-9+.-]*"

# RFC 6454 §6.2: scheme, host and perhaps a port, and no more. Not by urlsplit(), which overlooks
# control characters and a path.
_ORIGIN = re.compile(rf"({_SCHEME})://({_HOST})(?::([0-9]{{1,5}}))?")
_ENTRY = re.compile(
    rf"({_SCHEME})://(\*\.(?!\[|\*)(?:{_HOST})|{_HOST}|\*)(?::([0-9]{{1,5}}|\*))?/?"
)
_OF_URL = re.compile(rf"{_SCHEME}://[^/?#\\]*", re.IGNORECASE)
_NETLOC = re.compile(rf"({_HOST})(?::[0-9]{{0,5}})?")

_FILE = "file://"
_SAME = "same-origin"
_WORDS = frozenset(("*", "null", _FILE, "file:///", _SAME))  # entries of no scheme and host
_WEB = {"ws": "http", "wss": "https"}  # some clients say the scheme of the WebSocket
_PORTS = {"http": 80, "https": 443}
_NO_PAGES = frozenset(("about", "blob", "data", "file", "filesystem", "ftp", "javascript"))
"""Schemes of URLs that are no pages, or whose pages have no origin."""

_EXPECTED = (
    "'https://example.com', 'https://example.com:8443', 'https://*.example.com', "
    "'http://localhost:*', 'capacitor://localhost', 'file://', 'null', 'same-origin' or '*'"
)

_MOST_LISTS = 256  # that are kept parsed: there is one for an application, and some for routes

_Key = tuple[str, str, int | None]
"""Scheme, host and port of an origin; no port is that of another scheme than HTTP's."""


@dataclass(frozen=True, slots=True)
class Origins:
    """A list of origins, parsed.

    :ivar every: it allows every page.
    :ivar opaque: it allows pages without an origin of their own, as each site can make them.
    :ivar same: it allows the same origin, which :meth:`include` cannot tell without the host.
    """

    every: bool
    opaque: bool
    same: bool
    _file: bool
    _exact: frozenset[_Key]
    _patterns: tuple[tuple[str, str, int | None], ...]  # "" any host, ".x" below x; -1 any port

    def include(self, origin: str) -> bool:
        """Tell whether a page of this origin may connect.

        :param origin: an ``Origin`` header field.
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

    :raises ValueError: when an entry can match no page, with the entry and what is expected.
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
    """Return the parts of an origin as :func:`_text` has it; None where it is none."""
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
    """Return a header field in small letters; what is UTF-8, WSGI has as Latin-1 (PEP 3333)."""
    if not field.isascii():
        try:
            field = field.encode("latin-1").decode()
        except ValueError:
            pass  # no browser's
    return field.lower()


def _to_ascii(host: str) -> str:
    """Return a host name in ASCII.

    Python knows IDNA 2003 (RFC 3490) and browsers a newer one. Where they differ, as in ``ß``, what
    comes back is another name: it is taken for none, since it may be somebody else's.

    :raises ValueError: when there is none that is certain.
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
    """Tell whether a page is of the host and port that it asks.

    :param origin: an ``Origin`` header field.
    :param host: the ``Host`` header field, after ProxyFix.
    :param secure: whether the request came by HTTPS; pages of plain HTTP are refused then. The
        other way round counts as the same: a proxy that ends TLS without telling is common.
    """
    page = _key(_text(origin))
    if page is None or page[0] not in _PORTS or (secure and page[0] == "http"):
        return False
    return page == _key(f"{page[0]}://{_text(host).removesuffix(':')}")


def origin_of_url(url: str) -> str:
    """Return the origin of a URL with a host, as of a ``Referer`` header field; else ""."""
    found = _OF_URL.match(url)
    return found[0] if found else ""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Names of hosts, parsed; ports do not count."""

    _exact: frozenset[str]
    _suffixes: tuple[str, ...]

    def include(self, host: str) -> bool:
        """Tell whether a host is one of these.

        :param host: a ``Host`` header field.
        """
        name = _name_of(_text(host))
        return name is not None and (name in self._exact or name.endswith(self._suffixes))


@lru_cache(_MOST_LISTS)
def parse_hosts(names: tuple[str, ...]) -> Hosts:
    """Parse names of hosts; one that begins with a dot stands for its subdomains, too.

    A name that is none matches nothing.
    """
    known = {name: _name_of(name.lower().removeprefix(".")) for name in names}
    return Hosts(
        frozenset(filter(None, known.values())),
        tuple(f".{host}" for name, host in known.items() if host and name.startswith(".")),
    )


def can_be_rebound(host: str) -> bool:
    """Tell whether a stranger's name server may say where this host is.

    Not that of an address, of ``localhost`` (RFC 6761 §6.3), or of a name without a dot, as it is
    in a local network: pages of strangers have no such host.

    :param host: a ``Host`` header field.
    """
    name = _name_of(_text(host))
    if name is None:
        return True
    last = name.rpartition(".")[2]
    if name[0] == "[" or last == name or last == "localhost":
        return False
    return not (last.isdigit() or last.startswith("0x"))  # an address, as browsers read it


def _name_of(host: str) -> str | None:
    """Return a host without its port in ASCII; None where it is none."""
    found = _NETLOC.fullmatch(host)
    try:
        return found and _to_ascii(found[1])
    except ValueError:
        return None
