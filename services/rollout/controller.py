"""Keeps services reconciled, one task a service, while this process holds the store's lock; another controller beside it stands by.
Started by `__main__`. Where services come from and how one is kept is a `Source`: here the file mode's; `operator.cluster` has a cluster's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from services.common import events
from services.rollout import loop as loops
from services.rollout.errors import InvalidResource, LockHeld
from services.rollout.loading import load
from services.rollout.lock import Lock
from services.rollout.loop import ServiceLoop
from services.rollout.resources import LLMService

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where services come from."""

    async def refresh(self) -> None:
        """Called every few seconds while the lock is held."""
        ...

    def services(self) -> Collection[str]:
        """What is to be kept now, under whatever name the source gives it."""
        ...

    async def keep(self, name: str) -> None:
        """Keeps one until cancelled, or until it is no more."""
        ...

    async def stand_by(self) -> None:
        """The lock is not held (any more), or the process ends."""
        ...


class Controller:
    """All services of a source."""

    def __init__(self, source: Source, lock: Lock) -> None:
        self._source, self._lock = source, lock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.standing_by: bool | None = None
        """None: the lock was never asked for."""

    async def run(self) -> None:
        """Until cancelled. Whatever `refresh` raises ends it."""
        try:
            while True:
                await self._hold_lock()
                await self._source.refresh()
                self._follow()
                await asyncio.sleep(loops.RETRY_SECONDS)
        finally:
            await self._stop()
            self._lock.release()

    async def _hold_lock(self) -> None:
        """Returns once the lock is ours; without it nothing acts."""
        while True:
            try:
                await asyncio.to_thread(self._lock.take)
            except LockHeld as error:
                if not self.standing_by:
                    log.warning(events.LOCK_AWAY, {"error": error})
                self.standing_by = True
                await self._stop()
                await asyncio.sleep(loops.RETRY_SECONDS)
            else:
                if self.standing_by:
                    log.info(events.LOCK_TAKEN)
                self.standing_by = False
                return

    def _follow(self) -> None:
        """A task for each service; one that has left is not decided about any more."""
        wanted = set(self._source.services())
        for name in [name for name in self._tasks if name not in wanted]:
            self._tasks.pop(name).cancel()
        for name in wanted:
            task = self._tasks.get(name)
            if task is None or task.done():
                if task is not None and not task.cancelled() and (error := task.exception()) is not None:
                    log.error(events.SERVICE_CRASHED, {"service": name}, exc_info=error)
                self._tasks[name] = asyncio.create_task(self._source.keep(name), name=f"service {name}")

    async def _stop(self) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.stand_by()


class FileSource:
    """File mode: the services of one YAML file, which is read again when it changes."""

    def __init__(self, config: Path, loop: Callable[[LLMService], ServiceLoop]) -> None:
        """`loop` makes the loop of a service.

        Raises:
            InvalidResource: the file is wrong; later a wrong file is reported and the old one stays in force.
        """
        self._config, self._loop = config, loop
        self._services = self._load()
        self._read_at: tuple[int, int] | None = None

    async def refresh(self) -> None:
        """Reads the file if it has changed."""
        try:
            stamp = self._stamp()
        except OSError as error:
            log.error(events.FILE_UNREADABLE, {"file": self._config, "error": error})
            return
        if stamp == self._read_at:
            return
        first, self._read_at = self._read_at is None, stamp
        before = self._services
        try:
            self._services = self._load()
        except InvalidResource as error:
            log.error(events.FILE_WRONG, {"file": self._config, "error": error})
            return
        if not first:
            log.info(events.FILE_READ, {"file": self._config, "services": ", ".join(self._services)})
        for name in before.keys() - self._services.keys():
            log.warning(events.SERVICE_LEFT, {"service": name})

    def services(self) -> Collection[str]:
        """See `Source`."""
        return self._services

    async def keep(self, name: str) -> None:
        """See `Source`."""
        loop = self._loop(self._services[name])
        try:
            while True:
                loop.follow(self._services[name])
                decision = await loop.look()
                await loop.rest(loop.pause(decision) if decision is not None else loops.RETRY_SECONDS)
        finally:
            await loop.close()

    async def stand_by(self) -> None:
        """See `Source`."""

    def _stamp(self) -> tuple[int, int]:
        found = self._config.stat()
        return found.st_mtime_ns, found.st_size

    def _load(self) -> dict[str, LLMService]:
        return {service.name: service for service in load(self._config)}
