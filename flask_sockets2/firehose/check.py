"""``flask firehose check``: sends one request over TCP, and times the responses.

The check writes the request itself, since Python's HTTP clients mistake a 103 for the final
response. The request uses HTTP/1.1; proxies treat a 103 in the same way for browsers with HTTP/2.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult

from .probe import HEADER, PAUSE

__all__ = ["CheckResult", "check", "speaks_http2"]

_MAX_HEAD = 65536  # bytes


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    :param status: exit status of the command: 0 if a 103 passes, 1 if not, 2 if unknown.
    """

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    fields: dict[str, str]
    at: float


PASSES = CheckResult(0, "the hops pass a response 103 at once")
_SWALLOWED = CheckResult(
    1,
    "a hop swallows the response 103: harmless, and useless. nginx from 1.29 on passes it with "
    "early_hints, older ones cannot; HAProxy and Caddy pass it",
)
_HELD = CheckResult(
    1,
    "a hop holds the response 103 back and takes it for the answer, as nginx before 1.29 does: "
    "pages would break. Leave FIREHOSE_EARLY_HINTS as it is, and use firehose.flush()",
)
_BROKEN = CheckResult(
    1,
    "a hop fails over a response 103: {reason}. Leave FIREHOSE_EARLY_HINTS as it is, and use "
    "firehose.flush()",
)
_NO_SERVER = CheckResult(
    1,
    "the server cannot send a response 103: it has no wsgi.early_hints. "
    "gunicorn -k flask_sockets2.worker has, and gunicorn's own workers from version 25 on",
)
_HTTP_1_0 = CheckResult(
    1,
    "the hop in front of the application speaks HTTP/1.0, which has no response 103. "
    "In nginx: proxy_http_version 1.1",
)
_ELSEWHERE = CheckResult(
    2,
    "the answer, of status {status}, is not that of an application with Firehose and this "
    "SECRET_KEY whose clock goes right: name an address that it serves without a login or a cache. "
    "A SECRET_KEY that each process makes for itself, as by os.urandom(), is never the same",
)
_UNREACHABLE = CheckResult(2, "cannot reach {host}: {reason}")


def check(url: SplitResult, token: str, timeout: float, insecure: bool = False) -> CheckResult:
    """Send one request, and return whether its response 103 arrived.

    :param timeout: seconds for the whole check.
    :param insecure: whether to accept any certificate.
    """
    end = time.monotonic() + timeout
    try:
        sock = _connected(url, timeout, insecure, ["http/1.1"])
    except (OSError, ValueError) as exc:  # ValueError: a host that cannot be one
        return _filled(_UNREACHABLE, host=url.hostname, reason=exc)
    with sock:
        heads: list[_Head] = []
        try:
            sock.sendall(_request(url, token))
            _read(sock, end, heads.append)
        except (OSError, ValueError) as exc:
            if heads or time.monotonic() >= end:
                return _filled(_BROKEN, reason=exc)
            return _filled(_UNREACHABLE, host=url.hostname, reason=exc)
    return _finding(heads)


def speaks_http2(url: SplitResult, timeout: float, insecure: bool = False) -> bool:
    """Whether the URL offers HTTP/2, without which Chromium ignores a response 103."""
    if url.scheme != "https":
        return False
    try:
        with _connected(url, timeout, insecure, ["h2", "http/1.1"]) as sock:
            return isinstance(sock, ssl.SSLSocket) and sock.selected_alpn_protocol() == "h2"
    except (OSError, ValueError):
        return False


def _finding(heads: list[_Head]) -> CheckResult:
    *before, final = heads
    said = final.fields.get(HEADER.lower())
    if said is None:
        if final.status >= 500:
            return _filled(_BROKEN, reason=f"it answers {final.status}")
        return _filled(_ELSEWHERE, status=final.status)
    if said == "http/1.0":
        return _HTTP_1_0
    if said == "none":
        return _NO_SERVER
    hint = next((head for head in before if head.status == 103), None)
    if hint is None:
        return _SWALLOWED
    return PASSES if final.at - hint.at > PAUSE / 2 else _HELD


def _connected(
    url: SplitResult, timeout: float, insecure: bool, protocols: list[str]
) -> socket.socket:
    secure = url.scheme == "https"
    host = url.hostname or ""
    sock = socket.create_connection((host, url.port or (443 if secure else 80)), timeout)
    if not secure:
        return sock
    context = ssl.create_default_context()
    context.set_alpn_protocols(protocols)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _request(url: SplitResult, token: str) -> bytes:
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    host = url.netloc.rpartition("@")[2]
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        f"{HEADER}: {token}",
        "Accept: text/html",
        "Sec-Fetch-Mode: navigate",
        "User-Agent: flask-firehose-check",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def _read(sock: socket.socket, end: float, found: Callable[[_Head], None]) -> None:
    """Read the heads of responses up to the final one.

    :raises OSError: if no final response arrives in time.
    :raises ValueError: if the server's data is not an HTTP response.
    """
    data = b""
    while True:
        while b"\r\n\r\n" in data:
            text, _, data = data.partition(b"\r\n\r\n")
            head = _parsed(text)
            found(head)
            if head.status >= 200 or head.status == 101:
                return
        if len(data) > _MAX_HEAD:
            raise ValueError("the head of the answer has no end")
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer came in time")
        sock.settimeout(left)
        received = sock.recv(16384)
        if not received:
            raise ConnectionError("the connection ended without an answer")
        data += received


def _parsed(text: bytes) -> _Head:
    first, *lines = text.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("the answer is no HTTP")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    return _Head(int(rest[:3]), fields, time.monotonic())


def _filled(finding: CheckResult, **facts: object) -> CheckResult:
    return CheckResult(finding.status, finding.text.format(**facts))
