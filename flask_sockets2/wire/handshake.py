"""The opening handshake, server side (RFC 6455 §4.2): a WSGI environ to an Upgrade, that to 101.

An :class:`Upgrade` is what the client asked for, checked; accepting it is a separate step, because
the application routes the request and asks who is there in between.
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

__all__ = ["Upgrade", "is_upgrade", "origin_allowed", "parse_upgrade", "select_subprotocol"]

_VERSION = (("Sec-WebSocket-Version", "13"),)
_UPGRADE = (("Upgrade", "websocket"), ("Connection", "Upgrade"), *_VERSION)

# Without context takeover of ours, one compressed message serves all clients, and a connection
# keeps no compressor. A small window is made quickly; the client's keeps its decompressor small.
_DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    server_max_window_bits=12,
    client_max_window_bits=12,
    compress_settings={"memLevel": 5},
)

_OURS = frozenset(
    f"sec-websocket-{name}" for name in ("accept", "extensions", "protocol", "version")
) | {"upgrade", "connection"}

# RFC 6454 §6.2: scheme, host and perhaps a port, and no more.
_ORIGIN = re.compile(r"(https?)://((?:\[[0-9a-f:.]+\]|[^\x00-\x20\x7f\[\]/?#@\\:]+)(?::[0-9]+)?)")

# A list of 60 KiB takes as long to be read as some hundred requests, and holds everybody up.
_LISTS = ("HTTP_CONNECTION", "HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_SEC_WEBSOCKET_PROTOCOL")
_LONGEST = 8192  # bytes, as nginx lets through

_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A valid request for a WebSocket.

    :param key: ``Sec-WebSocket-Key`` as it came.
    :param subprotocols: what the client offers, in its order of preference.
    :param extensions: the ``Sec-WebSocket-Extensions`` field as it came, possibly empty.
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
        :param compression: agree to permessage-deflate where the client offers it (RFC 7692).
        :param headers: further header fields, without line breaks.
        :raises ValueError: when a header field or the subprotocol cannot be sent.
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
    """Agree to the first offer of permessage-deflate that we can keep (RFC 7692 §5.1)."""
    for name, parameters in parse_extension(offers):
        if name != _DEFLATE.name:
            continue
        try:
            answer, extension = _DEFLATE.process_request_params(parameters, agreed)
        except (NegotiationError, ValueError):  # the latter of zlib, for a window of 8 bits
            continue
        agreed.append(extension)
        return build_extension([(name, answer)])
    return ""


def _header_line(name: str, value: str) -> str:
    if name.lower() in _OURS:
        raise ValueError(f"the header field {name!r} is the handshake's own")
    if not name or any(c in "\r\n\0: " for c in name) or any(c in "\r\n\0" for c in value):
        raise ValueError(
            f"the header field {name!r} cannot be sent: its name is empty or holds a space or "
            "colon, or one of both holds a line break"
        )
    return f"{name}: {value}"


def is_upgrade(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request asks for a WebSocket, however badly."""
    upgrade = environ.get("HTTP_UPGRADE")
    return upgrade is not None and "websocket" in upgrade.lower()


def parse_upgrade(environ: Mapping[str, Any]) -> Upgrade:
    """Check a request for a WebSocket (§4.2.1).

    :param environ: WSGI environ of the request.
    :raises HandshakeError: with the status, the reason and the remedy.
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
    """What HTTP itself asks of the request (§4.2.1 items 1 and 2, RFC 9112 §3.2)."""
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
    host = environ.get("HTTP_HOST", "")
    if not host or "," in host:
        raise HandshakeError(400, "expected exactly one Host header field")
    if environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise HandshakeError(400, "a request for a WebSocket has no body")


def _check_upgrade(environ: Mapping[str, Any]) -> None:
    """§4.2.1 items 3, 4 and 6; §4.4: a version that is not supported is told which one is."""
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


def origin_allowed(
    origin: str | None,
    host: str,
    allowed: Iterable[str] | None = None,
    *,
    secure: bool = False,
) -> bool:
    """Tell whether a page of this origin may open a WebSocket here (RFC 6455 §10.2).

    :param origin: the ``Origin`` header field, None where it is absent: no browser, so it passes.
    :param host: the ``Host`` header field, after ProxyFix.
    :param allowed: origins such as ``https://example.com``, ``https://*.example.com`` or ``*``;
        None for the same host and port only.
    :param secure: whether the request came by HTTPS; pages of plain HTTP are refused then. The
        other way round counts as the same: a proxy that ends TLS without telling is common.
    """
    if origin is None:
        return True
    if allowed is not None:
        return any(_origin_matches(origin.lower(), pattern.lower()) for pattern in allowed)
    # Not by urlsplit(), which overlooks control characters and a path.
    parts = _ORIGIN.fullmatch(origin.lower())
    if parts is None or (secure and parts[1] == "http"):
        return False
    return _netloc(parts[2], parts[1]) == _netloc(host, parts[1])


def _netloc(netloc: str, scheme: str) -> str:
    """Host and port, the port written out."""
    netloc = netloc.lower()
    has_port = ":" in netloc.rpartition("]")[2]
    return netloc if has_port else netloc + _PORTS[scheme]


def _origin_matches(origin: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    scheme = pattern.partition(":")[0]
    pattern = pattern.rstrip("/").removesuffix(_PORTS.get(scheme, "/"))
    if "://*." not in pattern:
        return origin == pattern
    domain = pattern.partition("://*.")[2]
    return origin.startswith(f"{scheme}://") and origin.endswith(f".{domain}")
