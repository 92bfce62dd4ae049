"""Answers of stable that are looked at: which are drawn, what the controller finds of them, and that nothing waits for the store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
import pytest
from cryptography.fernet import Fernet

from services.common.assignment import bucket_of
from services.common.clock import HOUR
from services.common.routing import ContentFilter, Route, Rules, Sample
from services.store import Observation, Store, StoreUnavailable, material_of
from tests.fakes.gateway import CONTENT_KEY, RunningGateway
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import observations, until
from tests.gateway.test_rollout_traffic import ask, user_on

SALT = "cd" * 16


def sampled(route: Route, share: int = 10_000, **changes: Any) -> Route:
    return msgspec.structs.replace(route, sample=Sample(salt=SALT, share=share), **changes)


def contents(store: Store) -> list[dict[str, str]]:
    fernet = Fernet(CONTENT_KEY)
    return [json.loads(fernet.decrypt(one.ciphertext)) for one in store.judge_material(material_of("assistant"), 100)]


@pytest.mark.parametrize("stream", [True, False])
async def test_one_answer_of_each_user_is_kept_encrypted(start: Any, idle: Route, store: Store, stream: bool) -> None:
    gateway: RunningGateway = await start(sampled(idle))
    for number in range(3):
        for _ in range(2):
            assert await ask(gateway, f"user-{number}", stream=stream) == 200
    found = await until(lambda: len(found := contents(store)) == 3 and found)
    recorded = await until(lambda: len(rows := observations(store)) == 6 and rows)
    rows = {row.request_id: row for row in recorded}
    for content in found:
        row = rows[content.pop("request_id")]
        assert content == {
            "revision": row.revision, "tenant": row.tenant, "prompt": "hi", "answer": "the capital of france is paris",
        }  # fmt: skip
    material = store.judge_material(material_of("assistant"), 100)
    assert len({one.unit for one in material}) == 3
    assert not any(b"paris" in one.ciphertext for one in material)


async def test_each_hour_draws_other_users(start: Any, idle: Route, store: Store) -> None:
    gateway: RunningGateway = await start(sampled(idle, 2_000))
    users = [f"user-{number}" for number in range(40)]
    for user in users:
        assert await ask(gateway, user) == 200
    rows = await until(lambda: len(rows := observations(store)) == 40 and rows)

    def drawn(row: Observation, later: int) -> bool:
        hour = f"{row.started_at // HOUR + later:.0f}"
        return bucket_of(bytes.fromhex(SALT), hour, row.unit) < 2_000

    now, next_hour = ({row.unit for row in rows if drawn(row, later)} for later in (0, 1))
    await until(lambda: {one.unit for one in store.judge_material(material_of("assistant"), 100)} == now)
    assert 0 < len(now) < 20
    assert now != next_hour


async def test_only_stables_whole_answers_are_samples(
    start: Any, canary: Route, stable: Engine, candidate: Engine, store: Store
) -> None:
    gateway: RunningGateway = await start(sampled(canary))
    assert await ask(gateway, user_on("candidate", canary)) == 200
    assert await ask(gateway, user_on("control", canary)) == 200
    await until(lambda: contents(store))
    stable.behaviour = Behaviour(status=500)
    assert await ask(gateway, "another") in (200, 502)
    await until(lambda: len(observations(store)) >= 3)
    assert {content["revision"] for content in contents(store)} == {canary.stable.revision}


async def test_the_answer_is_kept_as_filters_leave_it(start: Any, idle: Route, store: Store) -> None:
    secret = ContentFilter(name="cities", applies_to="answer", pattern="paris", action="redact", max_length=10)
    gateway: RunningGateway = await start(sampled(idle, rules=Rules(content_filters=(secret,))))
    assert await ask(gateway, "user-1") == 200
    (content,) = await until(lambda: contents(store))
    assert "paris" not in content["answer"]
    assert content["answer"].startswith("the capital of france is")


async def test_without_the_store_an_answer_is_dropped_and_counted(
    start: Any, idle: Route, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Store, material: object) -> None:
        raise StoreUnavailable("away")

    gateway: RunningGateway = await start(sampled(idle))
    monkeypatch.setattr(Store, "put_judge_material", away)
    assert await ask(gateway, "user-1") == 200
    async with aiohttp.ClientSession() as http, asyncio.timeout(5):
        while True:
            async with http.get(f"{gateway.url}/metrics") as response:
                if 'samples_total{result="store",service="assistant"} 1.0' in await response.text():
                    return


async def test_without_a_key_nothing_is_kept(start: Any, idle: Route, store: Store) -> None:
    gateway: RunningGateway = await start(sampled(idle), content_key=None)
    assert await ask(gateway, "user-1") == 200
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as response:
        assert 'samples_total{result="no_content_key",service="assistant"} 1.0' in await response.text()
    assert store.judge_material(material_of("assistant"), 100) == []
