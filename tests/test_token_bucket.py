from __future__ import annotations

import logging

import pytest

from flask_sockets2 import throttled_log, token_bucket
from flask_sockets2.throttled_log import ThrottledLog
from flask_sockets2.token_bucket import Buckets, TokenBucket


def taken(bucket: TokenBucket, now: float) -> int:
    """How many tokens there are at a time."""
    count = 0
    while not bucket.take(now):
        count += 1
    return count


@pytest.mark.parametrize(("rate", "burst"), [(5, 5), (1, 1), (0.1, 1), (2.5, 2)])
def test_at_once_there_is_what_a_second_allows_and_at_least_one(rate: float, burst: int) -> None:
    bucket = TokenBucket(rate, 100.0)
    assert taken(bucket, 100.0) == burst
    assert taken(bucket, 100.0) == 0
    assert taken(bucket, 1e6) == burst  # nobody saves up


def test_it_fills_as_fast_as_the_rate_says() -> None:
    bucket = TokenBucket(4, 0.0)
    assert taken(bucket, 0.0) == 4
    assert [taken(bucket, at) for at in (0.2, 0.25, 0.5, 1.0)] == [0, 1, 1, 2]


def test_who_comes_after_the_time_told_gets_a_token() -> None:
    for rate in (0.3, 3, 7, 1000):
        bucket = TokenBucket(rate, 0.0)
        now = 0.0
        for _ in range(100):
            taken(bucket, now)
            wait = bucket.take(now)
            assert 0 < wait <= 1 / rate + 1e-6
            now += wait
            assert bucket.take(now) == 0.0


def test_what_is_owed_is_waited_for() -> None:
    bucket = TokenBucket(10, 0.0)
    assert bucket.owe(10, 0.0) == 0.0
    assert bucket.owe(64, 0.0) == pytest.approx(6.4)
    assert bucket.owe(1, 6.4) == pytest.approx(0.1)
    assert bucket.owe(0, 60.0) == 0.0


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets()
    assert buckets.take("a", 1, 0.0) == 0.0
    assert buckets.take("a", 1, 0.0) == 1.0
    assert buckets.take("b", 1, 0.0) == 0.0


def test_a_rate_that_changes_counts_at_once() -> None:
    buckets = Buckets()
    assert buckets.take("a", 1, 0.0) == 0.0
    assert buckets.take("a", 1, 0.0) > 0.0
    assert buckets.take("a", 100, 0.1) == 0.0


def test_keys_that_wait_for_nothing_are_forgotten() -> None:
    buckets = Buckets()
    for number in range(1000):
        buckets.take(f"{number}", 10, number / 100)
    assert len(buckets) <= 100  # at 10 a second a token is back after a tenth of a second


def test_a_key_that_still_waits_is_remembered_whoever_comes() -> None:
    buckets = Buckets()
    while not buckets.take("a", 2, 0.0):
        pass
    for number in range(1000):
        buckets.take(f"{number}", 2, 0.0)
    assert buckets.take("a", 2, 0.0) > 0.0


def test_very_many_keys_at_once_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_bucket, "_MOST", 50)
    buckets = Buckets()
    for number in range(1000):
        assert buckets.take(f"{number}", 0.001, 0.0) == 0.0
    assert len(buckets) == 50
    assert buckets.take("999", 0.001, 0.0) > 0.0


def test_when_all_places_are_taken_the_key_that_is_in_use_keeps_its_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a client that goes on asking would be forgotten, and begin with a full bucket."""
    monkeypatch.setattr(token_bucket, "_MOST", 3)
    buckets = Buckets()
    for key in ("busy", "idle 1", "idle 2"):
        buckets.take(key, 0.001, 0.0)
    for number in range(10):
        assert buckets.take("busy", 0.001, 0.0) > 0.0
        buckets.take(f"new {number}", 0.001, 0.0)
    assert len(buckets) == 3


def test_a_flood_is_logged_once_a_second_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(throttled_log, "monotonic", lambda: now)
    log = ThrottledLog(logging.getLogger("test"))
    for number in range(1000):
        log.warning("full", "refused %s", number)
    log.warning("fast", "too fast")
    now = 51.0
    log.warning("full", "refused %s", "again")
    now = 52.0
    log.warning("full", "refused %s", "again")
    assert caplog.messages == [
        "refused 0",
        "too fast",
        "refused again (999 more since it was logged last)",
        "refused again",
    ]


def test_each_level_has_its_lines_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = ThrottledLog(logging.getLogger("test"))
    for number in range(100):
        log.info("left", "left %s", number)
        log.failure("away", "away %s", number)
    assert [(r.levelname, r.getMessage(), r.exc_info) for r in caplog.records] == [
        ("INFO", "left 0", None),
        ("ERROR", "away 0", None),
    ]


def test_an_error_that_comes_again_and_again_is_one_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = ThrottledLog(logging.getLogger("test"))
    for _ in range(100):
        log.error("it raised", error=ZeroDivisionError("x"))
        log.error("it raised", error=KeyError("y"))
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ZeroDivisionError,
        KeyError,
    ]
