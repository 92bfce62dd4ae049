"""One guardrail in one stage: takes closed units in, gives a reading out, and can be saved and continued. Used by the
controller at each look.

Keeps the order of the evidence and the books (duplicates, arms, counts); the mathematics of each kind of metric is in
its own module.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from services.evidence.errors import AssignmentFault, ClockFault, ValueFault
from services.evidence.means import MeanEvidence
from services.evidence.quantiles import QuantileEvidence
from services.evidence.rates import PairedEvidence
from services.evidence.state import VERSION, SeenUnits, restoring
from services.evidence.summaries import Conclusion, GuardrailPlan, Reading, UnitValue


class _Evidence(Protocol):
    def add(self, value: UnitValue) -> None: ...
    def add_pair(self, control: UnitValue, candidate: UnitValue) -> None: ...
    def conclude(self) -> Conclusion: ...
    def to_json(self) -> dict[str, Any]: ...
    def restore(self, data: Mapping[str, Any]) -> None: ...


def _evidence(plan: GuardrailPlan) -> _Evidence:
    if plan.kind == "mean":
        return MeanEvidence(plan)
    if plan.kind == "quantile":
        return QuantileEvidence(plan)
    return PairedEvidence(plan)


class Guardrail:
    """Sequential evidence on one metric. The reading depends on the units and their order alone, not on how looks or
    restarts cut them."""

    def __init__(self, plan: GuardrailPlan) -> None:
        self.plan = plan
        self._evidence = _evidence(plan)
        self._seen = SeenUnits()
        self._last: tuple[float, str] | None = None
        self._units = {"control": 0, "candidate": 0}
        self._excluded: dict[str, int] = {}

    def update(self, values: Iterable[UnitValue]) -> None:
        """Adds the units that closed since the last look, in any order within it; a unit seen before is counted and
        left out.

        Raises ValueFault, ClockFault (a unit that belongs before the last one of an earlier look) or AssignmentFault (a
        unit in both arms); then nothing of this look has been added.
        """
        ordered = sorted(values, key=lambda value: value.order)
        fresh: dict[str, UnitValue] = {}
        for value in ordered:
            self.plan.check(value)
            arm = fresh[value.unit].arm if value.unit in fresh else self._seen.arm_of(value.unit)
            if arm is None:
                self._check_order(value.order)
                fresh[value.unit] = value
            elif arm != value.arm:
                raise AssignmentFault(f"{self.plan.metric}: unit {value.unit!r} is in {arm} and in {value.arm}")
        self._exclude("duplicate", len(ordered) - len(fresh))
        for value in fresh.values():
            self._seen.add(value.unit, value.arm)
            self._units[value.arm] += 1
            self._last = value.order
            self._evidence.add(value)

    def update_pairs(self, pairs: Iterable[tuple[UnitValue, UnitValue]]) -> None:
        """Adds rehearsed pairs (control, candidate): one unit's prompt answered by both revisions, so each unit is in
        both arms.

        Order, duplicates and faults as in `update`; a pair closes when its later half does.
        """
        ordered = sorted(pairs, key=_pair_order)
        fresh: dict[str, tuple[UnitValue, UnitValue]] = {}
        for control, candidate in ordered:
            self.plan.check(control)
            self.plan.check(candidate)
            if control.unit != candidate.unit or (control.arm, candidate.arm) != ("control", "candidate"):
                raise ValueFault(
                    f"{self.plan.metric}: {control.unit!r} ({control.arm}) and {candidate.unit!r} ({candidate.arm}) are no pair"
                )
            arm = self._seen.arm_of(control.unit)
            if arm in ("control", "candidate"):
                raise AssignmentFault(f"{self.plan.metric}: unit {control.unit!r} is in {arm} and in a pair")
            if arm is None and control.unit not in fresh:
                self._check_order(_pair_order((control, candidate)))
                fresh[control.unit] = control, candidate
        self._exclude("duplicate", len(ordered) - len(fresh))
        for pair in fresh.values():
            self._seen.add(pair[0].unit, "pair")
            self._units["control"] += 1
            self._units["candidate"] += 1
            self._last = _pair_order(pair)
            self._evidence.add_pair(*pair)

    def _check_order(self, order: tuple[float, str]) -> None:
        if self._last is not None and order < self._last:
            raise ClockFault(f"{self.plan.metric}: {order} comes after {self._last}, which an earlier look has used")

    def _exclude(self, why: str, count: int) -> None:
        if count:
            self._excluded[why] = self._excluded.get(why, 0) + count

    def reading(self) -> Reading:
        """What the metric says now. Cheap, changes nothing."""
        plan, found = self.plan, self._evidence.conclude()
        lower, upper = _finite(found.lower), _finite(found.upper)
        return Reading(
            metric=plan.metric,
            kind=plan.kind,
            mode=plan.mode,
            margin=plan.margin,
            relative=plan.relative,
            direction=plan.direction,
            n_control=self._units["control"],
            n_candidate=self._units["candidate"],
            pairs=found.pairs,
            expired=found.expired,
            excluded=dict(self._excluded),
            control=_finite(found.control),
            candidate=_finite(found.candidate),
            effect=_finite(found.effect),
            lower=lower,
            upper=upper,
            e_harm=found.e_harm,
            harm_threshold=1 / plan.alpha_harm,
            harmful=found.harmful,
            e_promote=found.e_promote,
            promote_threshold=1 / plan.alpha_promote,
            non_inferior=found.non_inferior,
            trustworthy=found.harmful or (lower is not None and upper is not None),
        )

    def to_json(self) -> dict[str, Any]:
        """The whole state as strict JSON; `from_json` continues from it exactly."""
        return {
            "version": VERSION,
            "plan": asdict(self.plan),
            "seen": self._seen.to_json(),
            "last": self._last,
            "units": self._units,
            "excluded": self._excluded,
            "evidence": self._evidence.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Guardrail":
        """Raises StateFault for state that this version cannot continue."""
        with restoring(data, "guardrail"):
            guardrail = cls(GuardrailPlan(**{**data["plan"], "bounds": tuple(data["plan"]["bounds"])}))
            guardrail._seen = SeenUnits.from_json(data["seen"])
            guardrail._last = (data["last"][0], data["last"][1]) if data["last"] else None
            guardrail._units, guardrail._excluded = dict(data["units"]), dict(data["excluded"])
            guardrail._evidence.restore(data["evidence"])
        return guardrail


def _pair_order(pair: tuple[UnitValue, UnitValue]) -> tuple[float, str]:
    return max(pair[0].closes_at, pair[1].closes_at), pair[0].unit


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
