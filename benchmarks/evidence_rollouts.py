"""One simulated rollout: the same traffic before every rule, and what each makes of it. Called by `benchmarks.evidence`.

`Understudy` here is the platform itself: its production resource, its plans, its guardrails and its own `decide`; what is outside
(registry, engines, gateways) is simulated and ideal. The rollout begins with the canary; the rehearsal before it is measured by itself
in `evidence_samples`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.evidence_peers import (
    MINUTE,
    Argo,
    Flagger,
    GrowthBook,
    History,
    Kayenta,
    Ladder,
    Minutes,
    RepeatedTests,
    Split,
    Verdict,
    history,
)
from benchmarks.evidence_traffic import (
    FAILING_USERS,
    HORIZON,
    MARKING_USERS,
    SETTLE,
    Bools,
    Floats,
    Outcomes,
    Requests,
    Stream,
    Traffic,
)
from services.evidence import Guardrail, UnitValue
from services.rollout.observed import EvidenceView
from services.rollout.plans import plans
from services.rollout.resources import LLMService
from tests.fakes.rollout_world import World

FIRST = 3600.0
"""The first span: the rules that split requests have decided by then, and no step ends before."""
GROWTH, HOUR = 1 / 16, 3600.0
HISTORY = 5_000
"""Users of history from which the design prior is taken."""
SMALL_LADDER = [{"weight": 50, "minDuration": "1d", "minUnits": 100, "maxDuration": "28d"}]
"""For services with few users: one step, four weeks."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a kind of traffic, and which ladder Understudy climbs."""

    name: str
    traffic: Traffic
    runs: int
    ladder: str = "production"
    look: float = 600.0
    """Seconds between two looks. The product looks every 10 s: a verdict comes up to so much later here, never earlier."""


@dataclass
class Outcome:
    """What one rule made of one rollout. `hours` since the canary began; `users` had the candidate, `harmed` of them since it is bad."""

    verdict: str
    hours: float
    users: int
    harmed: int
    why: str = ""


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


def resource(ladder: str) -> LLMService:
    """The production resource: every default, the gate apart; with the small ladder where it is asked for."""
    rollout: dict[str, Any] = {"gate": {"enabled": False}}
    if ladder == "small":
        rollout["canary"] = {"steps": SMALL_LADDER}
    return LLMService.model_validate(
        {
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "assistant"},
            "spec": {"model": {"registeredModel": "assistant"}, "rollout": rollout},
        }
    )


class Understudy:
    """The product's rule: real plans, real guardrails, real decisions."""

    name = "understudy"

    def __init__(self, ladder: str, rng: np.random.Generator) -> None:
        self._world = World(resource(ladder))
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
        self._last_look, self._last_units = 0.0, 0
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
            self._closed.append((step, _rest(values, closed)))
            if not closed.all():
                waiting.append((step, _rest(values, ~closed)))
        self._pending = waiting
        if not self._is_due(now):
            return None
        self._last_look, self._last_units = now, self._units()
        for metric, guardrail in self.guardrails.items():
            guardrail.update(unit for step, values in self._closed for unit in _unit_values(values, step, metric))
        self._closed = []
        return self._decide(now)

    def _units(self) -> int:
        return sum(control + candidate for control, candidate in self._counts.values())

    def _is_due(self, now: float) -> bool:
        """Whether the units have grown by a sixteenth (harm), or the step may end: in the last step then once an hour.

        Evidence does not depend on how looks cut it and harm stays once it is shown, so a look that is left out can only delay a verdict;
        `decide` would say "continue" while a step's minima are open and its time is not up.
        """
        rollout = self._world.rollout
        assert rollout is not None
        steps = self._world.service.spec.rollout.canary.steps
        rules, users = steps[rollout.step], min(self._counts.get(rollout.step, (0, 0)))
        elapsed = self._began + now - (rollout.stage_started_at or self._began)
        may_end = elapsed >= rules.min_duration and (users >= rules.min_units or elapsed >= rules.max_duration)
        pause = HOUR if rollout.step == len(steps) - 1 else 0.0
        return self._units() >= self._last_units * (1 + GROWTH) + 4 or (may_end and now >= self._last_look + pause)

    def _decide(self, now: float) -> Verdict | None:
        world = self._world
        assert world.rollout is not None
        control, candidate = self._counts.get(world.rollout.step, (0, 0))
        world.evidence = EvidenceView(
            readings=tuple(guardrail.reading() for guardrail in self.guardrails.values()),
            counts={"step_control": control, "step_candidate": candidate},
        )
        world.look(after=self._began + now - world.now)
        if world.rollout.stage == "canary" and world.rollout.held_since is None:
            if world.rollout.stage_started_at is None:
                world.look(after=0.0)
            return None
        return Verdict(world.rollout.verdict, now, world.rollout.reason)


def _unit_values(values: Values, step: int, metric: str) -> list[UnitValue]:
    rows = zip(
        values.number.tolist(),
        values.candidate.tolist(),
        values.exposed_at.tolist(),
        values.metrics[metric].tolist(),
        strict=True,
    )
    return [
        UnitValue(f"u{number}", "candidate" if candidate else "control", at, at + HORIZON + SETTLE, step, value)
        for number, candidate, at, value in rows
    ]


def _rest(values: Values, kept: Bools) -> Values:
    return Values(
        values.number[kept],
        values.exposed_at[kept],
        values.candidate[kept],
        {m: v[kept] for m, v in values.metrics.items()},
    )


class _Arms:
    """Routes the stream's users to the arms of one ladder, and keeps who had the candidate and since when it is bad."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._exposed: list[Floats] = []
        self.onset = 0.0 if stream.traffic.onset == 0 else math.inf

    def route(self, requests: Requests, weight: float, end: float) -> tuple[Values, Requests, Bools, Outcomes]:
        """The arms' users, their requests, which of these went to the candidate, and what was seen."""
        candidate = requests.bucket < weight
        in_arm = candidate | ((requests.bucket >= 0.5) & (requests.bucket < 0.5 + weight))
        part = requests.take(in_arm[requests.user])
        to_candidate = candidate[part.user]
        seen = self._stream.outcomes(part, to_candidate, weight, self.onset)
        values = unit_values(part, seen, in_arm, candidate)
        self._exposed.append(values.exposed_at[values.candidate])
        if self.onset == math.inf and sum(part.size for part in self._exposed) >= self._stream.traffic.onset:
            self.onset = end
        return values, part, to_candidate, seen

    def outcome(self, verdict: Verdict) -> Outcome:
        """The verdict with the users it cost."""
        exposed = np.concatenate(self._exposed)
        users = int((exposed < verdict.at).sum())
        harmed = int(((exposed < verdict.at) & (exposed >= self.onset)).sum())
        return Outcome(verdict.verdict, verdict.at / 3600, users, harmed, verdict.why)


def run(cell: Cell, seed: Sequence[int]) -> dict[str, dict[str, Any]]:
    """One rollout under all rules: rule -> outcome."""
    rng = np.random.default_rng(seed)
    stream = Stream(cell.traffic, rng)
    first = stream.span(0.0, FIRST, 0.5)
    found = _split_rules(stream, first, history(cell.traffic, rng))
    found |= _ladder_rules(cell, stream, first, rng)
    return {rule: asdict(outcome) for rule, outcome in found.items()}


def _split_rules(stream: Stream, first: Requests, known: History) -> dict[str, Outcome]:
    found = {}
    for rule in (Argo(), Argo(known), Flagger(), Flagger(known)):
        split = Split(stream, first)
        verdict = rule.run(split)
        found[rule.name] = Outcome(verdict.verdict, verdict.at / 3600, split.users(), split.harmed(), verdict.why)
    return found


def _ladder_rules(cell: Cell, stream: Stream, first: Requests, rng: np.random.Generator) -> dict[str, Outcome]:
    ours, arms = Understudy(cell.ladder, rng), _Arms(stream)
    peers = _LadderPeers(cell.ladder, stream)
    found: dict[str, Outcome] = {}
    start, end, requests = 0.0, FIRST, first
    undecided = True
    while undecided or peers.undecided:
        if undecided:
            ours.see(arms.route(requests, ours.weight, end)[0])
            for look in np.arange(start + cell.look, end + 1, cell.look):
                verdict = ours.look(float(look))
                if verdict is not None:
                    found[ours.name] = arms.outcome(verdict)
                    undecided = False
                    break
        if peers.undecided:
            peers.pass_time(requests, end)
        start, end = end, end + cell.look
        reach = max(ours.weight if undecided else 0.0, peers.weight if peers.undecided else 0.0)
        requests = stream.span(start, end, reach)
    return found | peers.found


class _LadderPeers:
    """The rules that climb the ladder by the clock: one route, one metrics store, three verdicts."""

    def __init__(self, ladder: str, stream: Stream) -> None:
        self._ladder, self._arms, self._minutes = (
            Ladder(resource(ladder).spec.rollout.canary.steps),
            _Arms(stream),
            Minutes(),
        )
        self._tests, self._kayenta, self._growthbook = RepeatedTests(), Kayenta(), GrowthBook()
        self._pending: list[Values] = []
        self.found: dict[str, Outcome] = {}

    @property
    def undecided(self) -> bool:
        """Whether a rule still looks."""
        return len(self.found) < 3

    @property
    def weight(self) -> float:
        """Share of the users who get the candidate now."""
        return self._ladder.weight

    def pass_time(self, requests: Requests, end: float) -> None:
        """Users of the time up to `end`, and the looks at it."""
        values, part, candidate, seen = self._arms.route(requests, self.weight, end)
        self._minutes.add(part.at, candidate, seen, part.marked_good)
        self._minutes.reach(int(end // MINUTE))
        self._pending.append(values)
        for closed in self._closed(end):
            self._growthbook.see(closed.metrics, closed.candidate)
        for rule in (self._tests, self._kayenta):
            if rule.name not in self.found:
                self._keep(rule.name, rule.look(self._minutes, end))
        if self._growthbook.name not in self.found:
            self._keep(self._growthbook.name, self._growthbook.look(end))
        if self._ladder.pass_time(end, min(int(values.candidate.sum()), int((~values.candidate).sum()))):
            for verdict, name in (
                (Verdict("advance", end), self._tests.name),
                (Verdict("advance", end), self._growthbook.name),
                (self._kayenta.end(end), self._kayenta.name),
            ):
                if name not in self.found:
                    self._keep(name, verdict)

    def _closed(self, now: float) -> list[Values]:
        """Takes what has closed from what waits."""
        masks = [values.exposed_at + HORIZON + SETTLE <= now for values in self._pending]
        closed = [_rest(values, mask) for values, mask in zip(self._pending, masks, strict=True)]
        rest = [_rest(values, ~mask) for values, mask in zip(self._pending, masks, strict=True)]
        self._pending = [values for values in rest if values.exposed_at.size]
        return closed

    def _keep(self, name: str, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.found[name] = self._arms.outcome(verdict)
