"""All targets for a moment, the same inputs each time; ``make fuzz`` goes on with others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.fuzz.__main__ import fuzz
from tests.fuzz.inputs import CORPUS, seeds_of
from tests.fuzz.targets import TARGETS

EXAMPLES = 150


def test_every_target_has_seeds_and_every_seed_a_target() -> None:
    assert {path.stem for path in CORPUS.iterdir()} == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_known_holds(name: str) -> None:
    for seed in seeds_of(name):
        TARGETS[name].holds(*seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_like_it_or_like_nothing_holds(name: str) -> None:
    assert fuzz(name, EXAMPLES) == EXAMPLES


@pytest.mark.slow
def test_it_is_run_for_as_long_as_is_said_and_fails_where_something_does_not_hold() -> None:
    command = [sys.executable, "-m", "tests.fuzz"]
    done = subprocess.run([*command, "1", "names"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("names")
    done = subprocess.run([*command, "1", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected one of frames, " in done.stderr


def test_what_does_not_hold_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(one: str, other: str) -> None:
        assert ":" not in one + other

    monkeypatch.setitem(TARGETS, "names", type(TARGETS["names"])(breaks, narrow=False))
    with pytest.raises(AssertionError):
        fuzz("names", EXAMPLES)
