"""Every query of every panel, on a real Prometheus that scrapes a gateway and a controller through a whole rollout under load.

Engines, registry and platform are fakes; gateway, store, controller's loop, judge and rules are real. What vLLM, Ray and DCGM export comes
from samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.cli.prometheus import configuration
from services.common import telemetry
from services.common.clock import SystemClock
from services.common.routing import ContentFilter, Hold, Rules
from services.evidence import ShiftDetector
from services.rollout.cost_telling import CostTeller
from services.rollout.drift import DriftState
from services.rollout.execute import Executor
from services.rollout.health import Health
from services.rollout.judge import ExactMatchJudge
from services.rollout.judging import Judging
from services.rollout.lock import holding
from services.rollout.loop import ServiceLoop
from services.rollout.metrics import Metrics, health_app
from services.rollout.observe import Observer
from services.rollout.observed import Evaluation, VersionInfo
from services.rollout.platforms.measured import MeasuredPlatform
from services.rollout.prompt_drift import PromptState
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.rollout.revisions import revision_of
from services.rollout.sampling import SampleReader
from services.rollout.together import Together
from services.rollout.watch_fold import Watch, Watched
from services.store import Sample, Store, migrate, open_store
from tests.fakes.embedder import embedding
from tests.fakes.gateway import (
    ADMIN_KEY,
    CONTENT_KEY,
    KEY,
    RunningGateway,
    gateway_settings,
    route,
    running_gateway,
    target,
)
from tests.fakes.openai_engine import Behaviour, Engine, serve
from tests.fakes.operator_world import Files, FreeLock
from tests.fakes.platform import FakePlatform
from tests.fakes.prometheus import Prometheus, running_prometheus
from tests.fakes.records import observation
from tests.fakes.registry import FakeRegistry
from tests.fakes.shipped_monitoring import SAMPLES, SHIPPED, dashboards, program, queries

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

DAY = 86_400.0
PROMPT = "capital of france?"
SPEC: dict[str, Any] = {
    "model": {"registeredModel": "assistant"},
    "privacy": {"content": "topics"},
    "drift": {"sample": 1.0, "prompts": {"endpoint": "http://127.0.0.1:9/v1", "model": "words"}},
    "cost": {
        "perReplicaHour": 2.0,
        "budget": {"perDay": 20},
        "comparedWith": [{"name": "closed-large", "input": 1000, "output": 2000}],
    },
    "rollout": {
        "alpha": 0.2,
        "horizon": "500ms",
        "settle": "1s",
        "look": "500ms",
        "rehearsal": {"share": 1, "minPairs": 10, "minDuration": "5s", "maxDuration": "200s", "inFlight": 1},
        "canary": {"steps": [{"weight": 50, "minDuration": "6s", "minUnits": 15, "maxDuration": "300s"}]},
        "guardrails": [
            {"metric": "errors", "margin": 0.3, "mode": "nonInferior"},
            {"metric": "feedback", "margin": 0.3},
            {"metric": "judge", "margin": 0.5},
            {"metric": "preference", "margin": 0.4},
        ],
        "judge": {"kind": "exactMatch", "references": "references.json"},
        "rollbackWindow": "2s",
    },
}
RIGHT = Evaluation("data", {f"item-{i}": True for i in range(50)})


class Users:
    """New users all the time; now and then one who asks for what there is not, or says what they think."""

    def __init__(self, gateway: RunningGateway, session: aiohttp.ClientSession) -> None:
        self._url, self._session, self._random = gateway.url, session, random.Random(3)

    async def run(self) -> None:
        """Until cancelled; about 20 users a second."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(1_000_000):
                model = ("assistant", "assistant", "extra", "assistant", "nobody-knows-me")[number % 5]
                tasks.create_task(self._ask(model, number))
                if number % 5 == 0:
                    tasks.create_task(self._compare(number))
                await asyncio.sleep(0.05)

    async def _ask(self, model: str, number: int) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "user": f"user-{number}",
            "stream": number % 7 != 0,
        }
        headers = {"Authorization": f"Bearer {KEY}"}
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
                await answer.read()
                request = answer.headers["x-request-id"]
            if answer.status == 200 and self._random.random() < 0.4:
                kind, value = self._random.choice([("thumb", 1), ("thumb", -1), ("rating", 5), ("dwell", 3)])
                mark = {"request_id": request, "kind": kind, "value": value}
                async with self._session.post(f"{self._url}/v1/feedback", json=mark, headers=headers):
                    pass

    async def _compare(self, number: int) -> None:
        """A person prefers one of two versions' answers; refused while there is no rollout."""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        ids = []
        with suppress(aiohttp.ClientError, TimeoutError):
            for version in ("1", "2"):
                body = {"model": f"assistant@v{version}", "messages": [{"role": "user", "content": PROMPT}]}
                async with self._session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
                    ids.append(answer.headers["x-request-id"])
            word = {"request_id": ids[0], "other_request_id": ids[1], "kind": "preference", "user": f"person-{number}"}
            value = self._random.choice([0, 0.5, 1])
            async with self._session.post(f"{self._url}/v1/feedback", json=word | {"value": value}, headers=headers):
                pass


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """`host:port`."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def exporters() -> web.Application:
    """What others export, from samples; counters stand still, which Prometheus takes as it is."""

    async def metrics(_: web.Request) -> web.Response:
        text = "\n".join(path.read_text().strip() for path in sorted(SAMPLES.glob("*.prom")))
        return web.Response(body=(text + "\n").encode(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app


def publish_extra(store: Store, stable: Engine, failing: Engine) -> None:
    """A service without a controller: a candidate that always fails, an engine that may have to start, a filter."""
    stable_target = target("extra-v1-aaaa", "1", stable.address)
    rules = Rules(
        content_filters=(
            ContentFilter(name="capitals", applies_to="prompt", pattern="capital", action="redact", max_length=20),
        )
    )
    made = route(
        stable_target, target("extra-v2-bbbb", "2", failing.address), service="extra", rollout="r-extra", eject_after=3, rules=rules,
        hold=Hold(requests=4, seconds=5.0, awake=60.0),
    )  # fmt: skip
    store.publish_route(made)


def drift(store: Store, service: LLMService, stable: VersionInfo) -> None:
    """Detectors of stable as the controller of another time has left them."""
    detector = ShiftDetector(0.1, 1_000.0)
    detector.update([1.0] * 40)
    watch = Watch([Watched("errors", detector, {}, None, 0.02)], 52.0)
    state = DriftState(revision_of(service, stable), watch, store.now(), store.now())
    store.keep_state(f"drift:{service.name}", store.now(), state.to_json())


def asks(store: Store, service: LLMService, stable: VersionInfo) -> None:
    """What users asked in a week before and in one after, and the test of it."""
    begin = store.now() - 14 * DAY
    for week, number in itertools.product((0, 1), range(40)):
        name, words = f"{week}-{number}", ("order late", "refund please", "outage now")[number % (2 + week)]
        vector = embedding(words).tobytes()
        at = begin + (7 * week + number / 6) * DAY
        row = Sample(
            name, service.name, "v0", name, "", at, model="words", embedding=vector, words=2, language="en"
        )  # fmt: skip
        store.put_samples([row])
    state = PromptState(revision_of(service, stable), "words", 1.0, 0.0, begin, 40, begin + 14 * DAY)
    store.keep_state(f"prompts:{service.name}", store.now(), state.to_json())


def spend(store: Store) -> None:
    """Nine days of one replica that was asked once a day."""
    now, revision = store.now(), "assistant-v0-0000"
    store.note_prices("assistant", SPEC["cost"], now - 9 * DAY)
    store.note_replicas("assistant", {revision: 1}, {}, now - 9 * DAY)
    store.write([observation(now - day * DAY, revision=revision, arm="stable", rollout=None) for day in range(1, 9)])


class World:
    """Gateway and controller, and what they need."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.store, self.registry = store, FakeRegistry()
        for version in ("1", "2"):
            self.registry.add(version, RIGHT)
        self.registry.aliases["champion"] = "1"
        self.metrics, clock = Metrics(), SystemClock()
        self.metrics.read(telemetry.CERTIFICATE_END, lambda: clock.time() + 90 * 86_400)
        platform = MeasuredPlatform(FakePlatform(engine.address), clock, self.metrics.called)
        service = LLMService.model_validate({"metadata": {"name": "assistant"}, "spec": SPEC})
        drift(store, service, self.registry.versions["1"])
        asks(store, service, self.registry.versions["1"])
        observer = Observer(store, self.registry, platform, Together(store.standings), "test")
        executor = Executor(store, self.registry, platform, Files(), clock)
        self.health = Health(clock, {})
        judge = ExactMatchJudge({PROMPT: "paris"})
        looking = CONTENT_KEY.encode(), 0.2, self.metrics.judged
        self._judging = Judging("assistant", store, judge, *looking)
        self._samples = SampleReader("assistant", store, judge, None, *looking)

        def reconciler(of: LLMService) -> Reconciler:
            return Reconciler(of, store, observer, executor)

        self.loop = ServiceLoop(
            service, holding(FreeLock()), reconciler, lambda _: (), self.metrics, self.health, clock
        )
        assert service.spec.cost is not None
        self._costs = CostTeller(service, service.spec.cost, store, self.metrics.spent)
        self.stage = ""

    async def run(self) -> None:
        """Looks, judges and tells costs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._judging.run())
            tasks.create_task(self._samples.run())
            tasks.create_task(self._costs.run(lambda _: asyncio.sleep(1)))  # sooner than every few minutes
            while True:
                decision = await self.loop.look()
                if decision is not None and decision.status.rollout is not None:
                    self.stage = decision.status.rollout.stage
                await self.loop.rest(0.5)

    async def until(self, *stages: str) -> None:
        async with asyncio.timeout(250):
            while self.stage not in stages:
                await asyncio.sleep(0.2)


@pytest.fixture
async def scraped(tmp_path: Path) -> AsyncIterator[tuple[Prometheus, World, float]]:
    found = program("prometheus")
    if found is None:
        pytest.skip("prometheus is neither on PATH nor in the cache of the cluster's tools")
    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    async with AsyncExitStack() as stack:
        store = open_store(url)
        stack.callback(store.close)
        engine = await stack.enter_async_context(serve(Engine(Behaviour(first_after=0.05, gap=0.002))))
        failing = await stack.enter_async_context(serve(Engine(Behaviour(status=500))))
        publish_extra(store, engine, failing)
        spend(store)
        gateway = await stack.enter_async_context(running_gateway(gateway_settings(url, tmp_path / "state")))
        world = World(store, engine)
        controller = await stack.enter_async_context(served(health_app(world.metrics, world.health)))
        others = await stack.enter_async_context(served(exporters()))
        asked = configuration(
            [gateway.url.removeprefix("http://")],
            [controller],
            engines=[others],
            rules=[SHIPPED / "rules.yaml"],
            interval="1s",
        )
        prometheus = await stack.enter_async_context(running_prometheus(found, tmp_path / "prometheus", asked))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        began = time.time()
        running = [asyncio.create_task(work) for work in (world.run(), Users(gateway, session).run())]
        yield prometheus, world, began
        for task in running:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await world.loop.close()


def asked(expr: str) -> str:
    """With Grafana's variables filled in."""
    expr = expr.replace("$__rate_interval", "6s").replace("$__range", "60s")
    return re.sub(r"\$(namespace|service|revision)\b", ".*", expr)


async def test_every_query_of_every_panel_returns_data(scraped: tuple[Prometheus, World, float]) -> None:
    prometheus, world, began = scraped
    between = f'{telemetry.CONDITION}{{type="Drift"}}'  # a panel's query sees what stands for two of its steps
    async with asyncio.timeout(60):
        while not any(len(one["values"]) > 4 for one in await prometheus.series(between, began, time.time(), "1s")):
            await asyncio.sleep(0.2)
    world.registry.aliases["challenger"] = "2"
    await world.until("watch", "finished")
    health = await prometheus.targets()
    assert set(health.values()) == {"up"}, health
    wanted = {(where, expr) for dashboard in dashboards().values() for where, expr in queries(dashboard)}
    assert len(wanted) > 100
    async with asyncio.timeout(90):
        while empty := {
            (where, expr) for where, expr in wanted if not await prometheus.series(asked(expr), began, time.time())
        }:
            wanted = empty
            try:
                await asyncio.sleep(2)
            except asyncio.CancelledError:
                pytest.fail("no data:\n" + "\n".join(f"{where}: {expr}" for where, expr in sorted(empty)))


async def test_engines_are_joined_to_revisions_by_label(scraped: tuple[Prometheus, World, float]) -> None:
    prometheus, _, began = scraped
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not found:
            await asyncio.sleep(0.5)
            found = await prometheus.series("ray_vllm_num_requests_running", began, time.time())
    assert {(one["metric"]["service"], one["metric"]["revision"]) for one in found} == {
        ("assistant", "assistant-v4-7c1f")
    }
    replicas = await prometheus.series("ray_serve_deployment_replica_healthy", began, time.time())
    assert {one["metric"]["revision"] for one in replicas} >= {"assistant-v1-aaaa", "assistant-v2-bbbb"}
