"""A Connection and its handler, on both transports; the test is the peer."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from sys import getsizeof
from time import monotonic
from typing import Any

import gevent
import pytest
from geventwebsocket.exceptions import WebSocketError as GeventWebSocketError

from flask_sockets2 import Connection, ConnectionClosed, HandshakeError, Limits, WebSocketError
from flask_sockets2.connection.connection import lifecycle_of, logger
from flask_sockets2.connection.lifecycle import Lifecycle
from flask_sockets2.transports.budget import Budget
from flask_sockets2.typing import WebSocket
from flask_sockets2.wire.protocol import MESSAGES_PER_TURN, Protocol
from tests.connections import Greenlets, Handler, Serving, Threads
from tests.processes import wait_until
from tests.wire_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    HANDSHAKE,
    PING,
    PONG,
    TEXT,
    TIMEOUT,
    Frame,
    WireClient,
    close_frame,
    frame,
)

Serve = Callable[..., Serving]

QUICK = Limits(close_timeout=2.0, send_timeout=5.0, ping_interval=None)


@pytest.fixture(params=[Threads(), Greenlets()], ids=["threads", "greenlets"])
def kind(request: pytest.FixtureRequest) -> Threads:
    found: Threads = request.param
    return found


@pytest.fixture
def serve(kind: Threads) -> Iterator[Serve]:
    """``serve(handler, max_message_size=…)`` puts a handler on a new connection."""
    started: list[Serving] = []

    def start(
        handler: Handler,
        *,
        early: bytes = b"",
        headers: dict[str, str] | None = None,
        small_buffers: bool = False,
        **limits: Any,
    ) -> Serving:
        serving = Serving(
            kind,
            handler,
            early=early,
            headers=headers,
            small_buffers=small_buffers,
            limits=replace(QUICK, **limits),
        )
        started.append(serving)
        return serving

    yield start
    for serving in started:
        serving.stop()


def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


def text(message: str) -> bytes:
    return frame(TEXT, message.encode())


def end_of(ws: Connection) -> tuple[int | None, str]:
    return ws.close_code, ws.close_reason


def everything(ws: Any) -> list[Any]:
    return list(ws)


def until(event: threading.Event, kind: Threads) -> None:
    """Wait in a handler for an event of the test's thread, without blocking a hub."""
    while not event.is_set():
        kind.sleep(0.01)


# -- how a connection ends -----------------------------------------------------------------


def test_a_handler_that_returns_closes_with_1000(serve: Serve) -> None:
    serving = serve(lambda ws: None)
    assert serving.peer.frame() == Frame(True, 0, CLOSE, b"\x03\xe8")
    serving.peer.send(close_frame())
    assert serving.peer.rest() == b""
    serving.result()
    assert end_of(serving.ws) == (1000, "")


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "tab closed"), (4999, "é" * 61)])
def test_the_peers_close_code_and_reason_are_told_and_answered(
    code: int, reason: str, serve: Serve
) -> None:
    """pain 22, pain 23"""
    serving = serve(lambda ws: ws.receive())
    serving.peer.send(close_frame(code, reason.encode()))
    assert serving.peer.closing()[0] == code
    assert serving.result() is None
    assert serving.ws.closed
    assert end_of(serving.ws) == (code, reason)


def test_a_close_frame_without_a_code_is_1005(serve: Serve) -> None:
    serving = serve(lambda ws: ws.receive())
    serving.peer.send(frame(CLOSE))
    assert serving.peer.frame() == Frame(True, 0, CLOSE, b"")
    assert serving.result() is None
    assert end_of(serving.ws) == (1005, "")


@pytest.mark.parametrize("leave", [WireClient.close, WireClient.reset], ids=["FIN", "RST"])
def test_a_peer_that_vanishes_is_1006_and_no_error(
    leave: Callable[[WireClient], None], serve: Serve
) -> None:
    """pain 22, pain 25, pain 30"""
    serving = serve(lambda ws: ws.receive())
    leave(serving.peer)
    assert serving.result() is None
    assert serving.ws.closed
    assert end_of(serving.ws) == (1006, "")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"x", masked=False), 1002),
        (frame(TEXT, b"x", reserved=4), 1002),
        (frame(0x3, b"x"), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, b"", size=2**20 + 1), 1009),
    ],
    ids=["unmasked", "reserved bit", "opcode", "UTF-8", "too big"],
)
def test_a_broken_stream_fails_with_its_code(data: bytes, code: int, serve: Serve) -> None:
    serving = serve(everything)
    serving.peer.send(text("before") + data)
    assert serving.peer.closing()[0] == code
    serving.peer.close()
    assert serving.result() == ["before"]
    assert serving.ws.close_code == code


def test_no_sign_of_life_after_a_ping_is_1011(serve: Serve) -> None:
    """pain 32, pain 36"""
    serving = serve(lambda ws: ws.receive(), ping_interval=0.1, ping_timeout=0.1)
    assert serving.peer.frame().opcode == PING
    assert serving.peer.closing() == (1011, "keepalive ping timeout")
    assert serving.result() is None
    assert end_of(serving.ws) == (1011, "keepalive ping timeout")


def test_a_peer_that_is_dead_by_keepalive_is_not_waited_for(serve: Serve, kind: Threads) -> None:
    """It would never answer the close frame; its connection must not count until a timeout."""
    ended, go = threading.Event(), threading.Event()

    def handler(ws: Any) -> None:
        lifecycle_of(ws).on_end = lambda ws: ended.set()
        assert ws.receive() is None
        until(go, kind)

    serving = serve(handler, ping_interval=0.1, ping_timeout=0.1, close_timeout=3600.0)
    wait_until(ended.is_set, "the end")
    assert serving.ws not in Connection.opened()
    assert serving.peer.frame().opcode == PING
    assert serving.peer.closing() == (1011, "keepalive ping timeout")
    go.set()
    serving.result()


def test_keepalive_spares_a_peer_that_is_not_read_from(serve: Serve, kind: Threads) -> None:
    """Its pongs stand behind what the handler has not received yet."""
    go = threading.Event()

    def handler(ws: Any) -> None:
        assert ws.receive() == "first"
        until(go, kind)

    sent = text("first") + text("x" * 1000) * 2
    serving = serve(handler, early=sent, ping_interval=0.1, ping_timeout=0.1, receive_buffer=1000)
    pings = [serving.peer.frame().opcode for _ in range(5)]
    assert pings == [PING] * 5
    go.set()
    assert serving.peer.closing()[0] == 1000
    serving.peer.close()
    serving.result()


@pytest.mark.parametrize("code", [1001, 4401])
def test_a_close_from_elsewhere_ends_the_handlers_receive(
    code: int, serve: Serve, kind: Threads
) -> None:
    """pain 19"""

    def handler(ws: Any) -> Any:
        kind.spawn(lambda: ws.close(code, "time to go"))
        return ws.receive()

    serving = serve(handler)
    came = serving.peer.frame()
    assert came.payload == code.to_bytes(2, "big") + b"time to go"
    serving.peer.send(frame(CLOSE, came.payload))
    assert serving.peer.rest() == b""
    assert serving.result() is None
    assert end_of(serving.ws) == (code, "time to go")


def test_a_peer_that_never_answers_the_close_is_left(serve: Serve) -> None:
    """pain 23"""
    serving = serve(lambda ws: None, close_timeout=0.2)
    assert serving.peer.frame().opcode == CLOSE
    serving.result(timeout=60)
    assert serving.peer.rest() == b""


def test_abort_drops_the_connection_at_once(serve: Serve) -> None:
    serving = serve(lambda ws: ws.abort())
    assert serving.peer.rest() == b""
    serving.result()
    assert end_of(serving.ws) == (1006, "")


def test_what_comes_behind_a_close_frame_is_ignored(serve: Serve) -> None:
    serving = serve(everything)
    serving.peer.send(text("before") + close_frame() + text("behind"))
    assert serving.peer.closing() == (1000, "")
    assert serving.result() == ["before"]


def test_the_end_is_told_once_to_who_asked_for_it(serve: Serve) -> None:
    """pain 72"""
    told: list[Connection] = []

    def handler(ws: Any) -> None:
        lifecycle_of(ws).on_end = told.append
        assert ws in Connection.opened()
        ws.receive()

    serving = serve(handler)
    serving.peer.send(close_frame())
    serving.result()
    assert told == [serving.ws]
    assert serving.ws not in Connection.opened()


def test_an_error_of_ours_is_1011_and_logged_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not leave a connection behind that is open and silent."""

    def broken(protocol: Protocol, data: bytes) -> Any:
        raise RuntimeError("told by the test")

    monkeypatch.setattr(Protocol, "receive", broken)
    serving = serve(lambda ws: ws.receive())
    serving.peer.send(text("hello"))
    assert serving.peer.closing() == (1011, "")
    assert serving.result() is None
    assert serving.ws not in Connection.opened()
    (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
    assert record.exc_info is not None
    assert "told by the test" in str(record.exc_info[1])


def test_finish_ends_it_though_its_close_frame_cannot_be_sent(serve: Serve) -> None:
    def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="1005"):
            lifecycle_of(ws).finish(1005)
        assert ws.closed
        assert ws not in Connection.opened()

    serving = serve(handler)
    assert serving.peer.rest() == b""
    serving.result()


@pytest.mark.parametrize("returns", [True, False], ids=["the handler returns", "it receives"])
def test_a_close_frame_that_waits_for_a_reply_is_answered_as_soon_as_none_can_come(
    returns: bool, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6455 §5.5.1 allows the delay; the timers that would end it are far away."""
    monkeypatch.setattr("flask_sockets2.connection.driver._REPLY_GRACE", 3600.0)
    closed: list[bool] = []

    def handler(ws: Any) -> None:
        assert ws.receive() == "last"
        closed.append(ws.closed)
        if not returns:
            assert ws.receive() is None

    serving = serve(handler, close_timeout=3600.0)
    serving.peer.send(text("last") + close_frame(1001))
    assert serving.peer.closing() == (1001, "")
    serving.result()
    assert closed == [False]
    assert end_of(serving.ws) == (1001, "")


def test_replies_to_messages_before_a_close_frame_have_more_time_than_the_last_one(
    serve: Serve, kind: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that still has messages to read is at work; the short wait is for one reply."""
    monkeypatch.setattr("flask_sockets2.connection.driver._REPLY_GRACE", 0.01)

    def handler(ws: Any) -> None:
        for message in ws:
            kind.sleep(0.1)
            ws.send(message)

    serving = serve(handler, close_timeout=TIMEOUT)
    serving.peer.send(text("a") + text("b") + close_frame(1001))
    assert serving.peer.message() == b"a"
    serving.peer.closing()
    serving.result()


def test_the_last_reply_is_waited_for_only_a_moment(
    serve: Serve, kind: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that never comes back must not keep the peer waiting for ``close_timeout``."""
    monkeypatch.setattr("flask_sockets2.connection.driver._REPLY_GRACE", 0.01)
    go = threading.Event()

    def handler(ws: Any) -> None:
        assert ws.receive() == "last"
        until(go, kind)
        assert ws.closed

    serving = serve(handler, close_timeout=3600.0)
    wait_until(lambda: serving.lifecycle.driver.inbox.waiting, "the handler")
    serving.peer.send(text("last") + close_frame(1001))
    assert serving.peer.frame() == Frame(True, 0, CLOSE, b"\x03\xe9")
    go.set()
    serving.result()


def test_a_close_of_ours_counts_though_the_peers_came_with_the_message(serve: Serve) -> None:
    """The two in one read: the message's handler finds the peer's close frame waiting for it."""

    def handler(ws: Any) -> None:
        assert ws.receive() == "last"
        ws.close(4001, "ours")
        assert ws.closed
        with pytest.raises(ConnectionClosed):
            ws.send("too late")

    serving = serve(handler)
    serving.peer.send(text("last") + close_frame(1001, b"theirs"))
    assert serving.peer.closing()[0] == 1001
    serving.result()
    assert end_of(serving.ws) == (1001, "theirs")


def test_a_peer_that_half_closes_gets_replies_and_close_frame(serve: Serve, kind: Threads) -> None:
    def handler(ws: Any) -> None:
        for message in ws:
            deadline = monotonic() + TIMEOUT
            while lifecycle_of(ws).transport._reading and monotonic() < deadline:
                kind.sleep(0.001)  # until the end of the peer's stream has been seen
            ws.send(message)

    serving = serve(handler)
    serving.peer.send(text("a") + text("b") + close_frame(1001))
    serving.peer.sock.shutdown(socket.SHUT_WR)
    assert [serving.peer.message() for _ in range(2)] == [b"a", b"b"]
    assert serving.peer.closing() == (1001, "")
    serving.result()
    assert end_of(serving.ws) == (1001, "")


# -- closed, seen by the handler -----------------------------------------------------------


@pytest.mark.parametrize("received", [0, 1])
@pytest.mark.parametrize("how", ["close", "vanish"])
def test_closed_turns_true_while_the_handler_sleeps(
    received: int, how: str, serve: Serve, kind: Threads
) -> None:
    """pain 22: a handler that only sends, or only registers the connection, learns it too."""

    def handler(ws: Any) -> None:
        for _ in range(received):
            ws.receive()
        while not ws.closed:
            kind.sleep(0.01)

    serving = serve(handler)
    serving.peer.send(text("hello") * received)
    if how == "close":
        serving.peer.send(close_frame())
        assert serving.peer.closing() == (1000, "")
    else:
        serving.peer.close()
    serving.result(timeout=60)


@pytest.mark.parametrize("received", [0, 1])
@pytest.mark.parametrize("how", ["close", "vanish"])
def test_closed_turns_true_though_messages_are_unread(
    received: int, how: str, serve: Serve, kind: Threads
) -> None:
    """A handler that received once may never do so again: that is seen after ``send_timeout``."""

    def handler(ws: Any) -> None:
        for _ in range(received):
            ws.receive()
        while not ws.closed:
            kind.sleep(0.01)

    serving = serve(handler, close_timeout=0.2, send_timeout=0.2)
    serving.peer.send(text("read") * received + text("unread"))
    if how == "close":
        serving.peer.send(close_frame())
        assert serving.peer.closing() == (1000, "")
    else:
        serving.peer.close()
    serving.result()


def test_messages_before_the_close_are_seen_and_their_replies_sent(
    serve: Serve, kind: Threads
) -> None:
    def handler(ws: Any) -> None:
        while (message := ws.receive()) is not None:
            assert not ws.closed
            kind.sleep(0.01)
            ws.send(message)

    serving = serve(handler)
    serving.peer.send(b"".join(text(str(n)) for n in range(5)) + close_frame(1001))
    assert [serving.peer.message() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert serving.peer.closing() == (1001, "")
    serving.result()


def test_messages_before_the_peer_vanished_are_seen(serve: Serve) -> None:
    go = threading.Event()

    def handler(ws: Any) -> list[Any]:
        wait_until(go.is_set, "the peer to leave")
        return list(ws)

    serving = serve(handler)
    serving.peer.send(text("a") + text("b"))
    serving.peer.close()
    go.set()
    assert serving.result() == ["a", "b"]


def test_flask_sockets_own_loop_ends_quietly(serve: Serve) -> None:
    """pain 25"""

    def handler(ws: Any) -> None:
        while not ws.closed:
            message = ws.receive()
            ws.send(message)

    serving = serve(handler)
    serving.peer.send(text("a") + close_frame())
    assert serving.peer.message() == b"a"
    assert serving.peer.closing() == (1000, "")
    serving.result()


# -- receiving -----------------------------------------------------------------------------


def test_text_comes_as_str_and_binary_as_bytes(serve: Serve) -> None:
    serving = serve(everything)
    serving.peer.send(text("grüße") + frame(BINARY, b"\xff") + text("") + close_frame())
    messages = serving.result()
    assert messages == ["grüße", b"\xff", ""]
    assert type(messages[1]) is bytes


def test_receive_gives_up_after_its_timeout_and_the_connection_goes_on(serve: Serve) -> None:
    """pain 28"""

    def handler(ws: Any) -> Any:
        with pytest.raises(TimeoutError, match=r"no message came in 0\.02 s"):
            ws.receive(timeout=0.02)
        ws.send("now")
        return ws.receive(timeout=TIMEOUT)

    serving = serve(handler)
    assert serving.peer.message() == b"now"
    serving.peer.send(text("hello") + close_frame())
    assert serving.result() == "hello"


def test_a_timeout_of_zero_only_looks(serve: Serve, kind: Threads) -> None:
    def handler(ws: Any) -> Any:
        with pytest.raises(TimeoutError):
            ws.receive(timeout=0)
        ws.send("now")
        while not ws._driver.inbox.has_unread():
            kind.sleep(0.001)
        return ws.receive(timeout=0)

    serving = serve(handler)
    assert serving.peer.message() == b"now"
    serving.peer.send(text("hello") + close_frame())
    assert serving.result() == "hello"


def test_a_gevent_timeout_around_receive_leaves_it_usable() -> None:
    """pain 28: the old way."""

    def handler(ws: Any) -> Any:
        with gevent.Timeout(0.02, False):
            ws.receive()
        ws.send("now")
        return ws.receive()

    serving = Serving(Greenlets(), handler, limits=QUICK)
    try:
        assert serving.peer.message() == b"now"
        serving.peer.send(text("hello") + close_frame())
        assert serving.result() == "hello"
    finally:
        serving.stop()


def test_a_second_receiver_is_told_so_and_the_first_goes_on(serve: Serve, kind: Threads) -> None:
    """pain 26"""

    def handler(ws: Any) -> Any:
        got: list[Any] = []
        join = kind.spawn(lambda: got.append(ws.receive()))
        while not ws._driver.inbox.waiting:
            kind.sleep(0.001)
        with pytest.raises(RuntimeError, match=r"another (thread|greenlet) waits in receive\(\)"):
            ws.receive()
        ws.send("now")
        join(TIMEOUT)
        return got

    serving = serve(handler)
    assert serving.peer.message() == b"now"
    serving.peer.send(text("hello") + close_frame())
    assert serving.result() == ["hello"]


@pytest.mark.parametrize("how", ["abort", "close", "return"])
def test_a_receiver_elsewhere_is_woken_when_the_handler_ends_the_connection(
    how: str, serve: Serve, kind: Threads
) -> None:
    """pain 19"""
    got: list[Any] = []

    def handler(ws: Any) -> None:
        kind.spawn(lambda: got.append(ws.receive()))
        while ws._driver.inbox.waiting is None:
            kind.sleep(0.001)
        if how != "return":
            getattr(ws, how)()

    serving = serve(handler)
    if how != "abort":
        assert serving.peer.frame() == Frame(True, 0, CLOSE, b"\x03\xe8")
        wait_until(lambda: got, "the receiver")  # before the peer has said anything
        serving.peer.send(close_frame())
    assert serving.peer.rest() == b""
    serving.result()
    wait_until(lambda: got, "the receiver")
    assert got == [None]


def test_iteration_ends_with_the_connection(serve: Serve) -> None:
    """pain 22"""
    serving = serve(lambda ws: [message.upper() for message in ws])
    serving.peer.send(text("a") + text("b") + close_frame())
    assert serving.result() == ["A", "B"]


def test_receive_says_none_once_and_then_raises(serve: Serve) -> None:
    """So that a loop that does not look at what it received ends, too."""

    def handler(ws: Any) -> None:
        assert ws.receive() is None
        assert ws.closed
        with pytest.raises(ConnectionClosed, match=r"closed with code 1001 \(bye\)"):
            ws.receive()

    serving = serve(handler)
    serving.peer.send(close_frame(1001, b"bye"))
    serving.result()


def test_bytes_that_came_with_the_handshake_are_not_lost(serve: Serve) -> None:
    serving = serve(everything, early=text("early") + text("bird")[:3])
    serving.peer.send(text("bird")[:0])
    serving.peer.close()
    assert serving.result() == ["early"]


def test_a_reader_that_does_not_keep_up_stops_the_peer_and_loses_nothing(
    serve: Serve, kind: Threads
) -> None:
    """pain 78"""
    go = threading.Event()
    message = frame(BINARY, bytes(1000))

    def handler(ws: Any) -> list[int]:
        while not go.is_set():
            kind.sleep(0.01)
        return [len(message) for message in ws]

    serving = serve(handler, small_buffers=True, receive_buffer=4000)
    sent = serving.peer.send_while_taken(message, for_seconds=TIMEOUT, stalled_after=0.3)
    assert sent < 2**20, "reading never stopped"
    unread = sum(map(len, serving.lifecycle.driver.inbox.messages))
    assert unread <= 4000 + 66_000, "more was read than one read brings"
    go.set()
    serving.peer.send(message[sent % len(message) or len(message) :] + close_frame())
    sizes = serving.result()
    assert sizes == [1000] * -(-sent // len(message))


def test_empty_messages_count_too(serve: Serve, kind: Threads) -> None:
    """pain 78"""
    go = threading.Event()

    def handler(ws: Any) -> int:
        while not go.is_set():
            kind.sleep(0.01)
        return len(list(ws))

    serving = serve(handler, small_buffers=True, receive_buffer=4000)
    burst = b"".join(frame(TEXT) for _ in range(100))
    sent = serving.peer.send_while_taken(burst, for_seconds=TIMEOUT, stalled_after=0.3)
    assert sent < 2**20, "reading never stopped"
    go.set()
    serving.peer.send(burst[sent % len(burst) or len(burst) :] + close_frame())
    assert serving.result() == 100 * -(-sent // len(burst))


def test_text_counts_as_the_memory_that_it_takes(serve: Serve, kind: Threads) -> None:
    """pain 78: one character may be four bytes."""
    go = threading.Event()
    message = frame(TEXT, ("\N{GRINNING FACE}" * 1000).encode())

    def handler(ws: Any) -> int:
        while not go.is_set():
            kind.sleep(0.01)
        return sum(1 for _ in ws)

    serving = serve(handler, small_buffers=True, receive_buffer=100_000)
    sent = serving.peer.send_while_taken(message, for_seconds=TIMEOUT, stalled_after=0.3)
    unread = sum(map(getsizeof, serving.lifecycle.driver.inbox.messages))
    assert unread <= 100_000 + 70_000, "more than one read more"
    go.set()
    serving.peer.send(message[sent % len(message) or len(message) :] + close_frame())
    assert serving.result() == -(-sent // len(message))


# -- sending -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "binary", "opcode", "payload"),
    [
        ("grüße", None, TEXT, "grüße".encode()),
        (b"\xff", None, BINARY, b"\xff"),
        (bytearray(b"\xff"), None, BINARY, b"\xff"),
        (memoryview(b"\xff"), None, BINARY, b"\xff"),
        ("text", True, BINARY, b"text"),
        (b"text", False, TEXT, b"text"),
        ("", None, TEXT, b""),
        (b"", None, BINARY, b""),
    ],
)
def test_send_takes_text_and_bytes(
    message: Any, binary: bool | None, opcode: int, payload: bytes, serve: Serve
) -> None:
    serving = serve(lambda ws: ws.send(message, binary))
    assert serving.peer.frame() == Frame(True, 0, opcode, payload)


@pytest.mark.parametrize("message", [None, 5, ["a"], {"a": 1}])
def test_anything_else_is_a_type_error_and_the_connection_goes_on(
    message: Any, serve: Serve
) -> None:
    def handler(ws: Any) -> None:
        with pytest.raises(TypeError, match=r"expected a message of type str or bytes"):
            ws.send(message)
        ws.send("after")

    serving = serve(handler)
    assert serving.peer.message() == b"after"
    serving.peer.close()
    serving.result()


def test_bytes_that_are_no_text_are_not_sent_as_text(serve: Serve) -> None:
    def handler(ws: Any) -> None:
        with pytest.raises(ValueError):
            ws.send(b"\xff", binary=False)
        ws.send("after")

    serving = serve(handler)
    assert serving.peer.message() == b"after"
    serving.peer.close()
    serving.result()


def test_sending_after_the_end_raises_connection_closed(serve: Serve) -> None:
    def handler(ws: Any) -> None:
        assert ws.receive() is None
        with pytest.raises(ConnectionClosed) as raised:
            ws.send("too late")
        assert raised.value.connection is ws
        assert (raised.value.code, raised.value.reason) == (1001, "bye")
        assert isinstance(raised.value, WebSocketError)
        assert isinstance(raised.value, OSError)
        with pytest.raises(ConnectionClosed):
            ws.ping()

    serving = serve(handler)
    serving.peer.send(close_frame(1001, b"bye"))
    serving.result()


def test_sending_nothing_after_the_end_does_nothing(serve: Serve) -> None:
    """pain 25"""

    def handler(ws: Any) -> None:
        ws.send(ws.receive())

    serving = serve(handler)
    serving.peer.send(close_frame())
    serving.result()


def test_sending_after_a_close_of_our_own_raises(serve: Serve) -> None:
    def handler(ws: Any) -> None:
        ws.close()
        assert ws.closed
        with pytest.raises(ConnectionClosed):
            ws.send("too late")

    serving = serve(handler)
    assert serving.peer.frame().opcode == CLOSE
    serving.peer.close()
    serving.result()


def test_under_gevent_the_error_is_gevent_websockets_too() -> None:
    """pain 27"""

    def handler(ws: Any) -> None:
        ws.receive()
        with pytest.raises(GeventWebSocketError) as raised:
            ws.send("too late")
        assert isinstance(raised.value, ConnectionClosed)

    serving = Serving(Greenlets(), handler, limits=QUICK)
    try:
        serving.peer.close()
        serving.result()
    finally:
        serving.stop()


def test_frames_of_concurrent_senders_never_interleave(serve: Serve, kind: Threads) -> None:
    """pain 75, pain 76"""
    size, count = 70_000, 20

    def handler(ws: Any) -> None:
        def send(letter: bytes) -> None:
            for number in range(count):
                ws.send(letter * size + b"%d" % number)

        joins = [kind.spawn(lambda letter=letter: send(letter)) for letter in (b"a", b"b", b"c")]  # type: ignore[misc]
        for join in joins:
            join(TIMEOUT)

    serving = serve(handler, small_buffers=True)
    seen: dict[bytes, list[int]] = {b"a": [], b"b": [], b"c": []}
    for _ in range(3 * count):
        message = serving.peer.message()
        letter = message[:1]
        assert message[:size] == letter * size
        seen[letter].append(int(message[size:]))
    assert seen == {letter: list(range(count)) for letter in seen}
    serving.peer.close()
    serving.result()


def test_a_send_waits_when_the_buffer_is_full_and_goes_on(serve: Serve) -> None:
    """pain 78"""
    size, count = 20_000, 60
    most: list[int] = []

    def handler(ws: Any) -> None:
        for number in range(count):
            ws.send(bytes([number]) * size)
            most.append(lifecycle_of(ws).transport.buffered)

    serving = serve(handler, small_buffers=True, send_buffer=50_000)
    wait_until(lambda: serving.lifecycle.transport.buffered > 20_000, "the buffer to fill")
    assert len(most) < count
    for number in range(count):
        assert serving.peer.message() == bytes([number]) * size
    serving.peer.send(close_frame())
    serving.result()
    assert len(most) == count
    assert max(most) <= 50_000 + 20


def test_a_message_larger_than_the_buffer_is_sent(serve: Serve) -> None:
    serving = serve(lambda ws: [ws.send(bytes(500_000)) for _ in range(3)], send_buffer=1000)
    for _ in range(3):
        assert serving.peer.message() == bytes(500_000)


def test_a_peer_that_reads_nothing_is_dropped_while_a_send_waits(serve: Serve) -> None:
    """pain 78"""

    def send_without_end(ws: Any) -> None:
        while True:
            ws.send(bytes(10_000))

    def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed):
            send_without_end(ws)
        assert ws.closed

    serving = serve(handler, small_buffers=True, send_buffer=50_000, send_timeout=0.3)
    serving.result()
    code, reason = end_of(serving.ws)
    assert code == 1006
    assert "for 0.3 s (SOCKETS_SEND_TIMEOUT)" in reason  # of the two timers either may be first


def test_a_peer_that_reads_nothing_is_dropped_while_no_send_waits(serve: Serve) -> None:
    """pain 78"""

    def handler(ws: Any) -> Any:
        ws.send(bytes(100_000))
        return ws.receive()

    serving = serve(handler, small_buffers=True, send_timeout=0.3)
    assert serving.result(timeout=60) is None
    assert end_of(serving.ws) == (1006, "the peer took nothing for 0.3 s (SOCKETS_SEND_TIMEOUT)")


def test_what_is_kept_back_is_sent_before_the_close_frame(serve: Serve) -> None:
    """pain 75"""
    serving = serve(lambda ws: ws.send(bytes(300_000)), small_buffers=True)
    assert serving.peer.message() == bytes(300_000)
    serving.peer.send(close_frame())
    assert serving.peer.closing() == (1000, "")
    serving.result()


def test_a_slow_peer_gets_all_though_the_close_timeout_is_short(serve: Serve) -> None:
    """pain 75: the closing handshake begins when all before it has been taken."""
    size = 2_000_000
    serving = serve(lambda ws: ws.send(bytes(size)), small_buffers=True, close_timeout=2)
    serving.peer.read_slowly(at_a_time=8192, interval=0.02, seconds=2.5)
    assert serving.lifecycle.transport.buffered, "the peer was not slow"
    assert serving.peer.message() == bytes(size)
    serving.peer.send(close_frame())
    assert serving.peer.closing() == (1000, "")
    serving.result()
    assert end_of(serving.ws) == (1000, "")


def test_what_was_cut_off_is_1006_though_we_closed(serve: Serve) -> None:
    """pain 22: the close frame stood behind what the peer did not take."""
    serving = serve(lambda ws: ws.send(bytes(300_000)), small_buffers=True, send_timeout=0.3)
    serving.result(timeout=60)
    assert end_of(serving.ws) == (1006, "the peer took nothing for 0.3 s (SOCKETS_SEND_TIMEOUT)")


def test_abort_after_close_is_1006_where_something_was_cut_off(serve: Serve) -> None:
    def handler(ws: Any) -> None:
        ws.send(bytes(300_000))
        ws.close(4000, "done")
        ws.abort("no time")

    serving = serve(handler, small_buffers=True)
    serving.result()
    assert end_of(serving.ws) == (1006, "no time")


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_control_frames_have_no_more_room_than_messages(opcode: int, serve: Serve) -> None:
    """pain 78"""
    most = 0

    def send_without_end(ws: Any) -> None:
        nonlocal most
        while True:
            ws.send_frame(b"x" * 120, opcode)
            most = max(most, lifecycle_of(ws).transport.buffered)

    def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed, match="SOCKETS_SEND_TIMEOUT"):
            send_without_end(ws)

    serving = serve(handler, small_buffers=True, send_buffer=5000, send_timeout=0.3)
    serving.result()
    assert 4000 < most <= 5000 + 10


# -- closing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "payload"),
    [
        ((), b"\x03\xe8"),
        ((1000,), b"\x03\xe8"),
        ((4000, "why"), b"\x0f\xa0why"),
        ((1001, b"why"), b"\x03\xe9why"),
        ((3000, "é" * 61), b"\x0b\xb8" + "é".encode() * 61),
    ],
)
def test_close_sends_its_code_and_reason(
    arguments: tuple[Any, ...], payload: bytes, serve: Serve
) -> None:
    """pain 23"""

    def handler(ws: Any) -> None:
        ws.close(*arguments)
        ws.close(4999, "only the first counts")

    serving = serve(handler)
    assert serving.peer.frame() == Frame(True, 0, CLOSE, payload)


def test_close_takes_gevent_websockets_message(serve: Serve) -> None:
    """pain 27"""
    serving = serve(lambda ws: ws.close(4000, message=b"why"))
    assert serving.peer.frame() == Frame(True, 0, CLOSE, b"\x0f\xa0why")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *((code, "") for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)),
        (1000, "x" * 124),
        (1000, "é" * 62),
    ],
)
def test_what_a_close_frame_cannot_carry_is_refused_and_the_connection_goes_on(
    code: int, reason: str, serve: Serve
) -> None:
    def handler(ws: Any) -> None:
        with pytest.raises(ValueError):
            ws.close(code, reason)
        assert not ws.closed
        ws.send("after")

    serving = serve(handler)
    assert serving.peer.message() == b"after"
    serving.peer.close()
    serving.result()


def test_messages_that_cross_our_close_frame_are_not_waited_for(serve: Serve) -> None:
    def handler(ws: Any) -> Any:
        ws.close(4000)
        return ws.receive()

    serving = serve(handler)
    assert serving.peer.frame().opcode == CLOSE
    serving.peer.send(text("crossing") + close_frame(4000))
    assert serving.peer.rest() == b""
    assert serving.result() is None


# -- pings ---------------------------------------------------------------------------------


def test_a_ping_is_answered_while_the_handler_sleeps(serve: Serve, kind: Threads) -> None:
    go = threading.Event()

    def handler(ws: Any) -> None:
        while not go.is_set():
            kind.sleep(0.01)

    serving = serve(handler)
    serving.peer.send(frame(PING, b"are you there?"))
    assert serving.peer.frame() == Frame(True, 0, PONG, b"are you there?")
    go.set()


def test_of_pings_that_cannot_be_answered_at_once_the_newest_is(serve: Serve) -> None:
    """RFC 6455 §5.5.3"""
    stuck, go = threading.Event(), threading.Event()

    def handler(ws: Any) -> None:
        ws.send(bytes(200_000))
        stuck.set()
        assert ws.receive() == "behind the pings"
        go.set()

    serving = serve(handler, small_buffers=True)
    assert stuck.wait(TIMEOUT)
    serving.peer.send(b"".join(frame(PING, b"%d" % number) for number in range(50)))
    serving.peer.send(text("behind the pings"))
    assert go.wait(TIMEOUT)
    assert serving.peer.frame() == Frame(True, 0, BINARY, bytes(200_000))
    came = [serving.peer.frame(), serving.peer.frame()]
    assert {f.opcode for f in came} == {PONG, CLOSE}
    assert [f.payload for f in came if f.opcode == PONG] == [b"49"]


@pytest.mark.parametrize(
    ("flood", "answer"),
    [
        (frame(PING) * 200, Frame(True, 0, PONG, b"")),
        (frame(PONG) * 200 + frame(PING), Frame(True, 0, PONG, b"")),
        (
            frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 198 + frame(CONTINUATION),
            Frame(True, 0, TEXT, b""),
        ),
    ],
    ids=["pings", "pongs", "fragments"],
)
def test_who_floods_with_what_makes_no_message_has_to_wait_too(
    flood: bytes, answer: Frame, serve: Serve
) -> None:
    serving = serve(echo, max_message_rate=100, ping_interval=None)
    slowed, begun = serving.lifecycle.driver.counters.slowed, monotonic()
    serving.peer.send(flood + text("behind it"))
    came = [serving.peer.frame()]
    while came[-1].payload != b"behind it":
        came.append(serving.peer.frame())
    assert answer in came
    # 100 at once, and up to 64 more in a turn.
    assert monotonic() - begun > 0.3
    assert serving.lifecycle.driver.counters.slowed > slowed


def test_the_hub_looks_at_others_between_two_turns_of_a_peer_that_never_pauses() -> None:
    """All of it is there already, and the handler is always quick enough."""
    turns = 30
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    def handler(ws: Any) -> int:
        watcher = gevent.get_hub().loop.check()  # called after each look at the sockets
        watcher.start(count)
        for _ in range(turns * MESSAGES_PER_TURN):
            ws.receive()
        watcher.close()
        return rounds

    serving = Serving(
        Greenlets(), handler, early=text("") * (turns * MESSAGES_PER_TURN), limits=QUICK
    )
    try:
        assert serving.result() >= turns - 1
    finally:
        serving.stop()


def test_fragments_of_a_kibibyte_are_only_their_message(serve: Serve) -> None:
    serving = serve(echo, max_message_rate=1, max_message_size=2**20)
    slowed = serving.lifecycle.driver.counters.slowed
    large = frame(BINARY, bytes(1024), fin=False)
    serving.peer.send(large + frame(CONTINUATION, bytes(1024), fin=False) * 300)
    serving.peer.send(frame(CONTINUATION, b""))
    assert len(serving.peer.message()) == 301 * 1024
    assert serving.lifecycle.driver.counters.slowed == slowed


def test_latency_is_the_time_from_ping_to_pong(serve: Serve) -> None:
    """pain 32"""
    serving = serve(echo, ping_interval=0.1, ping_timeout=TIMEOUT)
    assert serving.ws.latency is None
    ping = serving.peer.frame()
    assert ping.opcode == PING
    serving.peer.send(frame(PONG, b"another's") + text("a"))
    assert serving.peer.message() == b"a"
    assert serving.ws.latency is None
    serving.peer.send(frame(PONG, ping.payload) + text("b"))
    assert serving.peer.message() == b"b"
    wait_until(lambda: serving.ws.latency is not None, "the latency")
    assert 0 < serving.ws.latency < TIMEOUT


def test_a_peer_that_answers_is_pinged_again_and_again(serve: Serve) -> None:
    """pain 31, pain 34"""
    serving = serve(echo, ping_interval=0.1, ping_timeout=TIMEOUT)
    for _ in range(3):
        ping = serving.peer.frame()
        assert ping.opcode == PING
        serving.peer.send(frame(PONG, ping.payload))
    serving.peer.send(text("still here"))
    assert serving.peer.message() == b"still here"


def test_any_sign_of_life_will_do(serve: Serve) -> None:
    serving = serve(echo, ping_interval=0.1, ping_timeout=TIMEOUT)
    for _ in range(3):
        assert serving.peer.frame().opcode == PING
        serving.peer.send(frame(PONG, b"another's"))


def test_without_a_timeout_nobody_is_given_up(serve: Serve) -> None:
    serving = serve(echo, ping_interval=0.05, ping_timeout=None)
    assert [serving.peer.frame().opcode for _ in range(4)] == [PING] * 4
    serving.peer.send(text("still here"))
    assert serving.peer.message() == b"still here"


def test_a_handler_may_ping(serve: Serve) -> None:
    def handler(ws: Any) -> None:
        ws.ping()
        ws.ping("payload")
        ws.send_frame(b"unasked", ws.OPCODE_PONG)
        with pytest.raises(ValueError, match="at most 125 bytes"):
            ws.ping(b"x" * 126)

    serving = serve(handler)
    assert serving.peer.frame() == Frame(True, 0, PING, b"")
    assert serving.peer.frame() == Frame(True, 0, PING, b"payload")
    assert serving.peer.frame() == Frame(True, 0, PONG, b"unasked")
    serving.peer.close()
    serving.result()


# -- gevent-websocket's interface ----------------------------------------------------------


def test_send_frame_sends_data_by_opcode(serve: Serve) -> None:
    """pain 27"""

    def handler(ws: Any) -> None:
        ws.send_frame("text", ws.OPCODE_TEXT)
        ws.send_frame(b"binary", ws.OPCODE_BINARY)
        for opcode in (ws.OPCODE_CLOSE, 0, 3):
            with pytest.raises(ValueError, match=f"opcode {opcode}"):
                ws.send_frame(b"", opcode)

    serving = serve(handler)
    assert serving.peer.frame() == Frame(True, 0, TEXT, b"text")
    assert serving.peer.frame() == Frame(True, 0, BINARY, b"binary")
    serving.peer.close()
    serving.result()


def test_it_has_the_attributes_that_gevent_websockets_has(serve: Serve) -> None:
    """pain 27"""
    headers = {"Origin": "http://a.example", "Sec-WebSocket-Protocol": "a, b"}

    def handler(ws: Any) -> None:
        assert isinstance(ws, WebSocket)
        assert ws.environ["HTTP_HOST"] == "127.0.0.1"
        assert (ws.origin, ws.path) == ("http://a.example", "/path")
        assert (ws.protocol, ws.version) == ("a, b", "13")
        assert ws.subprotocols == ("a", "b")
        assert ws.subprotocol is None
        assert not ws.handler
        assert ws.logger is logger
        assert (ws.closed, ws.close_code, ws.close_reason) == (False, None, "")
        assert (ws.OPCODE_TEXT, ws.OPCODE_BINARY) == (1, 2)
        assert (ws.OPCODE_CLOSE, ws.OPCODE_PING, ws.OPCODE_PONG) == (8, 9, 10)

    serving = serve(handler, headers=headers)
    serving.peer.send(close_frame())
    serving.result()


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("recv", "ws.receive()"),
        ("send_json", "ws.send(flask.json.dumps(data))"),
        ("receive_json", "flask.json.loads(ws.receive())"),
        ("connected", "not ws.closed"),
        ("emit", "sockets.publish(channel, data)"),
        ("join", "ws.subscribe(channel)"),
    ],
)
def test_an_attribute_of_another_package_is_an_error_that_names_ours(
    name: str, instead: str
) -> None:
    with pytest.raises(AttributeError, match=f"a connection has no '{name}': ") as raised:
        getattr(refused(), name)
    assert instead in str(raised.value)


# -- before accept -------------------------------------------------------------------------


def refused(**changes: str) -> Connection:
    def take(send_timeout: float) -> Any:
        raise AssertionError("must not be taken over")

    return Connection(Lifecycle({"REQUEST_METHOD": "GET", "HTTP_HOST": "a", **changes}, take))


def test_a_request_that_is_no_handshake_cannot_be_accepted() -> None:
    ws = refused()
    assert not ws.accepted
    assert ws.subprotocols == ()
    for attempt in (ws.check, ws.accept, ws.receive, lambda: ws.send("a"), ws.ping, ws.close):
        with pytest.raises(HandshakeError, match="Connection: Upgrade") as raised:
            attempt()
        assert raised.value.status == 426


def budget_of(ws: Connection) -> Budget:
    opening = lifecycle_of(ws).opening
    assert opening is not None
    return opening.budget


def test_a_child_of_a_fork_does_not_count_what_its_parents_connections_hold() -> None:
    parents = budget_of(refused())
    child = os.fork()
    if not child:
        os._exit(budget_of(refused()) is parents)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert budget_of(refused()) is parents


def test_a_connection_that_the_server_does_not_give_away_has_no_end_to_wait_for() -> None:
    """What counts connections counts it no more."""

    def take(send_timeout: float) -> Any:
        raise HandshakeError(503, "stopping")

    told: list[str] = []
    handshake = {f"HTTP_{name.upper().replace('-', '_')}": v for name, v in HANDSHAKE.items()}
    environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", **handshake}
    lifecycle = Lifecycle(environ, take)
    ws = Connection(lifecycle)
    assert lifecycle.opening is not None
    lifecycle.opening.on_open = lambda connection: told.append("open")
    lifecycle.on_end = lambda connection: told.append("end")
    with pytest.raises(HandshakeError, match="stopping"):
        ws.accept()
    assert told == ["open", "end"]
    assert not ws.accepted
    assert ws not in Connection.opened()


def test_a_connection_that_was_never_accepted_ends_without_a_word() -> None:
    ws = refused()
    lifecycle_of(ws).finish()
    assert not ws.accepted
    assert (ws.close_code, ws.closed) == (None, False)
