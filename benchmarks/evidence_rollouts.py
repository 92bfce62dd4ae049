"""One simulated rollout: the same traffic before every rule, and what each makes of it. Called by `benchmarks.evidence`."""

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
from benchmarks.evidence_traffic import HORIZON, SETTLE, Bools, Floats, Outcomes, Requests, Stream, Traffic
from benchmarks.evidence_understudy import Understudy, Values, part_of, resource, unit_values

SPAN = 1200.0
"""Seconds of traffic made at once; a new step's share of users holds from the next span on."""
FIRST = 3600.0
"""The first span: the rules that split requests have decided by then, and no step ends before."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a kind of traffic, and which kind of resource Understudy has (see `evidence_understudy.resource`)."""

    name: str
    traffic: Traffic
    runs: int
    resource: str = "production"
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
    ours, arms = Understudy(cell.resource, cell.look, rng), _Arms(stream)
    peers = _LadderPeers(cell.resource, stream)
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
        start, end = end, end + max(SPAN, cell.look)
        reach = max(ours.weight if undecided else 0.0, peers.weight if peers.undecided else 0.0)
        requests = stream.span(start, end, reach)
    return found | peers.found


class _LadderPeers:
    """The rules that climb the ladder by the clock: one route, one metrics store, three verdicts."""

    def __init__(self, kind: str, stream: Stream) -> None:
        self._ladder, self._arms, self._minutes = (
            Ladder(resource(kind).spec.rollout.canary.steps),
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
        if self._tests.name not in self.found:
            self._keep(self._tests.name, self._tests.look(self._minutes, end))
        if self._kayenta.name not in self.found:
            self._keep(self._kayenta.name, self._kayenta.look(self._minutes, end, self._ladder.step))
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
        closed = [part_of(values, mask) for values, mask in zip(self._pending, masks, strict=True)]
        rest = [part_of(values, ~mask) for values, mask in zip(self._pending, masks, strict=True)]
        self._pending = [values for values in rest if values.exposed_at.size]
        return closed

    def _keep(self, name: str, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.found[name] = self._arms.outcome(verdict)
