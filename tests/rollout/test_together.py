"""What many services ask at once is asked once, and the fault of one is not the others'."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

from services.rollout.together import Together
from services.store import StoreUnavailable


class Asked:
    """Answers with the names in capitals, once it may; `bad` cannot be read, and `away` are all."""

    def __init__(self, bad: str | None = None, away: bool = False) -> None:
        self.calls: list[set[str]] = []
        self.bad, self.away = bad, away
        self.may = threading.Event()
        self.may.set()

    def __call__(self, services: Collection[str]) -> dict[str, str]:
        self.calls.append(set(services))
        assert self.may.wait(10)
        if self.away:
            raise StoreUnavailable("away")
        if self.bad in services:
            raise ValueError(f"{self.bad} cannot be read")
        return {service: service.upper() for service in services}


async def test_who_asks_at_once_or_meanwhile_is_asked_for_together() -> None:
    asked = Asked()
    together = Together(asked)
    asked.may.clear()
    first = [asyncio.create_task(together.of(name)) for name in "ab"]
    while not asked.calls:
        await asyncio.sleep(0)
    later = [asyncio.create_task(together.of(name)) for name in "cde"]
    later[2].cancel()
    await asyncio.sleep(0)
    asked.may.set()
    assert await asyncio.gather(*first, *later[:2]) == ["A", "B", "C", "D"]
    assert asked.calls == [{"a", "b"}, {"c", "d"}]
    assert await together.of("f") == "F"


async def test_the_fault_of_one_is_not_the_others() -> None:
    asked = Asked(bad="b")
    together = Together(asked)
    found = await asyncio.gather(*(together.of(name) for name in "abc"), return_exceptions=True)
    assert (found[0], found[2]) == ("A", "C")
    assert isinstance(found[1], ValueError)


async def test_a_store_that_is_away_is_asked_once_for_all() -> None:
    asked = Asked(away=True)
    together = Together(asked)
    found = await asyncio.gather(*(together.of(name) for name in "abc"), return_exceptions=True)
    assert [type(error) for error in found] == [StoreUnavailable] * 3
    assert len(asked.calls) == 1
    asked.away = False
    assert await together.of("a") == "A"
