"""The proofs that the soak finds what is wrong with echoes, pages and who is there."""

from __future__ import annotations

import pytest

from tests.soak.answers import (
    Answer,
    Echoes,
    Room,
    Window,
    check_answers,
    check_echoes,
    check_rooms,
)


def echo_faults(sent: int, *came: int | None, overdue: bool = False) -> list[str]:
    return [fault.kind for fault in check_echoes([Echoes("ann", sent, list(came), overdue)])]


def test_echoes_that_came_once_and_in_order_are_no_fault() -> None:
    assert echo_faults(3, 0, 1, 2) == []
    assert echo_faults(3, 0, 1) == []  # the connection broke
    assert echo_faults(3, 0, 1, 2, overdue=True) == []  # late, and all there


def test_a_lost_echo_is_found() -> None:
    assert echo_faults(3, 0, 2) == ["lost"]


def test_an_echo_that_a_living_connection_does_not_bring_is_found() -> None:
    assert echo_faults(3, 0, 1, overdue=True) == ["lost"]


def test_a_doubled_echo_is_found() -> None:
    assert echo_faults(3, 0, 1, 1, 2) == ["doubled"]


def test_swapped_echoes_are_found() -> None:
    assert "order" in echo_faults(3, 0, 2, 1)


def test_an_altered_echo_is_found() -> None:
    assert echo_faults(2, 0, None, 1) == ["altered"]
    assert "altered" in echo_faults(2, 0, 1, 2)


def answer_faults(outcome: str, *windows: Window, is_relayed: bool = False) -> list[str]:
    answer = Answer("ann", "/plain", outcome, 100.0, 101.0, is_relayed)
    return [fault.kind for fault in check_answers([answer], windows)]


@pytest.mark.parametrize("outcome", ["502", "503", "504", "broken", "dropped", "refused"])
def test_a_page_may_fail_only_while_something_explains_it(outcome: str) -> None:
    assert answer_faults(outcome, Window(99.0, 100.5)) == []
    assert answer_faults(outcome, Window(100.5, 103.0)) == []
    assert answer_faults(outcome) == ["answer"]
    assert answer_faults(outcome, Window(90.0, 99.0), Window(102.0, 103.0)) == ["answer"]


def test_a_cut_network_explains_nothing_elsewhere() -> None:
    cut = Window(100.0, 101.0, relayed_only=True)
    assert answer_faults("broken", cut, is_relayed=True) == []
    assert answer_faults("broken", cut) == ["answer"]


@pytest.mark.parametrize("outcome", ["500", "404", "not the page", "gave up"])
def test_nothing_explains_an_error_of_the_application_or_another_page(outcome: str) -> None:
    assert answer_faults(outcome, Window(99.0, 103.0)) == ["answer"]


def room_faults(*view: str) -> list[str]:
    return [fault.kind for fault in check_rooms([Room("room", {"ann", "bob"}, {"ann": set(view)})])]


def test_who_is_there_and_unseen_and_who_is_seen_and_gone_are_found() -> None:
    assert room_faults("ann", "bob") == []
    assert room_faults("ann") == ["absent"]
    assert room_faults("ann", "bob", "cyd") == ["ghost"]
