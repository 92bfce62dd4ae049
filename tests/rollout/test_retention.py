"""Retention: the resource's ages reach the store, service by service, and a store that is away is waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from services.rollout.resources import LLMService
from services.rollout.retention import PERIOD, sweep
from services.store import StoreUnavailable

DAY = 86_400.0


class Recorded:
    """A store that remembers what was asked of it; away the first time."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, float]] = []
        self.summed: list[str] = []

    def now(self) -> float:
        return 1000 * DAY

    def sum_usage(self, service: str) -> int:
        self.summed.append(service)
        return 0

    def prune(self, service: str, older_than: float, audit_older_than: float) -> int:
        self.asked.append((service, older_than, audit_older_than))
        if len(self.asked) == 1:
            raise StoreUnavailable("away")
        return 3


async def test_rows_go_at_the_age_that_the_resource_names() -> None:
    resource = LLMService.model_validate(
        {
            "metadata": {"name": "assistant"},
            "spec": {"model": {"registeredModel": "a"}, "retention": {"observations": "7d", "audit": "90d"}},
        }
    )
    store, naps = Recorded(), []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await asyncio.sleep(0)

    task = asyncio.create_task(sweep(resource, store, sleep))  # type: ignore[arg-type]
    await _until(lambda: len(store.asked) >= 2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert store.asked[1] == ("assistant", 993 * DAY, 910 * DAY)
    assert len(store.summed) >= 2  # before each deletion
    assert 0 <= naps[0] < PERIOD
    assert naps[1] == PERIOD


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not holds():
            await asyncio.sleep(0.001)
