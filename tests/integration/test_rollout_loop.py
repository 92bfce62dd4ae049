"""The whole loop on real parts but the engines: MLflow, SQLite, the gateway under uvicorn, the controller as a process; a small server
plays Ray Serve's REST API. Users stream answers and say what they think of them; aliases move by themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.rollout import reasons
from services.rollout.status import RolloutStatus
from services.serving.artifacts import folder_digest
from services.store import Store, migrate, open_store
from tests.fakes.gateway import KEY, gateway_settings, running_gateway
from tests.fakes.gateway_process import Process
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.serve_api import ServeApi

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RESOURCE: dict[str, Any] = {
    "apiVersion": "understudy.dev/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "assistant"},
    "spec": {
        "engine": {"startTimeout": "60s"},
        "rollout": {
            "alpha": 0.2,
            "horizon": "500ms",
            "settle": "1s",
            "look": "500ms",
            "gate": {"margin": 0.1},
            "rehearsal": {"share": 1, "minPairs": 15, "minDuration": "1s", "maxDuration": "60s", "inFlight": 8},
            "canary": {"steps": [{"weight": 50, "minDuration": "2s", "minUnits": 15, "maxDuration": "120s"}]},
            "guardrails": [
                {"metric": "errors", "margin": 0.3, "mode": "nonInferior"},
                {"metric": "feedback", "margin": 0.2},
            ],
            "rollbackWindow": "500ms",
        },
    },
}


class Cluster(ServeApi):
    """Ray Serve in miniature: what is deployed runs at once, and answers as its version does."""

    def __init__(self) -> None:
        super().__init__()
        self.behaviour: dict[str, Behaviour] = {}
        self.app.router.add_post("/{service}/{name}/v1/chat/completions", self._chat)

    async def _put(self, request: web.Request) -> web.Response:
        answer = await super()._put(request)
        self.finish_draining()
        for name in self.applications:
            self.status(name, "RUNNING")
        return answer

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        version = request.match_info["name"].split("-")[1]
        return await Engine(self.behaviour.get(version, Behaviour())).chat(request)


class Users:
    """New users all the time, one question each, streamed; `displeased` says what share minds which engine's answer."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.urls, self._session = [url], session
        self._random = random.Random(5)
        self.answered: list[str] = []
        """Request ids of whole answers."""
        self.mind: Callable[[str], float] = lambda answer: 0.02

    async def run(self) -> None:
        """Until cancelled; about 25 users a second."""
        running: set[asyncio.Task[None]] = set()
        for number in range(1_000_000):
            task = asyncio.create_task(self._ask(number))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(0.04)

    async def _ask(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {
            "model": "assistant",
            "messages": [{"role": "user", "content": "capital?"}],
            "stream": True,
            "user": f"user-{number}",
        }
        url = self.urls[number % len(self.urls)]
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                text = await answer.text()
                request = answer.headers["x-request-id"]
            if answer.status == 200 and "[DONE]" in text:
                self.answered.append(request)
            if self._random.random() < self.mind(text):
                mark = {"request_id": request, "kind": "thumb", "value": -1}
                async with self._session.post(f"{url}/v1/feedback", json=mark, headers=headers) as said:
                    assert said.status < 300, await said.text()


class World:
    """Everything that runs, and what the tests do to it."""

    def __init__(
        self, folder: Path, uri: str, store: Store, cluster: Cluster, users: Users, address: str, model: str
    ) -> None:
        self.folder, self.uri, self.store, self.cluster, self.users = folder, uri, store, cluster, users
        self.address, self.model = address, model
        self.controller: subprocess.Popen[bytes] | None = None
        from mlflow import MlflowClient

        self.mlflow = MlflowClient(uri, uri)
        self.mlflow.create_registered_model(model)
        self.experiment = self.mlflow.create_experiment(model)

    def register(self, number: int, right: float = 1.0) -> None:
        files = self.folder / f"v{number}"
        files.mkdir()
        (files / "config.json").write_text(json.dumps({"version": number}))
        items = [{"id": f"q{i}", "kind": "k", "correct": i < 100 * right} for i in range(100)]
        run = self.mlflow.create_run(self.experiment).info.run_id
        self.mlflow.log_artifacts(run, str(files), "model")
        self.mlflow.log_text(
            run, json.dumps({"dataset": {"digest": "d"}, "items": items}), "evaluation/evaluation.json"
        )
        tags = {"understudy.kind": "weights", "understudy.digest": folder_digest(files)}
        self.mlflow.create_model_version(self.model, f"runs:/{run}/model", run, tags=tags)

    def alias(self, name: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.mlflow.get_model_version_by_alias(self.model, name).version)
        except MlflowException:
            return None

    def start_controller(self) -> None:
        prefix = "UNDERSTUDY_CONTROLLER_"
        settings = {
            "STORE_URL": self.store.url, "REGISTRY_URI": self.uri, "REGISTRY_TIMEOUT": "5", "RAY_DASHBOARD_URL": self.address,
            "RAY_PROXY_URL": self.address, "ARTIFACT_CACHE": str(self.folder / "cache"), "PORT": "0",
        }  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith("UNDERSTUDY_")}
        environment |= {prefix + key: value for key, value in settings.items()} | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "services.rollout", "--config", str(self.folder / "assistant.yaml")]
        with (self.folder / "controller.log").open("ab") as log:
            self.controller = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    async def stop_controller(self, *, kill: bool = False) -> int:
        assert self.controller is not None
        if kill:
            self.controller.kill()
        else:
            self.controller.terminate()
        return await asyncio.to_thread(self.controller.wait, 30)

    def rollout(self) -> RolloutStatus | None:
        rows = self.store.rollouts("assistant", 1)
        return RolloutStatus.model_validate(rows[0].status) if rows else None

    async def until(self, condition: Callable[[], Any], seconds: float = 400) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            log = (self.folder / "controller.log").read_text()[-4000:]
            pytest.fail(f"it never came to that\n{self.rollout()}\n{log}")

    async def until_stage(self, version: str, *stages: str) -> RolloutStatus:
        def there() -> bool:
            status = self.rollout()
            return status is not None and status.version == version and status.stage in stages

        await self.until(there)
        status = self.rollout()
        assert status is not None
        return status


@asynccontextmanager
async def _served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        await runner.cleanup()


@pytest.fixture
async def world(tmp_path: Path, mlflow_server: str, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The platform with v1 serving and users coming."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    cluster, store = Cluster(), open_store(url)
    model = f"{request.node.name}-model"
    resource = {**RESOURCE, "spec": {**RESOURCE["spec"], "model": {"registeredModel": model}}}
    (tmp_path / "assistant.yaml").write_text(json.dumps(resource))
    async with (
        _served(cluster.app) as address,
        running_gateway(gateway_settings(url, tmp_path / "gateway")) as gateway,
        aiohttp.ClientSession() as session,
    ):
        users = Users(gateway.url, session)
        made = await asyncio.to_thread(World, tmp_path, mlflow_server, store, cluster, users, address, model)
        for number in (1, 2):
            await asyncio.to_thread(made.register, number)
        await asyncio.to_thread(made.mlflow.set_registered_model_alias, model, "champion", "1")
        made.start_controller()
        await made.until(lambda: store.route("assistant") is not None and store.acknowledged("assistant", 1))
        coming = asyncio.create_task(users.run())
        yield made
        coming.cancel()
        if made.controller is not None and made.controller.poll() is None:
            await made.stop_controller()
    store.close()


async def _challenge(world: World, version: str) -> None:
    await asyncio.to_thread(world.mlflow.set_registered_model_alias, world.model, "challenger", version)


async def _ended(world: World, version: str, champion: str) -> RolloutStatus:
    """The rollout is over and told to the registry."""
    status = await world.until_stage(version, "finished")
    await world.until(lambda: world.alias("challenger") is None and world.alias("champion") == champion)
    await world.until(lambda: (found := world.rollout()) is not None and not found.debt.open)
    return status


async def test_promotion_though_the_controller_is_killed_twice(world: World) -> None:
    await _challenge(world, "2")
    for stage in ("rehearsal", "canary"):
        await world.until_stage("2", stage)
        await world.until(lambda: (s := world.rollout()) is not None and s.stage_started_at is not None)
        await world.stop_controller(kill=True)
        world.start_controller()
    status = await _ended(world, "2", champion="2")
    assert (status.verdict, status.reason, status.decided_in) == ("advance", reasons.PROMOTED, "canary")
    assert len(world.store.rollouts("assistant")) == 1, "a killed controller goes on where it stood"
    decided = status.decided_at
    assert decided is not None
    closed = [u for u in world.store.closed_units(status.id, (0.0, ""), decided) if u.exposure.closes_at <= decided]
    counted = status.counts.users_control + status.counts.users_candidate
    assert 0 <= len(closed) - counted <= 60, (
        "each closed user is counted once; the last look's watermark is a little behind"
    )
    assert [gap["missing"] for gap in world.store.gaps()] == [0]
    assert await world.stop_controller() == 0
    await world.until(lambda: len(world.cluster.applications) == 1)


async def test_promotion_though_a_gateway_is_killed_in_a_canary_step(world: World, tmp_path: Path) -> None:
    def second() -> Process:
        return Process(world.store.url, tmp_path / "second", NAME="second")

    gateway = await second().ready()
    try:
        world.users.urls.append(gateway.url)
        await _challenge(world, "2")
        await world.until_stage("2", "canary")
        await world.until(lambda: (s := world.rollout()) is not None and s.stage_started_at is not None)
        before = len(world.users.answered)
        await world.until(lambda: len(world.users.answered) > before + 20)
        gateway.child.kill()
        await gateway.ended()
        gateway.stop()
        gateway = await second().ready()
        world.users.urls[1] = gateway.url
        status = await _ended(world, "2", champion="2")
        assert (status.verdict, status.reason, status.decided_in) == ("advance", reasons.PROMOTED, "canary")
        answered = list(world.users.answered)
        await world.until(lambda: all(world.store.request(request) is not None for request in answered), 30)
        await world.until(lambda: [gap["missing"] for gap in world.store.gaps()] == [0, 0, 0], 30)
    finally:
        gateway.stop()


async def test_abort_on_errors_that_users_never_see(world: World) -> None:
    world.cluster.behaviour["v2"] = Behaviour(status=500)
    await _challenge(world, "2")
    status = await _ended(world, "2", champion="1")
    assert (status.verdict, status.reason, status.decided_in) == ("abort", reasons.ERRORS_HARMFUL, "rehearsal")
    tags = world.mlflow.get_model_version(world.model, "2").tags
    assert (tags["understudy.verdict"], tags["understudy.rollout"]) == ("abort", status.id)
    await world.until(lambda: len(world.cluster.applications) == 1)


async def test_abort_on_feedback_though_the_registry_hangs(world: World, mlflow_process: tuple[str, int]) -> None:
    import signal

    world.cluster.behaviour["v2"] = Behaviour(words=("the", " capital", " is", " wrong"))
    world.users.mind = lambda answer: 0.9 if "wrong" in answer else 0.02
    await _challenge(world, "2")
    await world.until_stage("2", "canary")
    await _stopped(mlflow_process[1], lambda: world.until_stage("2", "finished"), signal)
    status = await _ended(world, "2", champion="1")
    assert (status.verdict, status.reason, status.decided_in) == ("abort", reasons.FEEDBACK_HARMFUL, "canary")


async def _stopped(group: int, meanwhile: Callable[[], Awaitable[Any]], signal: Any) -> None:
    """The process group does not run in the meantime, as a server that hangs."""
    os.killpg(group, signal.SIGSTOP)
    try:
        await meanwhile()
    finally:
        os.killpg(group, signal.SIGCONT)


async def test_a_worse_evaluation_falls_at_the_gate_before_any_engine(world: World) -> None:
    await asyncio.to_thread(world.register, 3, 0.3)
    await _challenge(world, "3")
    status = await _ended(world, "3", champion="1")
    assert (status.verdict, status.reason) == ("abort", reasons.GATE_HARMFUL)
    assert len(world.cluster.applications) == 1
