"""The opening handshake, server side (RFC 6455 §4.2): from a WSGI environ to a 101 response.

An :class:`Upgrade` is the client's request, checked. Accepting the request is a separate step,
because the application routes and authenticates the request in between.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_connection, parse_extension, parse_subprotocol
from websockets.utils import accept_key

from ..exceptions import HandshakeError

__all__ = [
    "TOKEN",
    "Upgrade",
    "end_to_end",
    "extended",
    "is_host",
    "is_mount_point",
    "is_upgrade",
    "named_subprotocol",
    "parse_upgrade",
    "select_subprotocol",
]

_VERSION = (("Sec-WebSocket-Version", "13"),)
_UPGRADE = (("Upgrade", "websocket"), ("Connection", "Upgrade"), *_VERSION)

# Without context takeover by the server, one compressed message serves all clients, and connections
# keep no compressor. A small server window is set up quickly, a small client window saves memory.
_DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    server_max_window_bits=12,
    client_max_window_bits=12,
    compress_settings={"memLevel": 5},
)

_OURS = frozenset(
    f"sec-websocket-{name}" for name in ("accept", "extensions", "protocol", "version")
) | {"upgrade", "connection"}
_OF_BODIES = frozenset(("content-length", "transfer-encoding"))  # RFC 9110 §8.6, RFC 9112 §6.1
_NOT_ADDED = _OURS | _OF_BODIES | {"content-type", "content-encoding"}

# Parsing a list of 60 KiB takes as long as some hundred requests, and blocks all other clients.
_LISTS = ("HTTP_CONNECTION", "HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_SEC_WEBSOCKET_PROTOCOL")
_LONGEST = 8192  # bytes, as nginx lets through

# RFC 9110 §7.2, RFC 3986 §3.2.2: an IP literal or a name, perhaps a port. A name may hold a comma,
# but a comma is refused here: a proxy puts one between two Host header fields.
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::([0-9]{0,5}))?"
)

# A browser takes a backslash for a slash, and two slashes for the beginning of a host.
_MOUNT_POINT = re.compile(r"(?:/(?![/\\])[^\x00-\x1f\x7f]*)?")

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""Pattern of names of header fields, and of methods (RFC 9110 §5.6.2)."""

_NAME = re.compile(TOKEN)
_NOT_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")  # RFC 9110 §5.5


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A valid request for a WebSocket.

    :param key: the ``Sec-WebSocket-Key`` field as received.
    :param subprotocols: subprotocols that the client offers, in its order of preference.
    :param extensions: the ``Sec-WebSocket-Extensions`` field as received, possibly empty.
    """

    key: str
    subprotocols: tuple[str, ...]
    extensions: str

    def response(
        self,
        *,
        subprotocol: str | None = None,
        compression: bool = False,
        headers: Iterable[tuple[str, str]] = (),
    ) -> tuple[bytes, list[Extension]]:
        """Return the bytes of the 101 response and the extensions agreed to (§4.2.2).

        :param subprotocol: one of :attr:`subprotocols`, or None.
        :param compression: whether to agree to permessage-deflate (RFC 7692), if offered.
        :param headers: further header fields, without control characters.
        :raises ValueError: if a header field or the subprotocol cannot be sent.
        """
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(self.key)}",
        ]
        agreed: list[Extension] = []
        if compression and self.extensions:
            field = _negotiate(self.extensions, agreed)
            if field:
                lines.append(f"Sec-WebSocket-Extensions: {field}")
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(
                    f"cannot select subprotocol {subprotocol!r}: the client offers "
                    f"{', '.join(self.subprotocols) or 'none'}"
                )
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        lines.extend(_header_line(name, value) for name, value in headers)
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), agreed


def _negotiate(offers: str, agreed: list[Extension]) -> str:
    """Agree to the first acceptable offer of permessage-deflate (RFC 7692 §5.1)."""
    for name, parameters in parse_extension(offers):
        if name != _DEFLATE.name:
            continue
        try:
            answer, extension = _DEFLATE.process_request_params(parameters, agreed)
        except (NegotiationError, ValueError):  # zlib raises ValueError for a window of 8 bits
            continue
        agreed.append(extension)
        return build_extension([(name, answer)])
    return ""


def _header_line(name: str, value: str) -> str:
    if name.lower() in _OURS:
        raise ValueError(f"the header field {name!r} is the handshake's own")
    if name.lower() in _OF_BODIES:
        raise ValueError(f"the header field {name!r} tells of a body, which no 101 has")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the header field {name!r} cannot be sent: a name consists of ASCII letters, digits "
            "and !#$%&'*+-.^_`|~"
        )
    if _NOT_IN_VALUE.search(value):
        raise ValueError(
            f"the header field {name!r} cannot be sent: its value holds a control character, or "
            "one beyond Latin-1; encode it first, for example with urllib.parse.quote()"
        )
    return f"{name}: {value}"


def end_to_end(response: bytes) -> list[tuple[str, str]]:
    """Return the header fields of a 101 response without ``Upgrade`` and ``Connection``, which an
    application must not give a WSGI server (PEP 3333)."""
    lines = response.decode("latin-1").split("\r\n")[1:-2]
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return [field for field in fields if field[0] not in ("Upgrade", "Connection")]


def extended(response: bytes, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a 101 response with the header fields that middleware has added.

    Middleware treats all responses alike, so fields that a 101 cannot have are left out.

    :raises ValueError: if a header field cannot be sent.
    """
    lines = [_header_line(*field) for field in fields if field[0].lower() not in _NOT_ADDED]
    return response[:-2] + "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def is_host(text: str) -> bool:
    """Tell whether a text is a valid, single value of a Host header field (RFC 9112 §3.2)."""
    host = _HOST.fullmatch(text)
    return host is not None and int(host[1] or 0) < 65536


def is_mount_point(script_name: str) -> bool:
    """Tell whether a ``SCRIPT_NAME`` is a path, and not a URL that leads to another host."""
    return _MOUNT_POINT.fullmatch(script_name) is not None


def is_upgrade(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request asks for a WebSocket, even if the request is invalid."""
    upgrade = environ.get("HTTP_UPGRADE")
    return upgrade is not None and "websocket" in upgrade.lower()


def parse_upgrade(environ: Mapping[str, Any]) -> Upgrade:
    """Check a request for a WebSocket (§4.2.1).

    :param environ: WSGI environ of the request.
    :raises HandshakeError: if the request is invalid; with status, reason and remedy.
    """
    _check_request(environ)
    _check_upgrade(environ)
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    try:
        valid = len(b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise HandshakeError(400, "Sec-WebSocket-Key must be 16 bytes in base64, once")
    try:
        extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")
        if extensions:
            parse_extension(extensions)
        offered = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
        subprotocols = tuple(parse_subprotocol(offered)) if offered else ()
    except InvalidHeader as exc:
        raise HandshakeError(400, f"{exc.name} cannot be read (RFC 6455 §4.2.1)") from exc
    return Upgrade(key, subprotocols, extensions)


def _check_request(environ: Mapping[str, Any]) -> None:
    """Check the rules of HTTP itself (§4.2.1 items 1 and 2, RFC 9112 §3.2)."""
    if any(len(environ.get(field, "")) > _LONGEST for field in _LISTS):
        raise HandshakeError(
            431, f"a list in the header is longer than {_LONGEST} bytes, which no browser sends"
        )
    if environ.get("REQUEST_METHOD") != "GET":
        raise HandshakeError(405, "a WebSocket is asked for with GET", (("Allow", "GET"),))
    if environ.get("SERVER_PROTOCOL") in ("HTTP/1.0", "HTTP/0.9"):
        raise HandshakeError(
            400,
            "a WebSocket needs HTTP/1.1, but the request came as HTTP/1.0; "
            "behind nginx set: proxy_http_version 1.1;",
        )
    if not is_host(environ.get("HTTP_HOST", "")):
        raise HandshakeError(400, "expected exactly one Host header field, with a host in it")
    if environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise HandshakeError(400, "a request for a WebSocket has no body")


def _check_upgrade(environ: Mapping[str, Any]) -> None:
    """Check §4.2.1 items 3, 4 and 6. For an unsupported version, name the supported one (§4.4)."""
    try:
        connection = [option.lower() for option in parse_connection(environ["HTTP_CONNECTION"])]
    except (KeyError, InvalidHeader):
        connection = []
    if "upgrade" not in connection:
        raise HandshakeError(
            426,
            "expected the header field 'Connection: Upgrade'; a proxy in between may have removed "
            'it, nginx needs: proxy_set_header Connection "upgrade";',
            _UPGRADE,
        )
    if environ.get("HTTP_UPGRADE", "").strip(" \t").lower() != "websocket":
        raise HandshakeError(426, "expected the header field 'Upgrade: websocket'", _UPGRADE)
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if version != "13":
        raise HandshakeError(426, "expected Sec-WebSocket-Version 13 (RFC 6455), once", _VERSION)


def select_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """Return the first supported subprotocol that the client offers, None without one."""
    return next((name for name in supported if name in offered), None)


def named_subprotocol(application: object, path: str, offered: Sequence[str]) -> str | None:
    """Return the subprotocol that an application names by gevent-websocket's hook,
    ``app_protocol(path)``, if offered by the client; None otherwise.

    If the client offers nothing, the hook is not called. gevent-websocket also selects a name that
    is part of an offered one. This function does not, because the client would fail (§4.1).

    :raises TypeError: if the hook returns neither a string nor None.
    """
    hook = getattr(application, "app_protocol", None)
    if hook is None or not offered:
        return None
    name = hook(path)
    if name is not None and not isinstance(name, str):
        raise TypeError(
            f"app_protocol({path!r:.200}) returned {name!r:.200}; expected one subprotocol as str; "
            "of several the route chooses: @sockets.route(rule, subprotocols=[...])"
        )
    return name if name in offered else None
