"""Scale to zero on a real Ray and a real vLLM engine, on the CPU: a replica goes, and a request through the gateway brings it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from services.common.routing import Hold, Route, Target
from services.rollout.platforms.base import RevisionSpec, RevisionState
from services.rollout.platforms.serve import ServePlatform
from services.store import migrate, open_store
from tests.engine.conftest import ENGINE, make_model
from tests.fakes.gateway import KEY, gateway_settings, running_gateway

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

NAME = "assistant-v1-aaaa"
PACE = {"upscale_delay_s": 5.0, "downscale_delay_s": 5.0, "downscale_to_zero_delay_s": 5.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", 0)


async def observed(platform: ServePlatform, until: Callable[[RevisionState], bool]) -> RevisionState:
    async with asyncio.timeout(240):
        while (state := (await platform.observe("assistant")).get(NAME)) is None or not until(state):
            await asyncio.sleep(0.5)
        return state


async def replicas(platform: ServePlatform) -> list[str]:
    """Ids of the replicas that are there, those that drain included."""
    return [str(one["replica_id"]) for one in (await platform._snapshot())._engine(NAME)["replicas"]]


async def test_a_replica_goes_and_a_request_brings_it_back(
    platform: ServePlatform, model: Path, tmp_path: Path
) -> None:
    await platform.apply(RevisionSpec(NAME, "assistant", str(model), ENGINE, {"CPU": 0.5}, (1, 1), 32, PACE))
    state = await observed(platform, lambda state: state.direct is not None)
    first = await replicas(platform)
    assert len(first) == 1
    await platform.scale(NAME, (0, 2))
    assert await replicas(platform) == first  # other bounds start nothing anew
    await observed(platform, lambda state: state.phase == "ready" and state.ready_replicas == 0)
    async with asyncio.timeout(60):
        while await replicas(platform):  # one that drains still answers at its own address
            await asyncio.sleep(0.2)

    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    store = open_store(url)
    assert state.address is not None
    assert state.direct is not None
    # As a gateway sees it that has not heard yet: the replica's own address leads nowhere, the proxy is in reserve.
    target = Target(revision=NAME, version="1", addresses=(state.direct,), model=NAME, reserve=state.address)
    hold = Hold(requests=3, seconds=240.0, awake=5.0)
    store.publish_route(Route(service="assistant", version=0, stable=target, hold=hold, time_to_first_byte=5.0))
    async with (
        running_gateway(gateway_settings(url, tmp_path / "state")) as gateway,
        aiohttp.ClientSession() as session,
    ):

        async def ask() -> tuple[int, str]:
            body = {"model": "assistant", "prompt": "w1 w2", "max_tokens": 4, "ignore_eos": True, "stream": True}
            headers = {"Authorization": f"Bearer {KEY}"}
            async with session.post(f"{gateway.url}/v1/completions", json=body, headers=headers) as answer:
                return answer.status, await answer.text()

        began = time.monotonic()
        answers = await asyncio.gather(*(ask() for _ in range(5)))
        waited = time.monotonic() - began
        assert sorted(status for status, _ in answers) == [200, 200, 200, 503, 503]
        assert all("[DONE]" in text for status, text in answers if status == 200)
        assert all("engine_starting" in text for status, text in answers if status == 503)
        assert waited > 5.0  # an engine had to start
        assert (await ask())[0] == 200
    store.close()
    assert (await observed(platform, lambda state: state.ready_replicas == 1)).phase == "ready"
    assert await replicas(platform) != first
