"""One guardrail in one stage: takes closed units in, gives a reading out, and can be saved and continued. Used by the
controller at each look.

Keeps the order of the evidence and the books (duplicates, arms, counts); the mathematics of each kind of metric is in
its own module.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any, Protocol

import numpy as np

from services.evidence import state
from services.evidence.batch import Batch
from services.evidence.errors import AssignmentFault, ClockFault, ValueFault
from services.evidence.means import MeanEvidence
from services.evidence.quantiles import QuantileEvidence
from services.evidence.rates import PairedEvidence
from services.evidence.state import VERSION, SeenUnits, restoring
from services.evidence.summaries import LARGEST_MEAN, Conclusion, GuardrailPlan, Reading, UnitValue

_ORDER = attrgetter("closes_at", "unit")


class _Evidence(Protocol):
    def add(self, batch: Batch) -> None: ...
    def add_pairs(self, control: Batch, candidate: Batch) -> None: ...
    def conclude(self) -> Conclusion: ...
    def to_json(self) -> dict[str, Any]: ...
    def restore(self, data: Mapping[str, Any]) -> None: ...


def _evidence(plan: GuardrailPlan) -> _Evidence:
    if plan.kind in ("mean", "ratio"):
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
        self._known = 0
        self._excluded: dict[str, int] = {}

    def update(self, values: Iterable[UnitValue]) -> None:
        """Adds the units that closed since the last look, in any order within it; a unit seen before is counted and
        left out.

        Raises ValueFault, ClockFault (a unit that belongs before the last one of an earlier look) or AssignmentFault (a
        unit in both arms); then nothing of this look has been added.
        """
        given = list(values)
        if not given:
            return
        batch = self._checked(given)
        if not (batch.closes_at[1:] > batch.closes_at[:-1]).all():
            given.sort(key=_ORDER)
            batch = self._batch(given)
        units = [value.unit for value in given]
        names = set(units)
        if len(names) < len(units) or self._seen.knows_any(names) or self._is_late(given[0].order):
            given = self._fresh(given)
            batch, units = self._batch(given), [value.unit for value in given]
        if not given:
            return
        self._seen.add(units, [value.arm for value in given])
        candidates = int(batch.candidate.sum())
        self._units["candidate"] += candidates
        self._units["control"] += len(given) - candidates
        self._known += int((~np.isnan(batch.past)).sum())
        self._last = given[-1].order
        self._evidence.add(batch)

    def _batch(self, values: Sequence[UnitValue]) -> Batch:
        return Batch.of(values, weighted=self.plan.kind == "ratio")

    def _checked(self, given: Sequence[UnitValue]) -> Batch:
        """The units as columns, none of which holds a value that cannot be."""
        batch, (low, high) = self._batch(given), self.plan.range
        possible = (
            (batch.value >= low)
            & (batch.value <= high)
            & (np.isnan(batch.past) | ((batch.past >= low) & (batch.past <= high)))
            & (batch.weight >= 0)
            & (batch.weight <= LARGEST_MEAN)
            & (batch.step >= 0)
            & (batch.step < self.plan.steps)
            & (np.abs(batch.exposed_at) < math.inf)
            & (batch.closes_at < math.inf)
            & (batch.closes_at >= batch.exposed_at)
        )
        if self.plan.kind == "rate":
            possible &= (batch.value == 0) | (batch.value == 1)
        if not possible.all() or not {value.arm for value in given} <= self._units.keys():
            for value in given:
                self.plan.check(value)
        return batch

    def _fresh(self, ordered: Sequence[UnitValue]) -> list[UnitValue]:
        """Those that are new, where some are not."""
        fresh: list[UnitValue] = []
        places: dict[str, int] = {}
        for value in ordered:
            place = places.get(value.unit)
            if place is not None and len(fresh) - place <= state.MEMORY:
                arm: str | None = fresh[place].arm
            else:
                arm = self._seen.arm_of(value.unit, len(fresh))
            if arm is None:
                self._check_order(value.order)
                places[value.unit] = len(fresh)
                fresh.append(value)
            elif arm != value.arm:
                raise AssignmentFault(f"{self.plan.metric}: unit {value.unit!r} is in {arm} and in {value.arm}")
        self._exclude("duplicate", len(ordered) - len(fresh))
        return fresh

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
            arm = self._seen.arm_of(control.unit, len(fresh))
            if arm in ("control", "candidate"):
                raise AssignmentFault(f"{self.plan.metric}: unit {control.unit!r} is in {arm} and in a pair")
            if arm is None and control.unit not in fresh:
                self._check_order(_pair_order((control, candidate)))
                fresh[control.unit] = control, candidate
        self._exclude("duplicate", len(ordered) - len(fresh))
        if not fresh:
            return
        self._seen.add(list(fresh), ["pair"] * len(fresh))
        self._units["control"] += len(fresh)
        self._units["candidate"] += len(fresh)
        both = list(fresh.values())
        self._last = _pair_order(both[-1])
        self._evidence.add_pairs(self._batch([pair[0] for pair in both]), self._batch([pair[1] for pair in both]))

    def _is_late(self, order: tuple[float, str]) -> bool:
        return self._last is not None and order < self._last

    def _check_order(self, order: tuple[float, str]) -> None:
        if self._is_late(order):
            raise ClockFault(f"{self.plan.metric}: {order} comes after {self._last}, which an earlier look has used")

    def _exclude(self, why: str, count: int) -> None:
        if count:
            self._excluded[why] = self._excluded.get(why, 0) + count

    def reading(self) -> Reading:
        """What the metric says now. Cheap, changes nothing."""
        plan, found = self.plan, self._evidence.conclude()
        last_step = found.step == plan.steps - 1
        worse, better = _finite(found.worse), _finite(found.better)
        lower, upper = (worse, better) if plan.sign > 0 else (_negated(better), _negated(worse))
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
            e_harm=_finite_exp(found.log_harm),
            harm_threshold=1 / plan.alpha_harm,
            harmful=found.harmful,
            e_promote=_finite_exp(found.log_promote),
            promote_threshold=1 / plan.alpha_promote,
            non_inferior=plan.guards and last_step and found.shown,
            improved=not plan.guards and last_step and found.shown,
            last_step=last_step,
            known=self._known,
            spared=_finite(found.spared) if self._known else None,
            trustworthy=found.harmful or None not in ((worse, better) if plan.guards else (better,)),
        )

    def to_json(self) -> dict[str, Any]:
        """The whole state as strict JSON; `from_json` continues from it exactly."""
        return {
            "version": VERSION,
            "plan": asdict(self.plan),
            "seen": self._seen.to_json(),
            "last": self._last,
            "units": self._units,
            "known": self._known,
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
            guardrail._known = data["known"]
            guardrail._evidence.restore(data["evidence"])
        return guardrail


def _pair_order(pair: tuple[UnitValue, UnitValue]) -> tuple[float, str]:
    return max(pair[0].closes_at, pair[1].closes_at), pair[0].unit


def _finite_exp(log_e: float | None) -> float | None:
    """exp, kept finite: JSON knows no infinity."""
    return None if log_e is None else math.exp(min(log_e, 700.0))


def _negated(number: float | None) -> float | None:
    return None if number is None else -number


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
