"""What only the Redis broker does, while its server is well; the rest is in the other modules."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import redis
import trustme
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as errors

from flask_sockets2 import BrokerError
from flask_sockets2.brokers.base import (
    BINARY,
    JSON,
    TEXT,
    BrokerOptions,
    Draft,
    History,
    Position,
)
from flask_sockets2.brokers.redis.broker import RedisBroker
from flask_sockets2.brokers.redis.errors import broker_error
from flask_sockets2.brokers.redis.leases import LeaseTimes
from flask_sockets2.brokers.redis.scripts import CLAIM, HISTORY, Call, Names, body_of, parse
from tests.processes import FORKS, unused_port, wait_until

from .conftest import Recorder
from .servers import RedisCluster, RedisServer, TlsProxy

MakeRedis = Callable[..., RedisBroker]
OwnServer = Callable[..., RedisServer]

SHORT = {"lease_times": LeaseTimes(lease=2.0, renew=0.2, tick=0.05)}
SELDOM = {"lease_times": LeaseTimes(lease=60.0, renew=30.0, tick=0.05)}  # reaps nothing here


def text(channel: str, *data: str, **fields: Any) -> list[Draft]:
    return [Draft(channel, TEXT, each.encode(), **fields) for each in data]


def run_python(source: str, *args: str, **environ: str) -> str:
    """Run a program and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", FORKS, "-c", dedent(source), *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def run_with_broker(source: str, url: str, prefix: str, *, patch: str = "") -> None:
    """Run a program with a broker (``SETUP``), which comes to its end and closes it.

    :param patch: how gevent patches the standard library, empty where it does not.
    """
    begin = f"from gevent import monkey; {patch}\n" if patch else ""
    end = "broker.close()\nprint('done')\n"
    said = run_python(begin + dedent(SETUP) + dedent(source) + end, url, prefix)
    assert said == "done\n"


# -- names and bytes on the server -------------------------------------------------------------


@pytest.mark.slow
@given(
    kind=st.sampled_from([TEXT, BINARY, JSON]),
    data=st.binary(max_size=50),
    key=st.text(max_size=10),
    event=st.sampled_from(["", "join", "leave"]),
    transient=st.booleans(),
    offset=st.integers(0, 2**53),
)
def test_a_message_is_read_as_it_was_written(
    kind: str, data: bytes, key: str, event: str, transient: bool, offset: int
) -> None:
    body = body_of(kind, data, key, event, transient)
    position = Position("9f86d081884c7d65", offset)
    for message in (parse("c", f"{position} ".encode() + body), parse("c", body, position)):
        fields = (message.kind, message.data, message.key, message.event, message.transient)
        assert fields == (kind, data, key, event, transient)
        assert message.position == position


@given(st.binary(max_size=60))
def test_what_another_program_sends_is_read_or_refused(payload: bytes) -> None:
    try:
        parse("c", payload)
    except ValueError:
        pass


@given(st.lists(st.text(alphabet="a{}%257BD:", min_size=1, max_size=6), min_size=2, unique=True))
def test_no_two_channels_share_a_name(channels: list[str]) -> None:
    names = Names("p", 0)
    for name_of in (names.pubsub, lambda channel: names.key(channel, "log")):
        assert len({name_of(channel) for channel in channels}) == len(channels)


def test_a_prefix_with_braces_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without braces.*; set another SOCKETS_CHANNEL_PREFIX"):
        RedisBroker("redis://localhost", BrokerOptions(prefix="a{b}"))


def test_all_keys_end_some_day(make_redis: MakeRedis, redis_url: str, prefix: str) -> None:
    broker = make_redis(Recorder())
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    broker.position("other")
    broker.join("news", "ann")
    broker.count("news", 3)
    with redis.Redis.from_url(redis_url) as client:
        counts = f"{prefix}:{{news}}:counts"
        wait_until(lambda: client.exists(counts), "the counts to be told")
        keys = client.keys(f"{prefix}:*")
        assert len(keys) == 8
        for key in keys:
            assert client.ttl(key) > 0, key


def test_names_that_nobody_publishes_to_are_gone_after_a_minute(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    """Any client can have a page rendered, or listen, for names that it makes up."""
    broker = make_redis(Recorder())
    broker.position("rendered")
    broker.history("read", None)
    broker.history("resumed", Position("0" * 16, 3))
    broker.subscribe("listened")
    broker.unsubscribe("listened")
    broker.publish(text("now", "1", transient=True))
    with redis.Redis.from_url(redis_url) as client:
        keys = client.keys(f"{prefix}:*")
        assert len(keys) == 5
        for key in keys:
            assert 0 < client.pttl(key) <= 60_000, key


def test_without_a_history_no_stream_is_kept(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    make_redis(history_size=0).publish(text("news", "1"))
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys(f"{prefix}:*") == [f"{prefix}:{{news}}:meta".encode()]


# -- several processes -------------------------------------------------------------------------


def test_brokers_of_one_server_share_channels_and_their_order(make_redis: MakeRedis) -> None:
    recorders = [Recorder(), Recorder()]
    one, two = (make_redis(recorder) for recorder in recorders)
    assert one.subscribe("news") == two.subscribe("news")
    for i in range(10):
        one.publish(text("news", f"one {i}"))
        two.publish(text("news", f"two {i}"))
    for recorder in recorders:
        recorder.wait_for(b"two 9")
        assert recorder.data == [
            f"{name} {i}".encode() for i in range(10) for name in ("one", "two")
        ]
        assert [each.position.offset for each in recorder.messages] == list(range(1, 21))
    assert two.history("news", None).messages[0].data == b"one 0"


def test_databases_do_not_hear_each_other(own_server: OwnServer, make_redis: MakeRedis) -> None:
    server = own_server()
    recorder = Recorder()
    zero = make_redis(recorder, url=server.url)
    one = make_redis(url=f"{server.url}?db=1")
    assert zero.subscribe("news").epoch != one.position("news").epoch
    one.publish(text("news", "one"))
    zero.publish(text("news", "zero"))
    recorder.wait_for(b"zero")
    assert recorder.data == [b"zero"]


def test_prefixes_do_not_hear_each_other(make_redis: MakeRedis, prefix: str) -> None:
    recorder = Recorder()
    one, two = make_redis(recorder), make_redis(prefix=f"{prefix}-2")
    one.subscribe("news")
    two.publish(text("news", "two"))
    one.publish(text("news", "one"))
    recorder.wait_for(b"one")
    assert recorder.data == [b"one"]


def test_a_process_has_one_connection_that_listens(
    own_server: OwnServer, make_redis: MakeRedis
) -> None:
    server = own_server()
    broker = make_redis(Recorder(), url=server.url)
    for i in range(100):
        broker.subscribe(f"channel {i}")
    with server.client() as client:
        assert len(client.client_list(_type="pubsub")) == 1
        assert len(client.pubsub_channels()) == 100
        for i in range(100):
            broker.unsubscribe(f"channel {i}")
        wait_until(lambda: not client.pubsub_channels(), "nothing to be subscribed to")


def test_what_another_program_publishes_is_ignored(
    make_redis: MakeRedis, redis_url: str, prefix: str, recorder: Recorder
) -> None:
    broker = make_redis(recorder)
    broker.subscribe("news")
    name = Names(prefix, 0).pubsub("news")
    with redis.Redis.from_url(redis_url) as client:
        for payload in (b"", b"hello", b" " * 40, b"9f86d081884c7d65-1 ", b"\xff" * 16 + b"-x \0"):
            client.publish(name, payload)
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    assert recorder.data == [b"1"]
    assert recorder.all_missed == []


def test_what_another_program_writes_to_a_log_makes_it_incomplete(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker = make_redis()
    start = broker.position("news")
    broker.publish(text("news", "1"))
    with redis.Redis.from_url(redis_url) as client:
        client.xadd(f"{prefix}:{{news}}:log", {"m": "?"}, id="2-0")
        client.hincrby(f"{prefix}:{{news}}:meta", "offset", 1)
    history = broker.history("news", start)
    assert (list(history.messages), history.complete) == ([], False)
    assert broker.history("news", None).complete


@pytest.mark.parametrize("entry", ["*", "18446744073709551615-18446744073709551615", "3-0", "2-5"])
def test_what_another_program_adds_to_a_log_keeps_nobody_from_publishing(
    entry: str,
    make_redis: MakeRedis,
    redis_url: str,
    prefix: str,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = make_redis(recorder)
    start = broker.subscribe("news")
    broker.publish(text("news", "1", "2"))
    with redis.Redis.from_url(redis_url) as client:
        client.xadd(f"{prefix}:{{news}}:log", {"junk": "?", "m": "?"}, id=entry)
    [first, _, _] = broker.publish([*text("news", "3"), *text("other", "1"), *text("news", "4")])
    assert first == Position(start.epoch, 3)
    broker.publish(text("news", "5"))
    recorder.wait_for(b"5")
    history = broker.history("news", start)
    assert history.complete
    assert [each.data for each in history.messages] == [b"1", b"2", b"3", b"4", b"5"]
    assert recorder.data == [b"1", b"2", b"3", b"4", b"5"]
    assert recorder.all_missed == []
    lines = [line for line in caplog.messages if "another program has written" in line]
    assert len(lines) == (entry != "2-5")
    with redis.Redis.from_url(redis_url) as client:
        assert client.ttl(f"{prefix}:{{news}}:log") > 0


def test_what_another_program_adds_to_a_log_of_a_cluster_is_removed_too(
    make_cluster: MakeRedis, prefix: str, shared_cluster: RedisCluster
) -> None:
    broker = make_cluster()
    start = broker.position("news")
    broker.publish(text("news", "1"))
    with redis.RedisCluster.from_url(shared_cluster.url) as client:
        client.xadd(f"{prefix}:{{news}}:log", {"junk": "?"})
    broker.publish([*text("other", "1"), *text("news", "2")])
    assert [each.data for each in broker.history("news", start).messages] == [b"1", b"2"]


@pytest.mark.parametrize(
    "meta", [{"offset": "x"}, {"offset": "1e9"}, {"offset": "-3"}, {"epoch": "?"}]
)
def test_what_another_program_writes_over_a_position_begins_the_log_anew(
    meta: dict[str, str], make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker = make_redis()
    broker.publish(text("news", "1", "2"))
    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"{prefix}:{{news}}:meta", mapping=meta)
    [third] = broker.publish(text("news", "3"))
    assert third.offset == 1
    assert [each.data for each in broker.history("news", None).messages] == [b"3"]


def test_what_another_program_writes_into_counts_is_not_counted(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker = make_redis()
    broker.join("news", "ann")
    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"{prefix}:{{news}}:counts", "junk", "?")
        client.hset(f"{prefix}:{{news}}:who", "junk", "?")
    assert broker.subscribers("news") == 0
    assert broker.present("news") == ["ann"]


def test_a_gap_in_a_log_makes_it_incomplete(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker = make_redis()
    start = broker.position("news")
    broker.publish(text("news", "1", "2", "3", "4"))
    with redis.Redis.from_url(redis_url) as client:
        client.xdel(f"{prefix}:{{news}}:log", "2-0")
    assert not broker.history("news", start).complete
    assert broker.history("news", Position(start.epoch, 2)).complete
    assert [each.data for each in broker.history("news", None).messages] == [b"3", b"4"]


def test_a_channel_whose_log_was_begun_anew_goes_on(
    make_redis: MakeRedis, redis_url: str, prefix: str, recorder: Recorder
) -> None:
    broker = make_redis(recorder)
    old = broker.subscribe("news")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    with redis.Redis.from_url(redis_url) as client:
        client.delete(f"{prefix}:{{news}}:meta")
    [new] = broker.publish(text("news", "2"))
    recorder.wait_for(b"2")
    assert new.epoch != old.epoch
    assert new.offset == 1
    assert recorder.data == [b"1", b"2"]
    assert [each.data for each in broker.history("news", None).messages] == [b"2"]


# -- histories that are more than fits in memory -----------------------------------------------


class Exchanges:
    """Remembers how many bytes of messages each exchange of histories brought.

    :ivar sizes: of each exchange, the bytes of each page.
    """

    def __init__(self, broker: RedisBroker) -> None:
        self.sizes: list[list[int]] = []
        self._exchange = broker._client._exchange
        broker._client._exchange = self  # type: ignore[method-assign]

    def __call__(self, calls: Sequence[Call]) -> list[Any]:
        replies = self._exchange(calls)
        if calls[0].script is HISTORY:
            self.sizes.append([sum(map(len, page)) for *_, page in replies])
        return replies


def test_histories_are_read_in_exchanges_of_few_bytes(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_sockets2.brokers.redis.broker._EXCHANGE_BYTES", 10_000)
    broker = make_redis()
    data = {f"channel {i}": [bytes([i]) * 300] * (i % 3 + 1) for i in range(50)}
    data["long"] = [b"a" * 20_000, b"b" * 5_000, b"c" * 5_000]
    drafts = [Draft(name, BINARY, each) for name, own in data.items() for each in own]
    positions = dict(zip((draft.channel for draft in drafts), broker.publish(drafts), strict=True))
    exchanges = Exchanges(broker)
    wanted = [(name, Position(positions[name].epoch, 0)) for name in data]
    for (name, _), history in zip(wanted, broker._histories(wanted), strict=True):
        assert isinstance(history, History)
        assert [each.data for each in history.messages] == data[name]
        assert history.position == positions[name]
    first, *others = exchanges.sizes
    assert len(first) == 51
    assert sum(first) <= 10_000
    assert all(len(pages) == 1 for pages in others)
    assert max(sum(pages) for pages in others) <= 20_010  # one message, longer than all


def test_one_history_is_at_hand_at_a_time(make_redis: MakeRedis) -> None:
    broker = make_redis()
    exchanges = Exchanges(broker)
    histories = broker._histories([(f"channel {i}", None) for i in range(250)])
    assert exchanges.sizes == []
    for i, _ in enumerate(histories):
        assert len(exchanges.sizes) == i // 100 + 1


def test_no_more_than_fits_is_read_of_a_long_history(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_sockets2.brokers.redis.broker._EXCHANGE_BYTES", 10_000)
    broker = make_redis(history_bytes=20_000)
    start = broker.position("news")
    broker.publish([Draft("news", BINARY, bytes(1000))] * 100)
    for since in (None, start):
        exchanges = Exchanges(broker)
        history = broker.history("news", since)
        assert (len(history.messages), history.complete) == ((20, True), (0, False))[bool(since)]
        assert sum(map(sum, exchanges.sizes)) <= 30_000


# -- who is there, in several processes --------------------------------------------------------


def events(recorder: Recorder) -> list[tuple[str, str]]:
    return [(m.event, m.data.decode()) for m in recorder.messages if m.event]


def wait_for_event(recorder: Recorder, event: str, identity: str) -> None:
    recorder.wait(lambda: (event, identity) in events(recorder), f"{event} of {identity}")


def test_an_identity_is_present_as_long_as_it_is_anywhere(
    make_redis: MakeRedis, recorder: Recorder
) -> None:
    one, two = make_redis(recorder), make_redis()
    one.subscribe("room")
    one.join("room", "ann")
    two.join("room", "ann")
    two.join("room", "bob")
    assert one.present("room") == two.present("room") == ["ann", "bob"]
    one.leave("room", "ann")
    two.leave("room", "bob")
    wait_for_event(recorder, "leave", "bob")
    assert one.present("room") == ["ann"]
    two.leave("room", "ann")
    wait_for_event(recorder, "leave", "ann")
    assert events(recorder) == [
        ("join", "ann"),
        ("join", "bob"),
        ("leave", "bob"),
        ("leave", "ann"),
    ]


def test_subscribers_of_all_processes_are_counted(make_redis: MakeRedis) -> None:
    brokers = [make_redis(times=SHORT) for _ in range(3)]
    for broker in brokers:
        broker.count("news", 2)
        assert broker.subscribers("news") >= 2  # its own at once
    for broker in brokers:
        wait_until(lambda broker=broker: broker.subscribers("news") == 6, "all to be told")
    brokers[0].count("news", 0)
    wait_until(lambda: brokers[1].subscribers("news") == 4, "the change to be told")


def test_a_process_that_ends_hands_over_its_identities(
    make_redis: MakeRedis, recorder: Recorder
) -> None:
    stays, ends = make_redis(recorder, times=SHORT), make_redis(presence_grace=0.3, times=SHORT)
    stays.subscribe("room")
    stays.count("room", 1)
    ends.join("room", "ann")
    ends.join("room", "bob")
    ends.count("room", 5)
    wait_until(lambda: stays.subscribers("room") == 6, "the counts to be told")
    ends.close()
    stays.join("room", "ann")  # came back elsewhere
    wait_for_event(recorder, "leave", "bob")
    assert stays.present("room") == ["ann"]
    assert stays.subscribers("room") == 1
    assert events(recorder) == [("join", "ann"), ("join", "bob"), ("leave", "bob")]


def test_nobody_has_to_run_for_the_dead_to_be_gone(make_redis: MakeRedis) -> None:
    ends = make_redis(presence_grace=0.0, times=SHORT)
    ends.join("room", "ann")
    ends.count("room", 5)
    reader = make_redis()
    wait_until(lambda: reader.subscribers("room") == 5, "the counts to be told")
    ends.close()
    wait_until(lambda: reader.present("room") == [], "ann to be gone")
    assert reader.subscribers("room") == 0


def test_a_process_that_was_taken_for_dead_joins_again(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker, other = make_redis(times=SHORT), make_redis()
    broker.join("room", "ann")
    broker.count("room", 2)
    wait_until(lambda: other.subscribers("room") == 2, "the counts to be told")
    with redis.Redis.from_url(redis_url) as client:
        # As if it had been paused, and reaped meanwhile.
        client.delete(*client.keys(f"{prefix}:processes*"), *client.keys(f"{prefix}:{{room}}:*"))
    assert other.present("room") == []
    wait_until(lambda: other.present("room") == ["ann"], "ann to be back")
    wait_until(lambda: other.subscribers("room") == 2, "the counts to be told again")


def test_a_process_that_was_paused_finds_its_own_identities(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease has ended meanwhile, so the server takes it for dead until it renews it."""
    broker, other = make_redis(times=SHORT), make_redis()
    broker.join("room", "ann")
    monkeypatch.setattr(broker._leases, "_round", lambda: None)
    wait_until(lambda: other.present("room") == [], "the lease to end")
    assert broker.present("room") == ["ann"]


def test_an_identity_that_was_seen_gone_with_its_dead_process_joins_again(
    make_redis: MakeRedis, recorder: Recorder
) -> None:
    """The dead process has not been reaped yet when the identity comes back elsewhere."""
    reader = make_redis(recorder)
    reader.subscribe("room")
    ends, other = make_redis(times=SHORT), make_redis(times=SELDOM)
    ends.join("room", "ann")
    ends._leases.forget()  # as if it had been killed
    wait_until(lambda: reader.present("room") == [], "the lease to end")
    other.join("room", "ann")
    wait_until(lambda: len(events(recorder)) == 3, "all events")
    assert events(recorder) == [("join", "ann"), ("leave", "ann"), ("join", "ann")]
    assert reader.present("room") == ["ann"]


def test_a_process_that_was_seen_dead_while_it_was_paused_tells_that_its_identities_joined(
    make_redis: MakeRedis, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, other = make_redis(times=SHORT), make_redis(recorder)
    other.subscribe("room")
    paused.join("room", "ann")
    with monkeypatch.context() as patch:
        patch.setattr(paused._leases, "_round", lambda: None)
        wait_until(lambda: other.present("room") == [], "the lease to end")
    wait_until(lambda: len(events(recorder)) == 3, "all events")
    assert events(recorder) == [("join", "ann"), ("leave", "ann"), ("join", "ann")]
    paused.leave("room", "ann")
    wait_until(lambda: len(events(recorder)) == 4, "the last event")
    assert events(recorder)[3] == ("leave", "ann")
    assert other.present("room") == []


def test_the_lease_of_a_reaper_that_died_is_taken_over(
    make_redis: MakeRedis, redis_url: str, prefix: str, recorder: Recorder
) -> None:
    broker = make_redis(recorder, times=SHORT)
    broker.subscribe("room")
    broker.join("room", "ann")
    ended = make_redis(times=SHORT)
    ended.join("room", "bob")
    assert ended._leases._lease is not None
    process = ended._leases._lease.process
    ended._leases.forget()
    registry = Names(prefix, 0)
    with redis.Redis.from_url(redis_url) as client:
        client.zrem(registry.processes, process)
        client.zadd(registry.reaping, {process: 1.0})
        assert broker.present("room") == ["ann"]
        wait_for_event(recorder, "leave", "bob")
        wait_until(lambda: not client.exists(registry.channels_of(process)), "the end")
        assert client.zcard(registry.reaping) == 0


def test_a_process_that_is_reaped_has_one_reaper_at_a_time(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker, registry = make_redis(), Names(prefix, 0)
    keys = [registry.processes, registry.reaping, registry.channels_of("dead")]
    with redis.Redis.from_url(redis_url) as client:
        client.zadd(registry.processes, {"dead": 1.0})
        client.sadd(registry.channels_of("dead"), "room")
    claim = Call(CLAIM, keys, ["dead", 600_000, 600_000])
    claimed = [broker._leases._client.run([claim])[0] for _ in range(2)]
    assert claimed == [[b"room"], None]


def test_a_channel_that_a_process_has_left_is_forgotten(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    broker = make_redis(times=SHORT)
    broker.join("room", "ann")
    broker.count("room", 1)
    assert broker._leases._lease is not None
    process = broker._leases._lease.process
    own = Names(prefix, 0).channels_of(process)
    with redis.Redis.from_url(redis_url) as client:
        assert client.smembers(own) == {b"room"}
        broker.leave("room", "ann")
        broker.count("room", 0)
        wait_until(lambda: not client.exists(own), "the channel to be forgotten")
        assert client.keys(f"{prefix}:{{room}}:[wc]*") == []
        broker.join("room", "ann")
        assert client.smembers(own) == {b"room"}


# -- URLs, passwords, errors -------------------------------------------------------------------


def everything_said(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:sec/ret@localhost:6379/0",
        "redis://:secret@localhost:port/0",
        "redis://:secret@localhost/0?no_such_option=secret",
        "redis://:secret@localhost/0?socket_timeout=secret",
        "redis://localhost/0?password=secret&socket_timeout=soon",
        "redis://localhost/0?password=begins&secret=ends",
        "redis://localhost:port/0?password=secret",
        "redis://localhost:secret",
        "redis://localhost,password=secret",
        "redis://localhost;password=secret/0",
        "redis://localhost&password=secret",
        "redis://localhost password=secret",
        "redis://ann:secret@localhost,password=secret/0",
        "redis://localhost/0&password=secret",
        "redis://:sec?ret@localhost:6379/0",
        "redis://ann:6379?secret=some@localhost/0",
        "redis://ann:6379/0?secret=some@localhost/0",
        "unix:///tmp/redis.sock&password=secret",
        "unix:///tmp/redis.sock,password=secret",
        "unix://:sec/ret@/tmp/redis.sock",
        "unix://ann:some@/secret@/tmp/redis.sock",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BrokerError, match="expected a URL such as") as caught:
        RedisBroker(url, BrokerOptions())
    said = everything_said(caught.value)
    assert not any(part in said for part in ("secret", "sec/", "sec?", "/ret", "?ret"))


def test_an_option_of_a_url_that_is_wrong_is_named() -> None:
    for option in ("bogus=1", "socket_timeout=soon"):
        with pytest.raises(BrokerError, match=f"its option '{option.partition('=')[0]}'") as caught:
            RedisBroker(f"redis://localhost/0?{option}", BrokerOptions())
        assert "%2F" not in str(caught.value)


@pytest.mark.parametrize("path", ["/abc", "/1/2", "/-1", "/0x1"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_url_that_names_no_database_by_its_number_is_refused(scheme: str, path: str) -> None:
    with pytest.raises(BrokerError, match="without the number of a database") as caught:
        RedisBroker(f"{scheme}://:secret@localhost:6379{path}", BrokerOptions())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("path", "db"), [("", 0), ("/", 0), ("/0", 0), ("/12", 12), ("?db=3", 3)])
def test_a_url_may_name_its_database(path: str, db: int) -> None:
    broker = RedisBroker(f"redis://localhost:6379{path}", BrokerOptions())
    assert broker._client.db == db


def test_a_server_that_is_away_is_named_with_its_remedy(make_redis: MakeRedis) -> None:
    port = unused_port()
    broker = make_redis(Recorder(), url=f"redis://ann:secret@127.0.0.1:{port}/3")
    remedy = rf"cannot reach redis://127.0.0.1:{port}/3: .*; start the server or correct the URL"
    for call in (
        lambda: broker.publish(text("news", "1")),
        lambda: broker.subscribe("news"),
        lambda: broker.position("news"),
        lambda: broker.history("news", None),
        lambda: broker.join("news", "ann"),
        lambda: broker.present("news"),
        lambda: broker.subscribers("news"),
    ):
        with pytest.raises(BrokerError, match=remedy) as caught:
            call()
        assert "secret" not in everything_said(caught.value)
    broker.unsubscribe("news")
    broker.count("news", 1)
    broker.leave("news", "ann")


@pytest.mark.parametrize("kind", ["url", "tcp_url"])
@pytest.mark.parametrize("user", ["", "ann:secret@"])
def test_a_server_without_room_for_another_client_is_reached_and_says_so(
    kind: str, user: str, own_server: OwnServer, make_redis: MakeRedis
) -> None:
    """It hangs up at once, and who speaks first may find nothing but a broken connection."""
    server = own_server("--maxclients", "1", port=unused_port())
    url = getattr(server, kind).replace("://", f"://{user}")
    shown = url.replace(user, "") + ("/0" if kind == "tcp_url" else "")
    remedy = f"^{shown} refused: max number of clients reached; raise its maxclients"
    with server.client() as only:
        assert only.ping()
        for _ in range(10):  # whether it is heard before it has hung up is chance
            broker = make_redis(Recorder(), url=url)
            for call in (
                lambda b=broker: b.publish(text("news", "1")),
                lambda b=broker: b.position("news"),
                lambda b=broker: b.subscribe("news"),
            ):
                with pytest.raises(BrokerError, match=remedy):
                    call()


def test_a_server_that_loads_its_data_is_reached_and_says_so() -> None:
    error = broker_error(errors.BusyLoadingError("Redis is loading the dataset"), "redis://a", "")
    assert str(error).startswith("redis://a refused: Redis is loading the dataset; wait until")


def test_a_password_is_used_and_never_shown(own_server: OwnServer, make_redis: MakeRedis) -> None:
    server = own_server("--requirepass", "s/cr:t", port=unused_port())
    address = f"127.0.0.1:{server.port}/0"
    recorder = Recorder()
    broker = make_redis(recorder, url=f"redis://:s%2Fcr%3At@{address}")
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    for user in ("", ":wrong-secret@"):
        other = make_redis(Recorder(), url=f"redis://{user}{address}")
        for call in (lambda o=other: o.position("news"), lambda o=other: o.subscribe("news")):
            with pytest.raises(BrokerError, match=rf"redis://{address} refused: .*in the URL"):
                call()
            with pytest.raises(BrokerError) as caught:
                call()
            assert "secret" not in everything_said(caught.value)


def test_what_a_user_may_not_do_is_named(own_server: OwnServer, make_redis: MakeRedis) -> None:
    server = own_server()
    with server.client() as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"],
            commands=["-xadd"],
        )  # fmt: skip
    broker = make_redis(Recorder(), url=f"unix://app:secret@{server.path}")
    with pytest.raises(BrokerError, match=r"refused: .*grant its user") as caught:
        broker.publish(text("news", "1"))
    assert "secret" not in everything_said(caught.value)
    with pytest.raises(BrokerError, match=r"refused: .*grant its user"):
        broker.subscribe("news")  # no pub/sub channel was granted


def test_a_user_who_may_not_ask_about_the_server_can_use_it(
    own_server: OwnServer, make_redis: MakeRedis
) -> None:
    server = own_server()
    with server.client() as client:
        client.acl_setuser(
            "app", enabled=True, nopass=True, categories=["+@all"], keys=["*"], channels=["*"],
            commands=["-info"],
        )  # fmt: skip
    recorder = Recorder()
    broker = make_redis(recorder, url=f"unix://app:any@{server.path}")
    position = broker.subscribe("news")
    [published] = broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    assert published == Position(position.epoch, 1)


def test_names_that_another_program_uses_are_named(
    make_redis: MakeRedis, redis_url: str, prefix: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{prefix}:{{news}}:meta", "theirs", ex=60)
    with pytest.raises(BrokerError, match=r"refused: WRONGTYPE .*; another program .* prefix"):
        make_redis().publish(text("news", "private"))


@pytest.fixture
def tls_proxy(own_server: OwnServer) -> Iterator[Callable[[trustme.CA], TlsProxy]]:
    proxies: list[TlsProxy] = []

    def start(authority: trustme.CA) -> TlsProxy:
        proxies.append(TlsProxy(own_server(), authority.issue_cert("127.0.0.1")))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


def test_tls_is_spoken_and_the_certificate_checked(
    tls_proxy: Callable[[trustme.CA], TlsProxy], make_redis: MakeRedis, tmp_path: Path
) -> None:
    authority = trustme.CA()
    proxy = tls_proxy(authority)
    cafile = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(cafile))
    recorder = Recorder()
    broker = make_redis(recorder, url=f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={cafile}")
    for i in range(50):
        broker.subscribe(f"channel {i}")
    broker.publish([Draft("channel 7", BINARY, bytes(200_000))] * 10 + text("channel 7", "end"))
    recorder.wait_for(b"end")
    assert len(recorder.calls) == 11
    distrustful = make_redis(url=f"rediss://127.0.0.1:{proxy.port}/0")
    with pytest.raises(BrokerError, match=r"cannot reach rediss://.*certificate verify failed"):
        distrustful.position("news")


def test_without_the_package_redis_the_remedy_is_named() -> None:
    said = run_python("""
        import sys
        sys.modules["redis"] = None
        from flask_sockets2 import BrokerError
        try:
            import flask_sockets2.brokers.redis.broker
        except BrokerError as exc:
            print(exc)
    """)
    assert 'run pip install "flask-sockets2[redis]"' in said


# -- scripts that the server has forgotten -----------------------------------------------------


def test_scripts_that_the_server_forgets_lose_and_double_nothing(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker, other = make_redis(recorder, url=server.url), make_redis(url=server.url)
    broker.subscribe("news")
    with server.client() as client:
        for i in range(50):
            client.script_flush()
            publisher = broker if i % 2 else other
            publisher.publish(text("news", *(f"{i} {j}" for j in range(70))))
    recorder.wait_for(b"49 69")
    assert recorder.data == [f"{i} {j}".encode() for i in range(50) for j in range(70)]
    assert [each.position.offset for each in recorder.messages] == list(range(1, 3501))


# -- threads, greenlets, children --------------------------------------------------------------

SETUP = """
    import sys, threading, time
    from flask_sockets2.brokers.base import BrokerOptions, Draft
    from flask_sockets2.brokers.redis.broker import RedisBroker

    class Receiver:
        def __init__(self):
            self.data = []
            self.threads = set()
        def deliver(self, message):
            self.data.append(message.data)
            self.threads.add(threading.current_thread().name)
        def missed(self, channel, position):
            self.data.append("missed")
        def resumed(self, channel):
            self.data.append("resumed")
        def reconnected(self):
            self.data.append("reconnected")

    def wait_until(condition):
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    receiver = Receiver()
    options = BrokerOptions(prefix=sys.argv[2], presence_grace=0.05)
    broker = RedisBroker(sys.argv[1], options, receiver)

    def publish(data):
        broker.publish([Draft("news", "binary", data)])
"""


def test_a_child_of_a_fork_publishes_and_its_parent_hears_it(redis_url: str, prefix: str) -> None:
    run_with_broker(
        """
        import os
        broker.subscribe("news")
        broker.join("news", "parent")
        publish(b"before")
        for i in range(3):
            pid = os.fork()
            if not pid:
                for j in range(20):
                    publish(b"child")
                assert broker.present("news") == ["parent"]
                assert broker.subscribe("other").offset == 0
                broker.close()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        publish(b"after")
        wait_until(lambda: receiver.data[-1] == b"after")
        assert receiver.data == [b"parent", b"before"] + [b"child"] * 60 + [b"after"]
        assert broker.present("news") == ["parent"]
        """,
        redis_url,
        prefix,
    )


def test_under_gevent_greenlets_and_native_threads_publish_at_once(
    redis_url: str, prefix: str
) -> None:
    run_with_broker(
        """
        import gevent
        broker.subscribe("news")
        pool = gevent.get_hub().threadpool
        ticks = []

        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.001)

        ticker = gevent.spawn(tick)
        jobs = [gevent.spawn(lambda: [publish(b"green") for _ in range(50)]) for _ in range(10)]
        jobs += [pool.spawn(lambda: [publish(b"native") for _ in range(50)]) for _ in range(3)]
        for job in jobs:
            job.get(timeout=60)
        wait_until(lambda: len(receiver.data) == 650)
        assert receiver.data.count(b"native") == 150
        assert len(receiver.threads) == 1
        broker.publish([Draft("news", "binary", b"x")] * 5000)
        wait_until(lambda: len(receiver.data) == 5650)
        broker.unsubscribe("news")
        assert broker.subscribe("news").offset == 5650
        broker.join("news", "ann")
        assert pool.spawn(lambda: broker.present("news")).get(timeout=60) == ["ann"]
        broker.leave("news", "ann")
        wait_until(lambda: broker.present("news") == [])
        assert len(ticks) > 20
        """,
        redis_url,
        prefix,
        patch="monkey.patch_all()",
    )


def test_under_gevent_tls_is_spoken(
    tls_proxy: Callable[[trustme.CA], TlsProxy], tmp_path: Path, prefix: str
) -> None:
    authority = trustme.CA()
    proxy = tls_proxy(authority)
    cafile = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(cafile))
    run_with_broker(
        """
        for i in range(50):
            broker.subscribe(str(i))
        broker.subscribe("news")
        for i in range(50):
            publish(bytes(50_000))
            broker.unsubscribe(str(i))
        publish(b"end")
        wait_until(lambda: receiver.data[-1:] == [b"end"])
        assert receiver.data == [bytes(50_000)] * 50 + [b"end"]
        """,
        f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={cafile}",
        prefix,
        patch="monkey.patch_all()",
    )


def test_under_gevent_a_hub_callback_can_say_what_must_not_wait(
    redis_url: str, prefix: str
) -> None:
    run_with_broker(
        """
        import gevent
        broker.subscribe("news")
        broker.join("news", "ann")
        other = RedisBroker(sys.argv[1], BrokerOptions(prefix=sys.argv[2]))

        def callback():
            broker.unsubscribe("news")
            broker.count("news", 7)
            broker.leave("news", "ann")

        gevent.get_hub().loop.run_callback(callback)
        wait_until(lambda: other.subscribers("news") == 7)
        wait_until(lambda: other.present("news") == [])
        other.close()
        """,
        redis_url,
        prefix,
        patch="monkey.patch_all()",
    )


def test_where_gevent_leaves_threads_alone_greenlets_share_a_registration(
    redis_url: str, prefix: str
) -> None:
    run_with_broker(
        """
        import gevent
        jobs = [gevent.spawn(broker.join, f"room {i}", "ann") for i in range(20)]
        for job in jobs:
            job.get(timeout=60)
        assert all(broker.present(f"room {i}") == ["ann"] for i in range(20))
        """,
        redis_url,
        prefix,
        patch="monkey.patch_all(thread=False)",
    )


def test_where_gevent_leaves_threads_alone_the_listener_is_no_greenlet(
    redis_url: str, prefix: str
) -> None:
    run_with_broker(
        """
        slept, sleep, main = [], time.sleep, threading.get_ident()

        def record(seconds):
            if threading.get_ident() != main:
                slept.append(seconds)
            sleep(seconds)

        time.sleep = record
        broker.subscribe("news")
        broker.publish([Draft("news", "binary", b"x")] * 2000)
        wait_until(lambda: len(receiver.data) == 2000)
        assert slept == [], slept[:3]
        """,
        redis_url,
        prefix,
        patch="monkey.patch_all(thread=False)",
    )


def test_under_gevent_a_child_of_a_fork_leaves_its_parents_connections_alone(
    redis_url: str, prefix: str
) -> None:
    run_with_broker(
        """
        import os
        broker.subscribe("news")
        broker.join("news", "parent")
        pid = os.fork()
        if not pid:
            seen = len(receiver.data)
            for j in range(200):
                publish(b"child")
            time.sleep(0.2)
            assert len(receiver.data) == seen
            broker.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        publish(b"after")
        wait_until(lambda: receiver.data[-1] == b"after")
        assert receiver.data == [b"parent"] + [b"child"] * 200 + [b"after"]
        """,
        redis_url,
        prefix,
        patch="monkey.patch_all()",
    )
