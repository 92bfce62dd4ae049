"""Saving exactly: numbers and unit names as compact JSON text. Used by the classes here that serialise; no mathematics.

Arrays travel as base64 of little-endian 64-bit words, so that a restored state continues bit for bit and infinities
survive strict JSON.
"""

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.evidence.errors import StateFault

Floats = NDArray[np.float64]
VERSION = 4
MEMORY = 4_096
"""Units that are remembered by name: most of a day at 5,000 a day, six minutes at a million."""
_ARMS = ("control", "candidate", "pair")


def pack(values: ArrayLike) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()


def unpack(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)


@contextmanager
def restoring(data: Mapping[str, Any], what: str) -> Iterator[None]:
    """Raises StateFault unless the state was written by this version of the format and can be read by the block."""
    found = data.get("version") if isinstance(data, Mapping) else None
    if found != VERSION:
        raise StateFault(f"{what}: state of version {found!r}, this program continues version {VERSION}")
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise StateFault(f"{what}: damaged state: {error!r}") from error


class SeenUnits:
    """Which arm each of the last `MEMORY` units was seen in. Bounded, so that state and looks do not grow with the traffic: the order of
    the evidence refuses older units by itself, and the store keeps one arm a unit.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # unit -> its number, the newest at the end
        self._arms: dict[str, str] = {}
        self.count = 0

    def arm_of(self, unit: str, ahead: int = 0) -> str | None:
        """The arm of a unit among the last `MEMORY`, once `ahead` more have been added."""
        number = self._numbers.get(unit)
        return self._arms[unit] if number is not None and self.count + ahead - number <= MEMORY else None

    def knows_any(self, units: set[str]) -> bool:
        return not self._numbers.keys().isdisjoint(units)

    def add(self, units: Sequence[str], arms: Sequence[str]) -> None:
        """Adds units that are not remembered, in the order of the evidence."""
        first = max(0, len(units) - MEMORY)
        newest = units[first:]
        for unit in self._numbers.keys() & newest:  # forgotten a moment ago: it goes to the end
            del self._numbers[unit]
        self._numbers.update(zip(newest, range(self.count + first, self.count + len(units)), strict=True))
        self._arms.update(zip(newest, arms[first:], strict=True))
        self.count += len(units)
        for unit in list(itertools.islice(self._numbers, max(0, len(self._numbers) - MEMORY))):
            del self._numbers[unit], self._arms[unit]

    def to_json(self) -> dict[str, Any]:
        arms = "".join(str(_ARMS.index(self._arms[unit])) for unit in self._numbers)
        return {"count": self.count, "units": list(self._numbers), "arms": arms}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SeenUnits":
        seen = cls()
        seen.count = data["count"] - len(data["units"])
        seen.add(data["units"], [_ARMS[int(arm)] for arm in data["arms"]])
        return seen
