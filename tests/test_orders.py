from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from werkzeug.local import LocalProxy

from flask_sockets2 import BrokerError
from flask_sockets2.admission import disconnects as orders_module
from flask_sockets2.admission.disconnects import DisconnectOrder, Unsent, user_text
from tests.processes import wait_until

SOME_ID = UUID("12345678-1234-5678-1234-567812345678")


class Role(StrEnum):
    ADMIN = "admin"


@pytest.mark.parametrize(
    ("user_id", "text"),
    [
        (5, "5"),
        ("5", "5"),
        (SOME_ID, str(SOME_ID)),
        (Role.ADMIN, "admin"),
        (LocalProxy(lambda: 7), "7"),
    ],
)
def test_an_id_and_its_text_are_the_same_user(user_id: Any, text: str) -> None:
    assert user_text(user_id) == text


class User:
    """As a model's: its text is for people, and two may have the same."""

    def __str__(self) -> str:
        return "Ann"


@pytest.mark.parametrize(
    "what", [object(), User(), LocalProxy(User), True, 1.5, b"5", ["5"], User, Decimal(5)]
)
def test_what_is_no_id_is_refused_with_the_remedy(what: Any) -> None:
    with pytest.raises(TypeError, match=r"is a str, an int or a UUID, got .*as str\(user\.id\)$"):
        user_text(what)


@pytest.mark.parametrize("what", ["", LocalProxy(str)])
def test_an_empty_text_is_nobody_and_no_user(what: Any) -> None:
    with pytest.raises(ValueError, match="cannot be empty; None is nobody"):
        user_text(what)


def test_an_order_is_read_as_it_was_written() -> None:
    order = DisconnectOrder.of("ä:1", 4001, "as you wish")
    assert (
        DisconnectOrder.parse(order.serialize()) == order == ("ä:1", 4001, "as you wish", order.id)
    )


def test_each_order_has_an_id_of_its_own_and_one_of_an_earlier_version_has_none() -> None:
    assert DisconnectOrder.of(5, 1008, "").id != DisconnectOrder.of(5, 1008, "").id
    order = DisconnectOrder.parse(b'{"disconnect": "5", "code": 1008, "reason": ""}')
    assert order == ("5", 1008, "", "")


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 2999, 5000, "1008", 1008.0, True])
def test_a_code_that_no_close_frame_carries_is_refused(code: Any) -> None:
    """RFC 6455 §7.4.1"""
    with pytest.raises(ValueError, match="use 1008, or 4000 to 4999"):
        DisconnectOrder.of(5, code, "")


def test_a_reason_that_is_too_long_is_refused() -> None:
    """RFC 6455 §5.5"""
    assert DisconnectOrder.of(5, 1008, "ä" * 61)
    with pytest.raises(ValueError, match="at most 123 bytes"):
        DisconnectOrder.of(5, 1008, "ä" * 62)


def test_nobody_is_no_user() -> None:
    with pytest.raises(ValueError, match="user=None is nobody"):
        DisconnectOrder.of(None, 1008, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"restart": 1}',
        b'{"disconnect": "", "code": 1008, "reason": ""}',
        b'{"disconnect": null, "code": 1008, "reason": ""}',
        b'{"disconnect": "5", "code": 1006, "reason": ""}',
        b'{"disconnect": "5", "code": "x", "reason": ""}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_order_is_none(data: bytes) -> None:
    assert DisconnectOrder.parse(data) is None


# -- orders that the broker could not take ---------------------------------------------------


class Away:
    """A broker, as far as orders go."""

    def __init__(self) -> None:
        self.away = True
        self.tries = 0
        self.published: list[DisconnectOrder] = []

    def publish(self, order: DisconnectOrder) -> None:
        self.tries += 1
        if self.away:
            raise BrokerError("cannot be reached")
        self.published.append(order)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Away:
    monkeypatch.setattr(orders_module, "_AGAIN", 0.01)
    return Away()


def test_the_newest_order_of_each_user_is_published_when_the_broker_is_back(away: Away) -> None:
    unsent = Unsent(away.publish)
    orders = [DisconnectOrder.of(user, 1008, "") for user in ("ann", "bob", "ann", "eve")]
    for order in orders:
        unsent.keep(order)
    unsent.drop("eve")
    wait_until(lambda: away.tries > 2, "several attempts")
    assert away.published == []
    away.away = False
    wait_until(lambda: len(away.published) == 2, "the orders")
    assert away.published == [orders[1], orders[2]]
    unsent.keep(orders[3])  # another time
    wait_until(lambda: away.published[2:] == [orders[3]], "the next")


def test_orders_are_kept_for_a_while_and_in_a_limited_number(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders_module, "_MOST_UNSENT", 2)
    unsent = Unsent(away.publish)
    orders = [DisconnectOrder.of(user, 1008, "") for user in range(3)]
    for order in orders:
        unsent.keep(order)
    away.away = False
    wait_until(lambda: away.published == orders[1:], "the newest two")
    monkeypatch.setattr(orders_module, "_KEPT", 0.0)
    unsent.keep(orders[0])
    wait_until(lambda: not unsent._trying, "the end of the attempts")
    assert away.published == orders[1:]


def test_no_order_is_published_once_its_process_lets_go_of_the_broker(away: Away) -> None:
    unsent = Unsent(away.publish)
    unsent.keep(DisconnectOrder.of(5, 1008, ""))
    away.away = False
    unsent.close()
    unsent._try()
    assert away.published == []
