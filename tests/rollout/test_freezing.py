"""Freeze windows: when they hold, over midnight, over the change of the clock, joined; and what a rollout does in one."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from services.rollout import reasons
from services.rollout.freezing import frozen_until
from services.rollout.observed import EvidenceView
from services.rollout.resources import FreezeWindow
from tests.fakes.rollout_world import SHOWN, World, reading, service

BERLIN = ZoneInfo("Europe/Berlin")


def window(**fields: Any) -> FreezeWindow:
    return FreezeWindow.model_validate(fields)


def berlin(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


FRIDAY = window(days=["Fri"], **{"from": "15:00"}, to="24:00", timeZone="Europe/Berlin")
WEEKEND = window(days=["Sat", "Sun"], **{"from": "00:00"}, to="24:00", timeZone="Europe/Berlin")
NIGHT = window(**{"from": "22:00"}, to="06:00", timeZone="Europe/Berlin")


@pytest.mark.parametrize(
    ("windows", "at", "until"),
    [
        ([FRIDAY], "2026-07-03T14:59", None),
        ([FRIDAY], "2026-07-03T15:00", "2026-07-04T00:00"),
        ([FRIDAY], "2026-07-04T00:00", None),
        ([FRIDAY], "2026-07-02T16:00", None),
        ([FRIDAY, WEEKEND], "2026-07-03T15:00", "2026-07-06T00:00"),
        ([NIGHT], "2026-07-03T23:00", "2026-07-04T06:00"),
        ([NIGHT], "2026-07-03T05:59", "2026-07-03T06:00"),
        ([NIGHT], "2026-07-03T12:00", None),
        ([NIGHT], "2026-10-24T23:00", "2026-10-25T06:00"),  # an hour longer: the clock goes back
        ([window(days=["Sun"], **{"from": "22:00"}, to="06:00")], "2026-07-05T12:00", None),
        ([], "2026-07-03T15:00", None),
    ],
)
def test_a_window(windows: list[FreezeWindow], at: str, until: str | None) -> None:
    assert frozen_until(windows, berlin(at)) == (None if until is None else berlin(until))


def test_a_night_lasts_as_long_as_the_clock_makes_it() -> None:
    at = berlin("2026-10-24T22:00")
    assert (frozen_until([NIGHT], at) or 0) - at == 9 * 3600


def test_a_week_without_an_end_is_frozen_all_the_same() -> None:
    always = window(**{"from": "00:00"}, to="24:00")
    assert (frozen_until([always], 0.0) or 0) > 7 * 86_400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"from": "22:00", "to": "22:00"}, "must differ"),
        ({"from": "25:00", "to": "22:00"}, "pattern"),
        ({"from": "22:00", "to": "23:00", "timeZone": "Berlin"}, "is no time zone"),
        ({"from": "22:00", "to": "23:00", "timeZone": "../etc"}, "pattern"),
        ({"from": "22:00", "to": "23:00", "days": []}, "at least 1"),
    ],
)
def test_a_wrong_window(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FreezeWindow.model_validate(fields)


ALWAYS = [{"from": "00:00", "to": "24:00"}]
ENOUGH = EvidenceView(readings=SHOWN, counts={"pairs": 50, "step_control": 50, "step_candidate": 50})


def freeze(world: World, windows: list[dict[str, str]]) -> None:
    rollout = {**world.service.model_dump(mode="json", by_alias=True)["spec"]["rollout"], "freezeWindows": windows}
    world.service = service(**rollout)


@pytest.mark.parametrize(("stage", "step"), [("gate", 0), ("rehearsal", 0), ("canary", 0), ("canary", 1)])
def test_nothing_advances_in_a_window_and_an_edit_lifts_it(stage: str, step: int) -> None:
    world = World()
    world.reach(stage, step)
    freeze(world, ALWAYS)
    world.evidence = ENOUGH
    world.look(after=50.0, times=2)
    assert world.rollout is not None
    assert (world.rollout.stage, world.rollout.step, world.rollout.verdict) == (stage, step, "continue")
    assert world.rollout.conditions[0].reason == reasons.FROZEN_WINDOW
    assert stage == "gate" or world.order("promote").startswith("refused: frozen until")
    freeze(world, [])
    world.look(times=2)
    assert (world.rollout.stage, world.rollout.step) != (stage, step)


@pytest.mark.parametrize(("stage", "step"), [("rehearsal", 0), ("canary", 1)])
def test_harm_aborts_in_a_window(stage: str, step: int) -> None:
    world = World()
    world.reach(stage, step)
    freeze(world, ALWAYS)
    world.evidence = EvidenceView(readings=(reading("errors", harmful=True),))
    world.look()
    assert world.rollout is not None
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reasons.ERRORS_HARMFUL)


def test_the_watch_runs_on_in_a_window() -> None:
    world = World()
    world.reach("watch")
    freeze(world, ALWAYS)
    world.look(after=31.0, times=2)
    assert world.rollout is not None
    assert world.rollout.stage == "finished"
