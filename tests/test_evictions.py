"""What connections hold, on both transports: all of it is counted, and the most of it goes."""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from flask_sockets2 import ConnectionClosed, Limits, Sockets
from flask_sockets2.application.state import state_of
from flask_sockets2.transports.budget import STEP, Budget
from tests.connections import Greenlets, Handler, Serving, Threads
from tests.processes import wait_until
from tests.wire_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WireClient,
    close_frame,
    frame,
)

Serve = Callable[..., Serving]

QUICK = Limits(close_timeout=2.0, send_timeout=5.0, ping_interval=None, compression=True)
DEFLATE: dict[str, str] = {"Sec-WebSocket-Extensions": "permessage-deflate"}
KIB = 1024


@pytest.fixture(params=[Threads(), Greenlets()], ids=["threads", "greenlets"])
def kind(request: pytest.FixtureRequest) -> Threads:
    found: Threads = request.param
    return found


@pytest.fixture
def budget() -> Budget:
    return Budget(2**30)


@pytest.fixture
def serve(kind: Threads, budget: Budget) -> Iterator[Serve]:
    """``serve(handler, send_buffer=…)`` puts a handler on a new connection of the budget."""
    started: list[Serving] = []

    def start(
        handler: Handler,
        *,
        headers: dict[str, str] | None = None,
        small_buffers: bool = False,
        **limits: Any,
    ) -> Serving:
        serving = Serving(
            kind,
            handler,
            headers=headers,
            small_buffers=small_buffers,
            limits=replace(QUICK, **limits),
            budget=budget,
        )
        started.append(serving)
        return serving

    yield start
    for serving in started:
        serving.stop()


def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


def wait_until_nothing_is_held(budget: Budget) -> None:
    wait_until(lambda: not budget.total, "all that was held to be released")
    assert (budget.total, budget.shares, budget.shared) == (0, set(), {})


def is_served(client: WireClient) -> bool:
    client.send(frame(PING, b"there?"))
    answer = client.frame()
    return (answer.opcode, answer.payload) == (PONG, b"there?")


# -- what counts ---------------------------------------------------------------------------


def _a_frame_under_way(serving: Serving) -> int:
    serving.peer.send(frame(BINARY, size=200 * KIB) + bytes(100 * KIB))
    return 100 * KIB


def _fragments(serving: Serving) -> int:
    serving.peer.send(frame(TEXT, b"x" * 50 * KIB, fin=False))
    serving.peer.send(frame(CONTINUATION, b"x" * 50 * KIB, fin=False))
    return 100 * KIB


def _compressed_fragments(serving: Serving) -> int:
    deflate = zlib.compressobj(wbits=-15)
    data = deflate.compress(bytes(100 * KIB)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    serving.peer.send(frame(BINARY, data, fin=False, reserved=4))
    return 100 * KIB


def _unread_messages(serving: Serving) -> int:
    serving.peer.send(frame(BINARY, bytes(10 * KIB)) * 10)
    return 100 * KIB


WAYS = [_a_frame_under_way, _fragments, _compressed_fragments, _unread_messages]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["left", "reset", "closed by the handler"])
def test_what_comes_is_counted_until_it_is_gone(
    way: Callable[[Serving], int], end: str, kind: Threads, serve: Serve, budget: Budget
) -> None:
    go_on = threading.Event()

    def busy(ws: Any) -> None:
        while not (ws.closed or go_on.is_set()):
            kind.sleep(0.01)

    serving = serve(busy, headers=DEFLATE)
    size = way(serving)
    wait_until(lambda: budget.total > size - STEP, "it to be counted")
    assert budget.total < size * 1.2
    if end == "left":
        serving.peer.close()
    elif end == "reset":
        serving.peer.reset()
    go_on.set()
    wait_until_nothing_is_held(budget)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_taken_is_counted_no_longer(
    way: Callable[[Serving], int], kind: Threads, serve: Serve, budget: Budget
) -> None:
    received = threading.Event()

    def handler(ws: Any) -> None:
        while not received.is_set():
            kind.sleep(0.01)
        for _ in ws:
            pass

    serving = serve(handler, headers=DEFLATE)
    size = way(serving)
    wait_until(lambda: budget.total > size - STEP, "it to be counted")
    received.set()
    if way is _a_frame_under_way:
        serving.peer.send(bytes(100 * KIB))
    elif way in (_fragments, _compressed_fragments):
        serving.peer.send(frame(CONTINUATION, b"", fin=True))
    wait_until_nothing_is_held(budget)
    assert is_served(serving.peer)


def test_what_is_not_sent_is_counted_and_what_waits_to_be(serve: Serve, budget: Budget) -> None:
    def handler(ws: Any) -> None:
        for _ in range(3):
            ws.send(bytes(100 * KIB))
        ws.receive()

    serving = serve(handler, small_buffers=True, send_buffer=110 * KIB)
    # One frame is under way; the next message waits, for both do not fit.
    wait_until(lambda: budget.total >= 200 * KIB, "two of the messages to be counted")
    assert budget.total < 210 * KIB
    for _ in range(3):
        assert serving.peer.message() == bytes(100 * KIB)
    wait_until_nothing_is_held(budget)


@pytest.mark.parametrize("leave", [WireClient.close, WireClient.reset])
def test_what_is_not_sent_is_released_when_the_peer_leaves(
    leave: Callable[[WireClient], None], serve: Serve, budget: Budget
) -> None:
    def handler(ws: Any) -> None:
        with suppress(ConnectionClosed):
            while True:
                ws.send(bytes(50 * KIB))

    serving = serve(handler, small_buffers=True, send_buffer=110 * KIB)
    wait_until(lambda: budget.total >= 100 * KIB, "it to be counted")
    leave(serving.peer)
    wait_until_nothing_is_held(budget)


def test_a_client_that_takes_everything_costs_the_budget_nothing(
    serve: Serve, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(budget, "add", lambda share, size, real: counted.append(size))
    serving = serve(echo)
    for number in range(100):
        serving.peer.send(frame(TEXT, b"%d" % number))
        assert serving.peer.message() == b"%d" % number
    assert counted == []


def test_nothing_is_left_of_whatever_many_do_at_once(serve: Serve, budget: Budget) -> None:
    """Some send, some do not read, some leave in the middle, and some are evicted."""
    budget.limit = 3 * 2**20
    rng = random.Random(7)

    def peer(serving: Serving, seed: int) -> None:
        rng = random.Random(seed)
        with suppress(OSError, AssertionError):
            for _ in range(40):
                size = rng.choice([10, 3000, 60 * KIB, 300 * KIB])
                sent = frame(BINARY, bytes(size), fin=rng.random() < 0.8)
                serving.peer.send(sent[: rng.choice([len(sent), len(sent), len(sent) // 2])])
                if rng.random() < 0.5:
                    serving.peer.sock.recv(rng.choice([10, 100 * KIB]))
        rng.choice([serving.peer.close, serving.peer.reset])()

    def handler(ws: Any) -> None:
        with suppress(ConnectionClosed):
            echo(ws)

    servings = [serve(handler, small_buffers=rng.random() < 0.7) for _ in range(12)]
    threads = []
    for seed, serving in enumerate(servings):
        serving.peer.sock.settimeout(0.2)
        threads.append(threading.Thread(target=peer, args=(serving, seed)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wait_until_nothing_is_held(budget)


# -- what happens at the limit -------------------------------------------------------------


def test_who_holds_too_much_is_told_1013_and_others_go_on(serve: Serve, budget: Budget) -> None:
    budget.limit = 300 * KIB
    bystander = serve(echo)
    small, large = serve(echo), serve(echo)
    small.peer.send(frame(BINARY, size=100 * KIB) + bytes(50 * KIB))
    wait_until(lambda: budget.total > 50 * KIB - STEP, "the first to be counted")
    large.peer.send(frame(BINARY, size=400 * KIB) + bytes(300 * KIB))
    assert large.peer.closing()[0] == 1013
    assert large.ws.close_code == 1013
    wait_until(lambda: budget.total < 60 * KIB, "what it held to be released")
    small.peer.send(bytes(50 * KIB))
    assert len(small.peer.message()) == 100 * KIB
    assert is_served(bystander.peer)


def test_an_evicted_peer_gets_the_rest_of_a_frame_and_1013(serve: Serve, budget: Budget) -> None:
    sent = threading.Event()

    def handler(ws: Any) -> None:
        with suppress(ConnectionClosed):
            for _ in range(20):
                ws.send(bytes(20 * KIB))
            sent.set()
            ws.receive()

    serving = serve(handler, small_buffers=True)
    assert sent.wait(60)
    assert budget.total > 200 * KIB
    budget.limit = 50 * KIB
    serving.peer.send(frame(BINARY, size=100 * KIB) + bytes(10 * KIB))
    received = 0
    while (came := serving.peer.frame()).opcode != CLOSE:
        assert came.payload == bytes(20 * KIB)
        received += 1
    assert came.payload[:2] == (1013).to_bytes(2, "big")
    assert received < 20
    serving.peer.send(close_frame(1013))
    wait_until_nothing_is_held(budget)


def test_a_handler_that_waits_in_send_is_told(serve: Serve, budget: Budget) -> None:
    def handler(ws: Any) -> str:
        try:
            while True:
                ws.send(bytes(100 * KIB))
        except ConnectionClosed as error:
            return str(error.code)

    serving = serve(handler, small_buffers=True, send_buffer=110 * KIB)
    wait_until(lambda: budget.total >= 200 * KIB, "two of the messages to be counted")
    budget.limit = 100 * KIB
    other = serve(echo)
    other.peer.send(frame(BINARY, size=40 * KIB) + bytes(20 * KIB))
    assert serving.result() == "1006"  # in the middle of a large frame nothing can be said
    other.peer.send(bytes(20 * KIB))
    assert len(other.peer.message()) == 40 * KIB


def test_unread_messages_go_with_their_connection(
    kind: Threads, serve: Serve, budget: Budget
) -> None:
    """A handler that is busy elsewhere does not keep them in memory."""
    stop = threading.Event()
    seen: list[Any] = []

    def busy(ws: Any) -> None:
        while not stop.is_set():
            kind.sleep(0.01)
        with suppress(ConnectionClosed):
            seen.extend(ws)

    serving, other = serve(busy), serve(echo)
    try:
        serving.peer.send(frame(BINARY, bytes(10 * KIB)) * 10)
        wait_until(lambda: budget.total > 100 * KIB - STEP, "them to be counted")
        budget.limit = 100 * KIB
        other.peer.send(frame(BINARY, size=50 * KIB) + bytes(20 * KIB))
        assert serving.peer.closing()[0] == 1013
        other.peer.send(bytes(30 * KIB))
        assert len(other.peer.message()) == 50 * KIB
        wait_until_nothing_is_held(budget)
    finally:
        stop.set()
    serving.result()
    assert seen == []


def test_who_owes_is_not_read_from_while_much_is_held(serve: Serve, budget: Budget) -> None:
    """It is read from again once it owes nothing, however much others hold."""
    budget.limit = 400 * KIB
    holding, owing = serve(echo), serve(echo, small_buffers=True)
    holding.peer.send(frame(BINARY, size=350 * KIB) + bytes(320 * KIB))
    wait_until(lambda: budget.tight, "much to be held")
    owing.peer.send(frame(BINARY, bytes(60 * KIB)))  # its answer is not read
    wait_until(lambda: owing.lifecycle.driver.inbox.paused, "reading to pause")
    owing.peer.sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            owing.peer.sock.send(frame(BINARY, bytes(8 * KIB)))
    owing.peer.sock.settimeout(60)
    assert owing.peer.message() == bytes(60 * KIB)
    assert owing.peer.message() == bytes(8 * KIB)
    assert budget.tight


def test_who_waited_is_read_from_again_when_others_have_left(
    kind: Threads, serve: Serve, budget: Budget
) -> None:
    budget.limit = 400 * KIB

    def busy(ws: Any) -> None:
        while not ws.closed:
            kind.sleep(0.01)

    holding, serving = serve(echo), serve(busy)
    holding.peer.send(frame(BINARY, size=350 * KIB) + bytes(320 * KIB))
    wait_until(lambda: budget.tight, "much to be held")
    serving.peer.send(frame(BINARY, bytes(8 * KIB)))
    wait_until(lambda: serving.lifecycle.driver.inbox.paused, "reading to pause")
    holding.peer.close()
    wait_until(lambda: not serving.lifecycle.driver.inbox.paused, "reading to go on")
    assert is_served(serving.peer)
    serving.peer.close()


def test_a_listener_under_tls_is_dropped_in_place_of_a_close_frame_it_cannot_be_sent(
    serve: Serve,
) -> None:
    """What TLS has encrypted by half has to be sent as it was."""
    sent = threading.Event()

    def handler(ws: Any) -> None:
        with suppress(ConnectionClosed):
            ws.send(bytes(200 * KIB))
            sent.set()
            ws.receive()

    serving = serve(handler, small_buffers=True)
    assert sent.wait(60)
    transport = serving.lifecycle.driver.transport
    transport._pending = lambda: 0
    assert transport.cut(2**20) is False
    assert transport.buffered > 0


# -- the setting ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2**20, 4 * 2**20 - 1])
def test_a_limit_below_what_one_connection_may_hold_is_refused_at_the_start(value: int) -> None:
    app = Flask(__name__)
    app.config["SOCKETS_MAX_BUFFERED"] = value
    with pytest.raises(ValueError, match=r"SOCKETS_MAX_BUFFERED must be .* at least the 4194304 "):
        Sockets(app)


def test_a_route_that_allows_more_than_all_connections_may_hold_is_refused_at_once() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_MAX_BUFFERED"] = 5 * 2**20
    sockets = Sockets(app)
    with pytest.raises(ValueError, match=r"SOCKETS_MAX_BUFFERED must be .* at least the 10485760 "):
        sockets.route("/large", max_message_size=4 * 2**20)(echo)
    sockets.route("/small")(echo)


def _budget_after(app: Flask, **limits: Any) -> Budget:
    """The budget of an application once a connection with these limits has come."""
    sockets = Sockets(app)
    sockets.route("/echo", **limits)(echo)
    with sockets.test_client(app).connect("/echo") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"
        return state_of(app).budget


def test_the_limit_is_the_applications() -> None:
    app = Flask(__name__)
    app.config["SOCKETS_MAX_BUFFERED"] = 5 * 2**20
    assert _budget_after(app).limit == 5 * 2**20


def test_without_the_setting_the_limit_grows_with_what_a_route_allows() -> None:
    assert _budget_after(Flask(__name__)).limit == 256 * 2**20
    large = _budget_after(Flask(__name__), max_message_size=2**30)
    assert large.limit > 4 * 2**30
