"""The platform `serve` on a real Ray with real vLLM engines, on the CPU.

One head for the module; starting an engine takes about a minute, so the tests build on one another in their order.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from services.rollout.platforms.base import RevisionSpec, RevisionState
from services.rollout.platforms.serve import ServePlatform
from services.serving.local_ray import LocalRay, tagged
from tests.engine.conftest import ENGINE, ENVIRONMENT, make_model

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

STABLE, CANDIDATE, BROKEN = "assistant-v1-aaaa", "assistant-v2-bbbb", "assistant-v3-cccc"


def spec(name: str, artifact: Path) -> RevisionSpec:
    return RevisionSpec(name, "assistant", str(artifact), ENGINE, {"CPU": 0.5}, (1, 1), 32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / name for name in (STABLE, CANDIDATE, BROKEN)}
    for seed, name in enumerate((STABLE, CANDIDATE)):
        make_model(paths[name], seed)
    shutil.copytree(paths[STABLE], paths[BROKEN])
    config = json.loads((paths[BROKEN] / "config.json").read_text())
    (paths[BROKEN] / "config.json").write_text(json.dumps({**config, "hidden_size": 96}))  # not that of the weights
    return paths


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    session: aiohttp.ClientSession, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServePlatform]:
    folder = tmp_path_factory.mktemp("ray")
    ray = LocalRay(ENVIRONMENT, folder, folder / "ray.log")
    await ray.start()
    try:
        platform = ServePlatform(session, ray.dashboard_url, ray.proxy_url, token=ray.token)
        yield platform
        await platform.close()
    finally:
        tag = f"{folder.resolve()}#ray"
        started = len(tagged(tag))
        await ray.stop()
        assert started > 10
        assert tagged(tag) == []


async def observed(
    platform: ServePlatform, until: Callable[[dict[str, RevisionState]], bool]
) -> dict[str, RevisionState]:
    async with asyncio.timeout(500):
        while not until(states := await platform.observe("assistant")):
            await asyncio.sleep(0.5)
        return states


async def streamed(session: aiohttp.ClientSession, state: RevisionState) -> str:
    """The text of a streamed completion of eight tokens."""
    body = {"model": state.name, "prompt": "w1 w2", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    chunks = []
    async with session.post(
        f"{state.address}/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    ) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                chunks.append(json.loads(line[6:]))
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


async def test_two_revisions_answer_and_a_broken_one_says_why(
    platform: ServePlatform, session: aiohttp.ClientSession, models: dict[str, Path]
) -> None:
    for name, path in models.items():
        await platform.apply(spec(name, path))
    states = await observed(platform, lambda states: all(s.phase in ("ready", "failed") for s in states.values()))
    assert {name: state.phase for name, state in states.items()} == {
        STABLE: "ready",
        CANDIDATE: "ready",
        BROKEN: "failed",
    }
    assert "size of tensor" in states[BROKEN].message
    answers = [await streamed(session, states[name]) for name in (STABLE, CANDIDATE)]
    assert answers[0] != answers[1]  # two models, not one twice


async def test_a_revision_leaves_under_load_without_an_error_on_the_other(
    platform: ServePlatform, session: aiohttp.ClientSession
) -> None:
    stable = (await platform.observe("assistant"))[STABLE]
    gone = asyncio.Event()
    answered = 0

    async def user() -> None:
        nonlocal answered
        while not gone.is_set():
            await streamed(session, stable)
            answered += 1

    async with asyncio.TaskGroup() as users:
        for _ in range(4):
            users.create_task(user())
        await platform.remove(CANDIDATE)
        await platform.remove(BROKEN)
        await observed(platform, lambda states: set(states) == {STABLE})
        gone.set()
    assert answered > 20
