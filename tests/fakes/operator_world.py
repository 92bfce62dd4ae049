"""A cluster around one resource, without waiting: an API server over HTTP, a real store, registry and platform in memory, users by the
hand clock. The operator's turns are taken one by one, and its process can be killed before any of its acts.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.rollout.execute import Executor
from services.rollout.health import Health
from services.rollout.lock import holding
from services.rollout.loop import ServiceLoop
from services.rollout.metrics import Metrics
from services.rollout.observe import Observer
from services.rollout.observed import Evaluation, Identity, VersionInfo
from services.rollout.operator.resource import ServiceResource, Surroundings
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.rollout.together import Together
from services.store import open_store
from tests.fakes.kubernetes_api import SERVICES, FakeKubernetes
from tests.fakes.platform import FakePlatform
from tests.fakes.registry import FakeRegistry
from tests.fakes.rollout_rows import HandClock
from tests.fakes.traffic import Behaviour, Traffic

RIGHT = Evaluation("data", {f"item-{i}": True for i in range(50)})
SPEC: dict[str, Any] = {
    "model": {"registeredModel": "assistant"},
    "rollout": {
        "alpha": 0.2,
        "horizon": "2s",
        "settle": "1s",
        "look": "1s",
        "rehearsal": {"share": 1, "minPairs": 5, "minDuration": "2s", "maxDuration": "100s"},
        "canary": {"steps": [{"weight": 50, "minDuration": "2s", "minUnits": 5, "maxDuration": "200s"}]},
        "guardrails": [{"metric": "errors", "margin": 0.3, "mode": "nonInferior"}],
        "rollbackWindow": "4s",
    },
}
ACTS = {
    "store": {
        "commit_look", "append_audit", "publish_route", "remove_route", "add_command", "answer_command",
    },
    "registry": {"set_alias", "delete_alias", "tag_version", "claim", "release"},
    "platform": {"apply", "scale", "remove"},
    "api": {"patch", "apply_status", "event"},
}  # fmt: skip


class Killed(BaseException):
    """The process is dead."""


class Fate:
    """Kills before the `at`-th act (from 1; 0: never). The dead do nothing."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.acts, self.dead = at, list[str](), False

    def act(self, name: str) -> None:
        if not self.dead:
            self.acts.append(name)
            self.dead = len(self.acts) == self.at
        if self.dead:
            raise Killed


class Mortal:
    """Stands for `inner` in a process with a fate."""

    def __init__(self, inner: Any, fate: Fate, acts: set[str]) -> None:
        self._inner, self._fate, self._acts = inner, fate, acts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._acts:
            return found

        async def later(*given: Any, **named: Any) -> Any:
            self._fate.act(name)
            return await found(*given, **named)

        def now(*given: Any, **named: Any) -> Any:
            self._fate.act(name)
            return found(*given, **named)

        return later if inspect.iscoroutinefunction(found) else now


class Files:
    """Artifacts that are always there."""

    async def fetch(self, info: VersionInfo) -> str:
        return f"/models/{info.version}"


class FreeLock:
    """Nobody else wants it."""

    def take(self) -> None:
        pass

    def release(self) -> None:
        pass


class OperatorWorld:
    """`start` before use, `close` after it."""

    def __init__(
        self,
        url: str,
        folder: Path,
        behave: Callable[[str], Behaviour] = lambda _: Behaviour(),
        *,
        stamped: bool = False,
    ) -> None:
        names = itertools.count(1)
        self.identity = lambda: Identity(f"rollout-{next(names)}", "ab" * 16)
        self.clock = HandClock()
        self.store = open_store(url, self.clock)
        self.registry, self.platform, self.server = FakeRegistry(), FakePlatform(), FakeKubernetes()
        for version in ("1", "2"):
            self.registry.add(version, RIGHT)
        self.registry.aliases["champion"] = "1"
        self.folder, self.stamped, self.fate, self.open = folder, stamped, Fate(), True
        service = LLMService.model_validate({"metadata": {"name": "assistant"}, "spec": SPEC})
        self.traffic = Traffic(self.store, self.clock, service, behave)

    async def start(self, spec: Mapping[str, Any] = SPEC) -> None:
        await self.server.start()
        self.server.put("assistant", dict(spec))
        self.api = self.server.connect(self.folder)
        self.begin()

    async def close(self) -> None:
        if not self.open:
            return
        self.open = False
        await self.resource.close()
        await self.api.close()
        await self.server.stop()
        self.store.close()

    def begin(self, fate: Fate | None = None) -> None:
        """A process begins, knowing nothing but what the cluster shows."""
        self.fate = fate or Fate()
        self.executor: Executor | None = None
        parts: dict[str, Any] = {
            name: Mortal(inner, self.fate, ACTS[name])
            for name, inner in (
                ("store", self.store), ("registry", self.registry), ("platform", self.platform), ("api", self.api),
            )
        }  # fmt: skip

        def loop(service: LLMService, owner: Mapping[str, Any]) -> ServiceLoop:
            self.owner = owner
            observer = Observer(
                parts["store"],
                parts["registry"],
                parts["platform"],
                Together(parts["store"].standings),
                "test",
                self.identity,
            )
            executor = self.executor = Executor(
                parts["store"], parts["registry"], parts["platform"], Files(), self.clock
            )
            make = lambda of: Reconciler(of, parts["store"], observer, executor)  # noqa: E731
            return ServiceLoop(
                service, holding(FreeLock()), make, lambda _: (), Metrics(), Health(self.clock, {}), self.clock
            )

        around = Surroundings(parts["api"], parts["store"], loop, self.clock, self.stamped, "http://gateway")
        self.resource = ServiceResource(self.server.resource("assistant"), around)

    async def turn(self, users: int = 20, holder: Mapping[str, Any] | None = None, *, heard: bool = True) -> bool:
        """Users come for two seconds, then the operator takes its turn; False: it has ended. A killed process is followed by another.
        `heard`: until the API server has been told.
        """
        self.traffic.pass_time(2.0, users)
        body = self.server.objects[SERVICES].get(("default", "assistant"))
        if body is None:
            self.resource.gone = True
        else:
            self.resource.see(self.server.resource("assistant"))
        ended = False
        try:
            ended = await self.resource.turn(holder or self.resource.body) is None
            if heard:
                await self.resource.told()
            if self.executor is not None:
                await self.executor.idle()
        except Killed:
            pass
        if self.fate.dead and ("default", "assistant") in self.server.objects[SERVICES]:
            self.begin()
            return True
        return not ended and not self.fate.dead

    async def until(self, condition: Callable[[], object], turns: int = 80, *, heard: bool = True) -> None:
        for _ in range(turns):
            if condition():
                return
            await self.turn(heard=heard)
        raise AssertionError(f"it never came to that: {self.rollout()} {self.status}")

    def rollout(self) -> RolloutStatus | None:
        rows = self.store.rollouts("assistant", 1)
        return RolloutStatus.model_validate(rows[0].status) if rows else None

    def reached(self, stage: str) -> bool:
        """Whether the newest rollout is in a stage, and its clock runs."""
        rollout = self.rollout()
        return rollout is not None and rollout.stage == stage and rollout.stage_started_at is not None

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.resource("assistant").get("status", {})
        return found

    def condition(self, type_: str) -> dict[str, Any]:
        return next(c for c in self.status["conditions"] if c["type"] == type_)

    def events(self) -> list[str]:
        """Reasons of the events, in order of their first time."""
        return [event["reason"] for event in self.server.events()]
