"""The operator as it runs: kopf's watch of an API server over HTTP, the store's lock, many resources."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.clock import SystemClock
from services.rollout import loop as loops
from services.rollout import reasons
from services.rollout.controller import Controller
from services.rollout.execute import Executor
from services.rollout.health import Health
from services.rollout.lock import FileLock, holding
from services.rollout.loop import ServiceLoop
from services.rollout.metrics import Metrics
from services.rollout.observe import Observer
from services.rollout.operator import api as api_module
from services.rollout.operator import cluster as cluster_module
from services.rollout.operator import watch
from services.rollout.operator.cluster import ClusterSource
from services.rollout.operator.resource import Surroundings
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.rollout.together import Together
from services.store import Store, open_store
from tests.fakes.kubernetes_api import SERVICES, FakeKubernetes, too_old
from tests.fakes.operator_world import ACTS, SPEC, Fate, Files, Mortal
from tests.fakes.platform import FakePlatform
from tests.fakes.registry import FakeRegistry

QUICK: dict[str, Any] = copy.deepcopy(SPEC)
QUICK["rollout"]["look"] = "20ms"


class Cluster:
    """What all operators share."""

    def __init__(self, url: str, folder: Path) -> None:
        self.server, self.platform, self.registry = FakeKubernetes(), FakePlatform(), FakeRegistry()
        for version in ("1", "2", "3"):
            self.registry.add(version)
        self.registry.aliases["champion"] = "1"
        self.store: Store = open_store(url)
        self.folder = folder

    @asynccontextmanager
    async def operator(self, namespace: str | None = "default") -> AsyncIterator[list[str]]:
        """A running operator; gives the acts it has done on the platform."""
        fate, clock = Fate(), SystemClock()
        platform = Mortal(self.platform, fate, ACTS["platform"])
        lock, metrics, health = FileLock(self.folder / "lock"), Metrics(), Health(clock, {})
        hold, standings = holding(lock), Together(self.store.standings)

        def loop(service: LLMService, owner: Mapping[str, Any]) -> ServiceLoop:
            def reconciler(of: LLMService) -> Reconciler:
                observer = Observer(self.store, self.registry, platform, standings, "test")
                return Reconciler(
                    of, self.store, observer, Executor(self.store, self.registry, platform, Files(), clock)
                )

            return ServiceLoop(service, hold, reconciler, lambda _: (), metrics, health, clock)

        api = self.server.connect(self.folder)
        source = ClusterSource(Surroundings(api, self.store, loop, clock, False, None), namespace)
        task = asyncio.create_task(Controller(source, lock).run())
        try:
            yield fate.acts
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await api.close()

    def status(self, name: str = "assistant", namespace: str = "default") -> dict[str, Any]:
        found = self.server.objects[SERVICES].get((namespace, name), {})
        return dict(found.get("status", {}))

    def ready(self, name: str = "assistant", namespace: str = "default") -> str:
        """The reason of the condition Ready."""
        conditions = self.status(name, namespace).get("conditions", [])
        return next((c["reason"] for c in conditions if c["type"] == "Ready"), "")


@pytest.fixture
async def cluster(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(loops, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(api_module, "REST_SECONDS", 0.05)
    monkeypatch.setattr(api_module, "PAUSE_SECONDS", 0.01)
    made = Cluster(url, tmp_path)
    await made.server.start()
    yield made
    await made.server.stop()
    made.store.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_resources_come_change_and_go(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    async with cluster.operator() as acts:
        await until(lambda: cluster.ready() == reasons.SERVING)
        cluster.server.put("other", QUICK)
        await until(lambda: cluster.ready("other"))
        cluster.server.put("assistant", {**QUICK, "model": {"registeredModel": "assistant", "champion": "none"}})
        await until(lambda: cluster.status()["observedGeneration"] == 2)
        cluster.server.delete("assistant")
        await until(lambda: ("default", "assistant") not in cluster.server.objects[SERVICES])
        assert cluster.store.route("assistant") is None
        assert "remove" in acts
        await until(lambda: cluster.ready("other"))


async def test_a_deletion_that_nobody_saw_is_finished_by_the_next_operator(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    async with cluster.operator():
        await until(lambda: cluster.ready() == reasons.SERVING)
    cluster.server.delete("assistant")
    async with cluster.operator():
        await until(lambda: ("default", "assistant") not in cluster.server.objects[SERVICES])
    assert cluster.platform.engines == {}


async def test_of_two_operators_one_acts(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    async with cluster.operator() as first:
        await until(lambda: cluster.ready() == reasons.SERVING)
        async with cluster.operator() as second:
            cluster.registry.aliases["champion"] = "2"
            await until(lambda: cluster.status()["stable"]["version"] == "2")
            assert first.count("apply") == 2
            assert second == []
    async with cluster.operator() as second:
        cluster.registry.aliases["champion"] = "3"
        await until(lambda: cluster.status()["stable"]["version"] == "3")
        assert "apply" in second


async def test_the_one_that_stands_by_takes_over(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    first = cluster.operator()
    await first.__aenter__()
    await until(lambda: cluster.ready() == reasons.SERVING)
    async with cluster.operator() as second:
        await first.__aexit__(None, None, None)
        cluster.registry.aliases["champion"] = "2"
        await until(lambda: cluster.status()["stable"]["version"] == "2")
        assert "apply" in second


async def test_an_api_server_that_restarts_is_found_again(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    async with cluster.operator():
        await until(lambda: cluster.ready() == reasons.SERVING)
        await cluster.server.stop()
        cluster.registry.aliases["champion"] = "2"
        await until(lambda: (route := cluster.store.route("assistant")) is not None and route.stable.version == "2")
        cluster.server.put("late", QUICK)
        await cluster.server.start()
        await until(lambda: cluster.status()["stable"]["version"] == "2")
        await until(lambda: cluster.ready("late"))


async def test_a_watch_that_is_too_old_begins_again(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    async with cluster.operator():
        await until(lambda: cluster.ready() == reasons.SERVING)
        cluster.server.fault = too_old(2)
        cluster.server.break_watches()
        cluster.server.put("late", QUICK)
        await until(lambda: cluster.ready("late"))


async def test_what_vanished_while_nobody_watched_is_cleaned_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "LIST_SECONDS", 0.1)
    cluster.server.put("assistant", QUICK)
    async with cluster.operator():
        await until(lambda: cluster.ready() == reasons.SERVING)
        await cluster.server.stop()
        del cluster.server.objects[SERVICES]["default", "assistant"]
        await cluster.server.start()
        await until(lambda: cluster.store.route("assistant") is None and not cluster.platform.engines)


async def test_of_two_services_on_one_alias_one_waits_until_it_is_free(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK)
    async with cluster.operator():
        await until(lambda: cluster.ready() == reasons.SERVING)
        cluster.server.put("twin", QUICK)
        await until(lambda: cluster.ready("twin"))
        registry = next(c for c in cluster.status("twin")["conditions"] if c["type"] == "Registry")
        assert (registry["status"], registry["reason"]) == ("False", reasons.ALIAS_CONFLICT)
        assert "test/assistant" in registry["message"]
        assert cluster.store.route("twin") is None
        cluster.server.delete("twin")
        await until(lambda: ("default", "twin") not in cluster.server.objects[SERVICES])
        assert cluster.registry.owner == "test/assistant", "what was never its own is not given up"
        cluster.server.put("twin", QUICK)
        cluster.server.delete("assistant")
        await until(lambda: cluster.ready("twin") == reasons.SERVING)


async def test_the_oldest_resource_has_the_name_until_it_is_gone(cluster: Cluster) -> None:
    cluster.server.put("assistant", QUICK, namespace="b")
    cluster.server.put("assistant", QUICK, namespace="a")
    async with cluster.operator(None):
        await until(lambda: cluster.ready(namespace="b") == reasons.SERVING)
        await until(lambda: cluster.ready(namespace="a") == reasons.NAME_TAKEN)
        cluster.server.delete("assistant", namespace="b")
        await until(lambda: cluster.ready(namespace="a") == reasons.SERVING)


def test_kopf_stores_and_posts_nothing() -> None:
    settings = watch.settings()
    assert not settings.posting.enabled
    assert settings.peering.standalone
    assert settings.scanning.disabled
