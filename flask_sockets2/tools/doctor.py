"""``flask sockets doctor``: open a WebSocket as a browser does, and name the hop that fails.

The steps are name, TCP, TLS, handshake, ping, a second connection, close. The doctor speaks HTTP
on a plain socket, since the answer of a proxy is often no WebSocket, and leaves frames to the
Sans-I/O protocol of websockets.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from time import monotonic
from urllib.parse import urljoin

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol
from websockets.uri import WebSocketURI

from .findings import ANSWERS, CERTIFICATE_ERRORS, Finding, closing, proxy_remedy

__all__ = ["Case", "examine"]

_LARGEST_HEAD = 65536  # bytes
_LARGEST_BODY = 65536
_LARGEST_MESSAGE = 2**24
_BODY_TIME = 1.0  # seconds for the body of a refusal, of which a few words are enough

Report = Callable[[str, str], None]
"""Reports a step that succeeded; arguments are the name of the step and details."""


@dataclass(frozen=True, slots=True)
class Case:
    """The WebSocket to examine.

    :param origin: origin of the page; empty for none, None for the URL's own origin.
    :param headers: further header fields of the request.
    :param timeout: seconds for each step.
    :param insecure: do not check the certificate.
    """

    uri: WebSocketURI
    origin: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0
    insecure: bool = False

    def own_origin(self) -> str:
        """The origin of a page at the same address."""
        scheme, usual = ("https", 443) if self.uri.secure else ("http", 80)
        port = "" if self.uri.port == usual else f":{self.uri.port}"
        return f"{scheme}://{self._host()}{port}"

    def address(self, *, secure: bool) -> str:
        """The same URL with or without TLS."""
        port = "" if self.uri.port in (80, 443) else f":{self.uri.port}"
        return f"ws{'s' if secure else ''}://{self._host()}{port}{self.uri.resource_name}"

    def facts(self) -> dict[str, object]:
        """Return the values that the texts of a finding may name."""
        return {
            "host": self.uri.host,
            "port": self.uri.port,
            "timeout": self.timeout,
            "origin": self.own_origin() if self.origin is None else self.origin,
            "plain": self.address(secure=False),
            "secure": self.address(secure=True),
        }

    def _host(self) -> str:
        return f"[{self.uri.host}]" if ":" in self.uri.host else self.uri.host


def examine(case: Case, report: Report) -> None:
    """Examine one hop after the other.

    :raises Finding: at the first hop that does not work.
    """
    with _connected(case, report) as wire:
        frames, answer = _handshake(case, wire)
        sender = f" from {printable(answer.sender)}" if answer.sender else ""
        report("handshake", f"101 {printable(answer.reason)}{sender}")
        extensions = ", ".join(answer.headers.get_all("Sec-WebSocket-Extensions"))
        report("subprotocol", frames.subprotocol or "none")
        report("extensions", printable(extensions) or "none")
        report("ping", f"answered in {_ping(frames, wire, answer) * 1000:.1f} ms")
        _open_second(case, report)
        report("close", _close(frames, wire))


def _open_second(case: Case, report: Report) -> None:
    """Check whether the server serves a second connection beside the first."""
    try:
        with _connected(case, _say_nothing) as wire:
            frames, _ = _handshake(case, wire)
            frames.send_close(1000)
            wire.send(b"".join(frames.data_to_send()))
    except Finding as exc:
        if exc.key == "silent":
            raise Finding("one at a time") from exc
        report("second connection", f"not accepted: {exc.explain(**case.facts())[0]}")
        return
    except OSError:
        pass  # the server has answered, and only that is checked
    report("second connection", "answered beside the first")


def _say_nothing(step: str, text: str) -> None:
    """Report nothing: the steps to the second connection are those to the first."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The head of an HTTP response, and the words of its body if it is no 101."""

    status: int
    reason: str
    headers: Headers
    text: str
    rest: bytes

    @property
    def sender(self) -> str:
        """The name of the server or nearest proxy, from ``Server`` and ``Via``; may be empty."""
        return ", ".join(self.headers.get_all("Server") + self.headers.get_all("Via"))

    @property
    def location(self) -> str:
        """The target of a redirect; empty if there is none."""
        return "".join(self.headers.get_all("Location")[:1])

    def __str__(self) -> str:
        sender = f" from {self.sender}" if self.sender else ""
        text = f': "{self.text[:200]}"' if self.text else ""
        return printable(f"{self.status} {self.reason}{sender}{text}")


# -- the wire ------------------------------------------------------------------------------


class _Wire:
    """A connected socket whose every read and write has a deadline."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self.timeout = timeout

    def deadline(self) -> float:
        return monotonic() + self.timeout

    def send(self, data: bytes) -> None:
        self._sock.settimeout(self.timeout)
        self._sock.sendall(data)

    def receive(self, deadline: float) -> bytes:
        """Return the next bytes, none at the end of the stream.

        :raises TimeoutError: if no bytes came before the deadline.
        """
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock.recv(65536)


@contextmanager
def _connected(case: Case, report: Report) -> Iterator[_Wire]:
    """Resolve the name, connect, and do the TLS handshake."""
    with _tcp(case, report) as plain:
        if not case.uri.secure:
            yield _Wire(plain, case.timeout)
            return
        with _tls(case, plain) as sock:
            checked = "not checked" if case.insecure else "in order"
            report("TLS", f"{sock.version()}, certificate {checked}")
            yield _Wire(sock, case.timeout)


def _tcp(case: Case, report: Report) -> socket.socket:
    host, port = case.uri.host, case.uri.port
    try:
        sock = socket.create_connection((host, port), timeout=case.timeout)
    except (socket.gaierror, UnicodeError) as exc:
        raise Finding("no name", error=getattr(exc, "strerror", exc)) from exc
    except ConnectionRefusedError as exc:
        raise Finding("refused") from exc
    except OSError as exc:
        raise Finding("unreachable", error=exc.strerror or exc) from exc
    report("TCP", f"connected to {sock.getpeername()[0]} port {port}")
    return sock


def _tls(case: Case, plain: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # as browsers for a WebSocket: no HTTP/2
    if case.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(plain, server_hostname=case.uri.host)
    except ssl.SSLCertVerificationError as exc:
        key = CERTIFICATE_ERRORS.get(exc.verify_code, "certificate")
        raise Finding(key, error=exc.verify_message.rstrip(".")) from exc
    except ssl.SSLError as exc:
        reasons = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
        key = "tls on a plain port" if exc.reason in reasons else "tls"
        raise Finding(key, error=exc.reason or exc) from exc
    except OSError as exc:
        raise Finding("tls", error=exc.strerror or exc) from exc


# -- the handshake -------------------------------------------------------------------------


def _handshake(case: Case, wire: _Wire) -> tuple[ClientProtocol, _Answer]:
    """Send the handshake and check the answer; return the negotiated protocol and the answer."""
    origin = case.own_origin() if case.origin is None else case.origin
    opening = ClientProtocol(
        case.uri,
        origin=Origin(origin) if origin else None,
        extensions=[ClientPerMessageDeflateFactory()],
    )
    request = opening.connect()
    for name, _ in case.headers:
        request.headers.pop(name, None)
    for name, value in case.headers:
        request.headers[name] = value
    opening.key = "".join(request.headers.get_all("Sec-WebSocket-Key"))
    offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
    subprotocols = [Subprotocol(name.strip()) for name in offered.split(",") if name.strip()]
    opening.available_subprotocols = subprotocols or None
    answer = _ask(wire, request.serialize())
    if answer.status != 101:
        raise _refusal(case, answer)
    _check(opening, answer)
    frames = ClientProtocol(case.uri, state=State.OPEN, max_size=_LARGEST_MESSAGE)
    frames.extensions, frames.subprotocol = opening.extensions, opening.subprotocol
    return frames, answer


def _ask(wire: _Wire, request: bytes) -> _Answer:
    try:
        wire.send(request)
        return _read_answer(wire)
    except TimeoutError as exc:
        raise Finding("silent") from exc
    except OSError as exc:
        raise Finding("dropped", error=exc.strerror or exc) from exc


def _read_answer(wire: _Wire) -> _Answer:
    """Read a response, and the part of its body that comes soon."""
    deadline = wire.deadline()
    head, rest = _read_head(wire, deadline, b"")
    while head.split(b" ", 2)[1].startswith(b"1") and head.split()[1] != b"101":
        head, rest = _read_head(wire, deadline, rest)  # an early hint
    status_line, *lines = head.decode("latin-1").split("\r\n")
    _, status, reason = f"{status_line} ".split(" ", 2)
    headers = _headers(lines)
    if status == "101":
        return _Answer(101, reason.strip(), headers, "", rest)
    return _Answer(int(status), reason.strip(), headers, _read_text(wire, headers, rest), b"")


def _headers(lines: list[str]) -> Headers:
    """Return the header fields, leaving out lines that are none."""
    fields = [line.partition(":") for line in lines]
    return Headers(
        [
            (name, printable(value).strip())
            for name, _, value in fields
            if re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII)
        ]
    )


def _read_head(wire: _Wire, deadline: float, data: bytes) -> tuple[bytes, bytes]:
    """Return the head of a response without its blank line, and the bytes behind it."""
    while b"\r\n\r\n" not in data:
        chunk = wire.receive(deadline)
        data += chunk
        if data[:2] == b"\x15\x03":  # a TLS alert
            raise Finding("needs tls")
        if not data:
            raise Finding("dropped", error="end of file")
        if not chunk or len(data) > _LARGEST_HEAD or not b"HTTP/1.".startswith(data[:7]):
            raise Finding("not http", start=repr(data[:20]))
    head, _, rest = data.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.\d \d{3}( |\r|$)", head):
        raise Finding("not http", start=repr(data[:20]))
    return head, rest


def _read_text(wire: _Wire, headers: Headers, body: bytes) -> str:
    """Return the words of a response's body, or of its beginning if the end does not come."""
    length = "".join(headers.get_all("Content-Length")[:1])
    most = min(int(length), _LARGEST_BODY) if re.fullmatch("[0-9]{1,9}", length) else _LARGEST_BODY
    deadline = monotonic() + min(_BODY_TIME, wire.timeout)
    try:
        while len(body) < most and not body.endswith(b"\r\n0\r\n\r\n"):
            chunk = wire.receive(deadline)
            if not chunk:
                break
            body += chunk
    except OSError:
        pass  # the head is enough
    return _words(body.decode(errors="replace"))


def _words(html: str) -> str:
    html = re.sub(r"(?is)<(title|style|script)\b.*?</\1>", " ", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def _refusal(case: Case, answer: _Answer) -> Finding:
    """Return the finding for an answer other than 101."""
    key = next(
        key
        for status, words, key in ANSWERS
        if re.fullmatch(status, str(answer.status)) and re.search(words, answer.text)
    )
    if key == "origin":
        own = case.origin in (None, case.own_origin())
        key = "own origin" if own else "other origin"
    if key == "redirect":
        return _redirect(case, answer)
    return Finding(key, answer=answer, proxy=proxy_remedy(answer.sender))


def _redirect(case: Case, answer: _Answer) -> Finding:
    here = case.own_origin() + case.uri.resource_name
    try:
        location = urljoin(here, answer.location)
    except ValueError:  # no address at all
        location = answer.location
    target = "ws" + location.removeprefix("http")
    return Finding("redirect", answer=answer, location=location, target=target)


def _check(opening: ClientProtocol, answer: _Answer) -> None:
    """Check a 101 response (RFC 6455 §4.1)."""
    try:
        opening.process_response(Response(answer.status, answer.reason, answer.headers))
    except NegotiationError as exc:
        raise Finding("not negotiated", error=printable(str(exc))) from exc
    except InvalidHeader as exc:
        if exc.name in ("Upgrade", "Connection"):
            raise Finding("no upgrade", name=exc.name, proxy=proxy_remedy(answer.sender)) from exc
        if exc.name == "Sec-WebSocket-Accept":
            raise Finding("wrong accept") from exc
        raise Finding("not negotiated", error=printable(str(exc))) from exc


# -- frames --------------------------------------------------------------------------------


def _ping(frames: ClientProtocol, wire: _Wire, answer: _Answer) -> float:
    """Send a ping and return the seconds until its pong."""
    payload = os.urandom(4)
    frames.receive_data(answer.rest)
    start = monotonic()
    try:
        frames.send_ping(payload)
        for frame in _exchange(frames, wire):
            if frame.opcode is Opcode.PONG and frame.data == payload:
                return monotonic() - start
    except TimeoutError as exc:
        raise Finding("no pong", proxy=proxy_remedy(answer.sender)) from exc
    except OSError:
        pass
    raise _ended(frames)


def _exchange(frames: ClientProtocol, wire: _Wire) -> Iterator[Frame]:
    """Send pending bytes and yield the frames that come, until the stream ends."""
    deadline = wire.deadline()
    while True:
        for data in frames.data_to_send():
            if data:
                wire.send(data)
        for event in frames.events_received():
            assert isinstance(event, Frame)
            yield event
        if frames.close_rcvd is not None or frames.parser_exc is not None:
            return
        data = wire.receive(deadline)
        if not data:
            frames.receive_eof()
            return
        frames.receive_data(data)


def _ended(frames: ClientProtocol) -> Finding:
    """Return the finding for the end of the server's frames."""
    error, received = frames.parser_exc, frames.close_rcvd
    if received is not None:
        meaning, advice = closing(received.code)
        reason = f" ({printable(received.reason)})" if received.reason else ""
        code = f"{received.code}{reason}"
        return Finding("closed at once", code=code, meaning=meaning, advice=advice)
    if error is None or isinstance(error, EOFError):
        return Finding("cut off")
    return Finding("no frames", error=printable(str(error)))


def _close(frames: ClientProtocol, wire: _Wire) -> str:
    """Do the closing handshake and return its outcome in words."""
    try:
        if frames.state is State.OPEN:
            frames.send_close(1000)
        for _ in _exchange(frames, wire):
            pass
    except OSError:
        pass
    received = frames.close_rcvd
    if received is None:
        return "the server did not answer the close frame"
    if frames.close_rcvd_then_sent or received.code not in (1000, 1005):
        raise _ended(frames)
    return f"closed with {received.code}"


# -- words ---------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return text from the network without characters that control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
