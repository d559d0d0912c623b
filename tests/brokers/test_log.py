from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_sockets2.brokers.base import TEXT, Message, Position
from flask_sockets2.brokers.message_log import MessageLog

EPOCH = "9f86d081884c7d65"
SIZES = st.integers(0, 12)


def message(offset: int, size: int) -> Message:
    return Message("news", TEXT, bytes(size), Position(EPOCH, offset))


def kept_of(sizes: list[int], most: int, most_bytes: int) -> list[int]:
    """The offsets that a log keeps, by its definition: the longest tail within both bounds."""
    for start in range(len(sizes)):
        tail = sizes[start:]
        if len(tail) <= most and (sum(tail) <= most_bytes or len(tail) == 1):
            return list(range(start + 1, len(sizes) + 1))
    return []


@given(
    sizes=st.lists(SIZES, max_size=30),
    first=st.integers(0, 5),
    most=st.integers(0, 8),
    most_bytes=st.integers(0, 40),
)
def test_a_log_is_its_newest_messages_within_its_bounds(
    sizes: list[int], first: int, most: int, most_bytes: int
) -> None:
    log = MessageLog(Position(EPOCH, first), most, most_bytes)
    for i, size in enumerate(sizes, first + 1):
        log.append(message(i, size))
    newest = Position(EPOCH, first + len(sizes))
    kept = [first + offset for offset in kept_of(sizes, most, most_bytes)]
    assert log.position == newest
    assert [each.position.offset for each in log.since(None).messages] == kept
    for since in range(-1, newest.offset + 3):
        history = log.since(Position(EPOCH, since))
        wanted = list(range(since + 1, newest.offset + 1))
        complete = since <= newest.offset and set(wanted) <= set(kept)
        assert history.complete is complete
        assert history.position == newest
        assert [each.position.offset for each in history.messages] == (wanted if complete else [])


def test_the_newest_message_is_kept_however_long() -> None:
    log = MessageLog(Position(EPOCH, 0), 10, 100)
    log.append(message(1, 1000))
    assert len(log.since(None).messages) == 1


@given(
    sizes=st.lists(SIZES, max_size=20),
    live=st.integers(0, 20),
    first=st.integers(0, 20),
    most=st.integers(0, 8),
    most_bytes=st.integers(0, 40),
)
def test_what_precedes_a_log_is_kept_within_the_same_bounds(
    sizes: list[int], live: int, first: int, most: int, most_bytes: int
) -> None:
    """Of a history from `first` on; the log has what came from `live` on."""
    messages = [message(i, size) for i, size in enumerate(sizes, 1)]
    log = MessageLog(Position(EPOCH, live := min(live, len(sizes))), most, most_bytes)
    for each in messages[live:]:
        log.append(each)
    history = [message(each.position.offset, len(each.data)) for each in messages[first:]]
    same = log.precede(history)
    assert [each.position for each in same] == [each.position for each in history]
    own = log.since(None).messages
    assert all(each in own for each in same if each.position in {m.position for m in own})
    tail = sizes if live > first else sizes[live:]
    kept = [offset + len(sizes) - len(tail) for offset in kept_of(tail, most, most_bytes)]
    assert [each.position.offset for each in own] == [
        offset for offset in kept if offset > min(first, live)
    ]


def test_what_does_not_join_on_precedes_nothing() -> None:
    log = MessageLog(Position(EPOCH, 5), 10, 100)
    log.append(message(6, 1))
    foreign = Message("news", TEXT, b"", Position("0" * 16, 5))
    log.precede([message(3, 1), message(4, 1), foreign])
    assert [each.position.offset for each in log.since(None).messages] == [6]
    log.precede([message(2, 1), message(4, 1), message(5, 1)])
    assert [each.position.offset for each in log.since(None).messages] == [4, 5, 6]


def test_another_epoch_is_never_complete() -> None:
    log = MessageLog(Position(EPOCH, 0), 10, 100)
    history = log.since(Position("0" * 16, 0))
    assert (history.complete, history.position) == (False, log.position)


def test_a_log_that_was_cleared_keeps_its_position() -> None:
    log = MessageLog(Position(EPOCH, 0), 10, 100)
    log.append(message(1, 1))
    log.clear()
    assert log.position == Position(EPOCH, 1)
    assert not log.since(Position(EPOCH, 0)).complete
    assert log.since(Position(EPOCH, 1)).complete
    log.append(message(2, 1))
    assert log.since(Position(EPOCH, 1)).complete


def test_an_empty_log_holds_no_messages() -> None:
    assert list(MessageLog(Position(EPOCH, 7), 10, 100).since(None).messages) == []
