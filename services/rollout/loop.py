"""The loop of one service, the same for a file's services and a cluster's: a look at a time, under the store's lock, told to metrics and
health, never ended by a fault of one look. Driven by `controller` and by `operator.resource`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

from services.common import events
from services.common.clock import Clock
from services.rollout.decide import Decision
from services.rollout.errors import LockHeld
from services.rollout.health import Health
from services.rollout.metrics import Metrics
from services.rollout.reconcile import Look, Reconciler
from services.rollout.removal import Retirement
from services.rollout.resources import LLMService
from services.rollout.together import Together
from services.store import StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
"""Pause after a look that failed, and between questions for the lock."""

IDLE_SECONDS: Final = 2.0
"""Longest pause while nothing is rolled out: so soon a moved alias is seen, as long as few services ask the registry."""
FEW_SERVICES: Final = 50
HURRIED_SECONDS: Final = 0.5
"""Longest pause while a rollout waits for an engine or for gateways, and not for users."""

MOMENTS: Final = 20
"""Within one pause, at which looks begin."""

Seen = TypeVar("Seen")


class ServiceLoop:
    """One service's looks, and the tasks beside them: judge, notifications, retention."""

    def __init__(
        self,
        service: LLMService,
        hold: Together[None],
        reconciler: Callable[[LLMService], Reconciler],
        beside: Callable[[LLMService], Collection[asyncio.Task[None]]],
        metrics: Metrics,
        health: Health,
        clock: Clock,
    ) -> None:
        """`hold` makes sure that the lock is ours. `reconciler` and `beside` make the parts of a service; `beside` starts the tasks that
        run between its looks."""
        self.service = service
        self._hold, self._metrics, self._health, self._clock = hold, metrics, health, clock
        self._reconciler = reconciler(service)
        self._make_beside = beside
        self._beside = beside(service)
        self._awake = asyncio.Event()
        self._started = clock.monotonic()
        health.turned(service.name, 0.0)

    @property
    def last(self) -> Look | None:
        """What the last look saw."""
        return self._reconciler.last

    def follow(self, service: LLMService) -> None:
        """From the next look on the resource is this one."""
        if service is self.service or service == self.service:
            return
        self.service = self._reconciler.service = service
        self._stop_beside()
        self._beside = self._make_beside(service)

    async def look(self) -> Decision | None:
        """One look; None: it failed, and why was told."""
        decision = await self._turn(self._reconciler.look)
        if decision is not None:
            self._metrics.looked(
                self.service.name,
                decision,
                self.last.readings if self.last is not None else (),
                self.last.drift if self.last is not None else (),
                self.last.prompts if self.last is not None else (),
                at=self._clock.time(),
                seconds=self._clock.monotonic() - self._started,
                interval=self.pause(decision),
            )
        return decision

    async def retire(self) -> Retirement | None:
        """One look at the end of the service; None: it failed, and why was told."""
        retirement = await self._turn(self._reconciler.retire)
        if retirement is not None:
            self._metrics.gone(self.service.name)
        return retirement

    def pause(self, decision: Decision) -> float:
        """Seconds from this look to the next: `rollout.look` where evidence is gathered, at most that elsewhere."""
        look, rollout = self.service.spec.rollout.look, decision.status.rollout
        if rollout is not None and rollout.active:
            return look if rollout.stage_started_at is not None else min(look, HURRIED_SECONDS)
        return min(look, IDLE_SECONDS) if self._health.services <= FEW_SERVICES else look

    async def rest(self, pause: float) -> None:
        """Until `pause` seconds after the last look began, or until somebody wakes it."""
        due = self._started + pause
        # Loops of one pause are due at the same moments, a few of them at each: what they ask for is then asked together.
        grid = pause / MOMENTS
        left = max(0.0, round(due / grid) * grid - self._clock.monotonic()) if grid > 0 else 0.0
        self._health.turned(self.service.name, left)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._awake.wait()
        self._awake.clear()

    def wake(self) -> None:
        """The next look is due now."""
        self._awake.set()

    async def close(self) -> None:
        """Ends what runs beside the looks."""
        self._health.ended(self.service.name)
        self._stop_beside()
        await self._reconciler.close()

    def _stop_beside(self) -> None:
        for task in self._beside:
            task.cancel()
        self._beside = ()

    async def _turn(self, work: Callable[[], Awaitable[Seen]]) -> Seen | None:
        name = self.service.name
        self._started = self._clock.monotonic()
        try:
            await self._hold.of(name)
            return await work()
        except LockHeld as error:
            log.warning(events.LOOK_LOCKED, {"service": name, "error": error})
            self._metrics.gone(name)  # whoever has it tells what there is; two would contradict each other
            return None
        except StoreError as error:
            log.warning(events.LOOK_WITHOUT_STORE, {"service": name, "error": error})
        except (
            Exception
        ):  # a fault of one look must not end the service's control; it is told at every look until it is gone
            log.exception(events.LOOK_CRASHED, {"service": name})
        self._metrics.failed(name)
        return None
