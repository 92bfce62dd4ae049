"""A migrated SQLite store, two fake engines and a gateway between them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.common.routing import Route
from services.store import Store, migrate, open_store
from tests.fakes.gateway import RunningGateway, gateway_settings, route, running_gateway, target
from tests.fakes.openai_engine import Engine, serve


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to copy."""
    path = tmp_path_factory.mktemp("migrated") / "understudy.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "understudy.db"
    shutil.copy(migrated, path)
    opened = open_store(f"sqlite:///{path}")
    yield opened
    opened.close()


@pytest.fixture
async def stable() -> AsyncIterator[Engine]:
    async with serve(Engine()) as engine:
        yield engine


@pytest.fixture
async def candidate() -> AsyncIterator[Engine]:
    async with serve(Engine()) as engine:
        yield engine


@pytest.fixture
def idle(stable: Engine) -> Route:
    """Only stable serves."""
    return route(target("assistant-v1-aaaa", "1", stable.address))


@pytest.fixture
def canary(stable: Engine, candidate: Engine) -> Route:
    """Half of the users go to the candidate."""
    return route(target("assistant-v1-aaaa", "1", stable.address), target("assistant-v2-bbbb", "2", candidate.address))


Start = Callable[..., Awaitable[RunningGateway]]


@pytest.fixture
async def start(store: Store, tmp_path: Path) -> AsyncIterator[Start]:
    """Publishes a route and starts a gateway on it; changed settings by keyword."""
    async with AsyncExitStack() as stack:

        async def begin(published: Route | None, **changes: Any) -> RunningGateway:
            if published is not None:
                store.publish_route(published)
            given = {key: changes.pop(key) for key in ("otlp", "clock", "store_factory") if key in changes}
            settings = gateway_settings(store.url, changes.pop("state_dir", tmp_path / "state"), **changes)
            return await stack.enter_async_context(running_gateway(settings, **given))

        yield begin
