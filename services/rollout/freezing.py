"""Freeze windows: whether nothing may go forward now. Pure; used by `decide`.

Times are wall-clock times of the window's zone. A window that begins in a gap of the clock (spring) or in its repetition (autumn) is
taken as `zoneinfo` takes it with fold 0: by the offset before the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from services.rollout.resources import FreezeWindow

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONGEST: Final = 14
"""Windows that follow upon each other are joined so many times; a week frozen from end to end has no end to name."""


def frozen_until(windows: Sequence[FreezeWindow], now: float) -> float | None:
    """When the freeze in force at `now` ends (windows that touch count as one); None: nothing is frozen. Seconds since the epoch."""
    until = None
    for _ in range(_LONGEST):
        ends = [end for window in windows if (end := _end(window, now if until is None else until)) is not None]
        if not ends:
            break
        until = max(ends)
    return until


def _end(window: FreezeWindow, at: float) -> float | None:
    zone = ZoneInfo(window.time_zone)
    today = datetime.fromtimestamp(at, zone).date()
    for day in (today - timedelta(days=1), today):
        if _DAYS[day.weekday()] not in window.days:
            continue
        following = 0 if window.to > window.from_ else 1
        begin, end = _moment(day, window.from_, zone), _moment(day + timedelta(days=following), window.to, zone)
        if begin <= at < end:
            return end
    return None


def _moment(day: date, clock: str, zone: ZoneInfo) -> float:
    if clock == "24:00":
        day, clock = day + timedelta(days=1), "00:00"
    return datetime.combine(day, time.fromisoformat(clock), zone).timestamp()
