"""What the probes hear: a loop that hangs, a store that is away."""

from __future__ import annotations

import asyncio

import pytest

from services.rollout import health as module
from services.rollout.health import STUCK_SECONDS, Health
from tests.fakes.rollout_rows import HandClock


def test_a_loop_that_turns_no_more_is_told() -> None:
    clock = HandClock()
    health = Health(clock, {})
    health.turned("slow", 60.0)
    health.turned("quick", 1.0)
    clock.now += STUCK_SECONDS + 30
    assert health.stuck() == ["quick"]
    health.turned("quick", 1.0)
    assert health.stuck() == []
    clock.now += STUCK_SECONDS + 100
    health.ended("slow")
    assert health.stuck() == ["quick"]


async def test_what_is_away_is_named() -> None:
    async def there() -> None:
        pass

    async def refuses() -> None:
        raise ConnectionRefusedError("no route")

    health = Health(HandClock(), {"store": there, "API server": refuses})
    assert await health.missing() == ["API server: no route"]


async def test_what_hangs_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "ASK_SECONDS", 0.01)
    missing = await Health(HandClock(), {"store": hangs}).missing()
    assert missing[0].startswith("store: no answer")
