"""What the services' loops are made of, built once from the settings. Called by `__main__`; the loops know only what they are given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import aiohttp
from cryptography.fernet import Fernet

from services.common import events
from services.common.clock import SystemClock
from services.rollout.artifacts import CachedArtifacts
from services.rollout.cost_telling import CostTeller
from services.rollout.embedding import EmbeddingEndpoint
from services.rollout.errors import InvalidResource
from services.rollout.execute import Executor
from services.rollout.health import Health
from services.rollout.judge import ChatEndpoint, ExactMatchJudge, Grader, Judge, PairwiseJudge, RubricJudge
from services.rollout.judging import Judging
from services.rollout.lock import Lock, holding
from services.rollout.loop import RETRY_SECONDS, ServiceLoop
from services.rollout.metrics import Metrics
from services.rollout.notify import Notifier
from services.rollout.observe import Observer
from services.rollout.platforms.adapters import AdapterPlatform
from services.rollout.platforms.base import Platform
from services.rollout.platforms.by_engine import PlatformByEngine
from services.rollout.platforms.kuberay import KubeRayPlatform
from services.rollout.platforms.kubernetes_objects import KubernetesObjects
from services.rollout.platforms.measured import MeasuredPlatform
from services.rollout.platforms.serve import ServePlatform
from services.rollout.prompts import PromptReader
from services.rollout.reconcile import Reconciler
from services.rollout.registry import MlflowRegistry
from services.rollout.resources import LLMService
from services.rollout.retention import sweep
from services.rollout.sampling import SampleReader
from services.rollout.settings import ControllerSettings
from services.rollout.together import Together
from services.serving.rayservice import PodSettings
from services.store import Store

log = logging.getLogger(__name__)

SAMPLES_SECONDS: Final = 5.0
"""Between two searches for samples: nothing waits for them."""
Made = TypeVar("Made")
Owner = Mapping[str, Any]


class Parts:
    """One controller's. `folder`: where paths in resources begin. `kubernetes`: the cluster, where there is one. `dashboard`: Ray's, where
    there is a platform `serve`.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        store: Store,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        folder: Path,
        kubernetes: KubernetesObjects | None,
        dashboard: str | None,
    ) -> None:
        self._settings, self._store, self._session = settings, store, session
        self._environ, self._folder, self._kubernetes = environ, folder, kubernetes
        self._clock = SystemClock()
        self._standings = Together(store.standings)
        self._registry = MlflowRegistry(settings.registry_uri, timeout=settings.registry_timeout)
        self._artifacts = CachedArtifacts(settings.registry_uri, settings.artifact_cache)
        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        self._serve = (
            ServePlatform(session, dashboard, settings.ray_proxy_url, token=token, direct=settings.ray_direct)
            if dashboard
            else None
        )
        self._pods = _pod_settings(settings)

    def loops(self, lock: Lock, metrics: Metrics, health: Health) -> Callable[[LLMService, Owner | None], ServiceLoop]:
        """Makes the loop of a service; `owner`: an owner reference to its resource, for what is made in a cluster."""
        hold = holding(lock)

        def make(service: LLMService, owner: Owner | None) -> ServiceLoop:
            def reconciler(of: LLMService) -> Reconciler:
                return self._reconciler(of, owner, metrics)

            def beside(of: LLMService) -> Collection[asyncio.Task[None]]:
                return self._beside(of, metrics)

            return ServiceLoop(service, hold, reconciler, beside, metrics, health, self._clock)

        return make

    async def close(self) -> None:
        """Ends clients and threads."""
        if self._serve is not None:
            await self._serve.close()
        await self._registry.close()
        self._store.close()

    def _reconciler(self, service: LLMService, owner: Owner | None, metrics: Metrics) -> Reconciler:
        platforms: dict[str, Platform] = {} if self._serve is None else {"serve": self._serve}
        if self._kubernetes is not None and self._pods is not None:
            platforms["kuberay"] = KubeRayPlatform(
                self._session, self._kubernetes, service.metadata.namespace, self._pods, owner
            )
        # The resource may name another platform later: the reconciler knows the present one.
        engines = PlatformByEngine(platforms, lambda: reconciler.service.spec.engine.platform)
        cache, volume = self._settings.artifact_cache, self._settings.artifact_volume
        adapters = AdapterPlatform(engines, self._session, service.name, cache, volume)
        platform = MeasuredPlatform(adapters, self._clock, metrics.called)
        observer = Observer(self._store, self._registry, platform, self._standings, self._settings.owner)
        executor = Executor(self._store, self._registry, platform, self._artifacts, self._clock)
        reconciler = Reconciler(service, self._store, observer, executor)
        return reconciler

    def _beside(self, service: LLMService, metrics: Metrics) -> Collection[asyncio.Task[None]]:
        """The tasks that run between a service's looks."""
        tasks = [asyncio.create_task(sweep(service, self._store), name=f"retention {service.name}")]
        if service.spec.cost is None:
            metrics.spent(service.name, ())
        else:
            teller = CostTeller(service, service.spec.cost, self._store, metrics.spent)
            tasks.append(asyncio.create_task(teller.run(), name=f"costs {service.name}"))
        if service.spec.rollout.notifications:
            notifier = Notifier(service, self._store, self._session, self._environ)
            tasks.append(asyncio.create_task(notifier.run(), name=f"notifications {service.name}"))
        if (service.judged or service.sampled) and self._settings.content_key is None:
            log.warning(events.JUDGE_WITHOUT_KEY, {"service": service.name})
        elif self._settings.content_key is not None:
            key = self._settings.content_key.get_secret_value().encode()
            if service.judged:
                tasks.append(asyncio.create_task(self._judge(service, key, metrics), name=f"judge {service.name}"))
            if service.sampled:
                tasks.append(asyncio.create_task(self._sample(service, key, metrics), name=f"samples {service.name}"))
        for task in tasks:
            task.add_done_callback(_ended)
        return tasks

    async def _judge(self, service: LLMService, key: bytes, metrics: Metrics) -> None:
        judge = await self._made(service, self._make_judge)
        pause = min(1.0, service.spec.rollout.look)
        await Judging(service.name, self._store, judge, key, pause, metrics.judged).run()

    async def _sample(self, service: LLMService, key: bytes, metrics: Metrics) -> None:
        grader = cast(Grader, await self._made(service, self._make_judge)) if service.graded else None
        embedder = await self._made(service, self._make_embedder)
        prompts = PromptReader(embedder, Fernet(key)) if embedder is not None else None
        await SampleReader(service.name, self._store, grader, prompts, key, SAMPLES_SECONDS, metrics.judged).run()

    async def _made(self, service: LLMService, make: Callable[[LLMService], Made]) -> Made:
        """What the resource names, once it can be made: a file or a secret may come later."""
        while True:
            try:
                return make(service)
            except InvalidResource as error:
                log.warning(events.JUDGE_UNUSABLE, {"service": service.name, "error": error})
                await asyncio.sleep(RETRY_SECONDS)

    def _make_embedder(self, service: LLMService) -> EmbeddingEndpoint | None:
        spec = service.spec.drift.prompts
        if spec is None:
            return None
        key = self._secret(spec.api_key_env, "drift.prompts.apiKeyEnv")
        return EmbeddingEndpoint(self._session, spec.endpoint, spec.model, key, spec.timeout)

    def _make_judge(self, service: LLMService) -> Judge:
        spec = service.spec.rollout.judge
        assert spec is not None  # noqa: S101  service.judged, or graded
        if spec.kind == "exactMatch":
            return ExactMatchJudge.from_file(self._folder / str(spec.references))
        key = self._secret(spec.api_key_env, "judge.apiKeyEnv")
        endpoint = ChatEndpoint(self._session, str(spec.endpoint), str(spec.model), key, spec.timeout)
        return RubricJudge(endpoint) if spec.kind == "rubric" else PairwiseJudge(endpoint)

    def _secret(self, variable: str | None, field: str) -> str | None:
        """A secret from the environment; None: the resource names none. Raises InvalidResource."""
        value = self._environ.get(variable) if variable else None
        if variable and value is None:
            raise InvalidResource(f"environment variable {variable} ({field}) is not set")
        return value


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error(events.TASK_CRASHED, {"task": task.get_name()}, exc_info=error)


def _pod_settings(settings: ControllerSettings) -> PodSettings | None:
    """For the platform `kuberay`; None where no image is named."""
    if settings.fetch_image is None or settings.engine_image is None:
        return None
    registry = {"name": "MLFLOW_TRACKING_URI", "value": settings.registry_uri}
    return PodSettings(
        fetch_image=settings.fetch_image,
        engine_image=settings.engine_image,
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=settings.image_pull_secrets,
        fetch_environment=(registry, *settings.fetch_environment),
        memory=settings.engine_memory,
    )
