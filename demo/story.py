"""The demo's story: start the platform on this machine, let simulated users in, set the alias `challenger` on one version after
another, and tell what the platform makes of them.

`understudy demo` calls `run`. It does what a model owner does (register versions, move an alias) and what users do; every decision is the
platform's. It only reads the store, and must not help a verdict along.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
from pydantic import Field
from rich.console import Console

from demo import report
from demo.users import Behaviour
from demo.view import ActView, LiveView, PlainView, Scene, View, acts_table, clock
from pipelines import dataset, register
from services.cli.local import LocalPlatform, LocalStack, interruptible
from services.cli.processes import LocalError
from services.common.manifest import read
from services.rollout.registry import MlflowRegistry
from services.rollout.resources import API_VERSION, LLMService, Metadata
from services.rollout.resources_base import Resource
from services.rollout.status import RolloutStatus
from services.serving.local_ray import TAG
from services.store import RolloutRow, Store, open_store

Result = TypeVar("Result")
HERE = Path(__file__).parent


class Act(Resource):
    """One version that is made challenger."""

    version: str = Field(pattern=r"^v[1-9][0-9]*$", description="The version as it is registered, e.g. v2.")
    title: str = Field(description="What is different about it, in a few words.")
    expected: str = Field(description="Verdict, and where it matters stage and metric: `abort in canary on feedback`.")
    typical_seconds: float = Field(default=120.0, gt=0, description="How long it usually takes, for the time left.")


class StorySpec(Resource):
    """Who comes, and what happens in which order."""

    service: str = Field(description="The service of the story.")
    seed: int = Field(default=1, description="Seed of the simulated users.")
    users: Behaviour = Field(default=Behaviour(), description="How users behave.")
    champion: str = Field(default="v1", description="Version that serves at the beginning.")
    acts: tuple[Act, ...] = Field(min_length=1, description="Versions that become challenger, one after another.")
    start_seconds: float = Field(default=120.0, gt=0, description="How long the platform usually takes to start.")
    act_timeout: float = Field(default=900.0, gt=0, description="Seconds after which an act counts as stuck.")


class DemoStory(Resource):
    """The document that tells the story."""

    api_version: Literal["understudy.dev/v1alpha1"] = Field(default=API_VERSION, description="Version of this schema.")
    kind: Literal["DemoStory"] = Field(default="DemoStory", description="Always DemoStory.")
    metadata: Metadata = Field(description="Name.")
    spec: StorySpec = Field(description="The story.")


class Stage:
    """The running demo: configuration, platform, store and what is shown."""

    def __init__(self, config: Path, models: Path, view: View, scene: Scene) -> None:
        self.config, self.models, self.view, self.scene = config, models, view, scene
        self.story = read(config, {"DemoStory": DemoStory})[0].spec
        self.platform = read(config, {"LocalPlatform": LocalPlatform})[0]
        services = {service.name: service for service in read(config, {"LLMService": LLMService})}
        if self.story.service not in services:
            raise LocalError(
                f"{config}: the story is about {self.story.service}, but the file holds {', '.join(services)}"
            )
        self.service = services[self.story.service]
        self.versions: dict[str, str] = {}
        """Name of a version in the story to its number in the registry."""

    async def build_models(self) -> None:
        """Train what is not there yet (a few minutes the first time)."""
        python = self.platform.spec.engine_folder / "bin/python"
        argv = [str(python), "-m", "pipelines.demo_models", "--out", str(self.models)]
        self.scene.now = "training the demo's models (kept for the next time)"
        # Threads that wait for each other asleep: on a busy machine, spinning ones made the training ten times slower.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        builder = await asyncio.create_subprocess_exec(
            *argv,
            cwd=HERE.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        lines: list[str] = []
        assert builder.stdout is not None  # noqa: S101  (a pipe was asked for)
        try:
            async for raw in builder.stdout:
                lines.append(raw.decode(errors="replace").rstrip())
                self.view.say(lines[-1])
            if await builder.wait():
                raise LocalError(f"the models could not be built: {' | '.join(lines[-5:])}")
        finally:
            if builder.returncode is None:
                builder.terminate()
                await builder.wait()

    def register_champion(self, registry_uri: str) -> None:
        """Register what serves at the beginning, so that its engine can start."""
        self._register(registry_uri, self.story.champion)

    def register_challengers(self, registry_uri: str) -> None:
        """Register every other version of the story in MLflow, in order, and write the judge's references."""
        for name in sorted({act.version for act in self.story.acts} - set(self.versions), key=lambda n: int(n[1:])):
            self._register(registry_uri, name)
        self.view.say(f"registered {', '.join(self.versions)} in MLflow at {registry_uri}")
        judge = self.service.spec.rollout.judge
        if judge is not None and judge.references is not None:
            dataset.references(self.config.parent / judge.references)

    def _register(self, registry_uri: str, name: str) -> None:
        model = self.service.spec.model.registered_model
        self.versions[name] = register.register(registry_uri, model, self.models, name)


@contextlib.asynccontextmanager
async def crowd(stage: Stage, stack: LocalStack) -> AsyncIterator[None]:
    """Simulated users in a process of their own, for as long as the context lasts."""
    counts = stack.state / "users.json"
    argv = [sys.executable, "-m", "demo.users", "--url", stack.gateway_url, "--model", stage.story.service]
    argv += ["--behaviour", stage.story.users.model_dump_json(by_alias=True), "--seed", str(stage.story.seed)]
    argv += ["--counts", str(counts)]
    env = os.environ | {"UNDERSTUDY_API_KEY": stack.api_key, TAG: str(stack.state)}
    with (stack.state / "logs" / "users.log").open("ab") as log:
        process = subprocess.Popen(argv, cwd=HERE.parent, env=env, stdout=log, stderr=log, start_new_session=True)
    watch = asyncio.create_task(_count(counts, stage.scene))
    try:
        yield
    finally:
        watch.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
        if counts.exists():
            stage.scene.users = json.loads(counts.read_text())


async def _count(counts: Path, scene: Scene) -> None:
    while True:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            scene.users = json.loads(counts.read_text())
        await asyncio.sleep(1.0)


async def _champion_answers(stack: LocalStack, service: str) -> None:
    """Wait until the champion answers a completion through the gateway."""
    body = {"model": service, "messages": [{"role": "user", "content": "what is two plus two?"}], "max_tokens": 4}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    deadline = time.monotonic() + 600
    last = ""
    async with aiohttp.ClientSession(headers=headers) as session:
        while time.monotonic() < deadline:
            try:
                async with session.post(f"{stack.gateway_url}/chat/completions", json=body) as answer:
                    if answer.status == 200:
                        return
                    last = await answer.text()
            except aiohttp.ClientError as error:
                last = str(error)
            await asyncio.sleep(0.5)
    raise LocalError(f"the champion did not answer within ten minutes: {last}; see {stack.state / 'logs'}")


async def _perform(
    stage: Stage, stack: LocalStack, registry: MlflowRegistry, store: Store, act: Act, shown: ActView
) -> None:
    """Set `challenger` on one version and follow its rollout to the end."""
    version = stage.versions[act.version]
    model = stage.service.spec.model
    began = time.monotonic()
    await registry.set_alias(model.registered_model, model.challenger, version)
    stage.view.say(f"{act.version} ({act.title}): alias {model.challenger} set on version {version}")
    told = 0
    while time.monotonic() - began < stage.story.act_timeout:
        row = await asyncio.to_thread(_newest, store, stage.story.service, version)
        if row is not None:
            told = await asyncio.to_thread(_follow, stage, store, row, shown, told)
            if row.finished_at is not None:
                stage.scene.readings = ()
                return
        shown.seconds = time.monotonic() - began if shown.verdict == "" else shown.seconds
        stage.view.update()
        await asyncio.sleep(0.5)
    shown.state, shown.right = "stuck", False
    raise LocalError(
        f"{act.version} was not decided within {stage.story.act_timeout:.0f} s; {stack.children['controller'].last_words()}"
    )


def _newest(store: Store, service: str, version: str) -> RolloutRow | None:
    return next((row for row in store.rollouts(service) if row.version == version), None)


def _follow(stage: Stage, store: Store, row: RolloutRow, shown: ActView, told: int) -> int:
    """Bring what is shown up to date with one rollout; says how many of its audit entries have been told."""
    status = RolloutStatus.model_validate(row.status)
    step = f" step {status.step + 1}" if status.stage == "canary" else ""
    shown.state = status.stage + step
    stage.scene.now = f"{shown.version}: {shown.state}"
    entries = store.audit(rollout=row.id)
    entries.sort(key=lambda entry: (entry.at, entry.id or 0))
    for entry in entries[told:]:
        stage.view.say(f"{shown.version} {entry.reason}: {entry.message}")
    latest: dict[str, dict[str, Any]] = {}
    for reading in store.readings(row.id):
        if reading["stage"] == status.stage:
            latest[reading["metric"]] = dict(reading)
    stage.scene.readings = list(latest.values())
    if status.verdict not in ("continue", "hold") and shown.verdict == "":
        where = f" in {status.decided_in}" if status.decided_in else ""
        shown.verdict = f"{status.verdict}{where}" + (f" on {status.metric}" if status.metric else "")
        shown.right = report.as_expected(shown.expected, status.verdict, status.decided_in or "", status.metric)
        shown.seconds = (status.decided_at or store.now()) - row.started_at
    return len(entries)


async def _tell(stage: Stage, stack: LocalStack, serve: bool) -> int:
    """The whole story on a running stack; returns the exit status."""
    scene, story = stage.scene, stage.story
    scene.now = "starting MLflow and Ray"
    await asyncio.gather(_registry(stage, stack), stack.start_engines(), stack.start_gateway())
    registry = MlflowRegistry(stack.registry_uri)
    model = stage.service.spec.model
    if not serve or await registry.alias(model.registered_model, model.champion) is None:
        await registry.set_alias(model.registered_model, model.champion, stage.versions[story.champion])
    await stack.start_controller()
    if serve:
        await stack.start_prometheus()
    scene.addresses = stack.addresses()
    scene.now = f"starting the engine of {story.champion}, the champion"
    stage.view.say(f"{scene.now}: Ray Serve loads vLLM, mostly imports")
    await asyncio.gather(
        _champion_answers(stack, story.service), asyncio.to_thread(stage.register_challengers, stack.registry_uri)
    )
    stage.view.say(f"{story.champion} serves at {stack.gateway_url}; users arrive")
    store = open_store(stack.store_url)
    try:
        async with crowd(stage, stack):
            if serve:
                return await _stay(stage, stack)
            for number, (act, shown) in enumerate(zip(story.acts, scene.acts, strict=True)):
                scene.expected_seconds = sum(later.typical_seconds for later in story.acts[number:])
                countdown = asyncio.create_task(_count_down(scene))
                try:
                    await _perform(stage, stack, registry, store, act, shown)
                finally:
                    countdown.cancel()
        scene.now, scene.expected_seconds = "writing the report", 0.0
        await asyncio.to_thread(_write_report, stage, stack, store)
    finally:
        store.close()
    return 0 if all(shown.right for shown in scene.acts) else 1


async def _registry(stage: Stage, stack: LocalStack) -> None:
    await stack.start_registry()
    await asyncio.to_thread(stage.register_champion, stack.registry_uri)


async def _count_down(scene: Scene) -> None:
    while True:
        await asyncio.sleep(1.0)
        scene.expected_seconds = max(scene.expected_seconds - 1.0, 0.0)


async def _stay(stage: Stage, stack: LocalStack) -> int:
    """Leave the platform up with its users until Ctrl-C."""
    model = stage.service.spec.model
    for name, address in stack.addresses().items():
        stage.view.say(f"{name}: {address}")
    stage.view.say(f"API key: {stack.api_key}")
    stage.view.say(
        f"start a rollout: set the alias `{model.challenger}` on a version of `{model.registered_model}` in MLflow"
    )
    stage.view.say(f"watch it: understudy explain {stage.story.service} --store {stack.store_url}")
    stage.scene.now, stage.scene.expected_seconds = "the platform is up; Ctrl-C ends it", 0.0
    while True:
        stage.view.update()
        await asyncio.sleep(1.0)


def _write_report(stage: Stage, stack: LocalStack, store: Store) -> None:
    acts = stage.story.acts
    expectations = {stage.versions[act.version]: act.expected for act in acts}
    what = {stage.versions[act.version]: act.title for act in acts}
    users = stage.scene.users
    facts = {
        "Simulated users": f"{users.get('users', 0)} users asked {users.get('requests', 0)} questions; {users.get('failed', 0)} failed",
        "Engines": "vLLM on the CPU under Ray Serve",
        "Settings": str(stage.config),
        "Machine": f"{os.cpu_count()} cores",
    }
    meta: Mapping[str, Any] = {"title": "Six versions, five rollouts", "what": what, "facts": facts}
    report.build(store, stage.story.service, expectations, stage.config.parent, meta)


async def _until(stop: asyncio.Event, work: Awaitable[Result]) -> Result:
    """The work's result; raises KeyboardInterrupt when `stop` is set first."""
    task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise KeyboardInterrupt
        return task.result()
    finally:
        for one in (task, stopping):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await one


async def _run(stage: Stage, serve: bool) -> int:
    stop = interruptible()
    await _until(stop, stage.build_models())
    async with LocalStack(stage.config, stage.platform, stage.view.say, fresh=not serve) as stack:
        try:
            return await _until(stop, _tell(stage, stack, serve))
        finally:
            stage.scene.now, stage.scene.expected_seconds = "ending what was started", 0.0
            stage.view.say(stage.scene.now)


def run(config: Path, models: Path, serve: bool) -> int:
    """`understudy demo`: tell the story, print the table, say where the report lies.

    Returns:
        0 when every rollout ended as the configuration expects, 1 when one did not.

    Raises:
        LocalError, InvalidManifest: what is missing or wrong, with what to do.
        KeyboardInterrupt: Ctrl-C; everything started has been ended.
    """
    config = config.resolve()
    console = Console()
    story = read(config, {"DemoStory": DemoStory})[0].spec
    scene = Scene([ActView(act.version, act.title, act.expected) for act in story.acts])
    scene.expected_seconds = story.start_seconds + sum(act.typical_seconds for act in story.acts)
    view = LiveView(scene, console) if console.is_terminal else PlainView(scene, console)
    with view:
        code = asyncio.run(_run(Stage(config, models.resolve(), view, scene), serve))
    if serve:
        return code
    console.print(acts_table(scene.acts, f"Rollouts ({clock(time.monotonic() - scene.started)} in all)"))
    document = json.loads((config.parent / "report.json").read_text())
    for one in document["rollouts"]:
        console.print(f"{one['revision']}: {one['why']}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"report: {config.parent / 'report.html'} and report.json; logs, store, registry: {config.parent / 'run'}",
        soft_wrap=True,
    )
    return code
