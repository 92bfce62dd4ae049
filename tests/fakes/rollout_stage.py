"""Everything around a reconciler, simulated, on a real store: registry, platform, artifacts, and users that the test brings.

For tests of the whole loop; `look` lets time pass and takes one look.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from services.rollout.execute import Executor
from services.rollout.observe import Observer
from services.rollout.observed import Evaluation, Identity, VersionInfo
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.rollout.together import Together
from services.store import Store, open_store
from tests.fakes.platform import FakePlatform
from tests.fakes.registry import FakeRegistry
from tests.fakes.rollout_rows import HandClock

RIGHT = Evaluation("data", {f"item-{i}": True for i in range(50)})


class Users(Protocol):
    """Who writes what gateways would have recorded."""

    def pass_time(self, seconds: float, users: int) -> None:
        """Moves the clock; so many new users come meanwhile."""


T = TypeVar("T", bound=Users)


class Files:
    """Artifacts that are always there."""

    async def fetch(self, info: VersionInfo) -> str:
        return f"/models/{info.version}"


class Stage(Generic[T]):
    """Everything around a reconciler; `restart` throws the reconciler away as a crash would."""

    def __init__(
        self,
        url: str,
        resource: LLMService,
        traffic: Callable[[Store, HandClock], T],
    ) -> None:
        names = itertools.count(1)
        self.identity = lambda: Identity(
            f"rollout-{next(names)}", "ab" * 16
        )  # a drawn salt would assign other users each time
        self.clock = HandClock()
        self.store: Store = open_store(url, self.clock)
        self.registry = FakeRegistry()
        self.platform = FakePlatform()
        self.service = resource
        for version in ("1", "2"):
            self.registry.add(version, RIGHT)
        self.registry.aliases["champion"] = "1"
        self.traffic = traffic(self.store, self.clock)
        self.restart()

    def restart(self, executor: type[Executor] = Executor) -> None:
        self.executor = executor(self.store, self.registry, self.platform, Files(), self.clock)
        observer = Observer(
            self.store, self.registry, self.platform, Together(self.store.standings), "test", self.identity
        )
        self.reconciler = Reconciler(self.service, self.store, observer, self.executor)

    async def look(self, users: int = 40, seconds: float = 2.0) -> RolloutStatus | None:
        """Time passes, so many new users come, one look is taken."""
        self.traffic.pass_time(seconds, users)
        decision = await self.reconciler.look()
        await self.executor.idle()
        return decision.status.rollout

    async def challenge(self, version: str = "2", users: int = 40) -> None:
        """A person sets the alias on a version, once the service serves."""
        for _ in range(3):
            await self.look(users)
        if version not in self.registry.versions:
            self.registry.add(version, RIGHT)
        self.registry.aliases["challenger"] = version

    async def play(
        self,
        until: Callable[[RolloutStatus], bool],
        *,
        version: str = "2",
        restart: bool = False,
        looks: int = 150,
        users: int = 40,
        seconds: float = 2.0,
    ) -> RolloutStatus:
        """A rollout from its start until something is so."""
        await self.challenge(version, users)
        return await self.until(
            lambda rollout: rollout.version == version and until(rollout),
            restart=restart, looks=looks, users=users, seconds=seconds,
        )  # fmt: skip

    async def until(
        self,
        so: Callable[[RolloutStatus], bool],
        *,
        restart: bool = False,
        looks: int = 150,
        users: int = 40,
        seconds: float = 2.0,
    ) -> RolloutStatus:
        """Look after look until something is so."""
        for _ in range(looks):
            if restart:
                self.restart()
            rollout = await self.look(users, seconds)
            if rollout is not None and so(rollout):
                return rollout
        raise AssertionError(f"it never came to that: {rollout}")


def decided(rollout: RolloutStatus) -> bool:
    """Whether its verdict has fallen."""
    return rollout.decided_at is not None or rollout.verdict == "hold"
