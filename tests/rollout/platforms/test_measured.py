"""Calls of a platform are counted by how they ended, and go through unchanged."""

from __future__ import annotations

import pytest

from services.rollout.platforms.base import PlatformRejected, PlatformUnavailable
from services.rollout.platforms.measured import MeasuredPlatform
from tests.fakes.platform import FakePlatform
from tests.fakes.rollout_rows import HandClock


async def test_how_calls_end_is_told() -> None:
    told: list[tuple[str, str, float]] = []
    clock, inner = HandClock(), FakePlatform()
    platform = MeasuredPlatform(inner, clock, lambda *call: told.append(call))
    assert await platform.observe("assistant") == {}
    inner.away = True
    with pytest.raises(PlatformUnavailable):
        await platform.remove("assistant-v1-aaaa")

    class Refusing(FakePlatform):
        async def scale(self, name: str, replicas: tuple[int, int]) -> None:
            clock.sleep(2.0)
            raise PlatformRejected("no")

    refusing = MeasuredPlatform(Refusing(), clock, lambda *call: told.append(call))
    with pytest.raises(PlatformRejected):
        await refusing.scale("assistant-v1-aaaa", (1, 1))
    assert told == [("observe", "ok", 0.0), ("remove", "unavailable", 0.0), ("scale", "rejected", 2.0)]
