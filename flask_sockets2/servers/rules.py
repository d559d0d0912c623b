"""gunicorn's settings about requests, applied to our own parser.

gunicorn's own workers share a parser that obeys these settings. Our worker has its own parser, and
this module applies the settings to it; ``docs/servers.rst`` has the table. If a setting would break
the rules of HTTP, the worker refuses to start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from ..wire.handshake import is_mount_point
from .proxy_protocol import VERSIONS
from .request_head import RequestError

__all__ = ["RequestRules"]

Fields = list[tuple[str, str]]

_MAX_LINE = 8190  # bytes; gunicorn's own maximum, too
_MAX_FIELDS = 32768
_USUAL_FIELD_SIZE = 8190  # gunicorn uses this value if the setting is 0

_UNUSUAL_IN_METHOD = re.compile("[a-z#]")

_READS_HTTP = "this worker reads HTTP/1.1 only: let the proxy in front speak HTTP/1.1 to it"
_SMUGGLING = "two servers in a row could read one request in two ways: correct the client instead"

_REFUSED = {
    "protocol": ("http", _READS_HTTP),
    "http_protocols": (["h1"], _READS_HTTP),
    "http2_cleartext": ("off", _READS_HTTP),
    "permit_obsolete_folding": (False, _SMUGGLING),
    "permit_unconventional_http_version": (False, _SMUGGLING),
    "strip_header_spaces": (False, _SMUGGLING),
}
"""Settings that must keep their default: the default, and the reason."""


class RequestRules:
    """Rules for requests, from gunicorn's configuration.

    :param cfg: gunicorn's ``Config``.
    :raises ValueError: if the worker does not support a setting; the message names the setting.
    """

    def __init__(self, cfg: Any) -> None:
        for name, (only, reason) in _REFUSED.items():
            value = getattr(cfg, name, only)  # older versions of gunicorn lack some settings
            if value != only:
                raise ValueError(
                    f"the setting {name} is {value!r}, which flask_sockets2.worker does not "
                    f"support: {reason}, or use gunicorn -k gevent"
                )
        self.max_request_line = min(cfg.limit_request_line or _MAX_LINE, _MAX_LINE)
        self.max_header_fields = min(cfg.limit_request_fields or _MAX_FIELDS, _MAX_FIELDS)
        self.max_header_size: int = cfg.limit_request_field_size or _USUAL_FIELD_SIZE
        self._forwarders = _Addresses(cfg.forwarded_allow_ips)
        self._proxies = _Addresses(cfg.proxy_allow_ips)
        #: Accepted versions of the PROXY protocol.
        self.proxy_versions = VERSIONS[cfg.proxy_protocol]
        self.usual_scheme = "https" if cfg.is_ssl else "http"
        self.keeps_alive = bool(cfg.keepalive)
        self._secure: dict[str, str] = cfg.secure_scheme_headers
        self._forwarded = frozenset(cfg.forwarder_headers)
        self._header_map = cfg.header_map
        self._any_method = cfg.permit_unconventional_http_method
        self._casefold = cfg.casefold_http_method
        self._script_name = ""

    def trusts(self, peer: Any) -> bool:
        """Return whether the peer is a trusted proxy (``forwarded_allow_ips``)."""
        return peer in self._forwarders

    def may_speak_proxy_protocol(self, peer: Any) -> bool:
        """Return whether this peer may send the PROXY protocol (``proxy_allow_ips``)."""
        return peer in self._proxies

    def method(self, method: str) -> str:
        """Return the method for the environ.

        :raises RequestError: if the method is unusual (``permit_unconventional_http_method``).
        """
        unusual = _UNUSUAL_IN_METHOD.search(method) or not 3 <= len(method) <= 20
        if unusual and not self._any_method:
            raise RequestError(
                "the method has lower case letters, a number sign, or not 3 to 20 characters "
                "(permit_unconventional_http_method)"
            )
        return method.upper() if self._casefold else method

    def admit(self, fields: Fields, *, trusted: bool) -> Fields:
        """Return the header fields for the environ (``header_map``).

        :param trusted: True if the peer may send ``forwarder_headers``.
        :raises RequestError: if ``header_map`` refuses a name with an underscore.
        """
        return [field for field in fields if "_" not in field[0] or self._maps(field[0], trusted)]

    def _maps(self, name: str, trusted: bool) -> bool:
        """Return whether a header field with an underscore in its name gets into the environ."""
        name = name.upper()
        if trusted and ("*" in self._forwarded or name in self._forwarded):
            return True
        if self._header_map == "dangerous":
            return name != "SCRIPT_NAME"  # else any client could choose the prefix of all URLs
        if self._header_map == "drop":
            return False
        raise RequestError(
            f"the name of the header field {name:.80} has an underscore (header_map)"
        )

    def scheme(self, fields: Fields) -> str:
        """Return the scheme from a trusted proxy's header fields (``secure_scheme_headers``).

        :raises RequestError: if two header fields contradict each other.
        """
        found = ""
        for name, value in fields:
            secure = self._secure.get(name.upper())
            if secure is None:
                continue
            # Some proxies, such as Traefik, send the scheme of a WebSocket.
            is_secure = value == secure or (secure == "https" and value == "wss")
            scheme = "https" if is_secure else "http"
            if found not in ("", scheme):
                raise RequestError(
                    "two header fields disagree on whether the client came over https "
                    "(secure_scheme_headers)"
                )
            found = scheme
        return found or self.usual_scheme

    def read_environment(self) -> None:
        """Read the environment variable ``SCRIPT_NAME``.

        Call this method after the application was loaded, which may set the variable.

        :raises ValueError: if the variable is not a path.
        """
        self._script_name = os.environ.get("SCRIPT_NAME", "")
        if not is_mount_point(self._script_name):
            raise ValueError(
                "the environment variable SCRIPT_NAME must be a path such as /app, "
                f"got {self._script_name!r}"
            )

    def split(self, fields: Fields, path: str) -> tuple[str, str]:
        """Split a path into the application's mount point (``SCRIPT_NAME``) and the rest.

        A trusted proxy's header field ``SCRIPT_NAME`` counts. If the field is missing, the
        environment variable counts.

        :param fields: the admitted header fields.
        :param path: the path of the request, not unquoted.
        :raises RequestError: if ``SCRIPT_NAME`` is no path, or no prefix of the request's path.
        """
        named = [v for name, v in fields if name[6:7] == "_" and name.upper() == "SCRIPT_NAME"]
        if not named and not self._script_name:
            return "", path
        script_name = named[0] if named else self._script_name
        if len(set(named)) > 1 or not is_mount_point(script_name):
            raise RequestError("SCRIPT_NAME is not one path")
        script_name = script_name.rstrip("/")
        if not script_name:  # then the target may be "*"
            return "", path
        rest = path[len(script_name) :]
        if not path.startswith(script_name) or rest[:1] not in ("", "/"):
            raise RequestError(
                f"the path does not begin with SCRIPT_NAME, {script_name}; let the proxy pass "
                "the whole path, with this prefix",
                500,
            )
        return script_name, rest


class _Addresses:
    """Set of addresses and networks. As with gunicorn, every peer on a Unix socket is a member.

    :param allowed: addresses, networks, or ``*`` for all.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = "*" in allowed
        self._networks = [ip_network(entry) for entry in allowed if entry != "*"]

    def __contains__(self, peer: object) -> bool:
        if self._any or not isinstance(peer, tuple):
            return True
        try:
            address = ip_address(peer[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)
