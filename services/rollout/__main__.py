"""`python -m services.rollout --config services.yaml`: the rollout controller in file mode. Settings come from the environment."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from services.common.clock import SystemClock
from services.rollout.artifacts import CachedArtifacts
from services.rollout.controller import RETRY_SECONDS, Controller
from services.rollout.errors import InvalidResource
from services.rollout.execute import Executor
from services.rollout.judge import ChatEndpoint, ExactMatchJudge, Judge, PairwiseJudge, RubricJudge
from services.rollout.judging import Judging
from services.rollout.lock import controller_lock
from services.rollout.metrics import Metrics, health_app
from services.rollout.observe import Observer
from services.rollout.platforms.serve import ServePlatform
from services.rollout.reconcile import Reconciler
from services.rollout.registry import MlflowRegistry
from services.rollout.resources import LLMService
from services.rollout.settings import ControllerSettings
from services.store import Store, open_store

log = logging.getLogger("services.rollout")


class Parts:
    """What the services' loops are made of; built once."""

    def __init__(
        self,
        settings: ControllerSettings,
        config: Path,
        store: Store,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
    ) -> None:
        self.settings, self.config, self.store, self.session, self.environ = settings, config, store, session, environ
        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        self.registry = MlflowRegistry(settings.registry_uri, timeout=settings.registry_timeout)
        self.platform = ServePlatform(session, settings.ray_dashboard_url, settings.ray_proxy_url, token=token)
        self.artifacts = CachedArtifacts(settings.registry_uri, settings.artifact_cache)

    def reconciler(self, service: LLMService) -> Reconciler:
        """The loop of one service."""
        observer = Observer(self.store, self.registry, self.platform, self.settings.owner)
        executor = Executor(self.store, self.registry, self.platform, self.artifacts, SystemClock())
        return Reconciler(service, self.store, observer, executor)

    def judging(self, service: LLMService) -> asyncio.Task[None] | None:
        """The judge's task; None where nothing may be judged."""
        if not service.judged:
            return None
        if self.settings.content_key is None:
            log.warning(
                "%s names a judge, but UNDERSTUDY_CONTROLLER_CONTENT_KEY is not set: nothing is judged", service.name
            )
            return None
        return asyncio.create_task(
            self._judge(service, self.settings.content_key.get_secret_value().encode()), name=f"judge {service.name}"
        )

    async def _judge(self, service: LLMService, key: bytes) -> None:
        while True:
            try:
                judge = self._make_judge(service)
            except InvalidResource as error:
                log.warning("judge of %s: %s; trying again", service.name, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await Judging(service.name, self.store, judge, key, pause=min(1.0, service.spec.rollout.look)).run()

    def _make_judge(self, service: LLMService) -> Judge:
        spec = service.spec.rollout.judge
        assert spec is not None  # noqa: S101  service.judged
        if spec.kind == "exactMatch":
            return ExactMatchJudge.from_file(self.config.parent / str(spec.references))
        key = self.environ.get(spec.api_key_env) if spec.api_key_env else None
        if spec.api_key_env and key is None:
            raise InvalidResource(f"environment variable {spec.api_key_env} (judge.apiKeyEnv) is not set")
        endpoint = ChatEndpoint(self.session, str(spec.endpoint), str(spec.model), key, spec.timeout)
        return RubricJudge(endpoint) if spec.kind == "rubric" else PairwiseJudge(endpoint)

    async def close(self) -> None:
        """Ends clients and threads."""
        await self.platform.close()
        await self.registry.close()
        self.store.close()


async def serve(settings: ControllerSettings, config: Path, environ: Mapping[str, str]) -> None:
    """Runs until SIGTERM or SIGINT. Raises InvalidResource (file wrong at the start) and OSError (port in use)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        parts = Parts(settings, config, open_store(settings.store_url), session, environ)
        stack.push_async_callback(parts.close)
        runner = web.AppRunner(health_app(metrics))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.host, settings.port).start()
        lock = controller_lock(settings.store_url)
        controller = Controller(config, lock, parts.reconciler, parts.judging, metrics, SystemClock())
        running = asyncio.create_task(controller.run(), name="controller")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        if running in done:
            log.error("the controller ended by itself")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a signal, 1 where something fails, 2 for wrong settings or a wrong file."""
    parser = argparse.ArgumentParser(
        prog="python -m services.rollout", description="The rollout controller, in file mode."
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file with LLMService resources")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = ControllerSettings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            field = "_".join(str(part) for part in mistake["loc"]).upper()
            sys.stderr.write(f"UNDERSTUDY_CONTROLLER_{field}: {mistake['msg']}\n")
        return 2
    # MLflow's client repeats failed requests for minutes; here the next look is the repetition, and no thread may outlive its question.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{max(1, round(settings.registry_timeout))}")
    try:
        asyncio.run(serve(settings, options.config, os.environ))
    except InvalidResource as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"cannot listen on {settings.host}:{settings.port}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
