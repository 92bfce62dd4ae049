"""Empty stores, migrated once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.store import migrate, open_store
from tests.fakes.operator_world import SPEC, OperatorWorld


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store's file."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    migrate(f"sqlite:///{path}")
    store = open_store(f"sqlite:///{path}")
    store.close()
    return path.read_bytes()


@pytest.fixture
def url(template: bytes, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(template)
    return f"sqlite:///{tmp_path / 'store.db'}"


Make = Callable[..., Awaitable[OperatorWorld]]


@pytest.fixture
async def make(template: bytes, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes started worlds; `spec` and the arguments of `OperatorWorld`."""
    made: list[OperatorWorld] = []

    async def begin(spec: Any = SPEC, **options: Any) -> OperatorWorld:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        (folder / "store.db").write_bytes(template)
        world = OperatorWorld(f"sqlite:///{folder / 'store.db'}", folder, **options)
        made.append(world)
        await world.start(spec)
        return world

    yield begin
    for world in made:
        await world.close()
