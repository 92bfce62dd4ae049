"""A canary's traffic through a real gateway: arms, exposures, fallback, ejection, lease, heavy units; and the rehearsal's copies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
import pytest
from cryptography.fernet import Fernet

from services.common.assignment import arm_of, bucket_of
from services.common.identifiers import unit_of
from services.common.routing import Mirror, Route
from services.store import Store, StoreUnavailable, open_store
from tests.fakes.gateway import CONTENT_KEY, KEY, RunningGateway, target
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import exposures, observations, until

UNIT_KEY = b"a key for the units of tests"


async def ask(gateway: RunningGateway, user: str | None = None, **fields: Any) -> int:
    """One chat completion; its status."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], **fields}
    headers = {"Authorization": f"Bearer {KEY}"} | ({"X-User-Id": user} if user else {})
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{gateway.url}/v1/chat/completions", json=body) as response,
    ):
        await response.read()
        return response.status


def user_on(arm: str, route: Route) -> str:
    """A user whom the route puts on the arm."""
    for number in range(1000):
        user = f"user-{number}"
        bucket = bucket_of(bytes.fromhex(route.salt), route.rollout or "", unit_of(UNIT_KEY, "t1", user))
        if arm_of(bucket, route.weight) == arm:
            return user
    raise AssertionError(f"no user on {arm}")


async def test_users_keep_their_arm_and_are_exposed_once(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    for user in [f"user-{number}" for number in range(20)] * 2:
        assert await ask(gateway, user) == 200
    rows = await until(lambda: len(found := observations(store)) == 40 and found)
    assert {row.arm for row in rows} == {"control", "candidate"}
    for row in rows:
        assert row.bucket == bucket_of(bytes.fromhex(canary.salt), "r1", row.unit)
        assert row.arm == arm_of(row.bucket, canary.weight)
        assert row.revision == ("assistant-v2-bbbb" if row.arm == "candidate" else "assistant-v1-aaaa")
        assert row.counted
    exposed = {row.unit: row for row in exposures(store)}
    assert len(exposed) == 20
    for row in rows:
        first = exposed[row.unit]
        assert first.arm == row.arm
        assert first.first_at <= row.started_at < first.horizon_at < first.closes_at
    assert [gap["missing"] for gap in store.gaps()] == [0]


async def test_an_adapter_is_asked_for_by_its_own_name_on_stables_engine(
    start: Any, canary: Route, stable: Engine, store: Store
) -> None:
    adapter = target("assistant-v4-7c1f", "4", stable.address, engine=canary.stable.model)
    route = msgspec.structs.replace(canary, candidate=adapter)
    gateway = await start(route)
    for arm in ("candidate", "control"):
        assert await ask(gateway, user_on(arm, route)) == 200
    assert [body["model"] for body in stable.requests] == ["assistant-v4-7c1f", "assistant-v1-aaaa"]
    rows = await until(lambda: len(found := observations(store)) == 2 and found)
    assert {row.arm: row.revision for row in rows} == {"candidate": "assistant-v4-7c1f", "control": "assistant-v1-aaaa"}


@pytest.mark.parametrize("named", ["user", "safety_identifier", "header"])
async def test_the_user_is_known_by_each_of_its_names(start: Any, canary: Route, store: Store, named: str) -> None:
    gateway = await start(canary)
    await (ask(gateway, "ada") if named == "header" else ask(gateway, **{named: "ada"}))
    [row] = await until(lambda: observations(store))
    assert row.unit == unit_of(UNIT_KEY, "t1", "ada")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (Behaviour(status=500), "status_500"),
        (Behaviour(break_after=0), "reset"),
        (Behaviour(hang=True), "timeout"),
        (Behaviour(status=404), "status_404"),
    ],
)
async def test_stable_answers_for_a_candidate_that_fails(
    start: Any, canary: Route, candidate: Engine, store: Store, behaviour: Behaviour, kind: str, streamed: bool
) -> None:
    if behaviour.break_after is not None and not streamed:
        behaviour = Behaviour(raw=b"{")
        kind = "invalid_answer"
    candidate.behaviour = behaviour
    impatient = msgspec.structs.replace(canary, time_to_first_byte=0.6, total_time=1.4)
    gateway = await start(impatient if behaviour.hang else canary)
    assert await ask(gateway, user_on("candidate", canary), stream=streamed) == 200
    first, second = await until(lambda: len(found := observations(store)) == 2 and found)
    assert (first.attempt, first.arm, first.outcome, first.error) == (0, "candidate", "error", kind)
    assert (second.attempt, second.arm, second.outcome) == (1, "candidate", "ok")
    assert (first.revision, second.revision) == ("assistant-v2-bbbb", "assistant-v1-aaaa")
    assert first.request_id == second.request_id
    assert first.started_at <= second.started_at


@pytest.mark.parametrize(
    ("stable_status", "status", "extra", "outcome"),
    [
        (400, 400, {}, "client_error"),  # both refuse: the request was at fault
        (200, 400, {}, "error"),  # only the candidate refuses
        (422, 400, {}, "error"),
        (500, 500, {}, "error"),
        (
            500,
            500,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
            "client_error",
        ),
    ],
)
async def test_a_candidates_refusal_counts_unless_stable_refuses_too(
    start: Any, canary: Route, stable: Engine, candidate: Engine, store: Store, stable_status: int, status: int,
    extra: dict[str, Any], outcome: str,
) -> None:  # fmt: skip
    candidate.behaviour = Behaviour(status=status)
    stable.behaviour = Behaviour(status=stable_status)
    gateway = await start(canary)
    await ask(gateway, user_on("candidate", canary), **extra)
    first, _ = await until(lambda: len(found := observations(store)) == 2 and found)
    assert (first.attempt, first.outcome) == (0, outcome)


async def test_a_candidate_that_keeps_failing_is_ejected(
    start: Any, canary: Route, candidate: Engine, store: Store
) -> None:
    candidate.behaviour = Behaviour(status=500)
    gateway = await start(msgspec.structs.replace(canary, eject_after=3))
    user = user_on("candidate", canary)
    for _ in range(5):
        assert await ask(gateway, user) == 200
    assert len(candidate.requests) == 3
    assert await ask(gateway, user_on("control", canary)) == 200
    rows = await until(lambda: len(found := observations(store)) == 9 and found)
    assert [(row.arm, row.counted, row.bucket) for row in rows[6:]] == [("stable", False, None)] * 3
    assert len(exposures(store)) == 1  # neither arm gains users meanwhile


async def test_cut_off_from_the_store_everyone_goes_to_stable(
    start: Any, canary: Route, candidate: Engine, store: Store
) -> None:
    away = False

    class Away:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                if away:
                    raise StoreUnavailable("away")
                return getattr(store, name)(*arguments)

            return call

    gateway = await start(canary, lease_seconds=1.0, store_factory=lambda url: Away())
    user = user_on("candidate", canary)
    assert await ask(gateway, user) == 200
    assert len(candidate.requests) == 1
    away = True
    await until(lambda: metric(gateway, "understudy_gateway_lease_valid") == 0)
    for _ in range(3):
        assert await ask(gateway, user) == 200
    assert len(candidate.requests) == 1
    away = False
    await until(lambda: metric(gateway, "understudy_gateway_lease_valid") == 1)
    assert await ask(gateway, user) == 200
    assert len(candidate.requests) == 2
    rows = await until(lambda: len(found := observations(store)) == 5 and found)
    assert [row.counted for row in rows] == [True, False, False, False, True]
    assert [gap["missing"] for gap in store.gaps()] == [0]


def metric(gateway: RunningGateway, name: str) -> float | None:
    completions = gateway.app.completions
    assert completions is not None
    return completions._metrics.registry.get_sample_value(name)


async def test_a_restart_without_the_store_serves_stable_from_the_kept_table(
    start: Any, canary: Route, stable: Engine, candidate: Engine, store: Store, tmp_path: Any
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "routes.json").write_bytes(msgspec.json.encode([msgspec.structs.replace(canary, version=3)]))
    gateway = await start(None, store_factory=lambda url: open_store(f"sqlite:///{tmp_path}/nowhere/no.db"))
    assert await ask(gateway, user_on("candidate", canary)) == 200
    assert (len(stable.requests), len(candidate.requests)) == (1, 0)


async def test_the_lease_acknowledges_the_table_and_ends_with_the_gateway(
    start: Any, canary: Route, store: Store
) -> None:
    gateway = await start(canary)
    published = store.publish_route(msgspec.structs.replace(canary, weight=2_500))
    await until(lambda: store.acknowledged("assistant", published.version))
    [lease] = store.leases()
    assert lease.gateway == "gateway-1"
    await until(lambda: store.watermark() > store.now() - 0.5)
    gateway.server.should_exit = True
    await until(lambda: not store.leases())


async def test_a_route_that_cannot_be_obeyed_is_not_acknowledged(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    bad = store.publish_route(msgspec.structs.replace(canary, salt="not hexadecimal"))
    good = await until(lambda: [lease for lease in store.leases() if lease.complete_through > 0])
    assert good[0].routes["assistant"] < bad.version
    assert await ask(gateway, user_on("candidate", canary)) == 200


async def test_a_unit_with_most_of_the_traffic_is_left_out(
    start: Any, canary: Route, candidate: Engine, store: Store
) -> None:
    gateway = await start(canary, heavy_unit_share=0.005)
    user = user_on("candidate", canary)
    for _ in range(8):
        assert await ask(gateway, user) == 200
    rows = await until(lambda: len(found := observations(store)) == 8 and found)
    assert [row.counted for row in rows] == [True] * 5 + [False] * 3
    assert len(candidate.requests) == 5


def rehearsal(canary: Route, **changes: Any) -> Route:
    mirror = Mirror(**({"salt": "ab" * 16, "share": 10_000, "in_flight": 2, "content": True} | changes))
    return msgspec.structs.replace(canary, stage="rehearsal", weight=0, mirror=mirror)


async def test_rehearsal_copies_one_request_of_each_user_to_both(
    start: Any, canary: Route, stable: Engine, candidate: Engine, store: Store
) -> None:
    candidate.behaviour = Behaviour(words=("paris",))
    gateway = await start(rehearsal(canary, in_flight=100))
    for number in range(6):
        for _ in range(2):
            assert await ask(gateway, f"user-{number}") == 200
    rows = await until(lambda: len(found := observations(store)) == 24 and found)
    live = {row.request_id: row for row in rows if row.kind == "live"}
    copies = [row for row in rows if row.kind == "mirror"]
    assert {row.arm for row in live.values()} == {"stable"}
    assert exposures(store) == []
    pairs: dict[str | None, set[str]] = {}
    for row in copies:
        assert row.streamed
        assert row.ttft is not None
        assert row.pair in live
        assert row.unit == live[str(row.pair)].unit
        pairs.setdefault(row.pair, set()).add(row.arm)
    assert len(pairs) == 6
    assert all(arms == {"candidate", "control"} for arms in pairs.values())
    assert all("stream" not in body or body["stream"] for body in candidate.requests)
    material = await until(lambda: len(found := store.judge_material("r1", 10)) == 6 and found)
    content = json.loads(Fernet(CONTENT_KEY).decrypt(material[0].ciphertext))
    assert content == {"prompt": "hi", "candidate": "paris", "stable": "the capital of france is paris"}


async def test_pairs_beyond_the_bound_are_dropped_and_a_failing_candidate_is_seen(
    start: Any, canary: Route, candidate: Engine, store: Store
) -> None:
    candidate.behaviour = Behaviour(status=500, first_after=0.3)
    gateway = await start(rehearsal(canary, in_flight=1, content=False))
    for number in range(5):
        assert await ask(gateway, f"user-{number}") == 200
    rows = await until(
        lambda: len(found := [row for row in observations(store) if row.kind == "mirror"]) >= 2 and found
    )
    assert candidate.most_running == 1
    failed = next(row for row in rows if row.arm == "candidate")
    assert (failed.outcome, failed.error) == ("error", "status_500")
    assert store.judge_material("r1", 10) == []


async def test_a_share_of_nothing_mirrors_nothing(start: Any, canary: Route, candidate: Engine) -> None:
    gateway = await start(rehearsal(canary, share=0))
    for number in range(5):
        await ask(gateway, f"user-{number}")
    await asyncio.sleep(0)
    assert candidate.requests == []
