"""One event, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import flask_sse
import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from flask_sockets2.sse import Message

WHAT_BOTH_WRITE = [
    (("foo",), {}),
    (("foo\nbar",), {}),
    (("foo",), {"type": "example", "id": 5, "retry": 500}),
    (({"b": 1, "a": [None, "x"]},), {"type": "example"}),
    ((["é", "\u2028"],), {}),
    (("é \U0001f600",), {"id": "a b"}),
    (("x",), {"type": "", "id": "", "retry": None}),
    ((None,), {}),
    ((7,), {"retry": "500"}),
]


@pytest.mark.parametrize(("args", "kwargs"), WHAT_BOTH_WRITE)
def test_an_event_is_the_same_as_flask_sse_writes(args: Any, kwargs: Any) -> None:
    ours, theirs = Message(*args, **kwargs), flask_sse.Message(*args, **kwargs)
    with Flask(__name__).app_context():
        assert str(ours) == str(theirs)
        assert repr(ours) == repr(theirs)
        assert ours.to_dict() == theirs.to_dict()
    assert ours == Message(*args, **kwargs)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Message("foo"), "data:foo\n\n"),
        (Message("foo\nbar"), "data:foo\ndata:bar\n\n"),
        (
            Message("foo", type="example", id=5, retry=500),
            "event:example\ndata:foo\nid:5\nretry:500\n\n",
        ),
    ],
)
def test_the_bytes_of_an_event(message: Message, expected: str) -> None:
    assert str(message) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Message(""), "data:\n\n"),
        (Message("a\r\nb\rc\n"), "data:a\ndata:b\ndata:c\ndata:\n\n"),
        (Message(" a\n b"), "data:  a\ndata:  b\n\n"),
        (Message("a\u2028b\x0bc\x85d\x1ce"), "data:a\u2028b\x0bc\x85d\x1ce\n\n"),
        (Message("a", id=0, retry=0), "data:a\nid:0\nretry:0\n\n"),
        (Message("a", type=" b", id=" c"), "event:  b\ndata:a\nid:  c\n\n"),
    ],
)
def test_what_flask_sse_loses_or_mangles_arrives(message: Message, expected: str) -> None:
    assert str(message) == expected


def parsed(text: str) -> tuple[str, str, str]:
    """What a browser makes of one event (WHATWG HTML §9.2.6): data, type and id."""
    data, type, id = "", "", ""
    assert text.endswith("\n\n")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines[: lines.index("")]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data += value + "\n"
        elif name == "event":
            type = value
        elif name == "id" and "\0" not in value:
            id = value
    assert data, "nothing would be dispatched"
    return data[:-1], type, id


LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@given(st.text(st.characters(exclude_categories=["Cs"])), LINE, LINE)
def test_whatever_text_arrives_as_it_is(data: str, type: str, id: str) -> None:
    text = str(Message(data, type=type, id=id))
    lines = data.replace("\r\n", "\n").replace("\r", "\n")
    assert parsed(text) == (lines, type, id)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_whatever_json_arrives_as_it_is(data: Any) -> None:
    found, _, _ = parsed(str(Message(data)))
    assert (found if isinstance(data, str) else json.loads(found)) == (
        data.replace("\r\n", "\n").replace("\r", "\n") if isinstance(data, str) else data
    )


@pytest.mark.parametrize("name", ["type", "id"])
@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\n", "a\0b"])
def test_a_line_break_or_nul_in_type_or_id_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"the {name} of an event is one line without NUL"):
        Message("a", **{name: value})


@pytest.mark.parametrize("retry", ["soon", -1, 1.5, "1\n"])
def test_a_time_that_browsers_ignore_is_refused(retry: Any) -> None:
    with pytest.raises(ValueError, match="retry= is a whole number of milliseconds"):
        Message("a", retry=retry)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="half a surrogate pair"):
        str(Message("\ud800"))


def test_messages_are_equal_by_their_fields_and_class() -> None:
    assert Message("a", "b", 1, 2) == Message("a", "b", 1, 2)
    for other in (Message("x", "b", 1, 2), Message("a", "x", 1, 2), Message("a", "b", 1), "a"):
        assert Message("a", "b", 1, 2) != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(Message("a"))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"data": "a", "type": "t", "id": 5, "retry": 9}', Message("a", "t", 5, 9)),
        (b'{"data": {"x": 1}, "more": 1} ', Message({"x": 1})),
        (b'{"x": 1}', Message({"x": 1})),
        (b'"text"', Message("text")),
    ],
)
def test_what_was_published_is_a_message(payload: bytes, message: Message) -> None:
    assert Message.of_payload(payload) == message


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b'{"data": 1, "type": "a\\nb"}'])
def test_what_can_be_no_event_is_an_error(payload: bytes) -> None:
    with pytest.raises(ValueError):
        Message.of_payload(payload)
