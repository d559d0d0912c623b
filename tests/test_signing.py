"""What a client's position is held against."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from itsdangerous import URLSafeTimedSerializer

from flask_sockets2 import Turbo
from flask_sockets2.application.signing import START, Forged, Signer, key_mark, not_before
from flask_sockets2.brokers.base import NOWHERE
from flask_sockets2.sse import ServerSentEventsBlueprint

A, B = "9f86d081884c7d65", "1f3870be274f6c49"
LOST = str(NOWHERE)


@pytest.mark.parametrize(
    ("position", "earliest", "expected"),
    [
        (f"{A}-42", f"{A}-42", f"{A}-42"),
        (f"{A}-43", f"{A}-42", f"{A}-43"),
        (f"{A}-41", f"{A}-42", LOST),
        (f"{A}-9", f"{A}-10", LOST),  # by number, not as text
        (f"{A}-0", f"{A}-0", f"{A}-0"),
        ("", f"{A}-42", ""),
        (START, f"{A}-42", f"{A}-42"),
        (LOST, f"{A}-42", LOST),
        ("nonsense", f"{A}-42", LOST),
        (f"{A}-42", LOST, LOST),
        (f"{A}-42", "nonsense", LOST),
        (f"{A}-42", "", LOST),
        ("", LOST, ""),
        (START, LOST, LOST),
        (f"{A}-0", START, f"{A}-0"),
        (START, START, START),
        (LOST, START, LOST),
    ],
)
@pytest.mark.parametrize("one_log", [True, False])
def test_a_position_is_permitted_from_the_earliest_on(
    position: str, earliest: str, expected: str, one_log: bool
) -> None:
    assert not_before(position, earliest, one_log=one_log) == expected


def test_a_log_that_began_after_the_page_is_its_own_where_there_is_one_log_at_a_time() -> None:
    assert not_before(f"{B}-0", f"{A}-42", one_log=True) == f"{B}-0"
    assert not_before(f"{B}-50", f"{A}-42", one_log=False) == LOST


def app_with(fallbacks: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for the tests", SECRET_KEY_FALLBACKS=fallbacks)
    return app


def signer_of(app: Flask) -> Signer:
    return Signer(app, "salt", None, "MAX_AGE")


@pytest.mark.parametrize(
    "fallbacks", ["older", b"older", [""], ["older", None], [b""], [["older"]], {"older": 1}, 5]
)
def test_old_keys_that_anybody_can_guess_are_refused_where_the_application_starts(
    fallbacks: Any,
) -> None:
    """Of a text each letter would be a key, and os.environ.get("OLD_KEY", "") is an empty one."""
    with pytest.raises(ValueError, match="SECRET_KEY_FALLBACKS must be a list") as caught:
        Turbo(app_with(fallbacks))
    assert "older" not in str(caught.value)
    with pytest.raises(ValueError, match="SECRET_KEY_FALLBACKS must be a list"):
        app_with(fallbacks).register_blueprint(ServerSentEventsBlueprint("sse", __name__))
    with pytest.raises(ValueError, match="SECRET_KEY_FALLBACKS must be a list"):
        signer_of(app_with(fallbacks))


@pytest.mark.parametrize("fallbacks", [None, [], (), ["old", b"older"], ("old", "older")])
def test_old_keys_count_and_no_others(fallbacks: Any) -> None:
    signer = signer_of(app_with(fallbacks))
    for key in ("old", "older", "o", "nobody's"):
        signed = URLSafeTimedSerializer(key, salt="salt").dumps("name")
        if fallbacks and key in ("old", "older"):
            assert signer.unsign(signed) == "name"
        else:
            with pytest.raises(Forged):
                signer.unsign(signed)


def test_what_another_key_has_signed_says_which_mistake_it_may_be() -> None:
    one, other = Flask("one"), Flask("other")
    one.secret_key, other.secret_key = "a", "b"
    signed = Signer(one, "salt", 60, "SSE_MAX_AGE").sign("name")
    for unsigned, expected in (
        (signed, r"with another SECRET_KEY than this process has; .* os\.urandom\(\)"),
        ("junk", "not signed by this application"),
        ("", "not signed by this application"),
        ("\ud800", "not signed by this application"),
    ):
        with pytest.raises(Forged, match=expected):
            Signer(other, "salt", 60, "SSE_MAX_AGE").unsign(unsigned)


def test_the_mark_of_a_key_tells_keys_apart_and_holds_none() -> None:
    app = Flask(__name__)
    marks = set()
    for key in (None, "a", b"a", "b", b"b"):
        app.secret_key = key
        marks.add(key_mark(app))
    assert len(marks) == 3
    assert "" in marks
