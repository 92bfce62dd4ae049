"""File mode: keeps the services of one YAML file reconciled, one task a service, and reads the file again when it changes. Started by
`__main__`; in a cluster the operator's handlers take this module's place and call the same `Reconciler`.

Acts only while it holds the store's lock; another controller beside it stands by.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from services.common.clock import Clock
from services.rollout.errors import InvalidResource, LockHeld
from services.rollout.loading import load
from services.rollout.lock import Lock
from services.rollout.metrics import Metrics
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.store import StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
"""Pause after a look that failed, and between questions for the lock and for the file's changes."""


class Controller:
    """All services of a file."""

    def __init__(
        self,
        config: Path,
        lock: Lock,
        reconciler: Callable[[LLMService], Reconciler],
        judging: Callable[[LLMService], asyncio.Task[None] | None],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        """`reconciler` and `judging` make the parts of a service; `judging` gives None where nothing is judged."""
        self._config, self._lock, self._clock = config, lock, clock
        self._make, self._make_judging, self._metrics = reconciler, judging, metrics
        self._services: dict[str, LLMService] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._read_at: tuple[int, int] | None = None
        self.standing_by = True

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            InvalidResource: the file is wrong at the start; later a wrong file is reported and the old one stays in force.
        """
        self._services = self._load()
        try:
            while True:
                await self._hold_lock()
                self._follow_file()
                self._follow_services()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await self._stop(list(self._tasks))
            self._lock.release()

    async def _hold_lock(self) -> None:
        """Returns once the lock is ours; without it nothing acts."""
        while True:
            try:
                await asyncio.to_thread(self._lock.take)
            except LockHeld as error:
                if not self.standing_by or self._read_at is None:
                    log.warning("standing by: %s", error)
                self.standing_by = True
                await self._stop(list(self._tasks))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.standing_by = False
                return

    def _load(self) -> dict[str, LLMService]:
        return {service.name: service for service in load(self._config)}

    def _follow_file(self) -> None:
        try:
            found = self._config.stat()
        except OSError as error:
            log.error("%s: %s; the last version stays in force", self._config, error)
            return
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp == self._read_at:
            return
        first, self._read_at = self._read_at is None, stamp
        try:
            self._services = self._load()
        except InvalidResource as error:
            log.error("the changed file is wrong, the last version stays in force:\n%s", error)
            return
        if not first:
            log.info("%s was read again: %s", self._config, ", ".join(self._services))

    def _follow_services(self) -> None:
        """A task for each service of the file. One that left it is let alone: it serves on, and nothing decides about it any more."""
        for name in [name for name in self._tasks if name not in self._services]:
            log.warning("service %s has left the file; it serves on without a controller", name)
            self._tasks.pop(name).cancel()
        for name in self._services:
            task = self._tasks.get(name)
            if task is None or task.done():
                self._tasks[name] = asyncio.create_task(self._keep(name), name=f"service {name}")

    async def _keep(self, name: str) -> None:
        service = self._services[name]
        reconciler = self._make(service)
        judging = self._make_judging(service)
        try:
            while True:
                if self._services[name] is not service:
                    service = reconciler.service = self._services[name]
                    if judging is not None:
                        judging.cancel()
                    judging = self._make_judging(service)
                started = self._clock.monotonic()
                pause = service.spec.rollout.look if await self._look(name, reconciler) else RETRY_SECONDS
                await asyncio.sleep(max(0.0, pause - (self._clock.monotonic() - started)))
        finally:
            if judging is not None:
                judging.cancel()
            await reconciler.close()

    async def _look(self, name: str, reconciler: Reconciler) -> bool:
        try:
            await asyncio.to_thread(self._lock.take)
            decision = await reconciler.look()
        except LockHeld as error:
            log.warning("%s: no look without the lock: %s", name, error)
            return False
        except StoreError as error:
            log.warning("%s: the store is away, nothing was decided: %s", name, error)
            self._metrics.failed(name)
            return False
        except (
            Exception
        ):  # a fault of one look must not end the service's control; it is told at every look until it is gone
            log.exception("%s: the look failed", name)
            self._metrics.failed(name)
            return False
        self._metrics.looked(name, decision.status)
        return True

    async def _stop(self, names: list[str]) -> None:
        tasks = [self._tasks.pop(name) for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
