"""A real gateway under uvicorn in this process, for tests: its settings, and a server on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from services.common.clock import Clock
from services.common.routing import Route, Target
from services.gateway.app import GatewayApp, create_app
from services.gateway.http import protocol_class
from services.gateway.otlp_settings import OtlpSettings
from services.gateway.settings import GatewaySettings, KeySettings
from services.store import Store, open_store

KEY = "sk-test-user"
ADMIN_KEY = "sk-test-admin"
OTHER_KEY = "sk-test-other-tenant"
CONTENT_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


def hashed(key: str) -> str:
    """What the settings hold of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def gateway_settings(store_url: str, state_dir: Path, **changes: Any) -> GatewaySettings:
    """Settings for a test: three keys, quick polls."""
    values: dict[str, Any] = {
        "store_url": store_url,
        "state_dir": state_dir,
        "unit_key": "a key for the units of tests",
        "content_key": CONTENT_KEY,
        "keys": (
            KeySettings(name="user", tenant="t1", sha256=hashed(KEY)),
            KeySettings(name="admin", tenant="t1", sha256=hashed(ADMIN_KEY), scopes=frozenset({"pin", "debug"})),
            KeySettings(name="other", tenant="t2", sha256=hashed(OTHER_KEY)),
        ),
        "name": "gateway-1",
        "poll_seconds": 0.05,
        "recorder": {"flush_seconds": 0.01},
    }
    return GatewaySettings(**(values | changes))


@dataclass
class RunningGateway:
    """A gateway that takes requests at `url`."""

    url: str
    app: GatewayApp
    server: uvicorn.Server


@contextlib.asynccontextmanager
async def running_gateway(
    settings: GatewaySettings,
    *,
    otlp: OtlpSettings | None = None,
    clock: Clock | None = None,
    store_factory: Callable[[str], Store] = open_store,
) -> AsyncIterator[RunningGateway]:
    """Serves until the block ends, then shuts down as SIGTERM would."""
    app = create_app(settings, otlp=otlp, clock=clock, store_factory=store_factory)
    config = uvicorn.Config(
        app,
        http=protocol_class(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:
            if task.done():
                raise RuntimeError("the gateway did not start") from task.exception()
            await asyncio.sleep(0.005)
        try:
            yield RunningGateway(f"http://127.0.0.1:{listener.getsockname()[1]}", app, server)
        finally:
            server.should_exit = True
            await task


def target(name: str, version: str, address: str, **changes: Any) -> Target:
    """A revision of the service `assistant`."""
    return Target(**({"revision": name, "version": version, "addresses": (address,), "model": name} | changes))


def route(stable: Target, candidate: Target | None = None, **changes: Any) -> Route:
    """A row for the service `assistant`; with a candidate, a canary step at half the users."""
    values: dict[str, Any] = {
        "service": "assistant",
        "version": 0,
        "stable": stable,
        "time_to_first_byte": 2.0,
        "total_time": 5.0,
    }
    if candidate is not None:
        values |= {
            "candidate": candidate, "rollout": "r1", "salt": "00ff" * 8, "stage": "canary", "weight": 5_000,
            "horizon": 60.0, "settle": 10.0,
        }  # fmt: skip
    return Route(**(values | changes))
