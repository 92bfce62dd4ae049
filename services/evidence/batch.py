"""Units as columns: what the mathematics of every kind folds at once. Made by `Guardrail` from checked, ordered, fresh units; knows
nothing of their names.

Whatever is summed over a batch is summed with the running total in front and in order (`running`), so that a batch gives the same bits
as its units one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evidence.state import Floats
from services.evidence.summaries import UnitValue

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns of equal length in the order of the evidence. `past` is NaN for a unit without one, −inf for one that is no number."""

    candidate: Flags
    exposed_at: Floats
    closes_at: Floats
    step: Integers
    value: Floats
    past: Floats
    weight: Floats
    """1 but for a ratio's units."""

    @classmethod
    def of(cls, values: Sequence[UnitValue], *, weighted: bool = False) -> "Batch":
        pasts = [value.past for value in values]
        has_past = pasts.count(None) < len(pasts)
        return cls(
            np.array([value.arm == "candidate" for value in values], np.bool_),
            np.array([value.exposed_at for value in values], np.float64),
            np.array([value.closes_at for value in values], np.float64),
            np.array([value.step for value in values], np.int64),
            np.array([value.value for value in values], np.float64),
            np.array([_past(past) for past in pasts]) if has_past else np.full(len(pasts), math.nan),
            np.array([value.weight for value in values], np.float64) if weighted else np.ones(len(values)),
        )

    def __len__(self) -> int:
        return len(self.value)


def _past(past: float | None) -> float:
    return math.nan if past is None else past if past == past else -math.inf


def running(total: float, values: Floats) -> Floats:
    """The running total after each value, added one after the other."""
    column = np.empty(len(values) + 1)
    column[0], column[1:] = total, values
    sums: Floats = np.cumsum(column)[1:]
    return sums


def added(totals: Floats, columns: Sequence[Floats]) -> Floats:
    """Several running totals after all values of their columns."""
    table = np.empty((len(columns[0]) + 1, len(columns)))
    table[0] = totals
    for i, column in enumerate(columns):
        table[1:, i] = column
    sums: Floats = np.cumsum(table, axis=0)[-1]
    return sums
