"""Head of a request: parses request line and header fields more strictly than pywsgi (RFC 9112).

A proxy and this server must not interpret one head in two ways (request smuggling). Text from a
client must not control a terminal that shows the log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..wire.handshake import TOKEN

__all__ = [
    "CONTROL",
    "NAME",
    "Headers",
    "RequestError",
    "RequestLine",
    "check_fields",
    "environ_key",
    "printable",
]

_MAX_HEAD = 65536  # bytes of all header lines together, unless the server allows more
_PER_FIELD = _MAX_HEAD // 100
# Bytes of all values of one name. Applications parse most fields as lists, in Python: a list of 60
# KiB blocks all other clients for 50 ms. Proxies allow less, nginx 8 KiB.
_MAX_VALUES = 16384
_LONGEST_LENGTH = 18  # digits of a Content-Length; no body needs more

NAME = re.compile(TOKEN.encode())
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_IN_NAME = bytes(byte for byte in range(256) if NAME.fullmatch(bytes((byte,))))
_IN_VALUE = bytes(byte for byte in range(256) if not CONTROL.search(bytes((byte,))))

_CONTROL_IN_LINE = re.compile("[\x00-\x1f\x7f]")
_VERSION = re.compile("HTTP/([0-9])\\.([0-9])")  # RFC 9112 §2.3
_METHOD = re.compile(TOKEN)
_ABSOLUTE = re.compile("(?:http|ws)s?://([^/?#]*)", re.IGNORECASE)


class RequestError(ValueError):
    """Invalid request, which the server answers with an error without calling the application.

    :param status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RequestLine:
    """First line of a request, parsed strictly (RFC 9112 §3).

    :param line: the line without its line end.
    :raises RequestError: if the line is invalid (status 400), if the major version of HTTP is not 1
        (505), or if the method is CONNECT (501).
    """

    __slots__ = ("authority", "method", "path", "version")

    def __init__(self, line: str) -> None:
        if _CONTROL_IN_LINE.search(line):
            raise RequestError("the request line holds a control character")
        parts = line.split(" ")
        if len(parts) != 3 or not _METHOD.fullmatch(parts[0]):
            raise RequestError("the request line is not 'METHOD target HTTP/1.1' (RFC 9112 §3)")
        #: Method as the client sent it; methods are case-sensitive.
        self.method = parts[0]
        #: ``HTTP/1.0`` or ``HTTP/1.1``; a higher minor version is read as 1.1 (RFC 9110 §2.5).
        self.version = _version(parts[2])
        #: Path and query; ``*`` for the whole server.
        self.path = parts[1]
        #: Host and port of a target in absolute form, which replace the Host header field (RFC 9112
        #: §3.2.2); None if the target has another form.
        self.authority: str | None = None
        if self.method == "CONNECT":  # the client would take a 2xx response for a tunnel
            raise RequestError("CONNECT is for proxies, which this server is not", 501)
        if not parts[1].startswith("/"):
            self._read_other_form(parts[1])

    def _read_other_form(self, target: str) -> None:
        if target == "*" and self.method == "OPTIONS":  # §3.2.4
            return
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            raise RequestError("the target of the request is neither a path nor a URL")
        self.authority = absolute[1]
        rest = target[absolute.end() :]
        self.path = rest if rest.startswith("/") else f"/{rest}"


def _version(text: str) -> str:
    if text in ("HTTP/1.1", "HTTP/1.0"):
        return text
    version = _VERSION.fullmatch(text)
    if version is None:
        raise RequestError("the version in the request line is not 'HTTP/1.1' (RFC 9112 §2.3)")
    if version[1] != "1":
        raise RequestError(f"expected HTTP/1.1, got HTTP/{version[1]}.{version[2]}", 505)
    return "HTTP/1.1"


_USUAL = """
    Accept Accept-Encoding Accept-Language Access-Control-Request-Headers
    Access-Control-Request-Method Authorization Cache-Control Connection Content-Length Content-Type
    Cookie DNT Forwarded Host If-Modified-Since If-None-Match Last-Event-ID Origin Pragma Priority
    Range Referer Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode
    Sec-Fetch-Site Sec-Fetch-User Sec-GPC Sec-WebSocket-Extensions Sec-WebSocket-Key
    Sec-WebSocket-Protocol Sec-WebSocket-Version Traceparent Transfer-Encoding Turbo-Frame Upgrade
    Upgrade-Insecure-Requests User-Agent Via X-CSRF-Token X-Forwarded-For X-Forwarded-Host
    X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Proto X-Real-IP X-Request-ID X-Requested-With
    X-Turbo-Request-Id
""".split()  # noqa: SIM905 - a list of one name a line would be fifty lines

# Usual names of header fields, shared so that a connection keeps no copies of its own. Other names
# are not interned: a client can invent any number of names, and CPython 3.12.0 to 3.12.5 never
# frees an interned text.
_NAMES = {spelling.encode(): spelling for name in _USUAL for spelling in (name, name.lower())}
_KEYS = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in _USUAL}
_KEYS |= {name.lower(): key for name, key in _KEYS.items()}


class Headers:
    """Header fields of a request, parsed strictly; pywsgi uses the methods of ``email.Message``.

    The parser refuses lines that are no field, a space before the colon, folded lines and control
    characters (RFC 9112 §5.1, §5.2). The parser also refuses a request if the length of its body is
    ambiguous (§6.1, §6.3).

    :param rfile: the stream of the connection, behind the request line.
    :param most: maximum number of fields; a request with more is refused.
    :param longest: maximum bytes of one header line; None for 16 KiB of all values of one name. All
        lines together may have 64 KiB, more if ``most`` is over 100 or ``longest`` over 16 KiB.
    :raises RequestError: if there are too many or too long fields (status 431), else 400.
    """

    def __init__(self, rfile: Any, most: int = 100, longest: int | None = None) -> None:
        self.fields: list[tuple[str, str]] = []
        room = left = max(_MAX_HEAD, most * _PER_FIELD, 4 * (longest or 0))
        while (line := rfile.readline(left)) not in (b"\r\n", b"\n"):
            left -= len(line)
            if longest is not None and len(line) > longest:
                raise RequestError(f"a header field has more than {longest} bytes", 431)
            name, colon, value = line[:-1].removesuffix(b"\r").partition(b":")
            if not (colon and line.endswith(b"\n") and NAME.fullmatch(name)):
                raise _head_error(line, left, room)
            if CONTROL.search(value):
                raise RequestError("the value of a header field holds a control character")
            if len(self.fields) == most:
                raise RequestError(f"the request has more than {most} header fields", 431)
            field = _NAMES.get(name) or name.decode("ascii")
            self.fields.append((field, value.strip(b" \t").decode("latin-1")))
        if room - left > _MAX_VALUES:
            self._check_sizes(max(_MAX_VALUES, longest or 0))
        self._check_framing()

    def _check_sizes(self, most: int) -> None:
        """Check that no name has too long values."""
        sizes: dict[str, int] = {}
        for name, value in self.fields:
            size = sizes[name.lower()] = sizes.get(name.lower(), 0) + len(value)
            if size > most:
                raise RequestError(f"the values of {name:.80} have more than {most} bytes", 431)

    def _check_framing(self) -> None:
        """Check that the length of the body is unambiguous (RFC 9112 §6.3)."""
        lengths, encodings = self.get_all("content-length"), self.get_all("transfer-encoding")
        if len(lengths) + len(encodings) > 1:
            raise RequestError("expected one Content-Length or Transfer-Encoding header field")
        if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
            raise RequestError("Content-Length is no number")
        if lengths and len(lengths[0]) > _LONGEST_LENGTH:
            raise RequestError(f"Content-Length has more than {_LONGEST_LENGTH} digits")
        if encodings and encodings[0].lower() != "chunked":
            raise RequestError("the only Transfer-Encoding that is understood is chunked")

    def get_all(self, name: str) -> list[str]:
        """Return the values of a field; :param name: name in lower case."""
        return [value for field, value in self.fields if field.lower() == name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the first value of a field, or ``default`` if the field is missing."""
        name = name.lower()
        return next((value for field, value in self.fields if field.lower() == name), default)

    getheader = get

    @property
    def typeheader(self) -> str | None:
        """The Content-Type."""
        content_type: str | None = self.get("content-type")
        return content_type

    def items(self) -> list[tuple[str, str]]:
        """Return all names and values, for the access log."""
        return self.fields

    def replace(self, name: str, value: str) -> None:
        """Replace all values of a field by one; :param name: name in lower case."""
        self.fields = [field for field in self.fields if field[0].lower() != name]
        self.fields.append((name, value))


def _head_error(line: bytes, left: int, room: int) -> RequestError:
    if not left:
        return RequestError(f"the head of the request is longer than {room} bytes", 431)
    if not line.endswith(b"\n"):
        return RequestError("the client left in the middle of the head of its request")
    if line[:1] in b" \t":
        return RequestError(
            "a header line begins with a space: folded lines are not allowed (RFC 9112 §5.2)"
        )
    return RequestError("a header line is not 'name: value' (RFC 9112 §5)")


def check_fields(fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Check that header fields of a response are valid (RFC 9110 §5.1, §5.5).

    :raises ValueError: if a name is no token, or a value holds a control character.
    """
    # Two calls of translate() for all fields cost less than two searches for each field.
    names = [name for name, _ in fields]
    left = b"".join(names).translate(None, _IN_NAME)
    left += b"".join([value for _, value in fields]).translate(None, _IN_VALUE)
    if not left and all(names):
        return
    for name, value in fields:
        if not NAME.fullmatch(name) or CONTROL.search(value):
            raise ValueError(
                f"the header field {name.decode('latin-1')!r} cannot be sent: its name is no "
                "token, or its value holds a control character (RFC 9110 §5.5)"
            )


def environ_key(name: str) -> str:
    """Return the WSGI environ key of a header field (PEP 3333)."""
    return _KEYS.get(name) or f"HTTP_{name.upper().replace('-', '_')}"


def printable(text: str) -> str:
    """Escape text from a client for a log: one line, without control characters."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
