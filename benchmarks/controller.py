"""What a controller costs that keeps 1,000 services: CPU of one look at each of them, and what the API server is asked meanwhile.

`python -m benchmarks.controller` (or `make bench`) runs the controller as in a cluster (kopf's watch, a task a service, a look every 10 s)
over a SQLite store and, in a process of its own, a simulated API server. Registry and platform are simulated in memory: what their
clients cost (MLflow's some milliseconds a look) comes on top. It writes `benchmarks/results/controller.json`.

Two states are measured: every service idle, and a tenth of them in a rollout's rehearsal. CPU is the whole process's, its threads included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform as machine
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.common.clock import SystemClock
from services.rollout.controller import Controller
from services.rollout.execute import Executor
from services.rollout.health import Health
from services.rollout.lock import controller_lock, holding
from services.rollout.loop import ServiceLoop
from services.rollout.metrics import Metrics
from services.rollout.observe import Observer
from services.rollout.observed import Evaluation, VersionInfo
from services.rollout.operator.api import KubernetesApi
from services.rollout.operator.cluster import ClusterSource
from services.rollout.operator.resource import Surroundings
from services.rollout.platforms.base import RevisionSpec, RevisionState
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.rollout.together import Together
from services.store import GatewayLease, Store, migrate, open_store
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.fakes.platform import FakePlatform
from tests.fakes.registry import FakeRegistry

RESULTS = Path(__file__).parents[1] / "benchmarks/results/controller.json"
LOOK_SECONDS = 10.0
GOAL_CPU_SECONDS = 1.0
ROLLING = 0.1
"""Share of the services that are in a rollout in the second state."""
RIGHT = Evaluation("data", {f"item-{i}": True for i in range(50)})


def name(number: int) -> str:
    """The name of a service, and of its model."""
    return f"service-{number:04}"


class Registries:
    """A registry of many models: of each one that of the tests."""

    def __init__(self) -> None:
        self.models: dict[str, FakeRegistry] = {}

    def add(self, model: str) -> None:
        """A model with two versions, of which the first is champion."""
        made = self.models[model] = FakeRegistry()
        for number in ("1", "2"):
            made.add(number, RIGHT)
        made.aliases["champion"] = "1"

    async def alias(self, model: str, alias: str) -> VersionInfo | None:
        return await self.models[model].alias(model, alias)

    async def version(self, model: str, version: str) -> VersionInfo | None:
        return await self.models[model].version(model, version)

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        await self.models[model].set_alias(model, alias, version)

    async def delete_alias(self, model: str, alias: str) -> None:
        await self.models[model].delete_alias(model, alias)

    async def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        await self.models[model].tag_version(model, version, tags)

    async def evaluation(self, info: VersionInfo) -> Evaluation | None:
        return RIGHT

    async def claim(self, model: str, alias: str, owner: str) -> str:
        return await self.models[model].claim(model, alias, owner)

    async def release(self, model: str, alias: str, owner: str) -> None:
        await self.models[model].release(model, alias, owner)

    async def close(self) -> None:
        pass


class Platforms:
    """A platform of many services: of each one that of the tests."""

    def __init__(self) -> None:
        self._of: dict[str, FakePlatform] = {}

    async def apply(self, revision: RevisionSpec) -> None:
        await self._of.setdefault(revision.service, FakePlatform()).apply(revision)

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        await self._of[name.rpartition("-v")[0]].scale(name, replicas)

    async def remove(self, name: str) -> None:
        await self._of[name.rpartition("-v")[0]].remove(name)

    async def observe(self, service: str) -> dict[str, RevisionState]:
        return await self._of.setdefault(service, FakePlatform()).observe(service)

    async def close(self) -> None:
        pass


class Files:
    """Artifacts that are always there."""

    async def fetch(self, info: VersionInfo) -> str:
        return f"/models/{info.version}"


class CountedApi(KubernetesApi):
    """Counts what the API server is asked beside the watch."""

    asked = 0

    async def _ask(self, *given: Any, **named: Any) -> Any:
        self.asked += 1
        return await super()._ask(*given, **named)


class Bench:
    """One controller over `count` services."""

    def __init__(self, api: CountedApi, store: Store, count: int) -> None:
        self.api, self.store, self.count = api, store, count
        self.registry, self.platform = Registries(), Platforms()
        for number in range(count):
            self.registry.add(name(number))
        clock, self.metrics = SystemClock(), Metrics()
        lock = controller_lock(store.url)
        hold, standings, health = holding(lock), Together(store.standings), Health(clock, {})

        def loop(service: LLMService, owner: Mapping[str, Any]) -> ServiceLoop:
            def reconciler(of: LLMService) -> Reconciler:
                observer = Observer(store, self.registry, self.platform, standings, "benchmark")
                executor = Executor(store, self.registry, self.platform, Files(), clock)
                return Reconciler(of, store, observer, executor)

            return ServiceLoop(service, hold, reconciler, lambda _: (), self.metrics, health, clock)

        around = Surroundings(api, store, loop, clock, False, None)
        self.controller = Controller(ClusterSource(around, api.namespace), lock)

    def looks(self) -> int:
        """Looks that ended so far."""
        return int(
            sum(s.value for m in self.metrics.registry.collect() for s in m.samples if s.name.endswith("looks_total"))
        )

    def serving(self) -> bool:
        """Whether every service has its route."""
        return len(self.store.routes({})) == self.count

    def obey(self) -> None:
        """A gateway lives, obeys every route, and has delivered everything."""
        routes = {service: route.version for service, route in self.store.routes({}).items()}
        now = self.store.now()
        self.store.renew_lease(GatewayLease("g1", "b1", None, routes, now + 3600, now + 3600, 0, 0, 0))

    def rehearsing(self) -> int:
        """Services in a rehearsal."""
        return sum(row.stage == "rehearsal" for row in self.store.rollouts(limit=self.count))

    async def until(self, condition: Callable[[], object], seconds: float = 300.0) -> float:
        """How long it took."""
        began = time.monotonic()
        while not await asyncio.to_thread(condition):
            if time.monotonic() > began + seconds:
                raise RuntimeError(f"not within {seconds:g} s")
            await asyncio.sleep(1.0)
        return time.monotonic() - began

    async def measure(self, rounds: int) -> dict[str, float]:
        """So many times the pause between looks."""
        looks, asked = self.looks(), self.api.asked
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(rounds * LOOK_SECONDS)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        done = self.looks() - looks
        return {
            "seconds": round(wall, 2),
            "looks": done,
            "looks_per_service": round(done / self.count, 3),
            "cpu_seconds_per_1000_looks": round(1000 * cpu / done, 3),
            "api_requests": self.api.asked - asked,
        }


async def run(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All figures."""
    migrate(url := f"sqlite:///{folder}/understudy.db")
    store = open_store(url)
    api = CountedApi.connect(str(folder / "kubeconfig"))
    assert isinstance(api, CountedApi)
    bench = Bench(api, store, count)
    load = os.getloadavg()[0]
    cpu = time.process_time()
    running = asyncio.create_task(bench.controller.run())
    try:
        started = await bench.until(bench.serving)
        start = {
            "seconds": round(started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "api_requests": api.asked,
        }
        await asyncio.to_thread(bench.obey)
        await asyncio.sleep(2 * LOOK_SECONDS)
        idle = await bench.measure(rounds)
        rolling = round(ROLLING * count)
        for number in range(rolling):
            bench.registry.models[name(number)].aliases["challenger"] = "2"
        await bench.until(lambda: bench.rehearsing() == rolling)
        await asyncio.to_thread(bench.obey)
        await asyncio.sleep(2 * LOOK_SECONDS)
        busy = await bench.measure(rounds)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await api.close()
        store.close()
    return {
        "command": "python -m benchmarks.controller",
        "machine": {"cores": os.cpu_count(), "python": machine.python_version(), "load_before": load},
        "versions": {package: version(package) for package in ("kopf", "pydantic", "sqlalchemy")},
        "services": count,
        "look_seconds": LOOK_SECONDS,
        "simulated": ["API server", "registry", "platform"],
        "start": start,
        "idle": idle,
        "rolling": {"in_rehearsal": rolling, **busy},
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "goal": {"cpu_seconds_per_1000_looks": GOAL_CPU_SECONDS, "reached": idle["cpu_seconds_per_1000_looks"] < 1.0},
    }


async def serve_api(count: int, folder: Path) -> None:
    """What the API server's process runs, until it is ended. Its kubeconfig appears when it listens."""
    server = FakeKubernetes()
    await server.start()
    for number in range(count):
        server.put(
            name(number), {"model": {"registeredModel": name(number)}, "rollout": {"look": f"{LOOK_SECONDS:g}s"}}
        )
    server.kubeconfig(folder / "new").rename(folder / "kubeconfig")
    await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; whether the goal is reached is in the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="looks at each service in each state")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve-api", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve_api is not None:
        asyncio.run(serve_api(options.services, options.serve_api))
        return 0
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "benchmarks.controller", "--services", str(options.services)]
        with subprocess.Popen([*command, "--serve-api", scratch]) as server:
            try:
                while not (folder / "kubeconfig").exists():
                    if server.poll() is not None:
                        raise RuntimeError("the simulated API server did not start")
                    time.sleep(0.1)
                result = asyncio.run(run(options.services, options.rounds, folder))
            finally:
                server.terminate()
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
