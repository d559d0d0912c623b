"""What every broker keeps: the laws of ``flask_sockets2.brokers.base``, over memory and Redis."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from time import sleep
from typing import Any

import pytest

from flask_sockets2.brokers.base import BINARY, JSON, TEXT, Broker, Draft, History, Position
from tests.processes import wait_until

from .conftest import WAIT, MakeBroker, Recorder

ANY_BYTES = bytes(range(256)) + b"\r\n$-1\r\n*3\r\n" + b"\xff" * 100

CHANNELS = [
    "news",
    "{news}",
    "news}",
    "{",
    "}{",
    "%7Bnews%7D",
    "news%25",
    "processes",
    "two words",
    "line\nbreak\r\n",
    "nul\0nul",
    "*?[a-z]",
    "a:meta",
    "a:who:b",
    "Füße 漢字 🐍",
    "x" * 1024,
    "🐍" * 256,
]


def text(channel: str, *data: str, **fields: Any) -> list[Draft]:
    return [Draft(channel, TEXT, each.encode(), **fields) for each in data]


def data_of(history: History) -> list[bytes]:
    return [message.data for message in history.messages]


def offsets_of(history: History) -> list[int]:
    return [message.position.offset for message in history.messages]


def in_threads(*functions: Callable[[], object]) -> None:
    """Run functions at the same time, and raise what one of them raised."""
    raised: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


# -- positions ---------------------------------------------------------------------------------


def test_a_position_is_read_as_it_is_written() -> None:
    position = Position("9f86d081884c7d65", 42)
    assert str(position) == "9f86d081884c7d65-42"
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "42",
        "9f86d081884c7d65",
        "9f86d081884c7d65-",
        "9f86d081884c7d65-042",
        "9f86d081884c7d65--1",
        "9f86d081884c7d65-12345678901234567",
        "9F86d081884c7d65-42",
        "9f86d081884c7d65-42\n",
        "9f86d081884c7d65-٤",
    ],
)
def test_what_is_no_position_is_not_read_as_one(wrong: str) -> None:
    assert Position.parse(wrong) is None


def test_a_channel_without_messages_is_at_offset_0(make_broker: MakeBroker) -> None:
    broker = make_broker()
    position = broker.position("news")
    assert position.offset == 0
    assert Position.parse(str(position)) == position
    assert broker.position("news") == position


def test_offsets_of_a_channel_are_1_2_3_in_one_epoch(make_broker: MakeBroker) -> None:
    broker = make_broker()
    epoch = broker.position("news").epoch
    positions = [broker.publish(text("news", "x"))[0] for _ in range(3)]
    assert positions == [Position(epoch, 1), Position(epoch, 2), Position(epoch, 3)]
    assert broker.position("news") == positions[-1]


def test_publish_returns_the_position_of_each_message(make_broker: MakeBroker) -> None:
    broker = make_broker()
    drafts = text("a", "1") + text("b", "1") + text("a", "2", "3") + text("b", "2")
    positions = broker.publish(drafts)
    assert [position.offset for position in positions] == [1, 1, 2, 3, 2]
    assert positions[-1] == broker.position("b")
    assert positions[-2] == broker.position("a")


def test_nothing_can_be_published(make_broker: MakeBroker) -> None:
    assert make_broker().publish([]) == []


def test_a_thousand_messages_published_at_once_keep_their_order(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder, history_size=2000)
    broker.subscribe("a")
    broker.subscribe("b")
    drafts = [Draft("ab"[i % 2], TEXT, str(i).encode()) for i in range(1000)]
    positions = broker.publish(drafts)
    assert [position.offset for position in positions] == [i // 2 + 1 for i in range(1000)]
    recorder.wait(lambda: len(recorder.messages) == 1000, "all messages")
    for channel, first in (("a", 0), ("b", 1)):
        delivered = [message for message in recorder.messages if message.channel == channel]
        assert [int(message.data) for message in delivered] == list(range(first, 1000, 2))
        assert data_of(broker.history(channel, None)) == [message.data for message in delivered]


# -- delivery ----------------------------------------------------------------------------------


def test_what_is_published_after_subscribing_is_delivered_in_order_and_once(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    broker.publish(text("news", "before"))
    position = broker.subscribe("news")
    assert position.offset == 1
    assert position == broker.position("news")
    published = broker.publish(text("news", "1", "2", "3"))
    recorder.wait_for(b"3")
    assert recorder.data == [b"1", b"2", b"3"]
    assert [message.position for message in recorder.messages] == published


@pytest.mark.parametrize("kind", [TEXT, BINARY, JSON])
@pytest.mark.parametrize("transient", [False, True])
def test_a_message_arrives_with_all_its_fields(
    make_broker: MakeBroker, recorder: Recorder, kind: str, transient: bool
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    draft = Draft("news", kind, b"data", key="clé", event="join", transient=transient)
    [position] = broker.publish([draft])
    recorder.wait_for(b"data")
    messages = recorder.messages + list(broker.history("news", None).messages)
    assert len(messages) == (1 if transient else 2)
    for message in messages:
        fields = (message.channel, message.kind, message.data, message.key, message.event)
        assert fields == ("news", kind, b"data", "clé", "join")
        assert message.transient is transient
        assert message.position == position
        assert message.encoded == {}


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff", ANY_BYTES, b"a b c", bytes(2**20)], ids=len)
def test_any_bytes_are_delivered_and_kept(
    make_broker: MakeBroker, recorder: Recorder, data: bytes
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    broker.publish([Draft("news", BINARY, data, key="key"), Draft("news", BINARY, data)])
    recorder.wait(lambda: len(recorder.messages) == 2, "both")
    assert recorder.data == [data, data]
    assert data_of(broker.history("news", None))[-1] == data


def test_any_text_names_a_channel_of_its_own(make_broker: MakeBroker, recorder: Recorder) -> None:
    broker = make_broker(recorder)
    for channel in CHANNELS:
        broker.subscribe(channel)
    broker.publish([Draft(channel, TEXT, channel.encode()) for channel in CHANNELS])
    recorder.wait(lambda: len(recorder.messages) == len(CHANNELS), "one message for each")
    assert {message.channel: message.data for message in recorder.messages} == {
        channel: channel.encode() for channel in CHANNELS
    }
    for channel in CHANNELS:
        assert data_of(broker.history(channel, None)) == [channel.encode()]
        broker.join(channel, channel)
        assert broker.present(channel) == [channel]


def test_a_channel_that_is_not_subscribed_to_is_not_delivered(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    broker.publish(text("other", "no") + text("news", "yes"))
    recorder.wait_for(b"yes")
    assert recorder.data == [b"yes"]


def test_unsubscribing_ends_delivery(make_broker: MakeBroker, recorder: Recorder) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    broker.subscribe("other")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    broker.unsubscribe("news")
    broker.publish(text("news", "2") + text("other", "end"))
    recorder.wait_for(b"end")
    assert recorder.data == [b"1", b"end"]


def test_subscribing_again_delivers_from_then_on(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    for i in range(20):
        position = broker.subscribe("news")
        assert position.offset == 2 * i
        broker.publish(text("news", f"heard {i}"))
        recorder.wait_for(f"heard {i}".encode())
        broker.unsubscribe("news")
        broker.publish(text("news", f"not heard {i}"))
    assert recorder.data == [f"heard {i}".encode() for i in range(20)]


def test_subscribing_twice_delivers_once(make_broker: MakeBroker, recorder: Recorder) -> None:
    broker = make_broker(recorder)
    assert broker.subscribe("news") == broker.subscribe("news")
    broker.publish(text("news", "1", "2"))
    recorder.wait_for(b"2")
    assert recorder.data == [b"1", b"2"]
    broker.unsubscribe("news")
    broker.unsubscribe("news")


def test_unsubscribing_from_what_was_not_subscribed_to_does_nothing(
    make_broker: MakeBroker,
) -> None:
    make_broker().unsubscribe("news")


def test_threads_that_publish_at_once_share_one_order(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder, history_size=2000)
    broker.subscribe("news")
    positions: list[list[Position]] = [[] for _ in range(8)]

    def publisher(i: int) -> Callable[[], None]:
        def publish() -> None:
            for j in range(50):
                positions[i] += broker.publish(text("news", f"{i} {j}"))

        return publish

    in_threads(*(publisher(i) for i in range(8)))
    recorder.wait(lambda: len(recorder.messages) == 400, "all messages")
    assert [message.position.offset for message in recorder.messages] == list(range(1, 401))
    kept = broker.history("news", Position(positions[0][0].epoch, 0))
    assert data_of(kept) == recorder.data
    for own in positions:
        assert own == sorted(own)  # a thread's messages are in the order that it published them


def test_nothing_is_lost_or_doubled_around_the_moment_of_subscribing(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            broker.publish(text("news", "x"))

    def subscribe() -> None:
        try:
            for _ in range(15):
                start = len(recorder.calls)
                position = broker.subscribe("news")
                wanted = list(range(position.offset + 1, position.offset + 21))
                recorder.wait_for_position(Position(position.epoch, wanted[-1]))
                broker.unsubscribe("news")
                offsets = [message.position.offset for message in recorder.messages[start:]]
                assert [offset for offset in offsets if offset > position.offset][:20] == wanted
                assert len(set(offsets)) == len(offsets)
        finally:
            stop.set()

    in_threads(publish, subscribe)


def test_a_delivery_that_was_not_interrupted_is_not_resumed(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    for i in range(3):
        broker.subscribe("news")
        broker.publish(text("news", "now", transient=True) + text("news", str(i)))
        recorder.wait_for(str(i).encode())
        broker.unsubscribe("news")
    assert recorder.calls == recorder.messages


# -- transient messages ------------------------------------------------------------------------


def test_transient_messages_are_delivered_but_not_numbered_or_kept(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    drafts = text("news", "1") + text("news", "now", transient=True) + text("news", "2")
    first, now, second = broker.publish(drafts)
    assert (first.offset, now, second.offset) == (1, first, 2)
    recorder.wait_for(b"2")
    assert recorder.data == [b"1", b"now", b"2"]
    assert [message.transient for message in recorder.messages] == [False, True, False]
    assert recorder.messages[1].position == first
    assert data_of(broker.history("news", None)) == [b"1", b"2"]


def test_a_transient_message_can_be_a_channels_first(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    [position] = broker.publish(text("news", "now", transient=True))
    recorder.wait_for(b"now")
    assert position == broker.position("news")
    assert position.offset == 0


# -- history -----------------------------------------------------------------------------------


def test_the_history_after_a_position_is_what_follows_it(make_broker: MakeBroker) -> None:
    broker = make_broker()
    positions = broker.publish(text("news", "1", "2", "3"))
    epoch = positions[0].epoch
    for since in range(4):
        history = broker.history("news", Position(epoch, since))
        assert offsets_of(history) == list(range(since + 1, 4))
        assert history.position == positions[-1]
        assert history.complete


def test_the_history_after_no_position_is_all_that_is_kept(make_broker: MakeBroker) -> None:
    broker = make_broker()
    empty = broker.history("news", None)
    assert (list(empty.messages), empty.complete) == ([], True)
    assert empty.position == broker.position("news")
    broker.publish(text("news", "1", "2"))
    history = broker.history("news", None)
    assert (data_of(history), history.complete) == ([b"1", b"2"], True)


@pytest.mark.parametrize("size", [99, 100, 101, 350])
def test_a_long_history_is_read_as_a_whole(make_broker: MakeBroker, size: int) -> None:
    broker = make_broker(history_size=1000)
    start = broker.position("news")
    broker.publish(text("news", *map(str, range(size))))
    assert data_of(broker.history("news", start)) == [str(i).encode() for i in range(size)]
    assert data_of(broker.history("news", None)) == [str(i).encode() for i in range(size)]


def test_a_position_of_another_epoch_is_answered_with_nothing(make_broker: MakeBroker) -> None:
    broker = make_broker()
    [newest] = broker.publish(text("news", "1"))
    for offset in (0, 1):
        history = broker.history("news", Position("0123456789abcdef", offset))
        assert (list(history.messages), history.complete) == ([], False)
        assert history.position == newest


def test_a_position_that_was_not_reached_yet_is_answered_with_nothing(
    make_broker: MakeBroker,
) -> None:
    broker = make_broker()
    [newest] = broker.publish(text("news", "1"))
    history = broker.history("news", Position(newest.epoch, 2))
    assert (list(history.messages), history.complete, history.position) == ([], False, newest)


def test_a_position_that_the_history_does_not_reach_is_answered_with_nothing(
    make_broker: MakeBroker,
) -> None:
    broker = make_broker(history_size=10)
    start = broker.position("news")
    broker.publish(text("news", *map(str, range(500))))
    history = broker.history("news", start)
    assert (list(history.messages), history.complete) == ([], False)
    kept = broker.history("news", Position(start.epoch, 490))
    assert offsets_of(kept) == list(range(491, 501))
    assert kept.complete


def test_the_history_is_bounded(make_broker: MakeBroker) -> None:
    broker = make_broker(history_size=10)
    broker.publish(text("news", *map(str, range(500))))
    assert offsets_of(broker.history("news", None)) == list(range(491, 501))


def test_the_history_is_bounded_by_bytes(make_broker: MakeBroker) -> None:
    broker = make_broker(history_bytes=25)
    positions = broker.publish(text("news", *["x" * 10] * 5))
    assert offsets_of(broker.history("news", None)) == [4, 5]
    assert offsets_of(broker.history("news", positions[2])) == [4, 5]
    history = broker.history("news", positions[1])
    assert (list(history.messages), history.complete) == ([], False)
    assert history.position == positions[-1]


def test_the_newest_message_is_in_the_history_however_long(make_broker: MakeBroker) -> None:
    broker = make_broker(history_bytes=25)
    first, second = broker.publish(text("news", "x", "x" * 100))
    assert offsets_of(broker.history("news", None)) == [2]
    assert offsets_of(broker.history("news", first)) == [2]
    assert not broker.history("news", Position(first.epoch, 0)).complete
    assert broker.history("news", second).complete


def test_without_a_history_only_the_newest_position_is_complete(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder, history_size=0)
    broker.subscribe("news")
    first, second = broker.publish(text("news", "1", "2"))
    recorder.wait_for(b"2")
    assert (first.offset, second.offset) == (1, 2)
    assert not broker.history("news", first).complete
    history = broker.history("news", second)
    assert (list(history.messages), history.complete) == ([], True)
    assert list(broker.history("news", None).messages) == []


def test_the_history_ends_some_time_after_its_last_message(make_broker: MakeBroker) -> None:
    broker = make_broker(history_ttl=0.2)
    start = broker.position("news")
    broker.publish(text("news", "1"))
    # It is not asked for until its time is over, since asking uses it in memory.
    sleep(0.4)
    history = broker.history("news", start)
    assert (list(history.messages), history.complete) == ([], False)
    assert list(broker.history("news", None).messages) == []


def test_a_subscription_outlives_the_history(make_broker: MakeBroker, recorder: Recorder) -> None:
    broker = make_broker(recorder, history_ttl=0.1)
    position = broker.subscribe("news")
    sleep(0.3)
    [after] = broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    assert after == Position(position.epoch, 1)
    assert recorder.all_missed == []


def test_messages_can_be_published_without_a_receiver(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    assert data_of(broker.history("news", None)) == [b"1"]


# -- who is there ------------------------------------------------------------------------------


def events(recorder: Recorder) -> list[tuple[str, str]]:
    return [(m.event, m.data.decode()) for m in recorder.messages if m.event]


def wait_for_event(recorder: Recorder, event: str, identity: str, times: int = 1) -> None:
    recorder.wait(
        lambda: events(recorder).count((event, identity)) == times, f"{event} of {identity}"
    )


def test_the_first_connection_of_an_identity_joins_and_its_last_leaves(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("room")
    broker.join("room", "ann")
    broker.join("room", "bob")
    broker.join("room", "ann")
    assert broker.present("room") == ["ann", "bob"]
    broker.leave("room", "ann")
    broker.leave("room", "bob")
    wait_for_event(recorder, "leave", "bob")
    assert broker.present("room") == ["ann"]
    broker.leave("room", "ann")
    wait_for_event(recorder, "leave", "ann")
    assert broker.present("room") == []
    assert events(recorder) == [
        ("join", "ann"),
        ("join", "bob"),
        ("leave", "bob"),
        ("leave", "ann"),
    ]


def test_joining_and_leaving_are_transient_messages(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    [position] = broker.publish(text("room", "1"))
    broker.subscribe("room")
    broker.join("room", "Änne")
    broker.leave("room", "Änne")
    wait_for_event(recorder, "leave", "Änne")
    for message in recorder.messages:
        assert message.transient
        assert message.kind == TEXT
        assert message.position == position
    assert data_of(broker.history("room", None)) == [b"1"]


def test_who_comes_back_in_time_has_never_left(make_broker: MakeBroker, recorder: Recorder) -> None:
    broker = make_broker(recorder, presence_grace=1.0)
    broker.subscribe("room")
    broker.join("room", "ann")
    broker.leave("room", "ann")
    broker.join("room", "ann")
    broker.join("room", "end")
    broker.leave("room", "end")
    wait_for_event(recorder, "leave", "end")
    assert broker.present("room") == ["ann"]
    assert events(recorder) == [("join", "ann"), ("join", "end"), ("leave", "end")]


def test_an_identity_is_present_until_the_grace_is_over(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder, presence_grace=60.0)
    broker.join("room", "ann")
    broker.leave("room", "ann")
    assert broker.present("room") == ["ann"]


def test_who_never_joined_can_leave(
    make_broker: MakeBroker, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("room")
    for channel in ("empty room", "room"):
        broker.leave(channel, "nobody")
    broker.join("room", "ann")
    broker.leave("room", "ann")
    wait_for_event(recorder, "leave", "ann")
    assert events(recorder) == [("join", "ann"), ("leave", "ann")]
    assert [each for each in caplog.messages if "raised" in each] == []


def test_identities_that_join_at_once_are_counted_right(
    make_broker: MakeBroker, recorder: Recorder
) -> None:
    broker = make_broker(recorder)
    broker.subscribe("room")

    def join_and_leave() -> None:
        for _ in range(10):
            broker.join("room", "ann")
        for _ in range(10):
            broker.leave("room", "ann")

    broker.join("room", "ann")
    in_threads(*[join_and_leave] * 4)
    assert broker.present("room") == ["ann"]
    broker.leave("room", "ann")
    wait_for_event(recorder, "leave", "ann")
    assert events(recorder) == [("join", "ann"), ("leave", "ann")]
    assert broker.present("room") == []


def test_subscribers_are_counted_by_channel(make_broker: MakeBroker) -> None:
    broker = make_broker()
    assert broker.subscribers("a") == 0
    broker.count("a", 3)
    broker.count("b", 1)
    assert (broker.subscribers("a"), broker.subscribers("b")) == (3, 1)
    broker.count("a", 0)
    assert (broker.subscribers("a"), broker.subscribers("b")) == (0, 1)


# -- the end -----------------------------------------------------------------------------------


def test_a_broker_can_be_closed_before_its_first_use_and_again(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.close()
    broker.close()


def test_a_closed_broker_delivers_no_more(make_broker: MakeBroker, recorder: Recorder) -> None:
    broker = make_broker(recorder)
    broker.subscribe("news")
    broker.publish(text("news", "1"))
    recorder.wait_for(b"1")
    broker.close()
    other = make_broker() if broker.shared else broker
    other.publish(text("news", "2"))
    assert recorder.data == [b"1"]


def test_closing_ends_every_thread(make_broker: MakeBroker, recorder: Recorder) -> None:
    before = _thread._count()
    broker: Broker = make_broker(recorder)
    broker.subscribe("news")
    broker.join("news", "ann")
    broker.close()
    wait_until(lambda: _thread._count() <= before, "the threads to end")


# -- one of many -------------------------------------------------------------------------------


def test_a_name_is_held_by_one_until_its_time_is_over(make_broker: MakeBroker) -> None:
    broker = make_broker()
    assert broker.hold("job", "ann", 60.0)
    assert not broker.hold("job", "bob", 60.0)
    assert broker.hold("other job", "bob", 60.0)
    assert broker.hold("job", "ann", 0.3), "who holds it may hold it on"
    wait_until(lambda: broker.hold("job", "bob", 60.0), "the end of its time")
    assert not broker.hold("job", "ann", 60.0)


def test_a_name_that_is_given_back_is_free(make_broker: MakeBroker) -> None:
    broker = make_broker()
    assert broker.hold("job", "ann", 60.0)
    assert not broker.hold("job", "bob", 0.0), "only who holds it gives it back"
    assert broker.hold("job", "ann", 0.0)
    assert broker.hold("job", "bob", 60.0)


def test_brokers_that_share_channels_share_who_holds_a_name(make_broker: MakeBroker) -> None:
    one, two = make_broker(), make_broker()
    assert one.hold("job", "ann", 60.0)
    assert two.hold("job", "bob", 60.0) is not one.shared


def test_positions_are_those_of_each_channel(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.publish([Draft("a", TEXT, b"1"), Draft("b", TEXT, b"1"), Draft("a", TEXT, b"2")])
    assert broker.positions(["a", "b", "c"]) == [broker.position(name) for name in "abc"]
    assert [each.offset for each in broker.positions(["a", "b", "c"])] == [2, 1, 0]
    assert broker.positions([]) == []
