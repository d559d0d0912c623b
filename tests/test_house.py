"""The figures of how easily a stranger finds the way: ``python -m tests.house`` prints them all."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.house import House, page_prose, per_thousand

HOUSE = House(Path(__file__).parents[1])


def test_one_glance_shows_the_package() -> None:
    assert len(HOUSE.top_modules) <= 12
    assert len(HOUSE.rooms) <= 26
    assert HOUSE.floors <= 8
    assert sum(map(len, HOUSE.rooms.values())) <= 90


def test_a_class_name_means_one_thing() -> None:
    """Two names are users': a broker's message, and Flask-SSE's."""
    assert HOUSE.double_names == {"Message": ["brokers.base", "sse.message"]}


@pytest.mark.parametrize("texts", [HOUSE.pages().values(), HOUSE.prose()], ids=["pages", "code"])
def test_prose_speaks_of_things_and_conditions(texts: Iterable[str]) -> None:
    found = per_thousand(texts)
    assert found["it"] <= 15
    assert found["who"] + found["what"] <= 5
    assert found["if"] >= 6


@pytest.mark.parametrize(
    ("page", "prose"),
    [
        ("One\n\n.. code-block:: python\n\n    if it:\n\nTwo", "One Two"),
        ("One::\n\n    if it\n\nTwo", "One:: Two"),
        ("Title\n=====\n\n:param it: a name", "Title a name"),
        (".. note::\n   One", "One"),
    ],
)
def test_only_prose_of_a_page_is_kept(page: str, prose: str) -> None:
    assert " ".join(page_prose(page).split()) == prose


def test_words_are_counted_outside_of_literals() -> None:
    found = per_thousand(["If it is there, ``if it`` works", "and who knows?"])
    assert {word: round(value) for word, value in found.items()} == {
        "if": 125,
        "it": 125,
        "what": 0,
        "where": 0,
        "who": 125,
    }


def test_a_house_with_a_circle_and_a_double_name_is_seen_through(tmp_path: Path) -> None:
    package = tmp_path / "flask_sockets2"
    (package / "attic").mkdir(parents=True)
    (package / "__init__.py").write_text("from .cellar import Box\n")
    (package / "attic" / "__init__.py").write_text("")
    (package / "attic" / "lid.py").write_text("from ..cellar import Box as Old\nclass Box: ...\n")
    (package / "cellar.py").write_text("class Box: ...\ndef f():\n    from .attic import lid\n")
    house = House(tmp_path)
    assert house.top_modules == ["__init__", "cellar"]
    assert house.rooms == {"attic": {"cellar"}, "cellar": {"attic"}}
    assert set(house.circle) == {"attic.lid", "cellar"}
    assert house.double_names == {"Box": ["attic.lid", "cellar"]}
    assert isinstance(house.modules["cellar"], ast.Module)
