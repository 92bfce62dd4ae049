"""One call for what many services ask at once. A thousand loops that each send a thread to the store cost more than what they ask for.

Used for what every look begins with: that the lock is held, and where the service stands in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

from services.rollout.errors import LockHeld
from services.store import StoreError

Answer = TypeVar("Answer")


class Together(Generic[Answer]):
    """`ask` blocks and answers for several services; it runs in a thread, once at a time, for all that asked since it last began."""

    def __init__(self, ask: Callable[[Collection[str]], Mapping[str, Answer]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[str, asyncio.Future[Answer]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def of(self, service: str) -> Answer:
        """The answer for one. Raises what `ask` raises."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((service, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, []
            try:
                await self._answer(asked)
            except asyncio.CancelledError:
                for _, answer in asked:
                    answer.cancel()
                raise

    async def _answer(self, asked: list[tuple[str, asyncio.Future[Answer]]]) -> None:
        try:
            found = await asyncio.to_thread(self._ask, {service for service, _ in asked})
        except Exception as error:  # noqa: BLE001  # whoever asked raises it
            # Store and lock are away for all. Anything else is the fault of one, and the others must not suffer from it.
            if len(asked) > 1 and not isinstance(error, StoreError | LockHeld):
                for one in asked:
                    await self._answer([one])
                return
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for service, answer in asked:
                if not answer.done():  # else whoever asked has been cancelled
                    answer.set_result(found[service])
