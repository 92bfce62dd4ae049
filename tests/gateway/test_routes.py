"""The routing table on its own: services that come and go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from services.common.routing import Route
from services.store import Store
from tests.fakes.gateway import KEY, RunningGateway
from tests.gateway.conftest import Start


async def _model(gateway: RunningGateway) -> int:
    import aiohttp

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}
        async with session.post(f"{gateway.url}/v1/chat/completions", json=body) as answer:
            said = await answer.json()
            assert answer.status == 200 or said["error"]["code"] == "model_not_found"
            return answer.status


async def test_a_removed_service_is_acknowledged_and_answered_404(
    start: Start, idle: Route, store: Store, tmp_path: Path
) -> None:
    gateway: Any = await start(idle)
    assert await _model(gateway) == 200
    version = await asyncio.to_thread(store.remove_route, "assistant")
    assert version is not None
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(store.acknowledged, "assistant", version):
            await asyncio.sleep(0.01)
    assert await _model(gateway) == 404
    kept = next(tmp_path.rglob("routes.json"))
    assert json.loads(kept.read_bytes()) == [], "a restarted gateway must not serve it from its cache"
    await asyncio.to_thread(store.publish_route, idle)
    async with asyncio.timeout(10):
        while await _model(gateway) != 200:
            await asyncio.sleep(0.01)
