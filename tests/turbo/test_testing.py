"""What the package gives to the tests of applications."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response

from flask_sockets2 import BrokerError, Sockets
from flask_sockets2.application.state import state_of
from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.testing import (
    STREAM_HEADERS,
    Broadcast,
    Broadcasts,
    StreamAction,
    assert_no_broadcasts,
    assert_turbo_stream,
    capture_broadcasts,
    parse_streams,
)
from tests.processes import unused_port

MARKUP = (
    '<turbo-stream action="append" target="todos"><template><li>Milk</li></template></turbo-stream>'
)


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def turbo(app: Flask) -> Turbo:
    turbo = Turbo(app)
    turbo.user_id(lambda: None)
    return turbo


@pytest.fixture
def redis_turbo(app: Flask, turbo: Turbo) -> Iterator[Turbo]:
    """Of an application whose Redis is not there."""
    app.config["SOCKETS_BROKER_URL"] = f"redis://127.0.0.1:{unused_port()}/0"
    yield turbo
    state_of(app).close()


def message_of(error: pytest.ExceptionInfo[AssertionError]) -> str:
    return str(error.value)


# -- markup ------------------------------------------------------------------------------------


def test_a_stream_is_parsed() -> None:
    [action] = parse_streams(MARKUP)
    assert (action.action, action.target, action.targets) == ("append", "todos", None)
    assert (action.content, action.text) == ("<li>Milk</li>", "Milk")
    assert action.attributes == {"action": "append", "target": "todos"}


def test_attributes_are_parsed_as_browsers_do() -> None:
    [action] = parse_streams(
        '<TURBO-STREAM Action="a&amp;b" targets=".x &gt; y" bare action="c"></TURBO-STREAM>'
    )
    assert (action.action, action.targets) == ("a&b", ".x > y")
    assert action.attributes == {"action": "a&b", "targets": ".x > y", "bare": ""}


def test_several_lines_and_streams_are_parsed() -> None:
    first, second = parse_streams(
        '\n<turbo-stream action="update" target="a">\n  <template>\n<p>1</p>é\n'
        "<p>2 &amp; 3</p></template>\n</turbo-stream>\n"
        '<turbo-stream action="refresh"></turbo-stream>'
    )
    assert first.content == "\n<p>1</p>é\n<p>2 &amp; 3</p>"
    assert first.text == "1 é 2 & 3"
    assert (second.action, second.content, second.text) == ("refresh", None, "")


def test_an_empty_template_is_not_none() -> None:
    [action] = parse_streams(
        '<turbo-stream action="remove" target="a"><template></template></turbo-stream>'
    )
    assert action.content == ""


def test_streams_and_templates_within_a_template_are_its_content() -> None:
    inner = f"<template>a</template>{MARKUP}<script>if (1 < 2) x('</p>')</script>"
    [action] = parse_streams(
        f'<turbo-stream action="update" target="b"><template>{inner}</template></turbo-stream>'
    )
    assert (action.target, action.content) == ("b", inner)


@pytest.mark.parametrize("missing", ["</template>", "</turbo-stream>"])
def test_what_is_not_closed_is_an_error(missing: str) -> None:
    with pytest.raises(ValueError, match="not closed"):
        parse_streams(MARKUP.replace(missing, "") + MARKUP.replace(missing, ""))


# -- capture -----------------------------------------------------------------------------------


def test_broadcasts_and_pushes_are_captured_in_order(turbo: Turbo) -> None:
    with capture_broadcasts(turbo) as broadcasts:
        turbo.broadcast_append_to("room", 5, content="<p>Hello</p>", target="messages")
        turbo.push([turbo.update("1", "a"), turbo.remove("b")])
        turbo.push(turbo.replace("2", "c"), to="susan")
    turbo.push(turbo.update("4", "d"))
    assert [(b.channel, b.key) for b in broadcasts] == [
        ("turbo:stream:room:5", ""),
        ("turbo:all", ""),
        ("turbo:user:susan", "replace c"),
    ]
    assert [(a.action, a.target, a.text) for a in broadcasts.actions] == [
        ("append", "messages", "Hello"),
        ("update", "a", "1"),
        ("remove", "b", ""),
        ("replace", "c", "2"),
    ]
    assert broadcasts[1].markup == turbo.update("1", "a") + turbo.remove("b")
    assert len(broadcasts) == 3


def test_names_filter_by_stream(turbo: Turbo) -> None:
    with (
        capture_broadcasts(turbo, "room", 5) as five,
        capture_broadcasts(turbo, "room") as none,
        capture_broadcasts(turbo) as everything,
    ):
        turbo.broadcast_remove_to("room", 5, target="a")
        turbo.broadcast_remove_to("room", 6, target="b")
        turbo.push(turbo.remove("c"))
    assert [action.target for action in five.actions] == ["a"]
    assert list(none) == []
    assert [action.target for action in everything.actions] == ["a", "b", "c"]
    assert [action.target for action in everything.of("room", 6).actions] == ["b"]
    assert not everything.of("room", 7)


def test_part_of_them_is_as_all_of_them(turbo: Turbo) -> None:
    with capture_broadcasts(turbo) as broadcasts:
        for target in "abc":
            turbo.push(turbo.remove(target))
    assert isinstance(broadcasts[1:], Broadcasts)
    assert [action.target for action in broadcasts[1:].actions] == ["b", "c"]
    assert broadcasts[-1].actions[0].target == "c"


def test_captures_may_end_in_any_order(app: Flask, turbo: Turbo) -> None:
    sender = state_of(app).publisher._sender
    first, second = capture_broadcasts(turbo), capture_broadcasts(app)
    one, other = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    turbo.push(turbo.remove("a"))
    second.__exit__(None, None, None)
    turbo.push(turbo.remove("b"))
    assert not one
    assert [action.target for action in other.actions] == ["a"]
    assert state_of(app).publisher._sender is sender


def test_threads_are_captured(turbo: Turbo) -> None:
    def push(number: int) -> None:
        for _ in range(20):
            turbo.push(turbo.update("", f"t{number}"))

    with capture_broadcasts(turbo) as broadcasts:
        threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(broadcasts) == 80
    assert len(assert_turbo_stream(broadcasts, target="t3")) == 20


def test_an_error_within_the_block_ends_the_capture(app: Flask, turbo: Turbo) -> None:
    sender = state_of(app).publisher._sender
    with pytest.raises(ZeroDivisionError), capture_broadcasts(turbo):
        raise ZeroDivisionError
    assert state_of(app).publisher._sender is sender


def test_channels_of_the_application_are_no_broadcasts(app: Flask, turbo: Turbo) -> None:
    sockets = Sockets(app)
    with capture_broadcasts(app) as broadcasts:
        sockets.publish("news", "text")
    assert list(broadcasts) == []


def test_what_is_captured_in_memory_is_published_as_well(app: Flask, turbo: Turbo) -> None:
    sockets = Sockets(app)

    @sockets.route("/all")
    def subscribe(ws: Any) -> None:
        ws.subscribe("turbo:all")
        ws.send("subscribed")
        ws.receive()

    with sockets.test_client(app).connect("/all") as ws:
        assert ws.receive() == "subscribed"
        with capture_broadcasts(turbo):
            turbo.push(MARKUP)
        assert ws.receive() == MARKUP


def test_redis_needs_no_server(redis_turbo: Turbo) -> None:
    with capture_broadcasts(redis_turbo) as broadcasts:
        redis_turbo.push(MARKUP)
        assert redis_turbo.broadcast_remove_to("room", target="a").offset == 1
        assert redis_turbo.can_push() is False
    assert [action.target for action in broadcasts.actions] == ["todos", "a"]
    with pytest.raises(BrokerError):
        redis_turbo.push(MARKUP)


def test_a_message_that_is_too_big_is_an_error_there_too(redis_turbo: Turbo) -> None:
    with capture_broadcasts(redis_turbo) as broadcasts, pytest.raises(ValueError):
        redis_turbo.push("x" * (2**20 + 1))
    assert list(broadcasts) == []


def test_only_the_application_given_is_captured() -> None:
    turbo, one, other = Turbo(), Flask("one"), Flask("other")
    turbo.init_app(one)
    turbo.init_app(other)
    with capture_broadcasts(one) as of_one, capture_broadcasts(turbo) as of_both:
        with one.app_context():
            turbo.push(turbo.remove("a"))
        with other.app_context():
            turbo.push(turbo.remove("b"))
    assert [action.target for action in of_one.actions] == ["a"]
    assert [action.target for action in of_both.actions] == ["a", "b"]


def test_there_has_to_be_a_turbo(app: Flask) -> None:
    for without in (app, Turbo()):
        with pytest.raises(RuntimeError, match="no application with Turbo"):
            capture_broadcasts(without).__enter__()
    with pytest.raises(TypeError, match="got str"):
        capture_broadcasts("room").__enter__()  # type: ignore[arg-type]  # on purpose


def test_no_broadcasts_are_seen_to(turbo: Turbo) -> None:
    with assert_no_broadcasts(turbo):
        pass
    with assert_no_broadcasts(turbo, "room", 5):
        turbo.broadcast_remove_to("room", 6, target="a")


def push_and_refresh(turbo: Turbo) -> None:
    turbo.push(MARKUP)
    turbo.broadcast_to("room", 5, stream=turbo.refresh())


def test_broadcasts_where_none_are_expected_are_listed(turbo: Turbo) -> None:
    with pytest.raises(AssertionError) as error, assert_no_broadcasts(turbo):
        push_and_refresh(turbo)
    assert message_of(error) == (
        "expected no broadcasts, got 2\n"
        '  to turbo:all: <turbo-stream action="append" target="todos"> \'Milk\'\n'
        '  to turbo:stream:room:5: <turbo-stream action="refresh">'
    )
    with pytest.raises(AssertionError) as error, assert_no_broadcasts(turbo, "room", 5):
        turbo.broadcast_remove_to("room", 5, target="a")
    assert message_of(error).startswith("expected no broadcasts to turbo:stream:room:5, got 1\n")


def test_an_error_is_not_hidden_by_broadcasts(turbo: Turbo) -> None:
    with pytest.raises(ZeroDivisionError), assert_no_broadcasts(turbo):
        turbo.push(MARKUP, to=[1 // 0])


# -- assertions --------------------------------------------------------------------------------


def answer(markup: str, mimetype: str = "text/vnd.turbo-stream.html") -> Response:
    return Response(markup, mimetype=mimetype)


def test_an_answer_of_a_view_is_looked_at(app: Flask, turbo: Turbo) -> None:
    @app.post("/todos")
    def add() -> Any:
        if not turbo.can_stream():
            return "<p>Milk</p>"
        return turbo.stream([turbo.append("<li>Milk</li>", "todos"), turbo.remove("empty")])

    client = app.test_client()
    response = client.post("/todos", headers=STREAM_HEADERS)
    [action] = assert_turbo_stream(response, action="append", target="todos", text="Milk")
    assert isinstance(action, StreamAction)
    assert len(assert_turbo_stream(response)) == 2
    with pytest.raises(AssertionError) as error:
        assert_turbo_stream(client.post("/todos"))
    assert "got text/html with status 200" in message_of(error)
    assert "headers=STREAM_HEADERS" in message_of(error)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"action": "append"},
        {"target": "todos"},
        {"text": "Milk"},
        {"text": "  Mil"},
        {"text": re.compile("^M.*k$")},
        {"count": 1},
        {"action": "append", "target": "todos", "count": 1, "text": "Milk"},
        {"action": "update", "count": 0},
    ],
)
def test_what_is_there_is_found(wanted: dict[str, Any]) -> None:
    for streams in (
        answer(MARKUP),
        MARKUP,
        Broadcast("turbo:all", MARKUP),
        Broadcasts([Broadcast("turbo:all", MARKUP)]),
    ):
        assert_turbo_stream(streams, **wanted)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"action": "update"}, 'at least 1 <turbo-stream action="update">, got 0'),
        ({"target": "todo"}, 'at least 1 <turbo-stream target="todo">, got 0'),
        ({"targets": "todos"}, 'at least 1 <turbo-stream targets="todos">, got 0'),
        ({"text": "Bread"}, "at least 1 <turbo-stream> with the text 'Bread', got 0"),
        ({"text": re.compile("m")}, "at least 1 <turbo-stream> with the text 'm', got 0"),
        ({"count": 2}, "2 <turbo-stream>, got 1"),
        ({"count": 0}, "0 <turbo-stream>, got 1"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(AssertionError) as error:
        assert_turbo_stream(answer(MARKUP), **wanted)
    assert message_of(error) == (
        f'expected {said}; there is 1\n  <turbo-stream action="append" target="todos"> \'Milk\''
    )


def test_an_answer_without_streams_is_told() -> None:
    with pytest.raises(AssertionError) as error:
        assert_turbo_stream(answer(""), action="append")
    assert message_of(error).endswith("got 0; there are 0")


def test_broadcasts_elsewhere_are_told(turbo: Turbo) -> None:
    with capture_broadcasts(turbo, "room", 5) as broadcasts:
        turbo.broadcast_remove_to("room", 6, target="a")
    with pytest.raises(AssertionError) as error:
        assert_turbo_stream(broadcasts, action="remove")
    assert message_of(error).endswith(
        "there are 0\nelsewhere than turbo:stream:room:5:\n"
        '  to turbo:stream:room:6: <turbo-stream action="remove" target="a">'
    )


def test_long_texts_are_told_in_part(turbo: Turbo) -> None:
    with pytest.raises(AssertionError) as error:
        assert_turbo_stream(turbo.update("x" * 1000, "a"), target="b")
    assert len(message_of(error)) < 250


def test_it_is_answers_broadcasts_or_markup_that_are_looked_at() -> None:
    with pytest.raises(TypeError, match="got int"):
        assert_turbo_stream(5)  # type: ignore[arg-type]  # on purpose
