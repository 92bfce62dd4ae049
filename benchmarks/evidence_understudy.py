"""Understudy as `benchmarks.evidence` puts it beside the field's rules: the product itself.

Its production resource, the plans made of it, its guardrails and its own `decide`; what is outside (registry, engines, gateways) is
simulated and ideal. The rollout begins with the canary; the rehearsal before it is measured by itself in `evidence_samples`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.evidence_peers import Verdict
from benchmarks.evidence_traffic import (
    FAILING_USERS,
    HORIZON,
    MARKING_USERS,
    SETTLE,
    Bools,
    Floats,
    Outcomes,
    Requests,
)
from services.evidence import Guardrail, Reading, UnitValue
from services.evidence.summaries import Arm
from services.rollout.observed import EvidenceView
from services.rollout.plans import plans
from services.rollout.resources import LLMService, Rollout
from tests.fakes.rollout_world import World

HISTORY = 5_000
"""Users of history from which the design prior is taken."""
SMALL_LADDER = [{"weight": 50, "minDuration": "1d", "minUnits": 100, "maxDuration": "28d"}]
"""For services with few users: one step, four weeks."""


@dataclass
class Values:
    """Closed values of the units of one span; one entry a unit that is in an arm."""

    number: Any
    exposed_at: Floats
    candidate: Bools
    metrics: dict[str, Floats]


def unit_values(requests: Requests, seen: Outcomes, in_arm: Bools, candidate: Bools) -> Values:
    """A user's values as `services.rollout.unit_values` defines them: any failure within the horizon, any bad mark before closing, the
    TTFT of one request of the horizon chosen at random. `in_arm` and `candidate` by user."""
    users, user = requests.exposed_at.size, requests.user
    since = requests.at - requests.exposed_at[user]
    inside = since < HORIZON
    errors = np.bincount(user[seen.failed & inside], minlength=users) > 0
    bad = (
        np.bincount(
            user[seen.marked_bad & inside & (requests.marked_at - requests.exposed_at[user] < HORIZON + SETTLE)],
            minlength=users,
        )
        > 0
    )
    # The one with the smallest draw stands for the smallest keyed hash.
    index = np.flatnonzero(inside)
    order = index[np.lexsort((requests.share[index], user[index]))]
    first = np.full(users, -1)
    first[user[order[::-1]]] = order[::-1]
    chosen = seen.ttft[first] if seen.ttft.size else np.full(users, np.inf)
    metrics = {"errors": errors.astype(float), "ttft": chosen, "feedback": bad.astype(float)}
    return Values(
        requests.number[in_arm],
        requests.exposed_at[in_arm],
        candidate[in_arm],
        {m: v[in_arm] for m, v in metrics.items()},
    )


def resource(kind: str) -> LLMService:
    """The production resource, every default but the gate; `small`: with the small ladder; `marks`: bad marks must be shown non-inferior
    too, where by default they must only not be shown harmful."""
    rollout: dict[str, Any] = {"gate": {"enabled": False}}
    if kind == "small":
        rollout["canary"] = {"steps": SMALL_LADDER}
    if kind == "marks":
        defaults = Rollout().guardrails
        rollout["guardrails"] = [{"metric": g.metric, "margin": g.margin, "mode": "nonInferior"} for g in defaults]
    return LLMService.model_validate(
        {
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "assistant"},
            "spec": {"model": {"registeredModel": "assistant"}, "rollout": rollout},
        }
    )


def first_harmful(before: Guardrail, new: Sequence[UnitValue], looks: Floats) -> float:
    """The first of the looks at which harm is shown; at the last it is. Harm stays once it is shown, so this can be halved."""
    low, high = 0, len(looks) - 1
    while low < high:
        middle = (low + high) // 2
        then = copy.deepcopy(before)
        then.update(unit for unit in new if unit.closes_at <= looks[middle])
        if then.reading().harmful:
            high = middle
        else:
            low = middle + 1
    return float(looks[high])


class Understudy:
    """The product's rule: real plans, real guardrails, real decisions."""

    name = "understudy"

    def __init__(self, kind: str, look: float, rng: np.random.Generator) -> None:
        self._world = World(resource(kind))
        baseline = {
            "failure_rate": rng.binomial(HISTORY, FAILING_USERS) / HISTORY,
            "bad_feedback_rate": rng.binomial(HISTORY, MARKING_USERS) / HISTORY,
            "units": HISTORY,
        }
        self.guardrails = {m: Guardrail(plan) for m, plan in plans(self._world.service, "canary", baseline).items()}
        self._reach_canary()
        self._pending: list[tuple[int, Values]] = []
        self._closed: list[tuple[int, Values]] = []
        self._counts: dict[int, list[int]] = {}
        self._folded: list[tuple[int, Values]] = []
        self._look, self._last_fold, self._last_units = look, 0.0, 0
        self._began = self._world.now

    def _reach_canary(self) -> None:
        world = self._world
        world.look(times=3)
        world.aliases["challenger"] = "2"
        world.evidence = EvidenceView(counts={"pairs": world.service.spec.rollout.rehearsal.min_pairs})
        while world.rollout is None or world.rollout.stage != "canary" or world.rollout.stage_started_at is None:
            world.look(after=1.0 if world.rollout is None or world.rollout.stage_started_at is None else 601.0)
        world.evidence = EvidenceView()

    @property
    def weight(self) -> float:
        """Share of the users who get the candidate now, 0 to ½."""
        rollout = self._world.rollout
        return rollout.weight / 100 if rollout is not None else 0.0

    def see(self, values: Values) -> None:
        """Users exposed since the last look; their values close later."""
        assert self._world.rollout is not None
        self._pending.append((self._world.rollout.step, values))

    def look(self, now: float) -> Verdict | None:
        """Folds what has closed and decides, where that can make a difference. `now` in seconds since the start."""
        waiting = []
        for step, values in self._pending:
            closed = values.exposed_at + HORIZON + SETTLE <= now
            counts = self._counts.setdefault(step, [0, 0])
            counts[0] += int((closed & ~values.candidate).sum())
            counts[1] += int((closed & values.candidate).sum())
            self._closed.append((step, part_of(values, closed)))
            if not closed.all():
                waiting.append((step, part_of(values, ~closed)))
        self._pending = waiting
        if not self._is_due(now):
            return None
        new = self._closed
        for metric, guardrail in self.guardrails.items():
            guardrail.update(_units(new, metric))
        readings = [guardrail.reading() for guardrail in self.guardrails.values()]
        harmful = [(self._since(r.metric, now), r) for r in readings if r.harmful]
        self._folded += new
        self._closed, self._last_fold, self._last_units = [], now, self._count()
        if harmful:
            first = min(at for at, _ in harmful)
            return self._decide(first, [reading for at, reading in harmful if at == first])
        return self._decide(now, readings)

    def _count(self) -> int:
        return sum(control + candidate for control, candidate in self._counts.values())

    def _is_due(self, now: float) -> bool:
        """Whether the units have doubled, or the step may end: in the last step when the units have grown by 2 %.

        The rest of the looks would say "continue": harm is sought again at every look between two folds (`_since`), and without it `decide`
        waits while a step's minima are open and its time is not up.
        """
        rollout = self._world.rollout
        assert rollout is not None
        steps = self._world.service.spec.rollout.canary.steps
        rules, users = steps[rollout.step], min(self._counts.get(rollout.step, (0, 0)))
        elapsed = self._began + now - (rollout.stage_started_at or self._began)
        is_late = elapsed >= rules.max_duration
        may_end = is_late or (elapsed >= rules.min_duration and users >= rules.min_units)
        if rollout.step == len(steps) - 1:
            may_end = is_late or (may_end and self._count() >= 1.02 * self._last_units)
        return may_end or self._count() >= 2 * self._last_units + 16

    def _since(self, metric: str, now: float) -> float:
        """The first look since the last fold at which the metric's harm was shown."""
        plan = self.guardrails[metric].plan
        before = Guardrail(plan)
        before.update(_units(self._folded, metric))
        looks = np.arange(self._last_fold + self._look, now + 1, self._look)
        return first_harmful(before, list(_units(self._closed, metric)), looks)

    def _decide(self, now: float, readings: Sequence[Reading]) -> Verdict | None:
        world = self._world
        assert world.rollout is not None
        control, candidate = self._counts.get(world.rollout.step, (0, 0))
        counts = {"step_control": control, "step_candidate": candidate}
        world.evidence = EvidenceView(readings=tuple(readings), counts=counts)
        world.look(after=self._began + now - world.now)
        if world.rollout.stage == "canary" and world.rollout.held_since is None:
            if world.rollout.stage_started_at is None:
                world.look(after=0.0)
            return None
        return Verdict(world.rollout.verdict, now, world.rollout.reason)


def _units(parts: Sequence[tuple[int, Values]], metric: str) -> Iterator[UnitValue]:
    """One metric's closed units, with the step of their exposure."""
    for step, values in parts:
        columns = (values.number, values.candidate, values.exposed_at, values.metrics[metric])
        for number, candidate, at, value in zip(*(column.tolist() for column in columns), strict=True):
            arm: Arm = "candidate" if candidate else "control"
            yield UnitValue(f"u{number}", arm, at, at + HORIZON + SETTLE, step, value)


def part_of(values: Values, kept: Bools) -> Values:
    return Values(
        values.number[kept],
        values.exposed_at[kept],
        values.candidate[kept],
        {m: v[kept] for m, v in values.metrics.items()},
    )
