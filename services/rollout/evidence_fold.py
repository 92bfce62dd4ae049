"""Folds what closed since the last look into the evidence of a rollout's stage. The only user of `services.evidence`' state; called by
`reconcile`, which stores `to_json` with each look, so that a restarted controller goes on where this one stood.

The order of the evidence is (closing time, unit), up to the store's watermark: batches, restarts and late rows give the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from services.common.assignment import arm_of, bucket_of
from services.evidence import (
    AssignmentFault,
    EvidenceError,
    Guardrail,
    GuardrailPlan,
    SampleRatio,
    StateFault,
    UnitValue,
)
from services.rollout.balance import HALVES, Balance, measured_alike
from services.rollout.observed import EvidenceView, Ratio
from services.rollout.people import People
from services.rollout.resources import key_of, split_key
from services.rollout.unit_values import MAY_LACK, Value, pair_values, parts, past_values, spoke, tenant_of, unit_values
from services.rollout.watch_fold import Watch
from services.store import PEOPLE, ClosedUnit, Cursor, Judgement, MirroredPair

SCHEMA: Final = 4
New = TypeVar("New")
_START: Final[Cursor] = (0.0, "")


class Evidence:
    """Evidence of one stage of one rollout."""

    def __init__(
        self,
        stage: str,
        plans: Mapping[str, GuardrailPlan],
        segments: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """`segments`: tenant -> names of the segments that it belongs to."""
        self.stage = stage
        self.segments = segments
        self._known: dict[tuple[str, str | None], list[str]] = {}
        self.guardrails = {metric: Guardrail(plan) for metric, plan in plans.items()}
        self.balance = Balance()
        self.measured = measured_alike(MAY_LACK & {split_key(key)[0] for key in self.guardrails})
        self.units: Cursor = _START
        self.pairs: Cursor = _START
        self.judged = 0
        self.people = People()
        self.counts: dict[str, int] = {}
        self.by_step: dict[str, int] = {}
        self.fault: str | None = None
        self.misassigned = False
        self.watch: Watch | None = None
        self.watched_until = 0.0

    def fold_units(self, closed: Sequence[ClosedUnit], rollout: str, salt: bytes, weights: Mapping[int, int]) -> None:
        """Adds closed units of the canary. `weights`: route version -> the candidate's buckets, as published."""
        values: dict[str, list[UnitValue]] = {metric: [] for metric in self.guardrails}
        arms: list[tuple[str, str]] = []
        for unit in closed:
            exposure = unit.exposure
            wrong = _misassigned(unit, rollout, salt, weights)
            if wrong is not None:
                self._void(wrong, misassigned=True)
                return
            arm: Literal["control", "candidate"] = "candidate" if exposure.arm == "candidate" else "control"
            arms.append((exposure.gateway, arm))
            self._count(f"users_{arm}")
            if spoke(unit):
                self._count(f"feedback_{arm}")
            key = f"{exposure.step}:{arm}"
            self.by_step[key] = self.by_step.get(key, 0) + 1
            tenant, past = tenant_of(unit.observations), past_values(unit.past)
            when = exposure.first_at, exposure.closes_at, exposure.step
            for metric, found in unit_values(unit, salt).items():
                value, weight = parts(found)
                one = UnitValue(exposure.unit, arm, *when, value, past.get(metric), weight)
                for key in self._keys(metric, tenant):
                    values[key].append(one)
                self._measure(metric, arm)
        if closed:
            self.units = (closed[-1].exposure.closes_at, closed[-1].exposure.unit)
            self.balance.add(arms)
            for metric, new in values.items():
                self._try(self.guardrails[metric].update, new)

    def fold_pairs(self, pairs: Sequence[MirroredPair], settle: float) -> None:
        """Adds mirrored pairs of the rehearsal."""
        values: dict[str, list[tuple[UnitValue, UnitValue]]] = {metric: [] for metric in self.guardrails}
        for pair in pairs:
            self._count("pairs")
            tenant = tenant_of((pair.stable, pair.candidate))
            for metric, (stable, candidate) in pair_values(pair).items():
                if stable is None or candidate is None:
                    if stable is not candidate:
                        self._measure(metric, "control" if candidate is None else "candidate")
                    continue
                both = _paired(pair.unit, pair.closes_at - settle, pair.closes_at, (stable, candidate))
                for key in self._keys(metric, tenant):
                    values[key].append(both)
        if pairs:
            self.pairs = (pairs[-1].closes_at, pairs[-1].pair)
            for metric, new in values.items():
                self._try(self.guardrails[metric].update_pairs, new)

    def fold_judgements(self, judgements: Sequence[Judgement]) -> None:
        """Adds the judge's scores. Their order is the store's sequence, which stands in for the closing time: a judge may take its time,
        and judges several pairs at once.
        """
        if not judgements:
            return
        self.judged = judgements[-1].sequence
        self.people.take(one for one in judgements if one.judge == PEOPLE)
        judges = [one for one in judgements if one.judge != PEOPLE]
        if self.stage != "rehearsal" or not judges:
            return
        self._count("judgements", len(judges))
        guardrail = self.guardrails.get("judge")
        if guardrail is not None:
            new = [_paired(j.unit, float(j.sequence), float(j.sequence), (j.stable, j.candidate)) for j in judges]
            self._try(guardrail.update_pairs, new)

    def close_people(self, until: float, horizon: float) -> None:
        """Adds the people who compared answers and whose horizon is over at `until`, the store's watermark."""
        closed = self.people.close(until, horizon)
        if closed:
            self.counts |= self.people.counts
        if self.people.late:
            self._count("late", self.people.late)
            self.people.late = 0
        pairs = [_paired(one.unit, one.first_at, one.closes_at, (1 - one.worth, one.worth)) for one in closed]
        for key in self._keys("preference", None):
            self._try(self.guardrails[key].update_pairs, pairs)

    def count_judging(self, counts: Mapping[str, int]) -> None:
        """What came of the judge's work beside its scores, so far."""
        for name in ("unparsable", "inconsistent"):
            if name in counts:
                self.counts[name] = counts[name]

    def view(self, step: int) -> EvidenceView:
        """What the evidence says now."""
        steps = (
            {f"step_{arm}": self.by_step.get(f"{step}:{arm}", 0) for arm in HALVES} if self.stage == "canary" else {}
        )
        ratio = None
        if self.stage == "canary" and self.balance.gateways:
            balance = self.balance
            ratio = Ratio(balance.e_value, balance.threshold, balance.rejected, balance.sentence())
        return EvidenceView(
            readings=tuple(guardrail.reading() for guardrail in self.guardrails.values()),
            ratio=ratio,
            fault=self.fault,
            assignment=self.misassigned,
            counts={**self.counts, **steps},
            alarm=self.watch.alarm(self.watched_until) if self.watch is not None else None,
            watched=tuple(self.watch.metrics) if self.watch is not None else (),
        )

    def to_json(self) -> dict[str, Any]:
        """The whole state; `from_json` goes on from it exactly."""
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "guardrails": {metric: guardrail.to_json() for metric, guardrail in self.guardrails.items()},
            "balance": self.balance.to_json(),
            "measured": {metric: ratio.to_json() for metric, ratio in self.measured.items()},
            "units": list(self.units),
            "pairs": list(self.pairs),
            "judged": self.judged,
            "people": self.people.to_json(),
            "counts": self.counts,
            "byStep": self.by_step,
            "fault": self.fault,
            "misassigned": self.misassigned,
            "watch": self.watch.to_json() if self.watch else None,
            "watchedUntil": self.watched_until,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], segments: Mapping[str, Sequence[str]]) -> Evidence:
        """Raises StateFault for state that this version cannot continue."""
        if data.get("schema") != SCHEMA:
            raise StateFault(f"evidence of schema {data.get('schema')!r}, this program continues schema {SCHEMA}")
        evidence = cls(data["stage"], {}, segments)
        evidence.guardrails = {metric: Guardrail.from_json(state) for metric, state in data["guardrails"].items()}
        evidence.balance = Balance.from_json(data["balance"])
        evidence.measured = {metric: SampleRatio.from_json(state) for metric, state in data["measured"].items()}
        evidence.units = (data["units"][0], data["units"][1])
        evidence.pairs = (data["pairs"][0], data["pairs"][1])
        evidence.judged, evidence.people = data["judged"], People.from_json(data["people"])
        evidence.counts, evidence.by_step = dict(data["counts"]), dict(data["byStep"])
        evidence.fault, evidence.misassigned = data["fault"], data["misassigned"]
        evidence.watch = Watch.from_json(data["watch"], segments) if data["watch"] else None
        evidence.watched_until = data["watchedUntil"]
        return evidence

    def _count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def _keys(self, metric: str, tenant: str | None) -> list[str]:
        """Keys of the guardrails that a unit's value of a metric counts for."""
        known = self._known.get((metric, tenant))
        if known is not None:
            return known
        named = self.segments.get(tenant, ()) if tenant is not None else ()
        keys = (key_of(metric, goal=True), *(key_of(metric, segment) for segment in (None, *named)))
        return self._known.setdefault((metric, tenant), [key for key in keys if key in self.guardrails])

    def _measure(self, metric: str, arm: str) -> None:
        """One arm has a value. As likely control as candidate, or the comparison is one of what could be measured."""
        ratio = self.measured.get(metric)
        if ratio is not None:
            ratio.update({arm: 1})
            if ratio.rejected:
                has = f"{ratio.counts['control']} values of control and {ratio.counts['candidate']} of candidate"
                self._void(f"{metric} is not measured alike in both arms: {has} cannot be chance", misassigned=False)

    def _void(self, why: str, *, misassigned: bool) -> None:
        if self.fault is None:
            self.fault, self.misassigned = why, misassigned

    def _try(self, update: Callable[[list[New]], None], new: list[New]) -> None:
        try:
            update(new)
        except EvidenceError as error:
            self._void(str(error), misassigned=isinstance(error, AssignmentFault))


def _paired(unit: str, at: float, closes_at: float, both: tuple[Value, Value]) -> tuple[UnitValue, UnitValue]:
    (stable, seconds), (candidate, theirs) = map(parts, both)
    return (
        UnitValue(unit, "control", at, closes_at, 0, stable, None, seconds),
        UnitValue(unit, "candidate", at, closes_at, 0, candidate, None, theirs),
    )


def _misassigned(unit: ClosedUnit, rollout: str, salt: bytes, weights: Mapping[int, int]) -> str | None:
    """Why the unit is not in the arm where its bucket belongs; None: it is."""
    exposure = unit.exposure
    weight = weights.get(exposure.route_version)
    if weight is None:
        return f"unit {exposure.unit} was exposed under route version {exposure.route_version}, which this rollout never published"
    bucket = bucket_of(salt, rollout, exposure.unit)
    if bucket != exposure.bucket:
        return f"unit {exposure.unit} has bucket {bucket}, but gateway {exposure.gateway} recorded {exposure.bucket}"
    arm = arm_of(bucket, weight)
    if arm != exposure.arm:
        return f"unit {exposure.unit} belongs to {arm}, but gateway {exposure.gateway} put it in {exposure.arm}"
    return None
