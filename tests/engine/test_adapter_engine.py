"""LoRA adapters on a real Ray with a real vLLM engine, on the CPU: one engine, its base and two adapters side by side."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from services.rollout.platforms.adapters import AdapterPlatform
from services.rollout.platforms.base import PlatformUnavailable, RevisionSpec, RevisionState
from services.rollout.platforms.serve import ServePlatform
from services.serving.adapters import check
from services.serving.local_ray import LocalRay
from tests.engine.conftest import ENGINE, ENVIRONMENT, make_model

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

BASE, ADAPTERS = "assistant-v1-aaaa", ("assistant-v2-bbbb", "assistant-v3-cccc")
ADAPTING = {**ENGINE, "enable_lora": True, "max_loras": 2, "max_lora_rank": 8}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of versions' files: the base's and two adapters'."""
    folder = tmp_path_factory.mktemp("cache")
    make_model(folder / "base", 0)
    script = Path(__file__).with_name("tiny_adapter.py")
    for seed, name in enumerate(ADAPTERS):
        command: list[str | Path] = [ENVIRONMENT / "bin/python", script, folder / name, str(seed), "4"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    session: aiohttp.ClientSession, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AdapterPlatform]:
    folder = tmp_path_factory.mktemp("ray")
    ray = LocalRay(ENVIRONMENT, folder, folder / "ray.log")
    await ray.start()
    try:
        inner = ServePlatform(session, ray.dashboard_url, ray.proxy_url, token=ray.token, direct=True)
        platform = AdapterPlatform(inner, session, "assistant", cache)
        yield platform
        await platform.close()
    finally:
        await ray.stop()


def base(cache: Path, replicas: int = 1) -> RevisionSpec:
    return RevisionSpec(BASE, "assistant", str(cache / "base"), ADAPTING, {"CPU": 0.5}, (replicas, replicas), 32)


async def apply(platform: AdapterPlatform, revision: RevisionSpec) -> None:
    """As the controller does: what Ray has no time for is asked for again."""
    async with asyncio.timeout(300):
        while True:
            try:
                return await platform.apply(revision)
            except PlatformUnavailable:
                await asyncio.sleep(1)


async def observed(
    platform: AdapterPlatform, until: Callable[[dict[str, RevisionState]], bool]
) -> dict[str, RevisionState]:
    async with asyncio.timeout(300):
        while not until(states := await platform.observe("assistant")):
            await asyncio.sleep(0.2)
        return states


async def answer(session: aiohttp.ClientSession, address: str | None, model: str) -> tuple[int, str]:
    body = {"model": model, "prompt": "w1 w2", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    async with session.post(f"{address}/completions", json=body) as response:
        document = await response.json()
        return response.status, document["choices"][0]["text"] if response.status == 200 else str(document)


def start(found: tuple[int, str]) -> tuple[int, tuple[str, ...]]:
    """Status and first words: later ones of a random model may depend on what else is in the batch."""
    return found[0], tuple(found[1].split()[:3])


async def test_adapters_answer_beside_their_base_wherever_the_engine_is_reached(
    platform: AdapterPlatform, session: aiohttp.ClientSession, cache: Path
) -> None:
    await apply(platform, base(cache))
    states = await observed(platform, lambda states: states[BASE].direct is not None)
    before = await answer(session, states[BASE].direct, BASE)
    for name in ADAPTERS:
        check(cache / name, max_rank=8)
        await apply(platform, replace(base(cache), name=name, base=BASE, artifact=str(cache / name)))
    states = await observed(platform, lambda states: all(state.direct is not None for state in states.values()))
    assert {state.phase for state in states.values()} == {"ready"}
    assert len({state.address for state in states.values()}) == 1, "one engine"
    alone = {name: await answer(session, states[BASE].direct, name) for name in (BASE, *ADAPTERS)}
    assert {status for status, _ in alone.values()} == {200}
    assert alone[BASE] == before, "the base is what it was"
    assert len({start(one) for one in alone.values()}) == 3, "base and two adapters"
    for address in (states[BASE].address, states[BASE].direct):
        names = [BASE, *ADAPTERS] * 4
        found = await asyncio.gather(*(answer(session, address, name) for name in names))
        assert [start(one) for one in found] == [start(alone[name]) for name in names], "in one batch"


async def test_a_request_loads_nothing_but_adapters_by_their_names(
    platform: AdapterPlatform, session: aiohttp.ClientSession, cache: Path
) -> None:
    state = (await platform.observe("assistant"))[BASE]
    shutil.copytree(cache / ADAPTERS[0], cache / "adapters" / "elsewhere")
    for name in ("../elsewhere", "../../elsewhere", str(cache / ADAPTERS[0]), "assistant-v9-0000"):
        assert (await answer(session, state.direct, name))[0] == 404, name
    body = {"lora_name": "mine", "lora_path": str(cache / ADAPTERS[0])}
    for address in (state.address, state.direct):
        for verb in ("load", "unload"):
            async with session.post(f"{address}/{verb}_lora_adapter", json=body) as response:
                assert response.status == 404


async def test_a_replica_that_comes_later_serves_the_adapters_too(
    platform: AdapterPlatform, session: aiohttp.ClientSession, cache: Path
) -> None:
    state = (await platform.observe("assistant"))[BASE]
    before = await answer(session, state.address, ADAPTERS[0])
    await apply(platform, base(cache, replicas=2))
    await observed(platform, lambda states: states[BASE].ready_replicas == 2)
    found = await asyncio.gather(*(answer(session, state.address, ADAPTERS[0]) for _ in range(40)))
    assert {start(one) for one in found} == {start(before)}


async def test_a_removed_adapter_is_gone_and_the_other_stays(
    platform: AdapterPlatform, session: aiohttp.ClientSession, cache: Path
) -> None:
    await platform.remove(ADAPTERS[0])
    assert set(await platform.observe("assistant")) == {BASE, ADAPTERS[1]}
    assert not (cache / "adapters" / "assistant" / BASE / ADAPTERS[0]).exists()
    assert (cache / "adapters" / "assistant" / BASE / ADAPTERS[1]).is_dir()
