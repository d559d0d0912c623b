"""What the Redis broker does when its server, its connection or its process fails."""

from __future__ import annotations

import _thread
import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from flask_sockets2 import BrokerError
from flask_sockets2.brokers.base import BINARY, RESERVED, TEXT, Draft, Message, Position
from flask_sockets2.brokers.redis import reader
from flask_sockets2.brokers.redis.broker import RedisBroker
from flask_sockets2.brokers.redis.leases import LeaseTimes, _Attempt
from flask_sockets2.brokers.redis.reader import ListenerTimes
from flask_sockets2.brokers.redis.scripts import COUNT, SETTLE, Call, Script
from tests.processes import unused_port, wait_until

from .conftest import WAIT, Missed, Recorder, Resumed
from .servers import RedisServer
from .test_redis import events, text, wait_for_event

pytestmark = pytest.mark.slow

MakeRedis = Callable[..., RedisBroker]
OwnServer = Callable[..., RedisServer]

LISTENER = ListenerTimes(answer=1.0, ping=0.3, shortest_wait=0.01, longest_wait=0.1)
IMPATIENT = {"listener_times": LISTENER, "client_timeout": 1.0}
SHORT = {"lease_times": LeaseTimes(lease=2.0, renew=0.2, tick=0.05)}


@pytest.fixture
def may_return(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A listener that has lost its connection comes back when this is set."""
    gate = threading.Event()
    monkeypatch.setattr(reader.Reader, "pause", lambda self, seconds: gate.wait(WAIT))
    yield gate
    gate.set()


class Stream:
    """Publishes numbers to a channel, all the time, and knows which were acknowledged.

    A number whose publishing failed is not published again: it may have been published.
    """

    def __init__(self, broker: RedisBroker, at_once: int = 5) -> None:
        self.acknowledged: dict[int, Position] = {}
        self.failures = 0
        self._broker = broker
        self._at_once = at_once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            numbers = range(number, number + self._at_once)
            number += self._at_once
            try:
                positions = self._broker.publish(text("news", *map(str, numbers)))
            except BrokerError:
                self.failures += 1
                self._stop.wait(0.01)
            else:
                self.acknowledged.update(zip(numbers, positions, strict=True))

    def wait_for_more(self, count: int) -> None:
        """Wait until more have been acknowledged."""
        enough = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= enough, f"{count} more messages")

    def stop(self) -> Position:
        """Return the position of the last that was acknowledged."""
        self._stop.set()
        self._thread.join(WAIT)
        return list(self.acknowledged.values())[-1]


@pytest.fixture
def stream() -> Iterator[Callable[..., Stream]]:
    streams: list[Stream] = []

    def start(broker: RedisBroker, at_once: int = 5) -> Stream:
        streams.append(Stream(broker, at_once))
        return streams[-1]

    yield start
    for each in streams:
        each.stop()


def assert_delivery_was_kept(recorder: Recorder, since: Position) -> None:
    """Each message follows the one before it, or the position that ``missed`` gave."""
    last = since
    for call in list(recorder.calls):
        if isinstance(call, Missed):
            assert call[1].epoch != last.epoch or call[1].offset > last.offset
            last = call[1]
        elif isinstance(call, Message):
            assert call.position == Position(last.epoch, last.offset + 1)
            last = call.position


def assert_all_were_delivered(recorder: Recorder, stream: Stream, since: Position) -> None:
    """All that was acknowledged after a position, in its epoch, was delivered; nothing twice."""
    delivered = [int(data) for data in recorder.data]
    assert len(set(delivered)) == len(delivered)
    acknowledged = {
        number
        for number, position in stream.acknowledged.items()
        if position.epoch == since.epoch and position.offset > since.offset
    }
    assert acknowledged <= set(delivered)


# -- the connection ----------------------------------------------------------------------------


def test_a_listener_that_is_cut_off_in_a_stream_loses_and_doubles_nothing(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    stream: Callable[..., Stream],
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, history_size=100_000, times=IMPATIENT)
    since = broker.subscribe("news")
    publishing = stream(make_redis(url=server.url, history_size=100_000))
    with server.client() as client:
        for i in range(20):
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            recorder.wait(lambda: recorder.calls.count("reconnected") > i, "it to be back")  # noqa: B023
            publishing.wait_for_more(100)
    recorder.wait_for_position(publishing.stop())
    assert recorder.all_missed == []
    assert publishing.failures == 0
    assert len(recorder.messages) >= 2000
    assert_delivery_was_kept(recorder, since)
    assert_all_were_delivered(recorder, publishing, since)


def test_subscribing_while_connections_are_cut_off_loses_and_doubles_nothing(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    stream: Callable[..., Stream],
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, history_size=100_000, times=IMPATIENT)
    publishing = stream(make_redis(url=server.url, history_size=100_000))
    stop = threading.Event()

    def cut() -> None:
        with server.client() as client:
            while not stop.wait(0.005):
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    cutter = threading.Thread(target=cut, daemon=True)
    cutter.start()
    try:
        for _ in range(30):
            start = len(recorder.calls)
            position = broker.subscribe("news")
            wanted = list(range(position.offset + 1, position.offset + 101))
            recorder.wait_for_position(Position(position.epoch, wanted[-1]))
            broker.unsubscribe("news")
            calls = [call for call in recorder.calls[start:] if isinstance(call, Message)]
            offsets = [call.position.offset for call in calls]
            assert [offset for offset in offsets if offset > position.offset][:100] == wanted
            assert len(set(offsets)) == len(offsets)
    finally:
        stop.set()
        cutter.join(WAIT)
    publishing.stop()
    assert recorder.all_missed == []


@pytest.mark.slow
def test_ten_thousand_channels_are_back_soon(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder, may_return: threading.Event
) -> None:
    server = own_server()
    broker, other = make_redis(recorder, url=server.url), make_redis(url=server.url)
    channels = [f"channel {i}" for i in range(10_000)]
    quarters = [channels[i::8] for i in range(8)]
    threads = [
        threading.Thread(target=lambda own=own: [broker.subscribe(each) for each in own])
        for own in quarters
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT * 2)
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    other.publish([Draft(each, TEXT, each.encode()) for each in channels])
    may_return.set()
    recorder.wait_for_call("reconnected")
    recorder.wait(lambda: len(recorder.messages) == 10_000, "a message of each")
    assert sorted(recorder.data) == sorted(each.encode() for each in channels)
    assert recorder.all_missed == []


def test_what_was_published_while_the_listener_was_away_is_told_where_it_is_not_kept(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, history_size=0, times=IMPATIENT)
    broker.subscribe("news")
    broker.subscribe("quiet")
    # In one transaction nothing comes between the end of the connection and the messages.
    with server.client() as client, client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        pipeline.hincrby(broker._names.log("news")[0], "offset", 3)
        pipeline.execute()
    recorder.wait_for_call("reconnected")
    position = broker.position("news")
    assert position.offset == 3
    assert recorder.calls == [
        Missed(("news", position)),
        Resumed("news"),
        Resumed("quiet"),
        "reconnected",
    ]
    broker.publish(text("news", "4"))
    recorder.wait_for(b"4")


def test_what_processes_tell_each_other_is_kept_without_a_history(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder, may_return: threading.Event
) -> None:
    server = own_server()
    options = {"history_size": 0, "history_bytes": 1, "history_ttl": 1.0}
    broker = make_redis(recorder, url=server.url, **options)
    other = make_redis(url=server.url, **options)
    name = f"{RESERVED}orders"
    broker.subscribe(name)
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: not client.client_list(_type="pubsub"), "it to be gone")
        for data in ("1", "2", "3"):
            other.publish(text(name, data))
        assert 3_000_000 < client.pttl(broker._names.log(name)[1]) <= 3_600_000
    may_return.set()
    recorder.wait_for_call("reconnected")
    assert recorder.data == [b"1", b"2", b"3"]
    assert recorder.all_missed == []


@pytest.mark.parametrize(("channel", "messages"), [("news", ["1"]), (f"{RESERVED}orders", [])])
def test_a_channel_that_is_silent_for_days_has_lost_nothing(
    channel: str,
    messages: list[str],
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
) -> None:
    """Else an interruption would end the connections of all users, see Admission.orders_lost()."""
    server = own_server()
    times = {"listener_times": ListenerTimes(ping=0.02, keep=0.02)}
    broker = make_redis(recorder, url=server.url, times=times)
    since = broker.subscribe(channel)
    broker.publish(text(channel, *messages))
    since = broker.position(channel)
    [meta, _] = broker._names.log(channel)
    hour = 3_600_000
    with server.client() as client:
        client.pexpire(meta, hour)
        wait_until(lambda: client.pttl(meta) > 23 * hour, "the channel to be kept")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    recorder.wait_for_call("reconnected")
    assert recorder.all_missed == []
    assert broker.position(channel) == since


def test_a_silent_channel_is_kept_as_long_again_as_it_was_listened_to(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    """Its pages are away for a while and miss nothing; what nobody listens to is gone soon."""
    server = own_server()
    times = {"listener_times": ListenerTimes(ping=0.02, keep=0.02)}
    broker = make_redis(recorder, url=server.url, times=times)
    since = broker.subscribe("news")
    [meta, _] = broker._names.log("news")
    with server.client() as client:
        assert 0 < client.pttl(meta) <= 61_000
        [feed] = broker._listener.feeds.values()
        feed.begun -= 3600
        wait_until(lambda: client.pttl(meta) > 3_600_000, "the channel to be kept")
        assert client.pttl(meta) < 4_000_000
        assert broker.position("news") == since
        broker.unsubscribe("news")
        assert client.pttl(meta) > 3_600_000


def test_a_channel_that_is_kept_for_longer_stays_so(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server, day = own_server(), 86_400
    broker = make_redis(recorder, url=server.url, history_ttl=day)
    broker.publish(text("news", "1"))
    broker.position("news")
    with server.client() as client:
        assert client.ttl(broker._names.log("news")[0]) > 9 * day


def test_channels_are_kept_some_at_a_time_whatever_fails(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader must not keep messages waiting, nor reconnect for it."""
    monkeypatch.setattr(reader, "_KEPT_AT_ONCE", 2)
    times = {"listener_times": ListenerTimes(ping=0.02, keep=0.02)}
    broker = make_redis(recorder, url=own_server().url, times=times)
    channels = [str(number) for number in range(5)]
    for channel in channels:
        broker.subscribe(channel)
    asked: list[list[str]] = []

    def fail(channels: list[tuple[str, float]]) -> None:
        asked.append([channel for channel, _ in channels])
        raise BrokerError("no")

    monkeypatch.setattr(broker._listener, "keep", fail)
    wait_until(lambda: len(asked) >= 10, "channels to be kept again and again")
    assert {len(each) for each in asked} == {1, 2}
    assert {channel for each in asked for channel in each} == set(channels)
    broker.publish(text("1", "still here"))
    recorder.wait_for(b"still here")
    assert "reconnected" not in recorder.calls


def test_delivery_that_was_interrupted_is_resumed_after_what_was_missed(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder, may_return: threading.Event
) -> None:
    server = own_server()
    broker, other = make_redis(recorder, url=server.url), make_redis(url=server.url)
    broker.subscribe("news")
    broker.subscribe("quiet")
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: not client.client_list(_type="pubsub"), "it to be gone")
    other.publish([*text("news", "1"), *text("news", "now", transient=True), *text("news", "2")])
    may_return.set()
    recorder.wait_for_call("reconnected")
    other.publish(text("news", "3"))
    recorder.wait_for(b"3")
    told = [call.data if isinstance(call, Message) else call for call in recorder.calls]
    assert told == [b"1", b"2", Resumed("news"), Resumed("quiet"), "reconnected", b"3"]


def test_a_jump_in_a_stream_is_filled_from_the_history(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker, deaf = make_redis(recorder, url=server.url), make_redis(url=server.url)
    since = broker.subscribe("news")
    deaf._names._pubsub = "nobody:{"  # what it publishes is kept, and delivered to nobody
    deaf.publish(text("news", "1", "2", "3"))
    broker.publish(text("news", "4"))
    recorder.wait_for(b"4")
    assert recorder.data == [b"1", b"2", b"3", b"4"]
    assert_delivery_was_kept(recorder, since)


def test_a_jump_in_a_stream_that_cannot_be_filled_is_told(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, history_size=0)
    deaf = make_redis(url=server.url, history_size=0)
    since = broker.subscribe("news")
    deaf._names._pubsub = "nobody:{"
    deaf.publish(text("news", "1", "2", "3"))
    broker.publish(text("news", "4"))
    recorder.wait_for_call(Missed(("news", Position(since.epoch, 4))))
    broker.publish(text("news", "5"))
    recorder.wait_for(b"5")
    assert recorder.data == [b"5"]
    assert recorder.all_resumed == [Resumed("news")]


def test_a_log_that_was_begun_anew_elsewhere_is_told(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker, deaf = make_redis(recorder, url=server.url), make_redis(url=server.url)
    broker.subscribe("news")
    deaf._names._pubsub = "nobody:{"
    with server.client() as client:
        client.flushall()
    [first] = deaf.publish(text("news", "1"))
    broker.publish(text("news", "2"))
    recorder.wait_for(b"2")
    assert recorder.calls[:2] == [Missed(("news", first)), Resumed("news")]
    assert recorder.data == [b"2"]


def test_a_channel_that_cannot_be_read_is_told_and_others_go_on(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = own_server()
    broker, other = (
        make_redis(recorder, url=server.url, times=IMPATIENT),
        make_redis(url=server.url),
    )
    channels = ["one", "theirs", "two"]
    since = {channel: broker.subscribe(channel) for channel in channels}
    with server.client() as client:
        client.set(broker._names.log("theirs")[0], "a key of another program")
        for i in range(2):
            with client.pipeline(transaction=True) as pipeline:
                pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                pipeline.execute()
            other.publish(text("one", "1") + text("two", "1"))
            recorder.wait(lambda: recorder.calls.count("reconnected") > i, "it to be back")  # noqa: B023
            recorder.wait(lambda: len(recorder.messages) == 2 * (i + 1), "both")  # noqa: B023
        assert recorder.all_missed == [Missed(("theirs", since["theirs"]))]
        client.delete(*broker._names.log("theirs"))
    other.publish(text("theirs", "1", "2"))
    recorder.wait_for(b"2")
    assert [each.data for each in recorder.messages if each.channel == "theirs"] == [b"1", b"2"]
    [line] = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert line.startswith("cannot read channel 'theirs', so messages may be lost:")
    assert line.endswith("another program uses its names; choose another prefix")


def test_a_channel_that_could_not_be_read_goes_on_after_a_gap(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker, deaf = make_redis(recorder, url=server.url), make_redis(url=server.url)
    broker.subscribe("news")
    [first] = broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    deaf._names._pubsub = "nobody:{"
    log = broker._names.log("news")[1]
    with server.client() as client:
        deaf.publish(text("news", "2"))
        client.rename(log, "elsewhere{news}")
        client.set(log, "theirs")
        client.publish(broker._names.pubsub("news"), f"{first.epoch}-3 ".encode() + bytes(6))
        recorder.wait_for_call(Missed(("news", first)))
        client.rename("elsewhere{news}", log)
    third, fourth = broker.publish(text("news", "3", "4"))
    recorder.wait_for(b"4")
    assert recorder.calls[1:] == [
        Missed(("news", first)),
        Resumed("news"),
        Missed(("news", Position(first.epoch, 2))),
        Resumed("news"),
        *recorder.messages[-2:],
    ]
    assert [each.position for each in recorder.messages[-2:]] == [third, fourth]


def test_a_channel_that_may_not_be_listened_to_any_more_does_not_stop_others(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = own_server()
    with server.client() as client:
        user = {
            "enabled": True, "nopass": True, "categories": ["+@all"], "keys": ["*"],
        }  # fmt: skip
        client.acl_setuser("app", **user, channels=["*"])
        broker = make_redis(recorder, url=f"unix://app:any@{server.path}", times=IMPATIENT)
        since = broker.subscribe("secret")
        broker.subscribe("news")
        allowed = broker._names.pubsub("news").decode()
        client.acl_setuser("app", **user, channels=[allowed], reset_channels=True)
        recorder.wait_for_call("reconnected")
        broker.publish(text("news", "1"))
        recorder.wait_for(b"1")
        assert recorder.all_missed == [Missed(("secret", since))]
        with pytest.raises(BrokerError, match="grant its user"):
            broker.subscribe("secret")
        client.acl_setuser("app", **user, channels=["*"])
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        recorder.wait(lambda: recorder.calls.count("reconnected") == 2, "it to be back")
    broker.publish(text("secret", "2"))
    recorder.wait_for(b"2")
    [line] = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert "cannot read channel 'secret'" in line
    assert "grant its user" in line


def test_while_a_server_answers_as_a_replica_the_listener_comes_back_less_often(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    times = ListenerTimes(answer=0.5, ping=0.3, shortest_wait=0.01, longest_wait=60.0)
    broker = make_redis(recorder, url=server.url, times={"listener_times": times})
    broker.subscribe("news")
    waits: list[float] = []
    reader = broker._listener._readers[""]
    pause = reader.pause

    def noted(seconds: float) -> None:
        waits.append(seconds)
        pause(min(seconds, 0.01))

    reader.pause = noted  # type: ignore[method-assign]
    with server.client() as client:
        # A history of another run is to be begun anew, which is to write.
        client.hset(broker._names.log("news")[0], "run", "another")
        client.replicaof("127.0.0.1", unused_port())
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: len(waits) > 12, "some attempts")
        client.replicaof("NO", "ONE")
    recorder.wait_for_call("reconnected")
    assert max(waits) > 5.0


def test_a_listener_that_cannot_be_started_is_started_by_the_next_who_subscribes(
    make_redis: MakeRedis, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_redis(recorder)

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        for _ in range(2):
            with pytest.raises(BrokerError, match="cannot start to listen: can't start new thread"):
                broker.subscribe("news")
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")


def test_a_listener_whose_thread_has_ended_is_replaced(
    make_redis: MakeRedis, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_redis(recorder, times=IMPATIENT)

    def end(self: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("flask_sockets2.brokers.redis.reader.Reader._connect", end)
        with pytest.raises(BrokerError):
            broker.subscribe("news")
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")


# -- the server --------------------------------------------------------------------------------


def test_a_server_that_crashes_in_a_stream_never_leaves_a_gap_untold(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    stream: Callable[..., Stream],
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, history_size=100_000, times=IMPATIENT)
    since = broker.subscribe("news")
    publishing = stream(make_redis(url=server.url, history_size=100_000, times=IMPATIENT))
    for i in range(3):
        publishing.wait_for_more(300)
        server.restart()
        recorder.wait(lambda: recorder.calls.count("reconnected") > i, "it to be back")  # noqa: B023
    publishing.wait_for_more(300)
    newest = publishing.stop()
    recorder.wait_for_position(newest)
    assert_delivery_was_kept(recorder, since)
    epochs = {position.epoch for position in publishing.acknowledged.values()}
    assert len(epochs) == 4
    assert len(recorder.all_missed) == 3
    # What a crashed server had accepted last can be lost with it, and that was told.
    assert_all_were_delivered(recorder, publishing, recorder.all_missed[-1][1])


def test_a_server_that_keeps_its_data_over_a_crash_begins_other_epochs_all_the_same(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    broker = make_redis(recorder, url=server.url, times=IMPATIENT)
    broker.subscribe("news")
    [old] = broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    server.restart()
    recorder.wait_for_call("reconnected")
    new = broker.position("news")
    assert new.epoch != old.epoch
    assert new.offset == 0
    assert recorder.all_missed == [Missed(("news", new))]
    assert not broker.history("news", old).complete
    assert list(broker.history("news", None).messages) == []


def test_while_the_server_is_away_calls_fail_soon_and_subscriptions_stay(
    own_server: OwnServer,
    make_redis: MakeRedis,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, times=IMPATIENT)
    broker.subscribe("news")
    with caplog.at_level(logging.INFO, "flask_sockets2"):
        server.kill()
        for call in (
            lambda: broker.publish(text("news", "1")),
            lambda: broker.position("news"),
            lambda: broker.history("news", None),
            lambda: broker.subscribe("other"),
            lambda: broker.subscribe("news"),
        ):
            with pytest.raises(BrokerError, match=f"cannot reach {server.url}|did not confirm"):
                call()
        broker.unsubscribe("other")
        server.path.unlink(missing_ok=True)
        server.start()
        recorder.wait_for_call("reconnected")
    broker.publish(text("news", "2"))
    recorder.wait_for(b"2")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("lost the connection that listens: cannot reach")
    assert lines[1] == f"listening again to {server.url}"


def test_a_server_that_stops_answering_is_noticed_and_caught_up_with(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, times=IMPATIENT)
    since = broker.subscribe("news")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    server.pause()
    try:
        with pytest.raises(BrokerError, match="did not answer in time"):
            broker.publish(text("news", "2"))  # which the server finds when it goes on
        with pytest.raises(BrokerError, match=r"did not|cannot reach"):
            broker.subscribe("other")
        broker.unsubscribe("other")
        reader = broker._listener._readers[""]
        wait_until(lambda: not reader._connected, "the listener to notice")
    finally:
        server.resume()
    recorder.wait_for_call("reconnected")
    broker.publish(text("news", "3"))
    recorder.wait_for(b"3")
    assert recorder.data == [b"1", b"2", b"3"]
    assert recorder.all_missed == []
    assert_delivery_was_kept(recorder, since)


def test_a_quiet_connection_is_kept(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    times = {"listener_times": ListenerTimes(answer=0.5, ping=0.02)}
    broker = make_redis(recorder, url=server.url, times=times)
    broker.subscribe("news")
    with server.client() as client:
        pings = lambda: client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0)  # noqa: E731
        before = pings()
        wait_until(lambda: pings() > before + 10, "some pings")
        assert len(client.client_list(_type="pubsub")) == 1
        broker.unsubscribe("news")
        before = pings()
        wait_until(lambda: pings() > before + 10, "pings without a channel")
    assert recorder.calls == []


def test_a_server_without_memory_refuses_and_changes_nothing(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url)
    broker.subscribe("news")
    [before] = broker.publish(text("news", "1"))
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(
            BrokerError, match=r"command not allowed .*; raise its maxmemory"
        ) as caught:
            broker.publish([Draft("news", BINARY, b"private"), Draft("never used", TEXT, b"")])
        assert "private" not in str(caught.value)
        with pytest.raises(BrokerError, match="maxmemory"):
            broker.publish(text("never used", "1"))
        client.config_set("maxmemory", "0")
    assert broker.position("news") == before
    [after] = broker.publish(text("news", "2"))
    recorder.wait_for(b"2")
    assert after == Position(before.epoch, 2)
    assert recorder.data == [b"1", b"2"]
    assert [each.data for each in broker.history("news", None).messages] == [b"1", b"2"]


def test_a_replica_that_takes_over_without_the_newest_messages_is_told(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    primary = own_server("--repl-diskless-sync-delay", "0", port=unused_port())
    replica = own_server()
    broker = make_redis(recorder, url=primary.url, times=IMPATIENT)
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    key = broker._names.log("news")[0]
    with replica.client() as client:
        client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: client.hget(key, "offset") == b"1", "replication")
        client.replicaof("NO", "ONE")  # as if the network between them had failed
        broker.publish(text("news", "2", "3"))
        recorder.wait_for(b"3")
        assert client.hget(key, "offset") == b"1"
    primary.kill()
    primary.path.unlink(missing_ok=True)
    primary.path.symlink_to(replica.path)  # the address now leads to the other
    recorder.wait_for_call("reconnected")
    new = broker.position("news")
    assert recorder.all_missed == [Missed(("news", new))]
    assert new.offset == 0
    [after] = broker.publish(text("news", "4"))
    recorder.wait_for(b"4")
    assert after == Position(new.epoch, 1)


# -- other processes ---------------------------------------------------------------------------


def test_a_process_that_is_killed_leaves(
    redis_url: str, make_redis: MakeRedis, recorder: Recorder, prefix: str
) -> None:
    broker = make_redis(recorder, times=SHORT)
    broker.subscribe("room")
    broker.join("room", "ann")
    broker.count("room", 1)
    program = """
        import sys, time
        from flask_sockets2.brokers.base import BrokerOptions
        from flask_sockets2.brokers.redis.leases import LeaseTimes, _Attempt
        from flask_sockets2.brokers.redis.broker import RedisBroker
        broker = RedisBroker(
            sys.argv[1], BrokerOptions(prefix=sys.argv[2]),
            lease_times=LeaseTimes(lease=2.0, renew=0.2, tick=0.05),
        )
        broker.count("room", 5)
        broker.join("room", "bob")
        broker.join("room", "ann")
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", dedent(program), redis_url, prefix],
        cwd=Path(__file__).parents[2],
    )
    try:
        wait_for_event(recorder, "join", "bob")
        wait_until(lambda: broker.subscribers("room") == 6, "its count")
        assert broker.present("room") == ["ann", "bob"]
    finally:
        process.kill()
        process.wait(WAIT)
    wait_for_event(recorder, "leave", "bob")
    assert broker.present("room") == ["ann"]
    wait_until(lambda: broker.subscribers("room") == 1, "its count to be gone")
    assert events(recorder) == [("join", "ann"), ("join", "bob"), ("leave", "bob")]


def test_leaving_while_the_server_is_away_is_told_when_it_is_back(
    own_server: OwnServer, make_redis: MakeRedis
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    broker = make_redis(url=server.url, presence_grace=0.0, times={**IMPATIENT, **SHORT})
    broker.join("room", "ann")
    broker.join("room", "bob")
    server.kill()
    broker.leave("room", "ann")
    with pytest.raises(BrokerError):
        broker.join("room", "cyd")
    server.path.unlink(missing_ok=True)
    server.start()
    wait_until(lambda: broker.present("room") == ["bob"], "ann to be gone")
    broker.count("room", 2)
    other = make_redis(url=server.url)
    wait_until(lambda: other.subscribers("room") == 2, "the count to be told")


class Pause:
    """Stops all that a broker says of presence just before a script runs, as SIGSTOP does.

    :ivar reached: whether it has come there.
    """

    def __init__(self, broker: RedisBroker, script: Script) -> None:
        self.reached = threading.Event()
        self._script = script
        self._over = threading.Event()
        self._run = broker._leases._client.run
        broker._leases._client = self  # type: ignore[assignment]
        self.verb = broker._client.verb

    def run(self, calls: Sequence[Call]) -> list[Any]:
        if calls[0].script is self._script:
            self.reached.set()
        if self.reached.is_set():
            assert self._over.wait(WAIT)
        return self._run(calls)

    def end(self) -> None:
        self._over.set()


def is_reaped(server: RedisServer, broker: RedisBroker) -> bool:
    with server.client() as client:
        registry = (broker._names.processes, broker._names.reaping)
        return max(client.zcard(each) for each in registry) <= 1


def test_a_process_that_is_paused_while_it_joins_leaves_nobody_behind(
    own_server: OwnServer, make_redis: MakeRedis
) -> None:
    server = own_server()
    broker = make_redis(url=server.url, times=SHORT)
    other = make_redis(url=server.url, times=SHORT)
    broker.count("room", 1)
    other.count("room", 1)
    wait_until(lambda: other.subscribers("room") == 2, "the counts to be told")
    pause = Pause(broker, SETTLE)
    joining = threading.Thread(target=lambda: broker.join("room", "ann"), daemon=True)
    joining.start()
    assert pause.reached.wait(WAIT)
    wait_until(lambda: is_reaped(server, broker), "it to be taken for dead")
    pause.end()
    joining.join(WAIT)
    assert other.present("room") == ["ann"]
    wait_until(lambda: other.subscribers("room") == 2, "its count to be told again")
    broker.leave("room", "ann")
    wait_until(lambda: other.present("room") == [], "ann to be gone")
    with server.client() as client:
        assert client.keys("*:who*") == []


def test_who_joins_a_server_that_was_restarted_before_the_lease_is_renewed_can_leave(
    own_server: OwnServer, make_redis: MakeRedis
) -> None:
    """What is told under a lease that the new server does not know is taken back as any other."""
    server = own_server()
    times = {**IMPATIENT, "lease_times": LeaseTimes(lease=3.0, renew=1.0, tick=0.05)}
    broker = make_redis(url=server.url, presence_grace=0.0, times=times)
    broker.join("room", "ann")
    server.restart()
    wait_until(lambda: joins(broker, "room", "bob"), "bob to join")
    wait_until(lambda: broker.present("room") == ["ann", "bob"], "ann to be told again")
    broker.leave("room", "ann")
    broker.leave("room", "bob")
    wait_until(lambda: broker.present("room") == [], "both to be gone")
    wait_until(lambda: is_reaped(server, broker), "the old lease to be forgotten")
    with server.client() as client:
        assert client.keys("*:who*") == []


def joins(broker: RedisBroker, channel: str, identity: str) -> bool:
    with contextlib.suppress(BrokerError):  # of a connection that the restart has cut
        broker.join(channel, identity)
        return True
    return False


def test_a_process_that_is_paused_while_it_tells_counts_leaves_none_behind(
    own_server: OwnServer, make_redis: MakeRedis
) -> None:
    server = own_server()
    broker = make_redis(url=server.url, times=SHORT)
    other = make_redis(url=server.url, times=SHORT)
    other.count("room", 1)
    broker.join("room", "ann")
    pause = Pause(broker, COUNT)
    broker.count("room", 5)
    assert pause.reached.wait(WAIT)
    wait_until(lambda: is_reaped(server, broker), "it to be taken for dead")
    pause.end()
    wait_until(lambda: other.subscribers("room") == 6, "its count to be told again")
    wait_until(lambda: other.present("room") == ["ann"], "ann to be told again")
    with server.client() as client:
        assert client.hlen(broker._names.key("room", "counts")) == 2


def test_joins_while_the_server_is_silent_wait_for_one_answer_together(
    own_server: OwnServer, make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, eight joins would wait for eight timeouts."""
    server = own_server()
    broker = make_redis(url=server.url, times=IMPATIENT)
    leases = broker._leases
    monkeypatch.setattr(leases, "_round", lambda: None)  # its thread would renew as well
    broker.join("room", "ann")
    asking: list[threading.Thread] = []
    sharing, failed = threading.Semaphore(0), threading.Semaphore(0)
    renew, wait = leases._renew_wanted, _Attempt.wait

    def renew_once_all_wait() -> None:
        asking.append(threading.current_thread())
        assert all(sharing.acquire(timeout=WAIT) for _ in threads[1:])
        renew()

    def share(attempt: _Attempt, timeout: float) -> None:
        sharing.release()
        wait(attempt, 2 * WAIT)  # for as long as the others need on a slow machine

    def join(i: int) -> None:
        with pytest.raises(BrokerError):
            broker.join(f"room {i}", "ann")
        failed.release()

    threads = [threading.Thread(target=join, args=(i,), daemon=True) for i in range(8)]
    monkeypatch.setattr(leases, "_renew_wanted", renew_once_all_wait)
    monkeypatch.setattr(_Attempt, "wait", share)
    server.pause()
    try:
        for thread in threads:
            thread.start()
        assert all(failed.acquire(timeout=3 * WAIT) for _ in threads)
    finally:
        server.resume()
    assert len(asking) == 1


def test_who_waits_for_a_registration_that_was_killed_makes_another(
    make_redis: MakeRedis,
) -> None:
    broker = make_redis()
    reached, go_on = threading.Event(), threading.Event()
    run = broker._client.run

    def killed(calls: Sequence[Call]) -> list[Any]:
        if reached.is_set():
            return run(calls)
        reached.set()
        assert go_on.wait(WAIT)
        raise SystemExit

    broker._client.run = killed  # type: ignore[method-assign]

    def join_killed() -> None:
        with pytest.raises(SystemExit):
            broker.join("room", "ann")

    threads = [
        threading.Thread(target=join_killed, daemon=True),
        threading.Thread(target=lambda: broker.join("room", "bob"), daemon=True),
    ]
    threads[0].start()
    assert reached.wait(WAIT)
    threads[1].start()
    wait_until(lambda: "bob" in broker._leases._identities["room"], "the second")
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert broker.present("room") == ["bob"]


@pytest.mark.parametrize("script", [SETTLE, COUNT])
def test_what_could_not_be_told_is_told_later_whatever_was_raised(
    make_redis: MakeRedis, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    broker, other = make_redis(presence_grace=0.0, times=SHORT), make_redis()
    broker.join("room", "ann")
    broker.join("room", "bob")
    run = broker._client.run
    failed = threading.Event()

    def fails_once(calls: Sequence[Call]) -> list[Any]:
        if calls[0].script is script and not failed.is_set():
            failed.set()
            raise RuntimeError("not an error of the broker")
        return run(calls)

    broker._client.run = fails_once  # type: ignore[method-assign]
    broker.count("room", 2)
    broker.leave("room", "ann")
    wait_until(lambda: other.subscribers("room") == 2, "the count to be told")
    wait_until(lambda: other.present("room") == ["bob"], "ann to be gone")
    assert failed.is_set()
    assert "telling who is there failed" in caplog.text


def test_telling_who_is_there_begins_with_the_next_call_where_no_thread_could_be_started(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker, other = make_redis(times=SHORT), make_redis()

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        broker.count("room", 1)
    assert "cannot tell who is there: can't start new thread; allow" in caplog.text
    broker.count("room", 2)
    wait_until(lambda: other.subscribers("room") == 2, "the count to be told")
    broker.close()


def test_closing_while_the_server_is_away_is_quick(
    own_server: OwnServer, make_redis: MakeRedis, recorder: Recorder
) -> None:
    server = own_server()
    broker = make_redis(recorder, url=server.url, times={**IMPATIENT, **SHORT})
    broker.subscribe("news")
    broker.join("news", "ann")
    server.kill()
    broker.close()
    with pytest.raises(BrokerError, match="closed"):
        broker.subscribe("news")
