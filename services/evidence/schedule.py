"""When running evidence is looked at for harm: after the first unit, then whenever the units have grown by a thirty-second.

Used by `means` and `quantiles`, where a look at every unit would cost more than the unit. The schedule counts units and knows no
batches, so batches cannot move an alarm; an alarm comes at most 3 % of the units later than it could. A confidence sequence or e-process
that holds at all times holds at these.
"""

from collections.abc import Iterator

import numpy as np

from services.evidence.batch import Integers

SHARE = 32


class Checks:
    """One schedule for each restart; restart j counts the rows of step j and later ones."""

    def __init__(self, steps: int) -> None:
        self.counts = [0] * steps
        self.due = [1] * steps

    def pieces(self, step: Integers) -> Iterator[tuple[int, int, bool]]:
        """Cuts rows into pieces (start, end, whether a check is due at the end)."""
        seen = [np.cumsum(step >= j) for j in range(len(self.counts))]
        start, before = 0, [0] * len(self.counts)
        while start < len(step):
            ends = [
                int(np.searchsorted(rows, done + due - count)) + 1
                for rows, done, due, count in zip(seen, before, self.due, self.counts, strict=True)
            ]
            end = min(*ends, len(step)) if len(ends) > 1 else min(ends[0], len(step))
            reached = [int(rows[end - 1]) for rows in seen]
            self.counts = [c + now - done for c, now, done in zip(self.counts, reached, before, strict=True)]
            is_due = any(count >= due for count, due in zip(self.counts, self.due, strict=True))
            self.due = [
                count + max(1, count // SHARE) if count >= due else due
                for count, due in zip(self.counts, self.due, strict=True)
            ]
            yield start, end, is_due
            start, before = end, reached

    def to_json(self) -> list[list[int]]:
        return [self.counts, self.due]

    def restore(self, data: list[list[int]]) -> None:
        self.counts, self.due = list(data[0]), list(data[1])
