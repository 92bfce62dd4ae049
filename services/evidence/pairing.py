"""Pairs units of the two arms that were exposed close together, so that a burst of failures on both arms alike cancels.

Used by `rates`. Looks at times and arms only, never at values: pairing must not depend on outcomes, or the bets lose
their guarantee.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from services.evidence.summaries import UnitValue


class PairWindow:
    """A unit is paired with the longest-waiting unit of the other arm within the window; older ones expire.

    The window ends after `units` further arrivals or when exposures lie more than `seconds` apart, whichever comes
    first.
    """

    def __init__(self, units: int, seconds: float) -> None:
        self._units = units
        self._seconds = seconds
        self._arrivals = 0
        self._waiting: deque[tuple[int, UnitValue]] = deque()  # all of one arm: the other would have been paired
        self.expired = 0

    def offer(self, value: UnitValue) -> UnitValue | None:
        """Returns the unit's partner, or None while it waits for one. Units are offered in the order of the
        evidence."""
        self._arrivals += 1
        while self._waiting and self._is_over(*self._waiting[0], value):
            self._waiting.popleft()
            self.expired += 1
        if self._waiting and self._waiting[0][1].arm != value.arm:
            return self._waiting.popleft()[1]
        self._waiting.append((self._arrivals, value))
        return None

    def _is_over(self, arrival: int, waiting: UnitValue, value: UnitValue) -> bool:
        return self._arrivals - arrival > self._units or abs(value.exposed_at - waiting.exposed_at) > self._seconds

    def to_json(self) -> dict[str, Any]:
        waiting = [[arrival, asdict(value)] for arrival, value in self._waiting]
        return {"arrivals": self._arrivals, "expired": self.expired, "waiting": waiting}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Continues where the saved window stood."""
        self._arrivals, self.expired = data["arrivals"], data["expired"]
        self._waiting = deque((arrival, UnitValue(**value)) for arrival, value in data["waiting"])
