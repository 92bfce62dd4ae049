"""What the probes ask: whether every service's loop still turns, and whether what the controller cannot do without is there. Fed by the
loops; asked over HTTP (`metrics.health_app`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from services.common.clock import Clock

STUCK_SECONDS: Final = 300.0
"""A loop that has not ended a turn this long after its next one was due hangs: every wait within a turn is shorter."""
ASK_SECONDS: Final = 4.0

Question = Callable[[], Awaitable[object]]


class Health:
    """Liveness and readiness of one controller."""

    def __init__(self, clock: Clock, needs: Mapping[str, Question]) -> None:
        """`needs`: by name, what raises when it is away."""
        self._clock, self._needs = clock, needs
        self._due: dict[str, float] = {}

    def turned(self, service: str, pause: float) -> None:
        """The service's loop has ended a turn; the next comes after `pause` seconds."""
        self._due[service] = self._clock.monotonic() + pause

    def ended(self, service: str) -> None:
        """The service has no loop any more."""
        self._due.pop(service, None)

    @property
    def services(self) -> int:
        """How many services have a loop."""
        return len(self._due)

    def stuck(self) -> list[str]:
        """Services whose loop hangs."""
        now = self._clock.monotonic()
        return sorted(service for service, due in self._due.items() if now > due + STUCK_SECONDS)

    async def missing(self) -> list[str]:
        """What is away now, with the reason."""
        found = await asyncio.gather(*(self._ask(name, question) for name, question in self._needs.items()))
        return [line for line in found if line]

    async def _ask(self, name: str, question: Question) -> str:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await question()
        except TimeoutError:
            return f"{name}: no answer within {ASK_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001  # whatever keeps it from answering: it is not there
            return f"{name}: {error}"
        return ""
