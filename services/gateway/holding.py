"""Requests that wait for an engine to start: services whose last replica may end while nobody asks (`Route.hold`).

A request goes to the engine as ever; the platform's proxy keeps it, and starts a replica for it. Here it is counted, from the moment that
the engine shows no sign of life, so that not more wait than the service allows; sent again where the proxy cannot keep it; and given up
when the start takes too long. Used by the hot path. It decides nothing about arms, and records nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import aiohttp

from services.common.routing import Hold
from services.gateway.errors import AttemptFailed, EngineStarting
from services.gateway.metrics import Metrics
from services.gateway.upstream import Attempt

PAUSE_SECONDS: Final = (0.25, 2.0)
"""Before a request is sent again: at first, and at most."""
RETRY_AFTER_SECONDS: Final = 30.0
"""What a refused client is told."""


class _Room:
    """Those who wait for one revision's engine."""

    def __init__(self) -> None:
        self.held = 0
        self.answered_at = float("-inf")
        """When the engine last began an answer; the loop's time."""


class WaitingRooms:
    """The waiting requests of this gateway.

    Args:
        silence: seconds without an answer, from an engine that nobody had one from lately, after which a request waits for a start.
        revisions: those of the routing table, so that rooms of others can go.
    """

    def __init__(self, metrics: Metrics, silence: float, revisions: Callable[[], set[str]]) -> None:
        self._metrics, self._silence, self._revisions = metrics, silence, revisions
        self._rooms: dict[str, _Room] = {}

    @contextlib.contextmanager
    def enter(self, service: str, revision: str, hold: Hold, patience: float, until: float) -> Iterator[Place]:
        """A request's stay from before it is sent until its first bytes; its place is free again whatever comes of it.

        Args:
            patience: seconds to the first bytes of an engine that runs.
            until: the loop's time at which waiting ends, whatever the engine does.

        Raises:
            EngineStarting: as many wait as may.
        """
        room = self._rooms.get(revision)
        if room is None:
            known = self._revisions()
            self._rooms = {name: kept for name, kept in self._rooms.items() if name in known or kept.held}
            room = self._rooms[revision] = _Room()
        gauge = self._metrics.held.labels(service)
        place = Place(room, hold, self._silence, patience, until, gauge.inc)
        try:
            if room.held >= hold.requests:
                raise place.refusal()
            yield place
        except EngineStarting as refusal:
            self._metrics.refused(service, refusal.code or refusal.type)
            raise
        finally:
            if place.leave():
                gauge.dec()


class Place:
    """One request's stay; made by `WaitingRooms`."""

    def __init__(
        self, room: _Room, hold: Hold, silence: float, patience: float, until: float, took: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._room, self._hold, self._silence, self._until, self._took = room, hold, silence, until, took
        self._patient_until = self._loop.time() + patience
        self._limit: asyncio.Timeout | None = None
        self._pause, self._longest_pause = PAUSE_SECONDS
        self._refused = False
        self.held = False
        """Whether it waits, or waited, for a start: what it measures is not the revision's doing."""
        self._timer = self._loop.call_later(silence, self._look)

    def refusal(self) -> EngineStarting:
        """What the client is told."""
        return EngineStarting(RETRY_AFTER_SECONDS, f"{self._hold.requests} requests wait for it already")

    async def open(self, attempt: Attempt, session: aiohttp.ClientSession, request_id: str) -> bool:
        """Opens the attempt; False where no engine took it and it is to be sent again after a pause.

        Raises:
            EngineStarting: the room is full, or the start took too long.
            AttemptFailed: the engine runs, and failed or took too long.
        """
        try:
            async with asyncio.timeout_at(self._until) as self._limit:
                # Its own limit lies behind ours, which may be moved while it waits.
                await attempt.open(session, request_id, self._until - self._loop.time() + 1.0)
        except AttemptFailed as failure:
            if not failure.from_proxy:
                self._room.answered_at = self._loop.time()
                raise
            if not self._take():
                raise self.refusal() from failure
            return False
        except TimeoutError:
            attempt.close()
            if self._refused:
                raise self.refusal() from None
            if self.held:
                raise self._too_long() from None
            raise attempt.timed_out() from None
        self._room.answered_at = self._loop.time()
        return True

    async def pause(self) -> None:
        """Between two attempts. Raises EngineStarting: there is no time for another."""
        if self._loop.time() + self._pause >= self._until:
            raise self._too_long()
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, self._longest_pause)

    def leave(self) -> bool:
        """Ends the stay; whether it had taken a place."""
        self._timer.cancel()
        if self.held:
            self._room.held -= 1
        return self.held

    def _take(self) -> bool:
        if not self.held and self._room.held < self._hold.requests:
            self.held = True
            self._room.held += 1
            self._took()
        return self.held

    def _look(self) -> None:
        """From time to time while nothing comes: does the engine run?"""
        now = self._loop.time()
        runs = now - self._room.answered_at < self._hold.awake
        if self.held or (not runs and self._take()):
            return
        if runs and now < self._patient_until:
            self._timer = self._loop.call_at(min(now + self._silence, self._patient_until), self._look)
            return
        self._refused = not runs
        if self._limit is not None:
            self._limit.reschedule(now)

    def _too_long(self) -> EngineStarting:
        return EngineStarting(RETRY_AFTER_SECONDS, f"it has not started within {self._hold.seconds:g} s")
