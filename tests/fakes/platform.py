"""A platform in memory, for tests of the controller: engines start when they are told to, fail when they are told to."""

from __future__ import annotations

from dataclasses import replace

from services.rollout.platforms.base import PlatformUnavailable, RevisionSpec, RevisionState


class FakePlatform:
    """Implements `services.rollout.platforms.base.Platform`. `address` is where a ready engine answers, or a dict of it by name."""

    def __init__(self, address: str | dict[str, str] = "http://engine/v1", *, ready_at_once: bool = True) -> None:
        self.address = address
        self.ready_at_once = ready_at_once
        self.engines: dict[str, RevisionState] = {}
        self.applied: list[RevisionSpec] = []
        self.removed: list[str] = []
        self.scaled: list[tuple[str, tuple[int, int]]] = []
        self.failures: dict[str, str] = {}
        """Version's weights artifact -> last words of the engine that tries to serve them."""
        self.away = False

    async def apply(self, revision: RevisionSpec) -> None:
        self._answer()
        self.applied.append(revision)
        state = RevisionState(revision.name, "starting", 0, None, "loading weights", replicas=revision.replicas)
        if revision.artifact in self.failures:
            state = replace(state, phase="failed", message=self.failures[revision.artifact])
        self.engines[revision.name] = state
        if self.ready_at_once and state.phase == "starting":
            self.make_ready(revision.name, revision.replicas[0])

    def make_ready(self, name: str, replicas: int = 1) -> None:
        """The engine has answered its first completions."""
        address = self.address if isinstance(self.address, str) else self.address[name]
        self.engines[name] = RevisionState(name, "ready", replicas, address, "", replicas=self.engines[name].replicas)

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        self._answer()
        if name in self.engines:
            self.scaled.append((name, replicas))
            ready = max(self.engines[name].ready_replicas, replicas[0]) if self.ready_at_once else 0
            self.engines[name] = replace(self.engines[name], replicas=replicas, ready_replicas=ready)

    async def remove(self, name: str) -> None:
        self._answer()
        self.removed.append(name)
        self.engines.pop(name, None)

    async def observe(self, service: str) -> dict[str, RevisionState]:
        self._answer()
        others = {revision.name for revision in self.applied if revision.service != service}
        return {name: state for name, state in self.engines.items() if name not in others}

    async def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            raise PlatformUnavailable("the platform is away")
