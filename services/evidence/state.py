"""Saving exactly: numbers and unit names as compact JSON text. Used by the classes here that serialise; no mathematics.

Arrays travel as base64 of little-endian 64-bit words, so that a restored state continues bit for bit and infinities
survive strict JSON.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evidence.errors import StateFault

Floats = NDArray[np.float64]
VERSION = 1


def pack(values: Floats | list[float]) -> str:
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
    """Which arm each unit was seen in. Keeps 64-bit digests: a million units collide with probability 3e-8."""

    def __init__(self) -> None:
        self._arms: dict[int, str] = {}

    @staticmethod
    def _digest(unit: str) -> int:
        return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "little")

    def arm_of(self, unit: str) -> str | None:
        return self._arms.get(self._digest(unit))

    def add(self, unit: str, arm: str) -> None:
        self._arms[self._digest(unit)] = arm

    def to_json(self) -> dict[str, str]:
        arms: dict[str, list[int]] = {}
        for digest, arm in self._arms.items():
            arms.setdefault(arm, []).append(digest)
        return {arm: base64.b64encode(np.array(seen, dtype="<u8").tobytes()).decode() for arm, seen in arms.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> "SeenUnits":
        seen = cls()
        for arm, text in data.items():
            seen._arms.update(dict.fromkeys(np.frombuffer(base64.b64decode(text), dtype="<u8").tolist(), arm))
        return seen
