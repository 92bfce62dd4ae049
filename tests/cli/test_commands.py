"""Orders to the controller: joined rather than repeated, answered or not, refused where there is nothing to do."""

from __future__ import annotations

import pytest

from services.cli.commands import give
from services.cli.main import run
from services.store import RolloutRow, Store
from tests.fakes.rollout_rows import HandClock, route, row


class Controller(HandClock):
    """A clock in whose sleep the controller looks: after `looks` sleeps it answers everything that waits."""

    def __init__(self, store: Store, looks: int, answer: str) -> None:
        super().__init__()
        self.store, self.looks, self.answer = store, looks, answer

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.looks -= 1
        if self.looks == 0:
            for order in self.store.commands("assistant"):
                self.store.answer_command(order.id, self.answer)


def test_waits_for_the_controllers_own_words(running: RolloutRow, store: Store) -> None:
    clock = Controller(store, looks=3, answer="aborted")
    given = give(store, "assistant", "abort", actor="me", reason="x", wait=10.0, clock=clock)
    assert given.answer == "aborted"
    assert store.commands("assistant") == []


def test_gives_up_when_time_is_up(running: RolloutRow, store: Store) -> None:
    clock = Controller(store, looks=1_000, answer="aborted")
    given = give(store, "assistant", "abort", actor="me", reason="x", wait=2.0, clock=clock)
    assert given.answer is None
    assert clock.now == pytest.approx(HandClock().now + 2.0)


def test_an_order_that_waits_is_joined(running: RolloutRow, store: Store, clock: HandClock) -> None:
    first = give(store, "assistant", "pause", actor="me", reason="", wait=0, clock=clock)
    second = give(store, "assistant", "pause", actor="you", reason="", wait=0, clock=clock)
    other = give(store, "assistant", "abort", actor="you", reason="", wait=0, clock=clock)
    assert first.id == second.id != other.id
    assert [order.verb for order in store.commands("assistant")] == ["pause", "abort"]


def test_what_has_happened_needs_no_order(
    store: Store, clock: HandClock, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.publish_route(route())
    ended = row("r2", "2", stage="finished", verdict="abort", finished_at=clock.now, decided_at=clock.now)
    store.commit_look(ended, evidence={}, at=clock.now)
    assert run(["abort", "assistant", "-r", "again", "--store", url]) == 0
    assert "is aborted already" in capsys.readouterr().out
    assert store.commands("assistant", pending=False) == []


def test_a_refusal_is_a_failure(
    running: RolloutRow, store: Store, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    give(store, "assistant", "approve", actor="me", reason="", wait=0, clock=HandClock())
    assert run(["approve", "assistant", "--wait", "0", "--store", url]) == 0
    [order] = store.commands("assistant")
    given = give(
        store,
        "assistant",
        "approve",
        actor="me",
        reason="",
        wait=1,
        clock=Controller(store, 1, "refused: only canary steps are approved"),
    )
    assert given.refused
    assert given.id == order.id


def test_what_is_pinned_is_not_in_the_store(running: RolloutRow, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pin", "assistant", "--version", "3", "--store", url]) == 2
    assert "'3' into spec.model.pinned of the file of assistant" in capsys.readouterr().err
    assert run(["pin", "assistant", "--remove", "3", "--store", url]) == 2
    assert "'3' out of spec.model.pinned" in capsys.readouterr().err
