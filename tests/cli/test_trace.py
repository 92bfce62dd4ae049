"""Following a rollout in the store: what is news, how it ends, and what happens when the store goes away meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.cli.errors import CliError, StoreAway
from services.cli.main import run
from services.cli.sources import StoreSource
from services.cli.trace import follow
from services.store import RolloutRow, Store
from tests.fakes.rollout_rows import HandClock, reading, row


class Theatre(HandClock):
    """A clock in whose sleeps the story goes on."""

    def __init__(self, *acts: Callable[[], None]) -> None:
        super().__init__()
        self.acts = list(acts)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.acts:
            self.acts.pop(0)()


def looked(store: Store, clock: HandClock, readings: list[dict[str, Any]], **status: Any) -> Callable[[], None]:
    """A look of the controller."""

    def look() -> None:
        clock.now += 10
        started = HandClock().now + 10
        one = row("r3", "3", started_at=started, **status)
        store.commit_look(one, evidence={}, readings=readings, at=clock.now)

    return look


def waiting(seconds: int) -> dict[str, Any]:
    message = f"old revision warm for {seconds} s more"
    return {"conditions": [{"type": "Waiting", "status": True, "reason": "AwaitingEvidence", "message": message}]}


def test_every_change_is_told_once_until_the_end(running: RolloutRow, store: Store, clock: HandClock, url: str) -> None:
    source, lines = StoreSource(store, url), list[str]()
    watch = {"stage": "watch", "verdict": "advance", "decided_in": "canary", "decided_at": clock.now, "step": 1}
    nothing = looked(store, clock, [], **running_status(running))
    theatre = Theatre(
        nothing,
        looked(store, clock, [reading("feedback", e_harm=0.4, harmful=False)], **running_status(running)),
        looked(store, clock, [], **watch, **waiting(60)),
        looked(store, clock, [], **watch, **waiting(50)),
        looked(store, clock, [], **{**watch, "stage": "finished", "finished_at": clock.now + 99}),
    )
    promoted = follow(lambda rollout: source.progress("assistant", rollout), lines.append, theatre, None)
    assert promoted
    assert lines[0].startswith("rollout r3 of assistant: assistant-v3-7c1f")
    assert lines[1] == "canary step 2, 50 % of users"
    assert [line.split(":")[0].strip() for line in lines[2:5]] == [
        "Users who gave a bad mark",
        "Time to first token",
        "waiting",
    ]
    assert "e-value 0.4" in lines[5]
    assert lines[6] == "  waiting: old revision warm for 60 s more"
    assert lines[7].startswith("assistant-v3-7c1f was promoted after")
    assert lines[7].endswith("it is watched until the rollback window ends.")
    assert lines[8].endswith("was promoted after 30 s.")
    assert len(lines) == 9


def running_status(running: RolloutRow) -> dict[str, Any]:
    kept = ("stage", "step", "weight", "conditions")
    return {key: running.status[key] for key in kept}


@pytest.mark.parametrize("verdict", ["hold", "error"])
def test_what_needs_a_person_ends_it_as_a_failure(store: Store, clock: HandClock, url: str, verdict: str) -> None:
    over = {"finished_at": clock.now, "stage": "finished"} if verdict == "error" else {"stage": "canary"}
    looked(
        store, clock, [], verdict=verdict, decided_in="canary", reason="StepInconclusive", message="time is up", **over
    )()
    assert run(["trace", "assistant", "--store", url]) == 1


def test_it_gives_up_in_time(running: RolloutRow, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "assistant", "--timeout", "0", "--store", url]) == 1
    assert "was not done within 0 s: assistant-v3-7c1f is in canary step 2" in capsys.readouterr().err
    assert run(["trace", "other", "--store", url]) == 3


def test_a_store_that_is_away_is_waited_for(running: RolloutRow, store: Store, url: str) -> None:
    source, lines, asked = StoreSource(store, url), list[str](), 0

    def progress(rollout: str | None) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked in (2, 3):
            raise StoreAway("store x cannot be reached")
        return source.progress("assistant", rollout)

    with pytest.raises(CliError, match="was not done within 5 s"):
        follow(progress, lines.append, HandClock(), 5)
    assert lines[-1] == "store x cannot be reached; waiting for it"
    assert asked > 4
