"""How messages of channels look on the wire, to the byte, and that each is made once."""

from __future__ import annotations

import gc
import logging
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_sockets2.brokers.base import BINARY, JSON, TEXT, Message, Position
from flask_sockets2.fanout.encoding import Frames, gap_message, presence_message

POSITION = Position("9f86d081884c7d65", 42)
HEAD = b'{"channel": "news", "position": "9f86d081884c7d65-42", '


def message(
    data: bytes,
    kind: str = TEXT,
    *,
    event: str = "",
    transient: bool = False,
    channel: str = "news",
) -> Message:
    return Message(channel, kind, data, POSITION, event=event, transient=transient)


def text_frame(payload: bytes) -> bytes:
    size = bytes((len(payload),)) if len(payload) < 126 else b"\x7e\x00" + bytes((len(payload),))
    return b"\x81" + size + payload


@pytest.mark.parametrize(
    ("kind", "data", "frame"),
    [
        (TEXT, b"hello", b"\x81\x05hello"),
        (TEXT, b"", b"\x81\x00"),
        (TEXT, "é\U0001f600".encode(), b"\x81\x06\xc3\xa9\xf0\x9f\x98\x80"),
        (JSON, b'{"a": 1}', b'\x81\x08{"a": 1}'),
        (BINARY, b"\x00\xff", b"\x82\x02\x00\xff"),
    ],
)
def test_a_plain_client_gets_what_was_published_as_it_is(
    kind: str, data: bytes, frame: bytes
) -> None:
    assert Frames.of().encode(message(data, kind)) == frame


@pytest.mark.parametrize(
    ("kind", "data", "rest"),
    [
        (TEXT, b"hello", b'"data": "hello"}'),
        (TEXT, b'"\\\n', rb'"data": "\"\\\n"}'),
        (TEXT, "é".encode(), b'"data": "\xc3\xa9"}'),
        (JSON, b'{"a": [1, null]}', b'"data": {"a": [1, null]}}'),
        (JSON, b"null", b'"data": null}'),
        (BINARY, b"\x00\x01", b'"data": "AAE=", "encoding": "base64"}'),
        (BINARY, b"", b'"data": "", "encoding": "base64"}'),
    ],
)
def test_an_envelope_holds_channel_position_and_data(kind: str, data: bytes, rest: bytes) -> None:
    assert Frames.of(envelope=True).encode(message(data, kind)) == text_frame(HEAD + rest)


def test_the_channel_of_an_envelope_is_json_whatever_its_name_holds() -> None:
    payload = b'{"channel": "\\"\\u0000\xc3\xa9", "data": "x"}'
    for kind, data in ((TEXT, b"x"), (JSON, b'"x"')):
        named = message(data, kind, channel='"\0é', transient=True)
        assert Frames.of(envelope=True).encode(named) == text_frame(payload)


def test_a_transient_message_has_no_position() -> None:
    payload = b'{"channel": "news", "data": "typing"}'
    came = Frames.of(envelope=True).encode(message(b"typing", transient=True))
    assert came == text_frame(payload)


def test_a_gap_says_before_which_position_messages_were_lost() -> None:
    gap = gap_message("news", POSITION)
    assert Frames.of(envelope=True).encode(gap) == text_frame(HEAD + b'"event": "gap"}')
    assert Frames.of().encode(gap) == b""


@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("presence", [False, True])
def test_a_gap_of_the_applications_own_is_sent_as_it_is(envelope: bool, presence: bool) -> None:
    for payload, frame in [
        ((TEXT, b"reload"), b"\x81\x06reload"),
        ((BINARY, b"\x00"), b"\x82\x01\x00"),
    ]:
        encoding = Frames.of(envelope=envelope, presence=presence, gap=payload)
        assert encoding.encode(gap_message("news", POSITION)) == frame


def test_who_is_there_is_told_to_those_who_asked() -> None:
    encoding = Frames.of(envelope=True, presence=True)
    there = presence_message("news", ["ann", "é"], POSITION)
    payload = '{"channel": "news", "event": "presence", "identities": ["ann", "é"]}'.encode()
    assert encoding.encode(there) == text_frame(payload)
    for event in ("join", "leave"):
        came = encoding.encode(message(b"cy", event=event, transient=True))
        payload = b'{"channel": "news", "event": "%b", "identity": "cy"}' % event.encode()
        assert came == text_frame(payload)


@pytest.mark.parametrize("encoding", [Frames.of(), Frames.of(envelope=True)])
def test_who_is_there_is_not_told_to_the_others(encoding: Frames) -> None:
    assert encoding.encode(presence_message("news", ["ann"], POSITION)) == b""
    for event in ("join", "leave"):
        assert encoding.encode(message(b"cy", event=event, transient=True)) == b""


def test_lengths_are_written_as_the_rfc_has_them() -> None:
    """RFC 6455 §5.2"""
    for size, head in [
        (125, b"\x7d"),
        (126, b"\x7e\x00\x7e"),
        (65536, b"\x7f" + b"\0" * 5 + b"\1\0\0"),
    ]:
        assert Frames.of().encode(message(bytes(size), BINARY)) == b"\x82" + head + bytes(size)


def test_a_frame_is_made_once_for_all() -> None:
    for encoding in (Frames.of(), Frames.of(envelope=True), Frames.of(window_bits=12)):
        one = message(b"x" * 100)
        assert encoding.encode(one) is encoding.encode(one)


def test_equal_encodings_are_one_object_in_all_threads() -> None:
    gap = (TEXT, b"lost")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Frames.of(envelope=True, gap=gap), range(200)))
    assert len(set(map(id, made))) == 1
    assert Frames.of() is not Frames.of(envelope=True)
    assert Frames.of(window_bits=9) is not Frames.of(window_bits=10)
    assert Frames.of(gap=(TEXT, b"x")) is not Frames.of(gap=(BINARY, b"x"))


def test_with_a_gap_of_its_own_an_encoding_shares_all_other_frames() -> None:
    plain = Frames.of(envelope=True, window_bits=12)
    own = Frames.of(envelope=True, window_bits=12, gap=(TEXT, b"lost"))
    one, gap = message(b"x" * 100), gap_message("news", POSITION)
    assert own.encode(one) is plain.encode(one)
    assert own.encode(gap) != plain.encode(gap)


def test_encodings_that_nobody_uses_are_forgotten() -> None:
    before = len(Frames._made)
    made = [Frames.of(gap=(TEXT, b"%d" % number)) for number in range(100)]
    assert len(Frames._made) >= before + 100
    del made
    gc.collect()
    assert len(Frames._made) <= before + 1


@pytest.mark.parametrize("window_bits", range(9, 16))
def test_a_compressed_frame_is_decoded_by_any_window_as_large(window_bits: int) -> None:
    """RFC 7692 §7.2.2: without context takeover each message stands for itself."""
    data = b"".join(b"line %d of a text that repeats itself. " % number for number in range(500))
    frame = Frames.of(window_bits=window_bits).encode(message(data))
    assert frame[0] == 0xC1
    assert len(frame) < len(data) / 3
    deflated = frame[4:] + b"\x00\x00\xff\xff"
    for bits in range(window_bits, 16):
        assert zlib.decompressobj(wbits=-bits).decompress(deflated) == data


def test_what_would_not_become_smaller_is_sent_as_it_is() -> None:
    encoding = Frames.of(window_bits=15)
    assert encoding.encode(message(b"short")) == b"\x81\x05short"
    data = bytes(range(100))
    assert encoding.encode(message(data, BINARY)) == b"\x82\x64" + data


def test_what_is_no_text_though_it_says_so_is_logged_and_sent_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another program's: whoever can publish on a Redis could have sent it."""
    broken = message(b"\xff")
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert Frames.of(envelope=True).encode(broken) == b""
    assert [record.getMessage() for record in caplog.records] == [
        "a message of channel 'news' cannot be sent"
    ]
