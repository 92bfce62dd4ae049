"""`python -m services.rollout`: the rollout controller, over a file's services (`--config services.yaml`) or a cluster's (`--kubernetes`).
Settings come from the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from services.common import events, logs
from services.common.clock import SystemClock
from services.common.telemetry import CERTIFICATE_END
from services.rollout.controller import Controller, FileSource, Source
from services.rollout.errors import InvalidResource
from services.rollout.health import Health, Question
from services.rollout.lock import controller_lock
from services.rollout.metrics import Metrics, health_app
from services.rollout.operator.admission import admission_app, certificate_end, renew, tls
from services.rollout.operator.api import KubernetesApi
from services.rollout.operator.cluster import ClusterSource
from services.rollout.operator.resource import Surroundings
from services.rollout.parts import Parts
from services.rollout.platforms.kubernetes_objects import NoCluster
from services.rollout.settings import ControllerSettings
from services.store import open_store

log = logging.getLogger("services.rollout")

LAPTOP_RAY: Final = "http://127.0.0.1:8265"
"""Ray's dashboard where the settings name none, for a file's services."""
END_SECONDS: Final = 9.0
"""After a signal: a thread that still downloads or waits for a server cannot be ended, and must not keep the process."""


async def serve(
    settings: ControllerSettings, config: Path | None, kubernetes: KubernetesApi | None, environ: Mapping[str, str]
) -> None:
    """Runs until SIGTERM or SIGINT; over the cluster's services where no file is given.

    Raises:
        InvalidResource: the file is wrong at the start.
        OSError: a port is in use, a certificate cannot be read.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics, clock = Metrics(), SystemClock()
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        store = open_store(settings.store_url)
        folder = config.parent if config is not None else Path("/")
        dashboard = settings.ray_dashboard_url or (LAPTOP_RAY if config is not None else None)
        parts = Parts(settings, store, session, environ, folder, kubernetes, dashboard)
        stack.push_async_callback(parts.close)
        needs: dict[str, Question] = {"store": partial(asyncio.to_thread, store.ping)}
        if kubernetes is not None:
            stack.push_async_callback(kubernetes.close)
            if config is None:
                needs["API server"] = kubernetes.ping
        health = Health(clock, needs)
        await _listen(stack, health_app(metrics, health), settings.host, settings.port)
        lock = controller_lock(settings.store_url)
        loops = parts.loops(lock, metrics, health)
        source: Source
        if config is not None:
            source = FileSource(config, lambda service: loops(service, None))
        else:
            assert kubernetes is not None  # noqa: S101  see main
            stamped = await _listen_for_admission(stack, settings, metrics)
            around = Surroundings(kubernetes, store, loops, clock, stamped, settings.gateway_url)
            namespace = None if settings.all_namespaces else settings.namespace or kubernetes.namespace
            where = f"namespace {namespace}" if namespace else "all namespaces"
            log.info(events.CONTROLLER_STARTED, {"where": where})
            source = ClusterSource(around, namespace)
        running = asyncio.create_task(Controller(source, lock).run(), name="controller")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            _end_in_time()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, host: str, port: int, **options: object
) -> None:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port, **options).start()  # type: ignore[arg-type]


async def _listen_for_admission(
    stack: contextlib.AsyncExitStack, settings: ControllerSettings, metrics: Metrics
) -> bool:
    """Whether there is a webhook."""
    folder = settings.webhook_certificates
    if folder is None:
        return False
    context = tls(folder)
    metrics.read(CERTIFICATE_END, partial(certificate_end, folder))
    await _listen(stack, admission_app(), settings.host, settings.webhook_port, ssl_context=context)
    renewal = asyncio.create_task(renew(context, folder), name="certificates")
    stack.callback(renewal.cancel)
    return True


def _end_in_time() -> None:
    def end() -> None:
        log.warning(events.CONTROLLER_BUSY, {"seconds": END_SECONDS})
        os._exit(0)

    timer = threading.Timer(END_SECONDS, end)
    timer.daemon = True
    timer.start()


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a signal, 1 where something fails, 2 for wrong settings or a wrong file."""
    parser = argparse.ArgumentParser(prog="python -m services.rollout", description="The rollout controller.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--config", type=Path, help="YAML file with LLMService resources")
    mode.add_argument("--kubernetes", action="store_true", help="the LLMService resources of a cluster")
    parser.add_argument("--namespace", help="with --kubernetes: act on this namespace only (default: the pod's own)")
    parser.add_argument("--all-namespaces", action="store_true", help="with --kubernetes: act on all namespaces")
    options = parser.parse_args(arguments)
    logs.configure("controller")
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it tells of every change that it hands over
    given = {"namespace": options.namespace, "all_namespaces": options.all_namespaces or None}
    try:
        settings = ControllerSettings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            field = "_".join(str(part) for part in mistake["loc"]).upper()
            sys.stderr.write(f"UNDERSTUDY_CONTROLLER_{field}: {mistake['msg']}\n")
        return 2
    logs.follow_signals(settings.log_level)
    # MLflow's client repeats failed requests for minutes; here the next look is the repetition, and no thread may outlive its question.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{max(1, round(settings.registry_timeout))}")
    try:
        # A file's services may have engines on a cluster's KubeRay; without images for them no cluster is looked for.
        wanted = options.kubernetes or (settings.engine_image is not None and settings.fetch_image is not None)
        kubernetes = KubernetesApi.connect() if wanted else None
        asyncio.run(serve(settings, options.config, kubernetes, os.environ))
    except NoCluster as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except InvalidResource as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"cannot serve on {settings.host}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
