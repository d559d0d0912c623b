"""Bodies of requests as bytes: RFC 9112 §6 and §7.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BufferedReader, BytesIO, RawIOBase
from typing import Any

import pytest

from flask_sockets2.servers.body import BrokenBody, RequestBody

READS: dict[str, Callable[[RequestBody], bytes]] = {
    "at once": lambda body: body.read(),
    "without a size": lambda body: body.read(None),
    "byte by byte": lambda body: b"".join(iter(lambda: body.read(1), b"")),
    "seven by seven": lambda body: b"".join(iter(lambda: body.read(7), b"")),
    "more than there is": lambda body: body.read(10**12),
    "in lines": lambda body: b"".join(iter(body.readline, b"")),
    "in pieces of lines": lambda body: b"".join(iter(lambda: body.readline(3), b"")),
    "iterated": b"".join,
    "as a list": lambda body: b"".join(body.readlines()),
}

CHUNKED = {
    b"0\r\n\r\n": b"",
    b"5\r\nhello\r\n0\r\n\r\n": b"hello",
    b"5\r\nhel\nl\r\n1\r\n\n\r\n6\r\n world\r\n00\r\n\r\n": b"hel\nl\n world",
    b"00000000000000A;name\r\n0123456789\r\n0;a=b\r\n\r\n": b"0123456789",
    b'a ; name="quoted; \t\xfc"\r\n0123456789\r\n0\r\n\r\n': b"0123456789",
    b"1\r\na\r\n0\r\nExpires: never\r\nX-Sum:\t\xfc\r\nEmpty:\r\n\r\n": b"a",
    b"1\r\n\r\r\n2\r\n\r\n\r\n0\r\n\r\n": b"\r\r\n",
    b"186A0\r\n%b\r\n0\r\n\r\n" % (b"line\n" * 20_000): b"line\n" * 20_000,
}

BROKEN = {
    "longer than its size": b"5\r\n12345GET /behind HTTP/1.1\r\nHost: a\r\n\r\n",
    "longer by a byte": b"5\r\n123456\r\n0\r\n\r\n",
    "LF behind a chunk": b"5\r\n12345\n0\r\n\r\n",
    "CR behind a chunk": b"5\r\n12345\r0\r\n\r\n",
    "nothing behind a chunk": b"5\r\n123450\r\n\r\n",
    "shorter than its size": b"7\r\n12345\r\n0\r\n\r\n",
    "a plus": b"+5\r\n12345\r\n0\r\n\r\n",
    "a minus": b"-1\r\n1\r\n0\r\n\r\n",
    "a minus of nothing": b"-0\r\n\r\n",
    "0x": b"0x5\r\n12345\r\n0\r\n\r\n",
    "an underscore": b"0_5\r\n12345\r\n0\r\n\r\n",
    "no hexadecimal digit": b"g\r\n12345\r\n0\r\n\r\n",
    "no size": b"\r\n12345\r\n0\r\n\r\n",
    "an extension alone": b";a=b\r\n12345\r\n0\r\n\r\n",
    "a space before": b" 5\r\n12345\r\n0\r\n\r\n",
    "a space behind": b"5 \r\n12345\r\n0\r\n\r\n",
    "a tab behind": b"5\t\r\n12345\r\n0\r\n\r\n",
    "more than 64 bits": b"10000000000000000\r\n12345\r\n0\r\n\r\n",
    "LF behind a size": b"5\n12345\r\n0\r\n\r\n",
    "CR behind a size": b"5\r12345\r\n0\r\n\r\n",
    "LF in an extension": b"5;a\n12345\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\n12345\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a=\0\r\n12345\r\n0\r\n\r\n",
    "a long extension": b"5;" + b"a" * 5000 + b"\r\n12345\r\n0\r\n\r\n",
    "an endless extension": b"5;" + b"a" * 100_000,
    "many extensions": (b"1;" + b"a" * 100 + b"\r\nx\r\n") * 1000 + b"0\r\n\r\n",
    "LF behind the last chunk": b"5\r\n12345\r\n0\n\r\n",
    "LF at the end": b"5\r\n12345\r\n0\r\n\n",
    "a request in place of a trailer": b"5\r\n12345\r\n0\r\nGET /behind HTTP/1.1\r\n\r\n",
    "a trailer without a name": b"5\r\n12345\r\n0\r\n: a\r\n\r\n",
    "a trailer with a space": b"5\r\n12345\r\n0\r\nA : a\r\n\r\n",
    "a folded trailer": b"5\r\n12345\r\n0\r\nA: a\r\n b\r\n\r\n",
    "a trailer that ends with LF": b"5\r\n12345\r\n0\r\nA: a\n\r\n",
    "a trailer with a control character": b"5\r\n12345\r\n0\r\nA: \x01\r\n\r\n",
    "a long trailer": b"5\r\n12345\r\n0\r\nA: " + b"a" * 10_000 + b"\r\n\r\n",
    "many trailers": b"5\r\n12345\r\n0\r\n" + b"A: a\r\n" * 10_000 + b"\r\n",
}
"""Behind each of them the next request would begin, had it been read otherwise."""


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("stream", CHUNKED, ids=lambda stream: ascii(stream[:30]))
def test_a_chunked_body_ends_where_its_last_chunk_says(
    stream: bytes, read: Callable[[RequestBody], bytes]
) -> None:
    rfile = BytesIO(stream + b"GET /")
    body = RequestBody(rfile, None, chunked=True)
    assert read(body) == CHUNKED[stream]
    assert body.read() == body.readline() == b""
    assert rfile.read() == b"GET /"
    assert not body.broken


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("text", [b"", b"h", b"hello", b"two\nlines", b"x" * 200_000])
def test_a_body_ends_with_its_length(text: bytes, read: Callable[[RequestBody], bytes]) -> None:
    rfile = BytesIO(text + b"GET /")
    body = RequestBody(rfile, len(text))
    assert read(body) == text
    assert body.read() == body.readline() == b""
    assert rfile.read() == b"GET /"
    assert not body.broken


def test_a_request_without_a_length_has_no_body() -> None:
    """RFC 9112 §6.3 item 7."""
    rfile = BytesIO(b"GET /")
    assert RequestBody(rfile, None).read() == b""
    assert rfile.read() == b"GET /"


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_chunk_breaks_every_way_of_reading_and_goes_on_doing_so(
    case: str, read: Callable[[RequestBody], bytes]
) -> None:
    """RFC 9112 §7.1: what cannot be parsed is not guessed at."""
    body = RequestBody(BytesIO(BROKEN[case]), None, chunked=True)
    with pytest.raises(BrokenBody):
        read(body)
    assert body.broken
    for again in READS.values():
        with pytest.raises(BrokenBody):
            again(body)


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_left_of_a_broken_body_is_read_no_further_than_the_break(case: str) -> None:
    body = RequestBody(BytesIO(BROKEN[case]), None, chunked=True)
    body._discard()
    assert body.broken


@pytest.mark.parametrize("stream", CHUNKED, ids=lambda stream: ascii(stream[:30]))
def test_what_the_application_has_left_is_read(stream: bytes) -> None:
    for taken in range(3):
        rfile = BytesIO(stream + b"GET /")
        body = RequestBody(rfile, None, chunked=True)
        body.read(taken)
        body._discard()
        assert rfile.read() == b"GET /"
        assert not body.broken


@pytest.mark.parametrize("stream", [s for s in CHUNKED if len(s) < 1000], ids=ascii)
def test_a_chunked_body_that_ends_early_is_broken_wherever_that_is(stream: bytes) -> None:
    """RFC 9112 §8."""
    for end in range(len(stream)):
        body = RequestBody(BytesIO(stream[:end]), None, chunked=True)
        with pytest.raises(BrokenBody):
            body.read()


def test_a_body_that_ends_before_its_length_is_broken() -> None:
    for read in READS.values():
        body = RequestBody(BytesIO(b"hell"), 5)
        with pytest.raises(BrokenBody, match="left in the middle"):
            read(body)


class Reset(RawIOBase):
    """A connection that is reset after some bytes.

    :param asked: takes how many bytes each read wanted.
    """

    def __init__(self, data: bytes, asked: list[int] | None = None) -> None:
        self._data = BytesIO(data)
        self._asked = asked if asked is not None else []

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._asked.append(len(buffer))
        data = self._data.read(len(buffer))
        if not data:
            raise ConnectionResetError(104, "Connection reset by peer")
        buffer[: len(data)] = data
        return len(data)


def test_a_client_that_resets_the_connection_breaks_the_body() -> None:
    for chunked, data in ((False, b"hell"), (True, b"5\r\nhell"), (True, b"5\r")):
        body = RequestBody(BufferedReader(Reset(data)), 5, chunked=chunked)
        with pytest.raises(BrokenBody, match="left in the middle"):
            body.read()


@pytest.mark.parametrize(
    ("length", "data"), [(10**17, b"x"), (None, b"FFFFFFFFFFFFFFFF\r\nx")], ids=["length", "chunk"]
)
def test_no_more_is_asked_for_than_may_come_however_long_the_body_is_said_to_be(
    length: int | None, data: bytes
) -> None:
    asked: list[int] = []
    body = RequestBody(BufferedReader(Reset(data, asked)), length, chunked=length is None)
    with pytest.raises(BrokenBody):
        body.read()
    assert max(asked) <= 65536


def test_a_client_that_waits_is_told_once_to_go_on_and_not_for_what_is_thrown_away() -> None:
    """RFC 9110 §10.1.1"""
    told: list[bytes] = []
    body = RequestBody(BytesIO(b"hello"), 5, proceed=told.append)
    assert told == []
    assert body.read(2) + body.read() == b"hello"
    assert told == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    body = RequestBody(BytesIO(b"hello"), 5, proceed=told.append)
    body._discard()
    assert len(told) == 1


def test_a_client_that_waits_and_has_left_breaks_the_body() -> None:
    def proceed(response: bytes) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    body = RequestBody(BytesIO(), 5, proceed=proceed)
    with pytest.raises(BrokenBody):
        body.read()


def test_lines_are_those_of_the_body_and_not_of_its_chunks() -> None:
    def chunks() -> Iterator[bytes]:
        for part in (b"on", b"e\ntw", b"o\n", b"\n", b"end"):
            yield b"%x\r\n%b\r\n" % (len(part), part)
        yield b"0\r\n\r\n"

    body = RequestBody(BytesIO(b"".join(chunks())), None, chunked=True)
    assert list(body) == [b"one\n", b"two\n", b"\n", b"end"]


def test_a_broken_body_is_an_error_of_the_client_to_flask_and_an_oserror_to_everybody() -> None:
    error = BrokenBody("why")
    assert error.code == 400
    assert isinstance(error, OSError)
    assert error.description == "why"
