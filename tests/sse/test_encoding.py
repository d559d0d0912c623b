"""Events as streams get them, and the ids that resume."""

from __future__ import annotations

import json

import pytest
from flask import Flask

from flask_sockets2.brokers.base import BINARY, JSON, TEXT, Message, Position
from flask_sockets2.channels.publisher import dumps_of
from flask_sockets2.fanout.encoding import gap_message
from flask_sockets2.sse.encoding import (
    Bodies,
    Lines,
    One,
    Several,
    channel_of,
    id_of,
    positions_of,
)

HERE = Position("0" * 16, 7)
THERE = Position("1" * 16, 3)
DUMPS = dumps_of(Flask(__name__))
BODIES = Bodies(DUMPS)


def published(data: object, at: Position = HERE, channel: str = "sse:a") -> Message:
    return Message(channel, JSON, json.dumps(data).encode(), at)


def test_the_id_of_an_event_of_one_channel_is_its_position() -> None:
    message = published({"data": {"b": 1}, "type": "greeting", "retry": 9})
    one = One(BODIES)
    made = one.encode(message)
    assert made == (b'event:greeting\ndata:{"b": 1}\nid:0000000000000000-7\nretry:9\n\n')
    assert one.encode(message) is made


def test_the_id_of_an_event_of_several_channels_names_all_positions() -> None:
    several = Several(BODIES, ["sse:a", "sse:b"], [str(HERE), "-"])
    first = several.encode(published({"data": "x"}, THERE, "sse:b"))
    assert first == b"data:x\nid:0000000000000000-7,1111111111111111-3\n\n"
    later = several.encode(published({"data": "y"}, Position("0" * 16, 8)))
    assert later == b"data:y\nid:0000000000000000-8,1111111111111111-3\n\n"


def test_streams_of_several_channels_share_the_lines_of_an_event() -> None:
    message = published({"data": "x"})
    BODIES.of(message)
    assert BODIES.of(message) is BODIES.of(message)


@pytest.mark.parametrize("own", [5, 0, "abc"])
def test_an_id_of_the_publishers_is_followed_by_the_position(own: object) -> None:
    """WHATWG HTML §9.2.6: an event without data is not dispatched, but its id is kept."""
    expected = f"data:x\nid:{own}\n\nid:0000000000000000-7\n\n".encode()
    message = published({"data": "x", "id": own})
    assert One(BODIES).encode(message) == expected
    assert Several(BODIES, ["sse:a"], ["-"]).encode(message) == expected


def test_a_gap_is_an_event_with_the_position_after_it() -> None:
    expected = b'event:gap\ndata:{"channel": "a"}\nid:0000000000000000-7\n\n'
    assert One(BODIES).encode(gap_message("sse:a", HERE)) == expected


def test_a_transient_message_has_no_place_to_resume_at() -> None:
    message = Message("sse:a", TEXT, b"x", HERE, transient=True)
    assert One(BODIES).encode(message) == b"data:x\n\n"
    several = Several(BODIES, ["sse:a", "sse:b"], ["start", "start"])
    assert several.encode(message) == b"data:x\n\n"


def test_who_joins_is_not_told() -> None:
    join = Message("sse:a", TEXT, b"ann", HERE, event="join", transient=True)
    assert One(BODIES).encode(join) == Lines(DUMPS).encode(join) == b""


@pytest.mark.parametrize(
    "message",
    [
        Message("sse:a", BINARY, b"x", HERE),
        Message("sse:a", TEXT, b"\xff", HERE),
        Message("sse:a", JSON, b"{", HERE),
        published({"data": "x", "type": "a\nid:5"}),
    ],
    ids=["bytes", "no UTF-8", "no JSON", "two lines"],
)
def test_what_another_program_published_wrongly_is_left_out_and_logged_once(
    message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = Bodies(DUMPS)
    assert One(bodies).encode(message) == b""
    assert Several(bodies, ["sse:a"], ["-"]).encode(message) == b""
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "a message of channel 'sse:a' cannot be sent" in caplog.text


def test_lines_are_one_json_text_each() -> None:
    message = Message("sse:a", JSON, b'{"data":\n "x", "id": 5}', HERE)
    assert json.loads(Lines(DUMPS).encode(message)) == {"data": "x", "id": 5}
    assert Lines(DUMPS).encode(message).count(b"\n") == 1


def test_channels_are_apart_from_all_others() -> None:
    assert channel_of("turbo:all") == "sse:turbo:all"
    for wrong in ("", "x" * 1022):
        with pytest.raises(ValueError, match="1024 bytes"):
            channel_of(wrong)
    with pytest.raises(TypeError):
        channel_of(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("id", "number", "expected"),
    [
        (id_of([HERE]), 1, [str(HERE)]),
        (id_of([HERE, THERE]), 2, [str(HERE), str(THERE)]),
        (id_of([HERE, "start", "-"]), 3, [str(HERE), "start", "-"]),
        ("start", 2, ["start", "start"]),
        (id_of([HERE, THERE]), 1, ["-"]),
        (id_of([HERE]), 2, ["-", "-"]),
        ("5", 1, None),
        (f"{HERE},", 2, None),
        (f"{HERE}\0", 1, None),
        ("0000000000000000-99999999999999999", 1, None),
    ],
)
def test_an_id_is_positions_or_its_publishers(
    id: str, number: int, expected: list[str] | None
) -> None:
    assert positions_of(id, number) == expected
