"""The evidence of an A/B experiment: folds closed users into comparisons of every other group with the first, the control. Called by
`experiment_keeper`, which stores `to_json` from time to time, so that a restarted controller goes on where this one stood.

Each comparison is two tests of the rollouts' kind (`services.evidence.Guardrail` with margin 0), one a direction: has the metric's value
risen, has it fallen. The level of the whole experiment is divided evenly over groups, metrics and directions (Bonferroni), so that all
claims of all looks together are wrong with a probability of at most `alpha`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from services.common.assignment import bucket_of, group_of
from services.evidence import AssignmentFault, EvidenceError, Guardrail, GuardrailPlan, SampleRatio, UnitValue
from services.rollout.balance import ALPHA, GROSS
from services.rollout.experiment_results import Result, conclude
from services.rollout.resources_experiment import Comparison, Experiment
from services.rollout.resources_metrics import METRICS
from services.rollout.unit_values import MAY_LACK, parts, past_values, unit_values
from services.store import ClosedUnit, Cursor

SCHEMA: Final = 1
Direction = Literal["lower", "higher"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("lower", "higher")
"""That is better, as a guardrail sees it: `lower` finds a rise, `higher` a fall."""
Key = tuple[str, str, Direction]


class ExperimentEvidence:
    """Evidence of one experiment. The results depend on the users and their order alone, not on how looks or restarts cut them."""

    def __init__(self, experiment: Experiment) -> None:
        groups = experiment.groups()
        self.experiment = experiment
        self.names = [name for name, _ in groups]
        self._shares = [share for _, share in groups]
        self._goals = {goal.metric: goal for goal in experiment.metrics}
        tests = len(self.names[1:]) * len(self._goals) * len(DIRECTIONS)
        self.level = experiment.alpha / tests
        """Of one test."""
        self.guardrails: dict[Key, Guardrail] = {
            (group, goal.metric, direction): Guardrail(_plan(goal, direction, self.level))
            for group in self.names[1:]
            for goal in experiment.metrics
            for direction in DIRECTIONS
        }
        expected = {name: float(share) for name, share in groups}
        self.ratio = SampleRatio(expected, ALPHA)
        lacking = [metric for metric in self._goals if metric in MAY_LACK]
        self.measured = {metric: SampleRatio(expected, ALPHA / len(lacking), GROSS) for metric in lacking}
        self.units: Cursor = (0.0, "")
        self.fault: str | None = None
        self.misassigned = False

    @property
    def users(self) -> dict[str, int]:
        """Closed users by group."""
        return dict(self.ratio.counts)

    def fold(self, closed: Sequence[ClosedUnit], id: str, salt: bytes) -> None:
        """Adds users that closed since the last look, in the order of the evidence."""
        values: dict[Key, list[UnitValue]] = {key: [] for key in self.guardrails}
        for unit in closed:
            exposure = unit.exposure
            wrong = self._misassigned(unit, id, salt)
            if wrong is not None:
                self.void(wrong, misassigned=True)
                return
            self.ratio.update({exposure.arm: 1})
            past = past_values(unit.past)
            for metric, found in unit_values(unit, salt).items():
                if metric in self.measured:
                    self.measured[metric].update({exposure.arm: 1})
                arm: Literal["control", "candidate"] = "control" if exposure.arm == self.names[0] else "candidate"
                value, weight = parts(found)
                when = exposure.first_at, exposure.closes_at, 0
                one = UnitValue(exposure.unit, arm, *when, value, past.get(metric), weight)
                for key in self._concerned(exposure.arm, metric):
                    values[key].append(one)
        if closed:
            self.units = (closed[-1].exposure.closes_at, closed[-1].exposure.unit)
        for key, new in values.items():
            try:
                self.guardrails[key].update(new)
            except EvidenceError as error:
                self.void(str(error), misassigned=isinstance(error, AssignmentFault))

    def void(self, why: str, *, misassigned: bool = False) -> None:
        """The evidence is worth nothing from now on; the first reason stays."""
        if self.fault is None:
            self.fault, self.misassigned = why, misassigned

    def mismatch(self) -> str | None:
        """Why the groups' sizes, or the numbers of values measured in them, cannot be chance; None: they can."""
        for what, ratio in (("users", self.ratio), *self.measured.items()):
            if ratio.rejected:
                counts = ", ".join(f"{count} of {name}" for name, count in ratio.counts.items())
                named = "users closed" if what == "users" else f"values of {what}"
                return f"{named}: {counts}: not the shares that were declared (e-value {ratio.e_value:.3g})"
        return None

    def results(self) -> list[Result]:
        """What every comparison says now, by group and metric."""
        enough = min(self.users.values()) >= self.experiment.min_units
        return [
            conclude(
                group,
                goal,
                rise=self.guardrails[group, goal.metric, "lower"].reading(),
                fall=self.guardrails[group, goal.metric, "higher"].reading(),
                enough=enough,
            )
            for group in self.names[1:]
            for goal in self.experiment.metrics
        ]

    def to_json(self) -> dict[str, Any]:
        """The whole state; `from_json` goes on from it exactly."""
        return {
            "schema": SCHEMA,
            "guardrails": [[*key, guardrail.to_json()] for key, guardrail in self.guardrails.items()],
            "ratio": self.ratio.to_json(),
            "measured": {metric: ratio.to_json() for metric, ratio in self.measured.items()},
            "units": list(self.units),
            "fault": self.fault,
            "misassigned": self.misassigned,
        }

    @classmethod
    def from_json(cls, experiment: Experiment, data: Mapping[str, Any]) -> ExperimentEvidence:
        """Raises StateFault for state that this program cannot continue, KeyError for that of another schema."""
        if data["schema"] != SCHEMA:
            raise KeyError(f"schema {data['schema']}")
        evidence = cls(experiment)
        evidence.guardrails = {(g, m, d): Guardrail.from_json(state) for g, m, d, state in data["guardrails"]}
        evidence.ratio = SampleRatio.from_json(data["ratio"])
        evidence.measured = {metric: SampleRatio.from_json(state) for metric, state in data["measured"].items()}
        evidence.units = (data["units"][0], data["units"][1])
        evidence.fault, evidence.misassigned = data["fault"], data["misassigned"]
        return evidence

    def _concerned(self, arm: str, metric: str) -> Iterator[Key]:
        """The control's users are compared with every other group's."""
        if metric in self._goals:
            for group in self.names[1:] if arm == self.names[0] else (arm,):
                for direction in DIRECTIONS:
                    yield group, metric, direction

    def _misassigned(self, unit: ClosedUnit, id: str, salt: bytes) -> str | None:
        """Why the unit is not in the group where its bucket belongs; None: it is."""
        exposure = unit.exposure
        bucket = bucket_of(salt, id, exposure.unit)
        index = group_of(bucket, self._shares)
        name = None if index is None else self.names[index]
        if (bucket, name) == (exposure.bucket, exposure.arm):
            return None
        return (
            f"unit {exposure.unit} belongs to {name or 'no group'} by bucket {bucket}, but gateway {exposure.gateway} put it in "
            f"{exposure.arm} by bucket {exposure.bucket}"
        )


def _plan(goal: Comparison, direction: Direction, level: float) -> GuardrailPlan:
    measured = METRICS[goal.metric]
    return GuardrailPlan(
        metric=goal.metric,
        kind=measured.kind,
        direction=direction,
        margin=0.0,
        relative=measured.relative,
        mode="harmOnly",
        steps=1,
        alpha_harm=level,
        alpha_promote=level,
        quantile=goal.quantile,
        bounds=measured.bounds,
    )
