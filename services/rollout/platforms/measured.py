"""A platform whose calls are counted and timed; all else is the other platform's. Put around it by `parts`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.clock import Clock
from services.rollout.platforms.base import Platform, PlatformRejected, PlatformUnavailable, RevisionSpec, RevisionState

Answer = TypeVar("Answer")


class MeasuredPlatform:
    """A Platform. `called` is told of each call: its name, how it ended, its seconds."""

    def __init__(self, platform: Platform, clock: Clock, called: Callable[[str, str, float], None]) -> None:
        self._platform, self._clock, self._called = platform, clock, called

    async def apply(self, revision: RevisionSpec) -> None:
        """See Platform."""
        await self._measured("apply", self._platform.apply(revision))

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        """See Platform."""
        await self._measured("scale", self._platform.scale(name, replicas))

    async def remove(self, name: str) -> None:
        """See Platform."""
        await self._measured("remove", self._platform.remove(name))

    async def observe(self, service: str) -> dict[str, RevisionState]:
        """See Platform."""
        return await self._measured("observe", self._platform.observe(service))

    async def close(self) -> None:
        """See Platform."""
        await self._platform.close()

    async def _measured(self, call: str, answer: Awaitable[Answer]) -> Answer:
        began, result = self._clock.monotonic(), "error"
        try:
            given = await answer
            result = "ok"
        except PlatformUnavailable:
            result = "unavailable"
            raise
        except PlatformRejected:
            result = "rejected"
            raise
        finally:
            self._called(call, result, self._clock.monotonic() - began)
        return given
