"""What a gateway exposes at `/metrics`: the measurements, with labels that stay bounded."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

from services.common import telemetry
from services.common.routing import Route
from services.store import Store
from tests.fakes.gateway import KEY, RunningGateway
from tests.fakes.recorded import until


async def exposed(gateway: RunningGateway) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as response:
        assert response.status == 200
        return await response.text()


async def ask(gateway: RunningGateway, model: str, user: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "user": user, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{gateway.url}/v1/chat/completions"
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as response:
        await response.read()


async def test_arms_are_measured_and_nothing_of_the_clients_becomes_a_label(start: Any, canary: Route) -> None:
    gateway = await start(canary)
    for number in range(10):
        await ask(gateway, "assistant", f"ada-{number}")
        await ask(gateway, f"gpt-{number}", "ada")
    text = await exposed(gateway)
    for arm, revision in (("control", "assistant-v1-aaaa"), ("candidate", "assistant-v2-bbbb")):
        labels = f'{{arm="{arm}",kind="live",revision="{revision}",service="assistant"}}'
        assert f"{telemetry.TIME_TO_FIRST_TOKEN}_count{labels}" in text
    assert f'{telemetry.REFUSED}{{reason="model_not_found",service="unknown"}} 10.0' in text
    assert f"# TYPE {telemetry.RECORDS} counter" in text
    assert "gpt-" not in text
    assert "ada" not in text


async def test_feedback_is_counted_by_arm_and_by_what_it_says(start: Any, idle: Route) -> None:
    gateway = await start(idle)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "user": "ada"}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
        for kind, value in (("thumb", -1), ("rating", 5), ("dwell", 12)):
            mark = {"request_id": request, "kind": kind, "value": value}
            async with http.post(f"{gateway.url}/v1/feedback", json=mark) as response:
                assert response.status == 201
    text = await exposed(gateway)
    for kind, mark in (("thumb", "bad"), ("rating", "good"), ("dwell", "neutral")):
        labels = f'arm="stable",kind="{kind}",mark="{mark}",revision="assistant-v1-aaaa",service="assistant"'
        assert f"{telemetry.FEEDBACK}{{{labels}}} 1.0" in text


async def test_revisions_that_left_the_table_leave_the_metrics(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    for number in range(10):
        await ask(gateway, "assistant", f"user-{number}")
    assert "assistant-v2-bbbb" in await exposed(gateway)
    idle = msgspec.structs.replace(canary, candidate=None, rollout=None, stage="idle", weight=0)
    version = store.publish_route(idle).version
    await until(lambda: store.acknowledged("assistant", version))
    text = await exposed(gateway)
    assert "assistant-v2-bbbb" not in text
    assert "assistant-v1-aaaa" in text
