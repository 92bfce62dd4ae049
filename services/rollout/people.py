"""What people who compared answers are worth: one value a person, closed once. Called by `evidence_fold`; pure, and no mathematics: the
bets are those of any pair (`services.evidence.Guardrail`).

A person's value is the candidate's share of the pairs that they compared within the horizon of their first comparison. So who compares
two hundred pairs counts as one, like who compares one. A pair that was compared in both orders is worth what a judge's would be: who
contradicts themselves has seen no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from services.evidence import Judged
from services.evidence.preference import Answer
from services.evidence.state import SeenUnits
from services.store import Judgement

_SAID: Final[dict[float, Answer]] = {0.0: "stable", 0.5: "tie", 1.0: "candidate"}


class Closed(NamedTuple):
    """A person whose value is final. `worth`: the candidate's share, 0 to 1."""

    unit: str
    first_at: float
    closes_at: float
    worth: float


class People:
    """The people who have compared answers of one rollout and whose values are not final yet."""

    def __init__(self) -> None:
        self._open: dict[str, list[tuple[float, str, float]]] = {}  # person -> (time, pair with order, worth)
        self._seen = SeenUnits()
        self._until = 0.0
        self.counts = dict.fromkeys(
            ("people", "comparisons", "comparison_ties", "comparisons_inconsistent", "ordered", "candidate_first", "first_preferred"), 0
        )  # fmt: skip
        """As in `status.Counts`."""
        self.late = 0
        """Comparisons of people whose value was final, since it was last set to 0."""

    def take(self, judgements: Iterable[Judgement]) -> None:
        """Adds what people said, in any order."""
        for one in judgements:
            if self._seen.arm_of(one.unit) is not None:
                self.late += 1
            else:
                self._open.setdefault(one.unit, []).append((one.at, one.pair, one.candidate))

    def close(self, until: float, horizon: float) -> list[Closed]:
        """People whose horizon is over at `until`, up to when every comparison has been taken; in the order of the evidence."""
        closing = []
        for unit, said in self._open.items():
            first_at = min(at for at, _, _ in said)
            if first_at + horizon <= until:
                closing.append((first_at + horizon, unit, first_at))
        found = []
        for closes_at, unit, first_at in sorted(closing):
            said = self._open.pop(unit)
            self._seen.add([unit], ["pair"])
            in_time = [(pair, worth) for at, pair, worth in sorted(said) if at < closes_at]
            if closes_at <= self._until:  # it came behind a look that has used later ones
                self.late += len(said)
                continue
            self.late += len(said) - len(in_time)
            found.append(Closed(unit, first_at, closes_at, self._worth(in_time)))
        self._until = max(self._until, until)
        return found

    def _worth(self, said: Sequence[tuple[str, float]]) -> float:
        pairs: dict[str, dict[str, float]] = {}
        for name, worth in said:
            pair, _, shown = name.rpartition(":")
            pairs.setdefault(pair, {})[shown] = worth
            if shown != "unknown":
                self.counts["ordered"] += 1
                self.counts["candidate_first"] += shown == "candidate"
                self.counts["first_preferred"] += worth == (1.0 if shown == "candidate" else 0.0)
        judged = [_judged(orders) for orders in pairs.values()]
        self.counts["people"] += 1
        self.counts["comparisons"] += len(judged)
        self.counts["comparison_ties"] += sum(one.is_consistent and one.first == "tie" for one in judged)
        self.counts["comparisons_inconsistent"] += sum(not one.is_consistent for one in judged)
        return math.fsum(one.worth for one in judged) / len(judged)

    def to_json(self) -> dict[str, Any]:
        return {
            "open": self._open,
            "seen": self._seen.to_json(),
            "until": self._until,
            "counts": self.counts,
            "late": self.late,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> People:
        people = cls()
        people._open = {unit: [(at, pair, worth) for at, pair, worth in said] for unit, said in data["open"].items()}
        people._seen = SeenUnits.from_json(data["seen"])
        people._until, people.late = data["until"], data["late"]
        people.counts = dict(data["counts"])
        return people


def _judged(orders: Mapping[str, float]) -> Judged:
    """One pair's: in both orders where both were asked, else in the one that was."""
    if "candidate" in orders and "stable" in orders:
        return Judged(_SAID[orders["candidate"]], _SAID[orders["stable"]])
    return Judged(_SAID[next(iter(orders.values()))])
