"""Names of streams, and what a client may make of them."""

from __future__ import annotations

import base64
import json
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from markupsafe import Markup
from werkzeug.local import LocalProxy

from flask_sockets2.application.signing import Expired, Forged
from flask_sockets2.turbo.stream_names import (
    StreamSigner,
    parts_of_channel,
    stream_channel,
    stream_name,
    stream_parts,
    user_channel,
)

UUID_TEXT = "12345678-1234-5678-1234-567812345678"
NOW = 1_000_000
POSITION = "9f86d081884c7d65-42"


class Kind(StrEnum):
    ROOM = "room"


class Number(IntEnum):
    FIVE = 5


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("room", 5), "room:5"),
        (("room", "5"), "room:5"),
        ((Kind.ROOM, Number.FIVE), "room:5"),
        ((Markup("a:b"),), "a%3Ab"),
        (("a:b", "c"), "a%3Ab:c"),
        (("a", "b:c"), "a:b%3Ac"),
        (("a%3Ab",), "a%253Ab"),
        ((UUID(UUID_TEXT),), UUID_TEXT),
        (("", ""), ":"),
        ((-1,), "-1"),
    ],
)
def test_a_name_is_its_parts(parts: tuple[Any, ...], name: str) -> None:
    assert stream_name(*parts) == name
    assert stream_channel(*parts) == f"turbo:stream:{name}"
    assert stream_parts(name) == tuple(
        str.__str__(part) if isinstance(part, str) else str(part) for part in parts
    )


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_different_parts_make_different_names(one: list[str], other: list[str]) -> None:
    assert (stream_name(*one) == stream_name(*other)) == (one == other)
    assert list(stream_parts(stream_name(*one))) == one


@pytest.mark.parametrize("part", [None, True, 1.5, b"room", ("room", 5), object()])
def test_a_part_that_is_not_the_same_everywhere_is_refused(part: Any) -> None:
    with pytest.raises(TypeError, match=r"str, an int or a UUID, got .*; use an id of it"):
        stream_name("room", part)


def test_a_name_needs_a_part() -> None:
    with pytest.raises(TypeError, match=r"\(\"room\", room\.id\)"):
        stream_name()


def test_a_name_that_is_no_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="1024 bytes"):
        stream_channel("ü" * 600)
    with pytest.raises(ValueError, match="surrogate"):
        stream_channel("\ud800")


@pytest.mark.parametrize(
    ("user_id", "channel"),
    [
        (5, "turbo:user:5"),
        ("5", "turbo:user:5"),
        ("a:b%", "turbo:user:a%3Ab%25"),
        (UUID(UUID_TEXT), f"turbo:user:{UUID_TEXT}"),
    ],
)
def test_a_user_is_a_channel(user_id: Any, channel: str) -> None:
    assert user_channel(user_id) == channel
    assert parts_of_channel(channel) is None


@pytest.mark.parametrize("user_id", [object(), LocalProxy(lambda: object()), 1.5, True])
def test_what_is_no_id_of_a_user_is_refused(user_id: Any) -> None:
    """As ``current_user`` in place of ``current_user.id``."""
    with pytest.raises(TypeError, match=r"use an id of it, as user\.id"):
        user_channel(user_id)
    with pytest.raises(ValueError, match="cannot be empty"):
        user_channel("")


def test_a_proxy_is_what_it_stands_for() -> None:
    assert user_channel(LocalProxy(lambda: 5)) == "turbo:user:5"


def test_only_a_named_stream_has_parts() -> None:
    assert parts_of_channel("turbo:all") is None
    assert parts_of_channel(stream_channel("a:b", 5)) == ("a:b", "5")


def app_with(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.update({"SECRET_KEY": "one", **settings})
    return app


def signed_at(
    monkeypatch: pytest.MonkeyPatch, when: int, app: Flask, channel: str = "turbo:all"
) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda _: when)
        return StreamSigner(app).sign(channel)


def test_what_was_signed_is_known_again() -> None:
    signer = StreamSigner(app_with())
    name = signer.permit("turbo:stream:ü:5", POSITION)
    assert signer.permitted(name)[:2] == ("turbo:stream:ü:5", POSITION)
    assert StreamSigner(app_with()).permitted(name)[:2] == ("turbo:stream:ü:5", POSITION)


@pytest.mark.parametrize("part", [UUID_TEXT, "x" * 200, "ü"])
def test_the_script_of_a_page_can_read_a_name(part: str) -> None:
    """It compares the channels of two pages, whose names differ."""
    channel = stream_channel("room", part)
    name = StreamSigner(app_with()).permit(channel, POSITION)
    payload = name.split(".")[0]
    assert json.loads(base64.urlsafe_b64decode(payload + "==")) == [channel, POSITION]


@pytest.mark.parametrize("name", [5, None, [], [5], ["a", 5], ["a", "b", "c", "d"], {"a": "b"}])
def test_what_was_signed_and_is_no_name_is_forged(name: Any) -> None:
    signer = StreamSigner(app_with())
    with pytest.raises(Forged, match="no name of a stream"):
        signer.permitted(signer.sign(name))


def test_a_key_that_was_replaced_counts_as_long_as_it_is_named() -> None:
    name = StreamSigner(app_with()).sign("turbo:all")
    renewed = app_with(SECRET_KEY="two", SECRET_KEY_FALLBACKS=["zero", "one"])
    assert StreamSigner(renewed).unsign(name) == "turbo:all"
    with pytest.raises(Forged):
        StreamSigner(app_with(SECRET_KEY="two")).unsign(name)
    with pytest.raises(Forged):  # what is signed now is signed with the new key
        StreamSigner(app_with()).unsign(StreamSigner(renewed).sign("turbo:all"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "turbo:all", "InR1cmJvOmFsbCI", "a.b.c", "\ud800", "é.é.é", "x" * 9999]
)
def test_what_was_not_signed_is_forged(name: str) -> None:
    with pytest.raises(Forged):
        StreamSigner(app_with()).unsign(name)


def test_each_changed_character_is_noticed() -> None:
    signer = StreamSigner(app_with())
    name = signer.sign("turbo:user:1")
    for index, character in enumerate(name[:-1]):  # of the last one only some bits count
        other = "A" if character != "A" else "B"
        with pytest.raises(Forged):
            signer.unsign(name[:index] + other + name[index + 1 :])


def test_what_the_application_has_signed_for_something_else_is_forged() -> None:
    session = URLSafeTimedSerializer("one", salt="cookie-session").dumps("turbo:user:1")
    with pytest.raises(Forged):
        StreamSigner(app_with()).unsign(str(session))


def test_a_name_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_with()
    name = signed_at(monkeypatch, NOW, app)
    assert StreamSigner(app, lambda: NOW + 86400).unsign(name) == "turbo:all"
    with pytest.raises(Expired, match="86401 seconds old, and TURBO_STREAM_MAX_AGE is 86400"):
        StreamSigner(app, lambda: NOW + 86401).unsign(name)


def test_the_age_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    name = signed_at(monkeypatch, NOW, app_with())
    with pytest.raises(Expired):
        StreamSigner(app_with(TURBO_STREAM_MAX_AGE=5), lambda: NOW + 6).unsign(name)
    endless = StreamSigner(app_with(TURBO_STREAM_MAX_AGE=None), lambda: NOW * 9)
    assert endless.unsign(name) == "turbo:all"


def test_a_page_of_a_host_whose_clock_is_ahead_is_no_less_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = signed_at(monkeypatch, NOW, app_with())
    assert StreamSigner(app_with(), lambda: NOW - 3).unsign(name) == "turbo:all"


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_the_setting_is_named(key: Any) -> None:
    with pytest.raises(RuntimeError, match="SECRET_KEY"):
        StreamSigner(app_with(SECRET_KEY=key))


@pytest.mark.parametrize("age", ["60", True, b""])
def test_an_age_that_is_no_number_is_named(age: Any) -> None:
    with pytest.raises(ValueError, match="TURBO_STREAM_MAX_AGE must be a number"):
        StreamSigner(app_with(TURBO_STREAM_MAX_AGE=age))
