"""Does outside the store what `decide` wants: engines on the platform, aliases and tags in the registry, answers to commands.

Called by `reconcile` after the decision is stored. Every action is idempotent and wanted again until it is seen to be done, so a failure
here is logged and left to the next look; only what is permanent (an artifact that is not there) is kept, as a refusal for `decide` to see.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from services.common import events
from services.common.clock import Clock
from services.common.identifiers import revision_name
from services.rollout import reasons
from services.rollout.actions import (
    Action,
    AnswerCommand,
    ApplyRevision,
    ClearChallenger,
    RemoveRevision,
    ScaleRevision,
    SetChallenger,
    SetChampion,
    TagVersion,
)
from services.rollout.artifacts import ReferencedArtifacts, check_adapter
from services.rollout.errors import ArtifactError, RegistryError
from services.rollout.observed import Refusal, VersionInfo
from services.rollout.platforms.base import Platform, PlatformError, PlatformRejected, RevisionSpec
from services.rollout.registry import Registry
from services.rollout.resources import Engine, LLMService
from services.rollout.resources_engine import POD, Lora, quantity_bytes
from services.rollout.revisions import ASLEEP_AFTER, engine_digest, weights_of
from services.store import Store

log = logging.getLogger(__name__)

_REFERENCED: Final = ReferencedArtifacts()  # where pods fetch for themselves, onto their own nodes
REFUSAL_SECONDS: Final = 60.0
"""After this a refused engine may be tried again: a person may have repaired what was wrong."""


About = Mapping[str, object]
"""Fields of every log line: service and rollout."""


class Artifacts(Protocol):
    """Brings a version's files to where engines read them."""

    async def fetch(self, info: VersionInfo) -> str:
        """Local folder or URI, verified. Raises ArtifactError (permanent) or RegistryUnavailable."""
        ...


class Executor:
    """Acts for one service. Engines are started and removed in tasks of their own: a download must not keep the next look waiting."""

    def __init__(
        self, store: Store, registry: Registry, platform: Platform, artifacts: Artifacts, clock: Clock
    ) -> None:
        self._store, self._registry, self._platform, self._artifacts = store, registry, platform, artifacts
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, tuple[float, Refusal]] = {}

    @property
    def refused(self) -> dict[str, Refusal]:
        """Engines that cannot be made, by name."""
        limit = self._clock.monotonic() - REFUSAL_SECONDS
        self._refused = {name: kept for name, kept in self._refused.items() if kept[0] > limit}
        return {name: refusal for name, (_, refusal) in self._refused.items()}

    def forgive(self) -> None:
        """A new rollout begins: what was refused before may be tried again."""
        self._refused.clear()

    async def run(
        self, service: LLMService, rules: LLMService, actions: Sequence[Action], rollout: str | None = None
    ) -> None:
        """Carries the actions out in order; those on the registry stop at the first failure. `rollout`: the one that they are of, for the
        log. Raises StoreError."""
        reachable = True
        about: About = {"service": service.name, "rollout": rollout}
        for action in actions:
            if isinstance(action, ApplyRevision):
                self._start(action.name, self._apply(service, rules, action, about), about)
            elif isinstance(action, ScaleRevision):
                self._start(action.name, self._scale(action, about), about)
            elif isinstance(action, RemoveRevision):
                self._start(action.name, self._remove(action.name, about), about)
            elif isinstance(action, AnswerCommand):
                await asyncio.to_thread(self._store.answer_command, action.id, action.answer)
            elif reachable:
                reachable = await self._tell_registry(service, action, about)

    async def close(self) -> None:
        """Ends the tasks; the next controller starts them again."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def idle(self) -> None:
        """Returns when no engine is being started or removed."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def _tell_registry(self, service: LLMService, action: Action, about: About) -> bool:
        names = service.spec.model
        model = names.registered_model
        try:
            if isinstance(action, SetChampion):
                # Looked up again: between look and act a person may have moved it, and theirs is the last word.
                found = await self._registry.alias(model, names.champion)
                if found is not None and found.version == action.expected:
                    await self._registry.set_alias(model, names.champion, action.version)
            elif isinstance(action, ClearChallenger):
                found = await self._registry.alias(model, names.challenger)
                if found is not None and found.version == action.version:
                    await self._registry.delete_alias(model, names.challenger)
            elif isinstance(action, SetChallenger):
                await self._registry.set_alias(model, names.challenger, action.version)
            elif isinstance(action, TagVersion):
                await self._registry.tag_version(model, action.version, action.tags)
        except RegistryError as error:
            log.warning(events.REGISTRY_UNTOLD, {**about, "error": error})
            return False
        return True

    def _start(self, name: str, work: Coroutine[Any, Any, None], about: About) -> None:
        """One task an engine; while it runs, the same wish at later looks starts nothing."""
        if name in self._tasks:
            work.close()
            return
        task = asyncio.create_task(work, name=f"engine {name}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done, about))

    def _ended(self, name: str, task: asyncio.Task[None], about: About) -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(events.ENGINE_CRASHED, {**about, "engine": name}, exc_info=error)

    async def _apply(self, service: LLMService, rules: LLMService, action: ApplyRevision, about: About) -> None:
        try:
            info = await self._registry.version(service.spec.model.registered_model, action.version)
            if info is None:
                raise ArtifactError(reasons.ARTIFACT_MISSING, f"the registry has no version {action.version}")
            # An edited resource names other engines: the one that was asked for comes from the resource that gives its name.
            weights, name = (action.version, action.name) if action.base is None else (weights_of(info), action.base)
            engine = next(
                (
                    s.spec.engine
                    for s in (service, rules)
                    if revision_name(s.name, weights, engine_digest(s.spec.engine)) == name
                ),
                service.spec.engine,
            )
            here = engine.platform == "serve" or action.base is not None  # adapters come to pods through a volume
            artifact = await (self._artifacts if here else _REFERENCED).fetch(info)
            if action.base is not None:
                await asyncio.to_thread(check_adapter, artifact, info, (engine.lora or Lora()).max_rank)
            await self._platform.apply(_revision(service.name, engine, action, artifact))
        except ArtifactError as error:
            self._refuse(action.name, error.reason, str(error), about)
        except PlatformRejected as error:
            reason = reasons.ENGINE_FAILED if action.base is None else reasons.ADAPTER_REFUSED
            self._refuse(action.name, reason, str(error), about)
        except (RegistryError, PlatformError) as error:
            log.warning(events.ENGINE_WAITS, {**about, "engine": action.name, "error": error})

    async def _scale(self, action: ScaleRevision, about: About) -> None:
        least, most = action.replicas
        told = {**about, "engine": action.name}
        try:
            await self._platform.scale(action.name, action.replicas)
            log.info(events.ENGINE_SCALED, {**told, "least": least, "most": most})
        except PlatformError as error:
            log.warning(events.ENGINE_UNSCALED, {**told, "error": error})

    async def _remove(self, name: str, about: About) -> None:
        try:
            await self._platform.remove(name)
            log.info(events.ENGINE_REMOVED, {**about, "engine": name})
        except PlatformError as error:
            log.warning(events.ENGINE_STAYS, {**about, "engine": name, "error": error})

    def _refuse(self, name: str, reason: str, message: str, about: About) -> None:
        log.warning(events.ENGINE_REFUSED, {**about, "engine": name, "error": message})
        self._refused[name] = (self._clock.monotonic(), Refusal(reason, message))


def _revision(service: str, engine: Engine, action: ApplyRevision, artifact: str) -> RevisionSpec:
    resources = {"CPU": engine.resources.cpu, "GPU": engine.resources.gpu}
    if engine.platform == "serve" and engine.resources.memory is not None:  # elsewhere the pods have it
        resources["memory"] = quantity_bytes(engine.resources.memory)
    sizes = {
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
    }
    scaling = engine.autoscaling
    pace = {"upscale_delay_s": scaling.upscale_delay, "downscale_delay_s": scaling.downscale_delay}
    if scaling.target_ongoing_requests is not None:
        pace["target_ongoing_requests"] = scaling.target_ongoing_requests
    if scaling.min == 0:
        pace["downscale_to_zero_delay_s"] = min(ASLEEP_AFTER, scaling.downscale_delay)
    pod = engine.model_dump(mode="json", by_alias=True, exclude_none=True, include={*POD, *sizes, "resources"})
    return RevisionSpec(
        name=action.name,
        service=service,
        artifact=artifact,
        engine={
            **engine.arguments,
            **{name: size for name, size in sizes.items() if size > 1},
            **(engine.lora.arguments if engine.lora else {}),
        },
        resources={kind: amount for kind, amount in resources.items() if amount},
        replicas=action.replicas,
        max_ongoing_requests=engine.max_ongoing_requests,
        autoscaling=pace,
        platform=engine.platform,
        base=action.base,
        pod={key: value for key, value in pod.items() if value not in ([], {})},
    )
