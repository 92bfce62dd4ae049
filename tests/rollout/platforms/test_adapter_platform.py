"""Adapters around a platform in memory, with an engine that answers over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.rollout.platforms.adapters import AdapterPlatform
from services.rollout.platforms.base import PlatformRejected, PlatformUnavailable, RevisionSpec, RevisionState
from tests.fakes.adapter import write_adapter
from tests.fakes.openai_engine import Behaviour, Engine, serve
from tests.fakes.platform import FakePlatform

BASE, ADAPTER = "assistant-v1-aaaa", "assistant-v4-7c1f"


def spec(artifact: Path, **changes: Any) -> RevisionSpec:
    revision = RevisionSpec(ADAPTER, "assistant", str(artifact), {}, {"CPU": 1}, (0, 0), 8, base=BASE)
    return replace(revision, **changes)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with serve(Engine()) as engine:
        yield engine


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def inner(engine: Engine) -> FakePlatform:
    platform = FakePlatform(engine.address)
    platform.engines[BASE] = RevisionState(BASE, "ready", 3, engine.address, "")
    return platform


@pytest.fixture
async def platform(
    inner: FakePlatform, session: aiohttp.ClientSession, tmp_path: Path
) -> AsyncIterator[AdapterPlatform]:
    platform = AdapterPlatform(inner, session, "assistant", tmp_path, {"claim": "models"})
    yield platform
    await platform.close()


async def observed(platform: AdapterPlatform, until: Callable[[RevisionState], bool]) -> RevisionState:
    async with asyncio.timeout(2):
        while not until(state := (await platform.observe("assistant"))[ADAPTER]):
            await asyncio.sleep(0.01)
        return state


async def test_an_adapter_is_ready_where_it_has_answered_under_its_own_name(
    platform: AdapterPlatform, inner: FakePlatform, engine: Engine, tmp_path: Path
) -> None:
    async with serve(Engine()) as replica:
        inner.engines[BASE] = replace(inner.engines[BASE], direct=replica.address)
        await platform.apply(spec(write_adapter(tmp_path / "files")))
        assert inner.applied == [], "no engine is started"
        first = (await platform.observe("assistant"))[ADAPTER]
        assert (first.phase, first.address) == ("starting", None)
        state = await observed(platform, lambda state: state.direct is not None)
        assert (state.phase, state.address, state.direct) == ("ready", engine.address, replica.address)
        assert state.ready_replicas == 3
        assert {body["model"] for body in engine.requests + replica.requests} == {ADAPTER}
        inner.engines[BASE] = replace(inner.engines[BASE], direct="http://127.0.0.1:1/v1")
        moved = (await platform.observe("assistant"))[ADAPTER]
        assert (moved.phase, moved.direct) == ("ready", None), "a replica that has not answered is not named"


@pytest.mark.parametrize(("status", "phase"), [(404, "starting"), (500, "starting"), (400, "failed")])
async def test_an_engine_that_does_not_serve_it(
    platform: AdapterPlatform, engine: Engine, tmp_path: Path, status: int, phase: str
) -> None:
    engine.behaviour = Behaviour(status=status, error="found but could not be loaded")
    await platform.apply(spec(write_adapter(tmp_path / "files")))
    state = await observed(platform, lambda state: str(status) in state.message)
    assert (state.phase, state.address) == (phase, None)
    assert "found but could not be loaded" in state.message


@pytest.mark.parametrize("change", [None, {"phase": "failed"}, {"phase": "starting", "address": None}])
async def test_an_adapter_is_as_good_as_its_engine(
    platform: AdapterPlatform, inner: FakePlatform, tmp_path: Path, change: Mapping[str, Any] | None
) -> None:
    await platform.apply(spec(write_adapter(tmp_path / "files")))
    await observed(platform, lambda state: state.phase == "ready")
    before = inner.engines.pop(BASE)
    if change is not None:
        inner.engines[BASE] = replace(before, **change)
    state = (await platform.observe("assistant"))[ADAPTER]
    assert (state.phase, state.address) == ("starting", None)
    assert f"its engine {BASE} is {change['phase'] if change else 'absent'}" in state.message
    inner.engines[BASE] = before
    again = (await platform.observe("assistant"))[ADAPTER]
    assert again.phase == "starting", "it must answer anew"
    await observed(platform, lambda state: state.phase == "ready")


async def test_a_new_controller_finds_what_is_there_and_removes_it(
    platform: AdapterPlatform, inner: FakePlatform, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    await platform.apply(spec(write_adapter(tmp_path / "files")))
    later = AdapterPlatform(inner, session, "assistant", tmp_path)
    assert set(await later.observe("assistant")) == {BASE, ADAPTER}
    await later.remove(ADAPTER)
    assert inner.removed == []
    assert set(await later.observe("assistant")) == {BASE}
    assert list((tmp_path / "adapters" / "assistant").iterdir()) == []
    await later.remove(BASE)
    assert inner.removed == [BASE]
    await later.close()


@pytest.mark.parametrize(
    ("volume", "cache", "message"),
    [
        ({"claim": "models"}, {}, "spec.engine.artifactCache is not set"),
        ({"claim": "models"}, {"hostPath": "/models"}, "the controller's cache is {'claim': 'models'}"),
        (None, {"claim": "models"}, "the controller's cache has no volume"),
    ],
)
async def test_pods_that_do_not_read_the_controllers_cache_get_no_adapters(
    inner: FakePlatform,
    session: aiohttp.ClientSession,
    tmp_path: Path,
    volume: Mapping[str, str] | None,
    cache: Mapping[str, str],
    message: str,
) -> None:
    platform = AdapterPlatform(inner, session, "assistant", tmp_path, volume)
    pod = {"artifactCache": dict(cache)} if cache else {}
    with pytest.raises(PlatformRejected) as raised:
        await platform.apply(spec(write_adapter(tmp_path / "files"), platform="kuberay", pod=pod))
    assert message in str(raised.value)
    assert ADAPTER not in await platform.observe("assistant")


async def test_pods_that_share_the_cache_get_them(platform: AdapterPlatform, tmp_path: Path) -> None:
    pod = {"artifactCache": {"claim": "models"}}
    await platform.apply(spec(write_adapter(tmp_path / "files"), platform="kuberay", pod=pod))
    await observed(platform, lambda state: state.phase == "ready")


async def test_a_cache_that_cannot_be_written_is_tried_again(platform: AdapterPlatform, tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("in the way")
    with pytest.raises(PlatformUnavailable, match="cannot be put into"):
        await platform.apply(spec(write_adapter(tmp_path / "files")))
