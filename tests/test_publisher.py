"""Publisher: channels from a program that is no Flask application."""

# ruff: noqa: F811 (a fixture that is asked for has the name of the imported one)

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from textwrap import dedent
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from flask_sockets2 import BrokerError, Position, Publisher, Sockets
from flask_sockets2.brokers.base import BINARY, JSON, TEXT, Message
from tests.brokers.conftest import (  # noqa: F401 (pytest finds fixtures by name)
    Recorder,
    own_server,
    prefix,
    redis_server,
    redis_url,
)
from tests.brokers.servers import RedisServer
from tests.processes import unused_port, wait_until

TIMEOUT = 60.0  # seconds, for a program

MakePublisher = Callable[..., Publisher]


@pytest.fixture
def make(redis_url: str, prefix: str) -> Iterator[MakePublisher]:
    """Makes publishers that are closed with the test, under names of its own."""
    made: list[Publisher] = []

    def publisher(url: str = redis_url, **options: Any) -> Publisher:
        made.append(Publisher(url, **{"prefix": prefix, **options}))
        return made[-1]

    yield publisher
    for each in made:
        each.close()


@pytest.fixture
def publisher(make: MakePublisher) -> Publisher:
    return make()


def kept(publisher: Publisher, channel: str = "news") -> list[tuple[str, bytes]]:
    """Kind and data of what the history of a channel holds."""
    messages = publisher.broker.history(channel, None).messages
    return [(message.kind, message.data) for message in messages]


# -- what it reaches -----------------------------------------------------------------------


def test_what_it_publishes_reaches_the_clients_of_an_application(
    publisher: Publisher,
    redis_url: str,
    prefix: str,
) -> None:
    app = Flask(__name__)
    app.config.update(
        SOCKETS_BROKER_URL=redis_url, SOCKETS_CHANNEL_PREFIX=prefix, SOCKETS_PRESENCE_GRACE=0.1
    )
    sockets = Sockets(app)

    @sockets.route("/news")
    def news(ws: Any) -> None:
        subscription = ws.subscribe("news", envelope=True, identity="ann")
        ws.send(str(subscription.position))

    page = publisher.position("news")
    with sockets.test_client(app).connect("/news") as ws:
        assert ws.receive() == str(page)
        position = publisher.publish("news", {"headline": "It rains"})
        assert json.loads(ws.receive()) == {
            "channel": "news",
            "position": str(position),
            "data": {"headline": "It rains"},
        }
        assert publisher.present("news") == ["ann"]
        wait_until(lambda: publisher.subscribers("news") == 1, "the count of subscribers")
    assert sockets.position("news") == publisher.position("news") == position
    sockets._channels().close()


def test_positions_are_those_of_the_channel_whoever_publishes(make: MakePublisher) -> None:
    one, other = make(), make()
    before = one.position("news")
    assert before.offset == 0
    positions = [each.publish("news", "x") for each in (one, other, one)]
    assert positions == [Position(before.epoch, offset) for offset in (1, 2, 3)]
    assert one.position("news") == other.position("news") == positions[-1]
    assert one.publish("news", "is typing", transient=True) == positions[-1]
    assert [message.position for message in one.broker.history("news", before).messages] == (
        positions
    )
    assert one.publish("another", "x").offset == 1


def test_it_hears_nothing_and_keeps_no_connection_that_listens(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    with Publisher(server.url) as publisher, server.client() as admin:
        publisher.publish("news", "x")
        assert publisher.present("news") == []
        assert admin.pubsub_channels() == []
        assert [each["name"] for each in admin.client_list(_type="pubsub")] == []


def test_with_a_receiver_it_hears_as_well(make: MakePublisher) -> None:
    recorder = Recorder()
    publisher = make(receiver=recorder)
    publisher.broker.subscribe("news")
    publisher.publish("news", "hello", key="k")
    recorder.wait_for(b"hello")
    (message,) = recorder.messages
    assert isinstance(message, Message)
    assert (message.kind, message.key) == (TEXT, "k")


# -- what it publishes ---------------------------------------------------------------------


@dataclass
class Headline:
    text: str


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        ("ü", TEXT, "ü".encode()),
        (b"\x00\xff", BINARY, b"\x00\xff"),
        (bytearray(b"ab"), BINARY, b"ab"),
        (memoryview(b"abcd")[::2], BINARY, b"ac"),
        (None, JSON, b"null"),
        ({"ü": [1, True]}, JSON, '{"ü": [1, true]}'.encode()),
        (datetime(2026, 3, 4, tzinfo=UTC), JSON, b'"Wed, 04 Mar 2026 00:00:00 GMT"'),
        ([Decimal("1.10"), UUID(int=1)], JSON, f'["1.10", "{UUID(int=1)}"]'.encode()),
        (Headline("It rains"), JSON, b'{"text": "It rains"}'),
    ],
    ids=["text", "bytes", "bytearray", "memoryview", "null", "JSON", "date", "values", "dataclass"],
)
def test_text_bytes_and_json_are_told_apart_as_by_an_application(
    data: Any, kind: str, expected: bytes, publisher: Publisher
) -> None:
    publisher.publish("news", data)
    assert kept(publisher) == [(kind, expected)]


def test_json_is_made_as_one_says(make: MakePublisher) -> None:
    publisher = make(dumps=lambda data: f"[{data!r}]")
    publisher.publish("news", {1})
    publisher.publish("news", "text")
    assert kept(publisher) == [(JSON, b"[{1}]"), (TEXT, b"text")]


def test_many_messages_are_published_in_their_order(publisher: Publisher) -> None:
    """Of two channels, from a generator, more than are sent in one go, by number and by size."""
    small = [("ab"[number % 2], str(number)) for number in range(250)]
    big = [("big", "x" * 40_000) for _ in range(5)]
    positions = publisher.publish_many(pair for pair in [*small, *big])
    assert [position.offset for position in positions[:250]] == [i // 2 + 1 for i in range(250)]
    assert [position.offset for position in positions[250:]] == [1, 2, 3, 4, 5]
    assert positions[248] == publisher.position("a")
    assert positions[249] == publisher.position("b")
    texts = [str(number).encode() for number in range(0, 250, 2)]
    assert [data for _, data in kept(publisher, "a")] == texts[-100:]
    assert publisher.publish_many([]) == []


def test_a_key_is_text_of_bounded_size(make: MakePublisher) -> None:
    publisher = make()
    with pytest.raises(TypeError, match="key= is a str, got int"):
        publisher.publish("news", "x", key=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a key is at most 1024 bytes long, got 1025"):
        publisher.publish("news", "x", key="x" * 1025)
    with pytest.raises(ValueError, match="a key cannot hold half a surrogate pair"):
        publisher.publish("news", "x", key="\ud800")
    publisher.publish("news", "x", key="x" * 1024)
    assert publisher.position("news").offset == 1


@pytest.mark.parametrize(
    ("channel", "data", "kind", "error"),
    [
        ("", "x", ValueError, "a channel's name is 1 to 1024 bytes long, got 0"),
        ("é" * 513, "x", ValueError, "a channel's name is 1 to 1024 bytes long, got 1026"),
        ("\ud800", "x", ValueError, "a channel's name cannot hold half a surrogate pair"),
        (b"news", "x", TypeError, "a channel's name is a str, got bytes"),
        ("news", object(), TypeError, "type object is not JSON serializable"),
        ("news", [float("nan")], ValueError, "not JSON compliant"),
        ("news", "\ud800", ValueError, "the text for channel 'news' cannot hold half a"),
        ("news", "x" * 101, ValueError, "a message of 101 bytes is over the limit of 100"),
        ("news", b"x" * 101, ValueError, "a message of 101 bytes is over the limit of 100"),
        ("news", ["x" * 97], ValueError, "a message of 101 bytes is over the limit of 100"),
    ],
    ids=[
        "empty",
        "long",
        "surrogate",
        "bytes",
        "object",
        "nan",
        "text",
        "big",
        "big bytes",
        "big JSON",
    ],
)
def test_what_is_no_message_is_refused_before_anything_is_published(
    channel: Any, data: Any, kind: type[Exception], error: str, make: MakePublisher
) -> None:
    publisher = make(max_message_size=100)
    with pytest.raises(kind, match=error):
        publisher.publish(channel, data)
    with pytest.raises(kind, match=error):
        publisher.publish_many([("news", "first"), (channel, data)])
    publisher.publish("news", "x" * 100)
    assert publisher.position("news").offset == 1


def test_without_a_setting_a_message_has_at_most_a_mebibyte(publisher: Publisher) -> None:
    publisher.publish("news", bytes(2**20))
    with pytest.raises(ValueError, match=f"a message of {2**20 + 1} bytes .*MAX_MESSAGE_SIZE"):
        publisher.publish("news", bytes(2**20 + 1))


def test_the_history_is_as_long_as_it_is_set(make: MakePublisher) -> None:
    publisher = make(history_size=3)
    publisher.publish_many([("news", str(number)) for number in range(10)])
    assert [data for _, data in kept(publisher)] == [b"7", b"8", b"9"]


def test_the_history_is_kept_for_as_long_as_is_set(make: MakePublisher) -> None:
    publisher = make(history_ttl=0.1)
    publisher.publish("news", "x")
    assert publisher.position("news").offset == 1
    wait_until(lambda: kept(publisher) == [], "the end of the history")


def test_prefixes_part_those_that_share_a_server(make: MakePublisher, prefix: str) -> None:
    one, other = make(), make(prefix=f"{prefix}-other")
    one.publish("news", "x")
    assert other.position("news").offset == 0


def test_a_user_who_could_not_be_disconnected_may_still_be_connected() -> None:
    with (
        Publisher(f"redis://127.0.0.1:{unused_port()}") as publisher,
        pytest.raises(BrokerError) as caught,
    ):
        publisher.disconnect(user="ann")
    said = str(caught.value)
    assert said.startswith("the user may still be connected, since the processes could not be told")
    assert said.endswith("; disconnect the user again when the broker is back")


# -- opening and closing -------------------------------------------------------------------


def test_memory_is_refused_since_nobody_would_hear() -> None:
    with pytest.raises(BrokerError, match=r"memory:// reaches no other process, .*redis:// URL"):
        Publisher("memory://")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", "got ''; if it comes from an environment variable, set the variable"),
        (None, "got None; if it comes from an environment variable, set the variable"),
        (b"redis://ann:s3cret@localhost", "expected a broker's URL such as .* got a bytes"),
        ("localhost:6379", "expected a broker's URL such as"),
        ("nats://ann:s3cret@localhost", "no broker serves nats://"),
        ("redis://ann:s3cret@localhost:port", "expected a URL such as"),
        ("redis://ann:s3cret@localhost/0?socket_timeout=s3cret", "expected a URL such as"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_at_once(url: Any, error: str) -> None:
    with pytest.raises(BrokerError, match=error) as caught:
        Publisher(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_nothing_is_opened_before_the_first_call() -> None:
    with Publisher(f"redis://127.0.0.1:{unused_port()}") as publisher:
        assert publisher.broker.url.startswith("redis://")


def test_a_server_that_is_away_is_named_without_the_password() -> None:
    port = unused_port()
    with Publisher(f"redis://ann:s3cret@127.0.0.1:{port}/3") as publisher:
        for call in (
            lambda: publisher.publish("news", "x"),
            lambda: publisher.publish_many([("news", "x")]),
            lambda: publisher.position("news"),
            lambda: publisher.subscribers("news"),
            lambda: publisher.present("news"),
        ):
            with pytest.raises(BrokerError, match=rf"redis://127\.0\.0\.1:{port}/3") as caught:
                call()
            assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_it_is_of_use_again_when_its_server_is(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    with Publisher(server.url) as publisher:
        first = publisher.publish("news", "x")
        server.kill()
        with pytest.raises(BrokerError, match="unix://"):
            publisher.publish("news", "x")
        server.path.unlink(missing_ok=True)
        server.start()
        again = publisher.publish("news", "x")
        assert (again.offset, again.epoch != first.epoch) == (1, True)


def test_the_end_of_the_block_closes_what_was_opened(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    with server.client() as admin:

        def connections() -> int:
            return len(admin.client_list())

        alone = connections()
        with Publisher(server.url) as publisher:
            assert isinstance(publisher, Publisher)
            publisher.publish("news", "x")
            assert connections() > alone
        wait_until(lambda: connections() == alone, "the connections to be closed")
        publisher.close()  # can be repeated


def test_the_block_lets_an_error_pass(redis_url: str) -> None:
    with pytest.raises(KeyError), Publisher(redis_url):
        raise KeyError("of the program")


# -- threads and processes -----------------------------------------------------------------


def test_threads_share_it(publisher: Publisher) -> None:
    threads, each = 8, 50
    barrier = threading.Barrier(threads)

    def publish(thread: int) -> list[int]:
        barrier.wait(TIMEOUT)
        return [publisher.publish("news", f"{thread} {i}").offset for i in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        offsets = list(pool.map(publish, range(threads)))
    assert sorted(chain.from_iterable(offsets)) == list(range(1, threads * each + 1))
    assert all(own == sorted(own) for own in offsets)


def run_python(program: str, *args: str) -> str:
    """What a program says; it must end in order."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_children_of_a_fork_use_it_as_their_parent_does(
    used: bool,
    redis_url: str,
    prefix: str,
) -> None:
    said = run_python(
        """
        import os, sys
        from flask_sockets2 import Publisher

        publisher = Publisher(sys.argv[1], prefix=sys.argv[2])
        if sys.argv[3] == "True":
            publisher.publish("news", "before")
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                for i in range(20):
                    publisher.publish("news", f"{number} {i}")
                publisher.close()
                os._exit(0)
            children.append(child)
        for i in range(20):
            publisher.publish("news", f"parent {i}")
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        texts = [m.data.decode() for m in publisher.broker.history("news", None).messages]
        for who in ("0", "1", "2", "parent"):
            own = [text for text in texts if text.startswith(who)]
            assert own == [f"{who} {i}" for i in range(20)], own
        print(publisher.position("news").offset)
        publisher.close()
        """,
        redis_url,
        prefix,
        str(used),
    )
    assert int(said) == 80 + used


def test_a_script_that_forgets_to_close_it_ends(redis_url: str, prefix: str) -> None:
    said = run_python(
        """
        import sys
        from flask_sockets2 import Publisher

        publisher = Publisher(sys.argv[1], prefix=sys.argv[2])
        publisher.publish("news", {"headline": "It rains"})
        print(publisher.position("news").offset, "gevent" in sys.modules)
        """,
        redis_url,
        prefix,
    )
    assert said == "1 False\n"
