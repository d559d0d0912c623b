"""The targets: what must hold, whatever comes.

Each takes the texts of one seed. They may be refused with the error that is documented. What is not
refused arrives as it was given, the reference reads it alike, and it breaks out of nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from typing import Any, TypeVar

import pytest
from flask import Flask
from websockets import http11
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader
from websockets.uri import parse_uri

from flask_sockets2.application.event_stream import event
from flask_sockets2.application.signing import Forged
from flask_sockets2.exceptions import HandshakeError
from flask_sockets2.firehose import link
from flask_sockets2.firehose.links import joined, parse
from flask_sockets2.servers.request_head import Headers as RequestHeaders
from flask_sockets2.sse import Message
from flask_sockets2.turbo.markup import key_of, stream_tag, with_sender
from flask_sockets2.turbo.stream_names import StreamSigner, parts_of_channel, stream_channel
from flask_sockets2.wire.handshake import (
    Upgrade,
    parse_upgrade,
    select_subprotocol,
)
from flask_sockets2.wire.origins import parse_origins, same_origin
from flask_sockets2.wire.protocol import Protocol
from tests.fuzz.event_stream import Dispatched, dispatched
from tests.wire.test_differential import OFFERS, Raw, Run, check, negotiated

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """:param narrow: its characters stand for bytes."""

    holds: Callable[..., None]
    narrow: bool


TARGETS: dict[str, Target] = {}


def target(*, narrow: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def named(function: Callable[..., None]) -> Callable[..., None]:
        TARGETS[function.__name__] = Target(function, narrow)
        return function

    return named


# -- the wire ------------------------------------------------------------------------------


@target(narrow=True)
def frames(limit: str, offer: str, stream: str) -> None:
    """websockets reads the same, whatever the stream and however it is cut."""
    known = offer if offer in OFFERS else None
    most = int(limit) if limit in ("20", "125", "1000") else 1000
    pieces: list[Any] = [Raw(stream.encode("latin-1"))]
    whole = check(Run(most, known, pieces, [], 0))
    assert check(Run(most, known, pieces, None, 0)) == whole  # byte by byte


@target(narrow=False)
def messages(offer: str, text: str) -> None:
    """What we send, websockets' client receives."""
    payload = text.encode("utf-8", "surrogatepass")
    client_extension, server_extension = negotiated(offer if offer in OFFERS else None)
    server = Protocol(
        max_message_size=1000, extensions=[server_extension] if server_extension else []
    )
    client = ClientProtocol(parse_uri("ws://a"), state=State.OPEN)
    client.extensions = [client_extension] if client_extension else []
    sent: list[bytes] = []
    for message in (payload, text):
        try:
            client.receive_data(server.send(message))
        except UnicodeEncodeError:
            assert re.search("[\ud800-\udfff]", text)
            continue
        sent.append(payload)
    got = [bytes(each.data) for each in client.events_received() if isinstance(each, Frame)]
    assert got == sent
    assert client.parser_exc is None


# -- the event stream ----------------------------------------------------------------------

BEFORE, AFTER = b"event:before\ndata:1\nid:7\n\n", b"data:2\n\n"


def lines(text: str) -> str:
    """Text as it arrives in an event: with LF between its lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@target(narrow=False)
def events(data: str, type: str, id: str, retry: str) -> None:
    """A browser dispatches what was published: that one event, between its neighbours."""
    try:
        message = Message(data, type=type, id=id, retry=retry)
        made = str(message).encode()
    except ValueError:
        assert (
            re.search("[\r\n\0]", type + id)
            or re.search("[\ud800-\udfff]", data + type + id)
            or (retry and not re.fullmatch("[0-9]+", retry))
        )
        return
    found, again = dispatched(BEFORE + made + AFTER)
    assert found == [
        Dispatched("before", "1", "7"),
        Dispatched(type or "message", lines(data), id or "7"),
        Dispatched("message", "2", id or "7"),
    ]
    assert again == (int(retry) if retry else None)


@target(narrow=False)
def envelopes(data: str) -> None:
    """Whatever somebody else published as JSON is data of one event."""
    data = data.encode("utf-8", "replace").decode()
    found, retry = dispatched(BEFORE + event(data.encode()) + AFTER)
    assert [each.data for each in found] == ["1", lines(data), "2"]
    assert [each.last_id for each in found] == ["7"] * 3
    assert [each.type for each in found] == ["before", "message", "message"]
    assert retry is None


# -- the handshake -------------------------------------------------------------------------


CONTROL = "[\x00-\x08\x0a-\x1f\x7f]"


def run(steps: Generator[None, None, T]) -> T:
    """Run one of websockets' parsers over what is all there."""
    try:
        next(steps)
    except StopIteration as stop:
        found: T = stop.value
        return found
    raise EOFError


@target(narrow=True)
def heads(head: str) -> None:
    """What our server takes for header fields, websockets reads alike, up to the same byte."""
    stream = BytesIO(head.encode("latin-1"))
    try:
        fields = RequestHeaders(stream).fields
    except ValueError:
        return
    taken = head.encode("latin-1")[: stream.tell()]
    for name, value in fields:
        assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert not re.search(CONTROL, value)
        assert value == value.strip(" \t")
    reader = StreamReader()
    reader.feed_data(re.sub(b"\r?\n", b"\r\n", taken))
    reader.feed_eof()
    if len(fields) <= http11.MAX_NUM_HEADERS:
        assert [*run(http11.parse_headers(reader.read_line)).raw_items()] == fields
    names = [name.lower() for name, _ in fields]
    assert names.count("content-length") + names.count("transfer-encoding") <= 1


@target(narrow=True)
def handshakes(
    key: str,
    connection: str,
    upgrade: str,
    version: str,
    subprotocols: str,
    extensions: str,
) -> None:
    """What we accept, websockets accepts; and the 101 has the fields that it is to have."""
    asked = {
        "Connection": connection,
        "Upgrade": upgrade,
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": version,
        "Sec-WebSocket-Protocol": subprotocols,
        "Sec-WebSocket-Extensions": extensions,
    }
    if re.search(CONTROL, "".join(asked.values())):
        return  # no server lets it through, see heads
    given = {field: text.strip(" \t") for field, text in asked.items() if text.strip(" \t")}
    environ = {f"HTTP_{field.upper().replace('-', '_')}": text for field, text in given.items()}
    environ |= {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "a"}
    try:
        ours = parse_upgrade(environ)
    except HandshakeError:
        return
    accept, _, _ = ServerProtocol().process_request(http11.Request("/", Headers(given)))
    chosen = select_subprotocol(ours.subprotocols, ["superchat", *ours.subprotocols])
    expected = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept),
    ]
    head, agreed = ours.response(subprotocol=chosen, compression=True)
    read = fields_of(head)
    if agreed:
        assert read[3][0] == "Sec-WebSocket-Extensions"
        del read[3]
    expected += [("Sec-WebSocket-Protocol", chosen)] if chosen else []
    assert read == expected


@target(narrow=False)
def fields(name: str, value: str) -> None:
    """A header field that the application adds to the 101 is one field, or an error."""
    ours = Upgrade("dGhlIHNhbXBsZSBub25jZQ==", (), "")
    plain = fields_of(ours.response()[0])
    try:
        head, _ = ours.response(headers=[(name, value)])
    except ValueError:
        return
    assert head.count(b"\r\n") == len(plain) + 3
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
    assert fields_of(head) == [*plain, (name, value)]


def fields_of(head: bytes) -> list[tuple[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    assert first == "HTTP/1.1 101 Switching Protocols"
    assert rest[-2:] == ["", ""]
    fields = [line.partition(": ") for line in rest[:-2]]
    return [(name, value) for name, _, value in fields]


@target(narrow=True)
def origins(origin: str, host: str) -> None:
    """No page of another host may connect, whatever it calls itself."""
    for secure in (False, True):
        if same_origin(origin, host, secure=secure):
            scheme, _, authority = origin.lower().partition("://")
            port = {"http": "80", "ws": "80", "https": "443", "wss": "443"}[scheme]
            assert not (secure and port == "80")
            if origin.isascii() and host.isascii():
                assert with_port(authority, port) == with_port(host.lower(), port)
    if re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]+)?", origin):  # as browsers write one
        name = re.split(":[0-9]|$", origin.partition("://")[2])[0]
        if parse_origins(("https://*.example.com",)).include(origin):
            assert name.endswith(".example.com")
        assert parse_origins(("https://example.com",)).include(origin) == bool(
            re.fullmatch("https://example.com(:0{0,2}443)?", origin)
        )


@target(narrow=False)
def origin_lists(entry: str, origin: str) -> None:
    """An entry is refused, or allows no page but those of its scheme and host."""
    try:
        allowed = parse_origins((entry,))
    except ValueError:
        return
    assert allowed.same == (entry.lower() == "same-origin")
    if allowed.every:
        assert entry == "*"
    elif entry.isascii() and "*" not in entry and allowed.include(origin):
        said, asked = (text.lower().replace("ws", "http", 1) for text in (entry, origin))
        assert said.rstrip("/").partition(":")[0] == asked.partition(":")[0]
        assert host_of(said) == host_of(asked)


def with_port(authority: str, port: str) -> tuple[str, int]:
    """Split an authority; without a port it has the usual one."""
    found = re.fullmatch(r"(.*?)(?::([0-9]+))?", authority, re.DOTALL)
    assert found is not None
    return found[1], int(found[2] or port)


def host_of(origin: str) -> str:
    return with_port(origin.partition("://")[2].rstrip("/"), "0")[0]


# -- markup and names ----------------------------------------------------------------------


class Elements(HTMLParser):
    """The elements, attributes and texts of some markup."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.others: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes)
        self.starts.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        self.others.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.others.append(data)

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    handle_decl = unknown_decl = handle_pi = handle_comment


OWN = ("action", "target", "targets", "data-sender", "content")


@target(narrow=False)
def markup(action: str, id: str, name: str, value: str, sender: str) -> None:
    """An attribute holds what it was given; a stream is one element, whoever sends it."""
    attributes: dict[str, Any] = {} if name.replace("_", "-").lower() in OWN else {name: value}
    try:
        made = stream_tag(action, None, target=id, **attributes)
    except ValueError:
        assert not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.:-]*", name.replace("_", "-"))
        return
    expected = {"action": action, "target": id}
    expected |= {key.replace("_", "-").lower(): text for key, text in attributes.items()}
    found = Elements(made)
    assert found.starts == [("turbo-stream", expected)]
    assert found.others == ["/turbo-stream"]
    marked = Elements(with_sender(made, sender))
    assert marked.starts == [("turbo-stream", {"data-sender": sender, **expected})]
    assert marked.others == ["/turbo-stream"]
    if action in ("replace", "update") and len(id) < 240:
        assert key_of(made) == f"{action} {id}"


SIGNING = Flask(__name__)
SIGNING.secret_key = "for the tests"
POSITION = "9f86d081884c7d65-42"


@target(narrow=False)
def names(one: str, other: str) -> None:
    """A name is its parts and those only; what is changed in it is a forgery."""
    try:
        channel = stream_channel(one, other)
    except ValueError:
        assert re.search("[\ud800-\udfff]", one + other) or len((one + other).encode()) > 100
        return
    assert parts_of_channel(channel) == (one, other)
    assert channel != "turbo:all"
    assert channel not in (stream_channel(one + other), stream_channel(one, other, ""))
    assert not channel.startswith("turbo:user:")
    signer = StreamSigner(SIGNING)
    signed = signer.permit(channel, POSITION)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", signed)
    assert signer.permitted(signed)[:2] == (channel, POSITION)
    payload, signed_at, signature = signed.rsplit(".", 2)
    longer = signer.permit(stream_channel(one, other, ""), POSITION).rsplit(".", 2)[0]
    for forged in (
        one,
        signed[1:],
        f"{longer}.{signed_at}.{signature}",
        f"{payload}.{signed_at}A.{signature}",
        f"{payload}.{signed_at}.{one}",
    ):
        with pytest.raises(Forged):
            signer.permitted(forged)
        with pytest.raises(Forged):
            signer.permitted(f"{signed}~{forged}")


# -- links ---------------------------------------------------------------------------------


@target(narrow=False)
def links(url: str, name: str, value: str, existing: str) -> None:
    """A link is refused, or one link of visible characters, behind those that were there."""
    try:
        made = link(url, **{f"{name}_" if name == "url" else name: value})
    except ValueError:
        return
    text = str(made)
    assert text.isascii()
    assert text.isprintable()
    assert parse(text) == [made]
    assert parse(f"<before>; rel=x, {text}, <after>")[1] == made
    try:
        before = parse(existing)
    except ValueError:
        return
    header, left_out = joined([existing], [made], 10_000)
    assert left_out == []
    assert [each.key for each in parse(header)][: len(before)] == [each.key for each in before]
    assert made.key in [each.key for each in parse(header)]
