"""LoRA adapters on any platform: revisions that an engine serves beside its base, without a process of their own.

Made by the controller around a service's platform. An adapter is put where its engine looks for it (`services.serving.adapters`), and the
engine loads it when it is first asked, in each replica by itself; nobody calls a replica to load anything. It is ready once it has answered
completions under its own name. It must not start or stop engines on its own account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from services.rollout.platforms.base import (
    Platform,
    PlatformRejected,
    PlatformUnavailable,
    RevisionSpec,
    RevisionState,
)
from services.rollout.platforms.warm_up import WarmUps
from services.serving.adapters import adapters_folder, install, installed, uninstall


class AdapterPlatform:
    """A `Platform` for one service: what `inner` runs, and the adapters on it.

    `cache` is where the controller keeps versions' files. Engines of platform `serve` read it under the same path; those of `kuberay`
    where the resource's `engine.artifactCache` is `volume`, on which `cache` lies.
    """

    def __init__(
        self,
        inner: Platform,
        session: aiohttp.ClientSession,
        service: str,
        cache: Path,
        volume: Mapping[str, Any] | None = None,
    ) -> None:
        self._inner, self._service, self._cache, self._volume = inner, service, cache.resolve(), volume
        self._proxied, self._direct = WarmUps(session), WarmUps(session)
        self._directs: dict[str, str | None] = {}
        self._engines: dict[str, str] | None = None
        """By adapter: its engine. This object alone writes to the service's folder, so it is read once."""

    async def apply(self, revision: RevisionSpec) -> None:
        """See `Platform.apply`. Raises PlatformRejected where engines do not read the controller's cache."""
        if revision.base is None:
            await self._inner.apply(revision)
            return
        if revision.platform != "serve" and (
            self._volume is None or revision.pod.get("artifactCache") != dict(self._volume)
        ):
            where = "has no volume" if self._volume is None else f"is {dict(self._volume)}"
            raise PlatformRejected(
                "an adapter's files come to the engine through a volume that it shares with the controller: spec.engine.artifactCache "
                f"is {revision.pod.get('artifactCache') or 'not set'}, the controller's cache {where}"
            )
        folder = adapters_folder(self._cache, self._service, revision.base) / revision.name
        try:
            await asyncio.to_thread(install, Path(revision.artifact), folder)
        except OSError as error:
            raise PlatformUnavailable(f"adapter {revision.name} cannot be put into {folder}: {error}") from error
        (await self._known())[revision.name] = revision.base

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        """See `Platform.scale`; an adapter has as many as its engine."""
        if name not in await self._known():
            await self._inner.scale(name, replicas)

    async def remove(self, name: str) -> None:
        """See `Platform.remove`. An engine may keep a removed adapter in memory until another needs the room."""
        engine = (await self._known()).get(name)
        if engine is None:
            await self._inner.remove(name)
            return
        self._forget(name)
        folder = adapters_folder(self._cache, self._service, engine) / name
        try:
            await asyncio.to_thread(uninstall, folder)
        except OSError as error:
            raise PlatformUnavailable(f"{folder} cannot be deleted: {error}") from error
        (await self._known()).pop(name, None)

    async def observe(self, service: str) -> dict[str, RevisionState]:
        """See `Platform.observe`: engines, and adapters under their own names."""
        states = await self._inner.observe(service)
        for name, engine in (await self._known()).items():
            states[name] = self._state(name, engine, states.get(engine))
        return states

    async def close(self) -> None:
        """See `Platform.close`."""
        await self._proxied.close()
        await self._direct.close()
        await self._inner.close()

    def _state(self, name: str, base: str, engine: RevisionState | None) -> RevisionState:
        if engine is None or engine.phase != "ready" or engine.address is None:
            self._forget(name)
            phase = "absent" if engine is None else engine.phase
            return RevisionState(name, "starting", 0, None, f"its engine {base} is {phase}", base=base)
        if not self._proxied.answered(name, engine.address):
            message = self._proxied.message(name)
            return RevisionState(
                name, "failed" if self._proxied.refused(name) else "starting", 0, None, message, base=base
            )
        if self._directs.get(name) != engine.direct:  # another replica, which has not answered yet
            self._direct.forget(name)
            self._directs[name] = engine.direct
        direct = engine.direct if engine.direct and self._direct.answered(name, engine.direct) else None
        return RevisionState(name, "ready", engine.ready_replicas, engine.address, "", direct, base=base)

    def _forget(self, name: str) -> None:
        self._proxied.forget(name)
        self._direct.forget(name)
        self._directs.pop(name, None)

    async def _known(self) -> dict[str, str]:
        if self._engines is None:
            try:
                self._engines = await asyncio.to_thread(installed, self._cache, self._service)
            except OSError as error:
                raise PlatformUnavailable(f"{self._cache} cannot be read: {error}") from error
        return self._engines
