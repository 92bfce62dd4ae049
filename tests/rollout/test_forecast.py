"""What a waiting stage says of the time to come."""

from __future__ import annotations

from typing import Any

import pytest

from services.rollout.forecast import forecast, lasting, pace_text
from services.rollout.status import RolloutStatus
from tests.fakes.rollout_rows import row
from tests.fakes.rollout_world import reading, service

DAY = 86_400.0
STEPS = [
    {"weight": 5, "minDuration": "1h", "minUnits": 100, "maxDuration": "2d"},
    {"weight": 50, "minDuration": "1d", "minUnits": 1000, "maxDuration": "7d"},
]
RULES = service(
    horizon="10m",
    settle="1m",
    canary={"steps": STEPS},
    rehearsal={"share": 0.1, "minPairs": 200, "minDuration": "10m", "maxDuration": "4h"},
)


def rollout(stage: str = "canary", step: int = 1, users: int = 412, **counts: int) -> RolloutStatus:
    both = {"stepControl": users + 3, "stepCandidate": users, **counts}
    return RolloutStatus.model_validate(row("r", "2", stage=stage, step=step, counts=both).status)


def test_users_that_lack_and_when_they_would_be_there() -> None:
    elapsed = 412 / 35 * 3600 + 660  # 35 users an hour, of whom each needs eleven minutes to close
    said = forecast(RULES, rollout(), (), elapsed)
    assert said == "412 of 1,000 users an arm; 12 h of 24 h; at today's 35 users an hour an arm in about 17 h"


def test_before_the_first_users_the_services_traffic_tells() -> None:
    said = forecast(RULES, rollout(users=0), (), 0.0, users_per_day=5000)
    assert said == "0 of 1,000 users an arm; at least 24 h; at today's 104 users an hour an arm in about 24 h"
    assert forecast(RULES, rollout(users=0), (), 0.0) == "0 of 1,000 users an arm; at least 24 h"


def test_a_stage_whose_time_will_not_suffice_says_so() -> None:
    said = forecast(RULES, rollout(step=0, users=20), (), 40 * 3600.0)
    assert said is not None
    assert said.endswith("in about 7 d, but the time of this stage is up in 8 h")


def test_nothing_lacks() -> None:
    assert forecast(RULES, rollout(users=1000), (), 2 * DAY) is None
    assert forecast(RULES, rollout("gate"), (), 2 * DAY) is None
    unproven = (reading("errors", non_inferior=False),)
    assert forecast(RULES, rollout(step=0, users=1000), unproven, 2 * DAY) is None, "only the last step asks for it"


SEEN: dict[str, Any] = {"control": 0.01, "n_candidate": 1100, "n_control": 1100, "pairs": 1000, "e_promote": 4.0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"candidate": 0.01}, "errors needs about"), ({"candidate": 0.03}, "cannot be shown with the effect seen so far")],
)
def test_a_rate_that_is_not_shown_yet(fields: dict[str, Any], words: str) -> None:
    said = forecast(RULES, rollout(users=1100), (reading("errors", **SEEN, **fields),), 2 * DAY)
    assert said is not None
    assert words in said
    assert ("in about" in said) == ("needs" in words), "an effect that never shows has no date"


def test_a_quantile_lacks_users_until_its_bound_is_within_the_margin() -> None:
    ttft: dict[str, Any] = {
        "kind": "quantile", "margin": 0.2, "relative": True, "e_promote": None, "effect": 0.0, "n_control": 1000, "n_candidate": 1000,
    }  # fmt: skip
    near = forecast(RULES, rollout(users=1000), (reading("ttft", **ttft, upper=0.21),), 2 * DAY)
    far = forecast(RULES, rollout(users=1000), (reading("ttft", **ttft, upper=0.4),), 2 * DAY)
    assert near == "ttft needs about 110 more users an arm; at today's 21 users an hour an arm in about 5 h"
    assert far is not None
    assert "ttft needs about 3,000 more users an arm" in far
    none = forecast(
        RULES,
        rollout(users=30),
        (reading("ttft", **{**ttft, "n_control": 30, "n_candidate": 30, "upper": None}),),
        2 * DAY,
    )
    assert none is not None
    assert "ttft needs about" in none


def test_the_rehearsal_counts_pairs() -> None:
    said = forecast(RULES, rollout("rehearsal", pairs=100), (), 3600.0 + 120)
    assert said == "100 of 200 mirrored pairs; at today's 100 pairs an hour in about 60 min"
    assert forecast(RULES, rollout("rehearsal", pairs=200), (), 3600.0) is None


def test_words_for_durations_and_paces() -> None:
    assert [lasting(s) for s in (0.2, 45, 200, 7200, 3 * DAY)] == ["1 s", "45 s", "3 min", "2 h", "3 d"]
    assert [pace_text(p, "users") for p in (20, 0.5, 35 / 3600, 0.001)] == [
        "20 users a second", "30 users a minute", "35 users an hour", "86 users a day",
    ]  # fmt: skip
