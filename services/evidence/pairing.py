"""Pairs units of the two arms that were exposed close together, so that a burst of failures on both arms alike cancels.

Used by `rates`. Looks at times and arms only, never at values: pairing must not depend on outcomes, or the bets lose
their guarantee.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from services.evidence.batch import Batch, Integers
from services.evidence.state import Floats, pack, unpack


@dataclass(frozen=True, slots=True)
class Pairs:
    """Columns of pairs in the order in which they were made; a pair's step is the lower one of its units."""

    step: Integers
    control: Floats
    candidate: Floats
    control_past: Floats
    candidate_past: Floats

    @classmethod
    def of(cls, control: Batch, candidate: Batch) -> "Pairs":
        step = np.minimum(control.step, candidate.step)
        return cls(step, control.value, candidate.value, control.past, candidate.past)

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, rows: slice) -> "Pairs":
        return Pairs(*(getattr(self, field.name)[rows] for field in fields(Pairs)))


class PairWindow:
    """A unit is paired with the longest-waiting unit of the other arm within the window; older ones expire.

    The window ends after `units` further arrivals or when exposures lie more than `seconds` apart, whichever comes
    first.
    """

    def __init__(self, units: int, seconds: float) -> None:
        self._units = units
        self._seconds = seconds
        self._arrivals = 0
        self._waiting = Batch.of([])  # all of one arm: the other would have been paired
        self._arrived: list[int] = []
        self.expired = 0

    def offer(self, batch: Batch) -> Pairs:
        """The pairs that these units make with each other and with those that waited."""
        everyone = _joined(self._waiting, batch)
        arms, exposed = everyone.candidate.tolist(), everyone.exposed_at.tolist()
        arrived = self._arrived + list(range(self._arrivals + 1, self._arrivals + len(batch) + 1))
        waiting, first, second = deque(range(len(self._arrived))), [], []
        units, seconds, leave, wait = self._units, self._seconds, waiting.popleft, waiting.append
        for i in range(len(self._arrived), len(arms)):  # once a unit: kept light
            while waiting:
                j = waiting[0]
                if arrived[i] - arrived[j] <= units and -seconds <= exposed[i] - exposed[j] <= seconds:
                    if arms[j] != arms[i]:
                        first.append(leave())
                        second.append(i)
                    else:
                        wait(i)
                    break
                leave()
                self.expired += 1
            else:
                wait(i)
        self._arrivals += len(batch)
        self._waiting, self._arrived = _rows(everyone, list(waiting)), [arrived[i] for i in waiting]
        earlier, later = np.array(first, np.int64), np.array(second, np.int64)
        swapped = everyone.candidate[earlier]
        control, candidate = np.where(swapped, later, earlier), np.where(swapped, earlier, later)
        return Pairs.of(_rows(everyone, control), _rows(everyone, candidate))

    def to_json(self) -> dict[str, Any]:
        waiting = {field.name: pack(getattr(self._waiting, field.name)) for field in fields(Batch)}
        return {"arrivals": self._arrivals, "expired": self.expired, "arrived": self._arrived, "waiting": waiting}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Continues where the saved window stood."""
        self._arrivals, self.expired, self._arrived = data["arrivals"], data["expired"], list(data["arrived"])
        waiting, empty = data["waiting"], self._waiting
        self._waiting = Batch(
            *(unpack(waiting[field.name]).astype(getattr(empty, field.name).dtype) for field in fields(Batch))
        )


def _rows(batch: Batch, rows: Integers | list[int]) -> Batch:
    at = np.asarray(rows, np.int64)
    return Batch(*(getattr(batch, field.name)[at] for field in fields(Batch)))


def _joined(first: Batch, second: Batch) -> Batch:
    return Batch(
        *(np.concatenate((getattr(first, field.name), getattr(second, field.name))) for field in fields(Batch))
    )
