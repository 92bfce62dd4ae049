"""Time, injected everywhere: production passes `SystemClock`, tests a clock they move by hand.

Wall-clock times are seconds since the epoch (UTC) and order events between machines; durations come from `monotonic` only.
"""

from __future__ import annotations

import time
import zlib
from datetime import UTC, datetime
from typing import Final, Literal, Protocol

HOUR: Final = 3_600.0
"""Seconds."""
DAY: Final = 86_400.0
"""Seconds."""


class Clock(Protocol):
    """What the services ask of time."""

    def time(self) -> float:
        """Seconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never runs backwards."""
        ...


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def turn(name: str, period: float) -> float:
    """When in each period a service has its turn, in seconds from the period's start: a thousand services do not come at once."""
    return zlib.crc32(name.encode()) / 2**32 * period


def rfc3339(seconds: float, timespec: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """Seconds since the epoch as RFC 3339 writes a time in UTC: `2026-03-01T09:30:00Z`; what is finer than `timespec` is cut off."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
