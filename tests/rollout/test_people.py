"""People who compare answers: one value a person, closed once; harm, goals and equals; the whole loop on a real store."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evidence import Guardrail, Reading
from services.rollout import reasons
from services.rollout.evidence_fold import Evidence
from services.rollout.forecast import forecast
from services.rollout.people import Closed, People
from services.rollout.planning import comparing
from services.rollout.plans import plans
from services.rollout.power import LIKELY
from services.rollout.replay import replay
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.store import PEOPLE, Judgement, Preference, Store
from tests.fakes.rollout_rows import HandClock
from tests.fakes.rollout_stage import Stage
from tests.fakes.rollout_world import service
from tests.fakes.traffic import Behaviour, Traffic

ERRORS = {"metric": "errors", "margin": 0.1, "mode": "nonInferior"}
GUARDED = service(guardrails=[ERRORS, {"metric": "preference", "margin": 0.1}], alpha=0.1)


def said(
    unit: str, candidate: float, at: float = 0.0, *, pair: str = "p", shown: str = "unknown", sequence: int = 1
) -> Judgement:
    return Judgement(f"{unit}-{pair}:{shown}", "r1", unit, candidate, 1 - candidate, PEOPLE, at, sequence)


def test_a_person_counts_once_with_the_share_of_their_pairs() -> None:
    people = People()
    people.take([said("ada", 1, 5), said("ada", 0, 9, pair="q"), said("ada", 0.5, 7, pair="s"), said("bob", 0, 6)])
    assert people.close(14.9, 10) == []
    assert people.close(15, 10) == [Closed("ada", 5, 15, 0.5)]
    assert people.close(99, 10) == [Closed("bob", 6, 16, 0.0)]
    assert (people.counts["people"], people.counts["comparisons"], people.counts["comparison_ties"]) == (2, 4, 1)


def test_who_contradicts_themselves_has_seen_no_difference() -> None:
    people = People()
    people.take(
        [
            said("ada", 1, shown="candidate"), said("ada", 0, shown="stable"),  # whichever stands first
            said("ada", 1, shown="candidate", pair="q"), said("ada", 1, shown="stable", pair="q"),
            said("ada", 0.5, shown="candidate", pair="s"),
        ]
    )  # fmt: skip
    [closed] = people.close(10, 10)
    assert closed.worth == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert people.counts == {
        "people": 1, "comparisons": 3, "comparison_ties": 1, "comparisons_inconsistent": 1, "ordered": 5, "candidate_first": 3,
        "first_preferred": 3,
    }  # fmt: skip


def test_what_comes_after_the_value_is_final_changes_nothing() -> None:
    people = People()
    people.take([said("ada", 1, 0), said("ada", 0, 10, pair="q")])
    assert people.close(10, 10) == [Closed("ada", 0, 10, 1.0)]
    people.take([said("ada", 0, 11, pair="s"), said("slow", 0, -5)])
    assert people.close(30, 10) == []  # the second came by a gateway that had been away
    assert people.late == 3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_batches_and_restarts_do_not_matter(data: st.DataObject) -> None:
    person = st.tuples(
        st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 30), st.sampled_from("pqs")
    )
    rows = [
        said(unit, worth, at, pair=f"{pair}{n}", sequence=n)
        for n, (unit, worth, at, pair) in enumerate(data.draw(st.lists(person, max_size=30)))
    ]
    whole = People()
    whole.take(rows)
    expected = whole.close(100, 10)
    pieces, found = People(), []
    for now in sorted(data.draw(st.lists(st.integers(0, 100), max_size=5))):
        pieces.take(row for row in rows if row.at <= now)
        rows = [row for row in rows if row.at > now]
        found += pieces.close(now, 10)
        pieces = People.from_json(json.loads(json.dumps(pieces.to_json())))
    pieces.take(rows)
    assert found + pieces.close(100, 10) == expected
    assert pieces.counts == whole.counts


def folded(resource: LLMService, worths: list[float], stage: Any = "canary") -> dict[str, Reading]:
    """The stage's readings after so many people with one comparison each."""
    evidence = Evidence(stage, plans(resource, stage, {}))
    evidence.fold_judgements([said(f"u{n}", worth, n, sequence=n + 1) for n, worth in enumerate(worths)])
    evidence.close_people(len(worths) + 20, 10)
    assert evidence.fault is None
    return {reading.metric: reading for reading in evidence.view(0).readings}


def test_harm_is_shown_by_people_not_by_comparisons() -> None:
    reading = folded(GUARDED, [0.0] * 25)["preference"]
    assert (reading.harmful, reading.control, reading.candidate, reading.n_candidate) == (True, 1.0, 0.0, 25)
    evidence = Evidence("rehearsal", plans(GUARDED, "rehearsal", {}))
    evidence.fold_judgements([said("one", 0.0, 0, pair=str(n), sequence=n + 1) for n in range(200)])
    evidence.close_people(20, 10)
    view = evidence.view(0)
    [reading] = [reading for reading in view.readings if reading.metric == "preference"]
    assert (reading.n_candidate, reading.harmful) == (1, False)
    assert (view.counts["people"], view.counts["comparisons"]) == (1, 200)
    assert "judgements" not in view.counts


def test_a_goal_and_non_inferiority_are_shown_at_any_step() -> None:
    asked = {"metric": "preference", "margin": 0.3, "mode": "nonInferior"}
    resource = service(guardrails=[ERRORS, asked], goals={"metrics": [{"metric": "preference"}]}, alpha=0.1)
    draw = random.Random(1)
    found = folded(resource, [1.0 if draw.random() < 0.75 else 0.0 for _ in range(120)])
    assert found["preference"].non_inferior
    assert found["goal:preference"].improved


def test_segments_do_not_divide_people() -> None:
    resource = service(
        guardrails=[ERRORS, {"metric": "preference", "margin": 0.1}], segments=[{"name": "big", "tenants": ["t"]}]
    )
    assert "preference[big]" not in plans(resource, "canary", {})
    assert plans(resource, "canary", {})["preference"].steps == 1


def test_equal_candidates_are_not_called_worse_or_better_beyond_alpha() -> None:
    # A margin of next to nothing: the tests stand at one half. With ties, and people who judge one pair or several.
    goals = {"metrics": [{"metric": "preference"}]}
    resource = service(guardrails=[ERRORS, {"metric": "preference", "margin": 0.001}], goals=goals, alpha=0.1)
    known = plans(resource, "canary", {})
    known = {key: known[key] for key in ("preference", "goal:preference")}
    harmful = improved = 0
    for seed in range(80):
        draw, rows = random.Random(seed), []
        for person in range(200):
            for pair in range(draw.choice([1, 1, 1, 4])):
                worth = draw.choice([0.0, 0.5, 1.0])
                rows.append(said(f"u{person}", worth, person, pair=str(pair), sequence=len(rows) + 1))
        evidence = Evidence("canary", known)
        evidence.fold_judgements(rows)
        evidence.close_people(300, 10)
        shown = {reading.metric: reading for reading in evidence.view(0).readings}
        harmful += shown["preference"].harmful
        improved += shown["goal:preference"].improved
    assert harmful <= 4  # the canary has half of alpha, and the guardrail half of that
    assert improved <= 8


class Comparing(Traffic):
    """Traffic of which some people compare answers: `preferred` says how likely the candidate's."""

    preferred = 0.5

    def pass_time(self, seconds: float, users: int) -> None:
        start, route = self._clock.now, self._store.route(self._service.name)
        super().pass_time(seconds, users)
        if route is None or route.rollout is None:
            return
        for number in range(3):
            self._users += 1
            worth = float(self._random.random() < self.preferred)
            self._store.write(
                [
                    Preference(
                        pair=f"pair-{self._users}:unknown", rollout=route.rollout, unit=f"person-{self._users}", candidate=worth,
                        at=start + number * 0.1, **self._stamp(),
                    )
                ]
            )  # fmt: skip
        self.renew()


@pytest.fixture
def make(url: str) -> Iterator[Callable[..., Stage[Comparing]]]:
    made: list[Stage[Comparing]] = []

    def stage(preferred: float, resource: LLMService = GUARDED) -> Stage[Comparing]:
        def traffic(store: Store, clock: HandClock) -> Comparing:
            users = Comparing(store, clock, resource, lambda _: Behaviour())
            users.preferred = preferred
            return users

        made.append(Stage(url, resource, traffic))
        return made[-1]

    yield stage
    for one in made:
        one.store.close()


def over(rollout: RolloutStatus) -> bool:
    return rollout.finished_at is not None


@pytest.mark.parametrize(("preferred", "reason"), [(0.5, reasons.PROMOTED), (0.1, reasons.PREFERENCE_HARMFUL)])
@pytest.mark.parametrize("restart", [False, True])
async def test_the_loop_decides_by_people_and_a_replay_finds_the_same(
    make: Callable[..., Stage[Comparing]], preferred: float, reason: str, restart: bool
) -> None:
    world = make(preferred)
    rollout = await world.play(over, restart=restart)
    assert rollout.reason == reason
    assert rollout.counts.people > 10
    found = await replay(world.store, world.store.rollouts("assistant", 1)[0], None)
    assert (found.replayed.reason, found.replayed.at) == (reason, rollout.decided_at)


async def test_a_rollout_waits_for_people_and_says_so(make: Callable[..., Stage[Comparing]]) -> None:
    asked = {"metric": "preference", "margin": 0.2, "mode": "nonInferior"}
    resource = service(guardrails=[ERRORS, asked], alpha=0.1)
    world = make(0.5, resource)
    rollout = await world.play(lambda now: now.stage == "canary" and now.step > 0)
    stored = [one for one in world.store.readings(rollout.id) if one["metric"] == "preference"]
    last = Reading(**{name: stored[-1][name] for name in Reading.__slots__})
    text = forecast(resource, rollout, [last], 50.0)
    assert text is not None
    assert "preference needs about" in text
    assert "more people who compare answers" in text


def test_a_plan_says_how_many_people_must_compare() -> None:
    strict = service(guardrails=[ERRORS, {"metric": "preference", "margin": 0.2, "mode": "nonInferior"}], alpha=0.1)
    text = comparing(strict)
    assert text is not None
    people, shown = (int(word.replace(",", "")) for word in text.split() if word.replace(",", "").isdigit())
    assert comparing(service(guardrails=[ERRORS])) is None
    plan, seen = plans(strict, "canary", {})["preference"], 0
    for seed in range(60):
        draw, guardrail = random.Random(seed), Guardrail(plan)
        evidence = Evidence("canary", {"preference": plan})
        evidence.guardrails["preference"] = guardrail
        worths = [draw.choices([0.0, 1.0, 0.5], [0.75, 0.25, 0.0])[0] for _ in range(people)]
        evidence.fold_judgements([said(f"u{n}", worth, n, sequence=n + 1) for n, worth in enumerate(worths)])
        evidence.close_people(people + 20, 10)
        seen += guardrail.reading().harmful
    assert seen / 60 > LIKELY - 0.15
    assert shown > people
