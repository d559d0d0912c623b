from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from werkzeug.local import LocalProxy

from flask_sockets2.orders import Order, user_text

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
    order = Order.of("ä:1", 4001, "as you wish")
    assert Order.parse(order.serialize()) == order == ("ä:1", 4001, "as you wish")


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 2999, 5000, "1008", 1008.0, True])
def test_a_code_that_no_close_frame_carries_is_refused(code: Any) -> None:
    """RFC 6455 §7.4.1"""
    with pytest.raises(ValueError, match="use 1008, or 4000 to 4999"):
        Order.of(5, code, "")


def test_a_reason_that_is_too_long_is_refused() -> None:
    """RFC 6455 §5.5"""
    assert Order.of(5, 1008, "ä" * 61)
    with pytest.raises(ValueError, match="at most 123 bytes"):
        Order.of(5, 1008, "ä" * 62)


def test_nobody_is_no_user() -> None:
    with pytest.raises(ValueError, match="user=None is nobody"):
        Order.of(None, 1008, "")


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
    assert Order.parse(data) is None
