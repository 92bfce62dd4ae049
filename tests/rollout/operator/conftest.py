"""Worlds of an operator, each with a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.operator_world import SPEC, OperatorWorld

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
