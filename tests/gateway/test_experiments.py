"""An experiment's traffic through a real gateway: users keep their group, the holdout is stable's, a variant that fails is told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import aiohttp
import msgspec
import pytest

from services.common.assignment import bucket_of, group_of
from services.common.identifiers import unit_of
from services.common.routing import Experiment, Group, Route, Rules, Target
from services.store import Store
from tests.fakes.gateway import KEY, RunningGateway, target
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import exposures, observations, until

SALT = "5a" * 16
UNIT_KEY = b"a key for the units of tests"


async def ask(gateway: RunningGateway, user: str) -> int:
    """One chat completion of a user; its status."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {KEY}", "X-User-Id": user}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{gateway.url}/v1/chat/completions", json=body) as response,
    ):
        await response.read()
        return response.status


def experiment(*groups: tuple[str, int, Target | None], id_: str = "assistant:tone") -> Experiment:
    made = tuple(Group(name=name, share=share, target=where) for name, share, where in groups)
    return Experiment(id=id_, salt=SALT, groups=made, horizon=60.0, settle=10.0)


@pytest.fixture
def tried(idle: Route, candidate: Engine) -> Route:
    """A third of the users gets v1, a third v2, a tenth is held out."""
    second = target("assistant-v2-bbbb", "2", candidate.address)
    groups = (("plain", 3_000, idle.stable), ("warm", 3_000, second), ("holdout", 1_000, None))
    return msgspec.structs.replace(idle, experiments=(experiment(*groups),))


def group(route: Route, user: str) -> str | None:
    """The group that the user belongs to by the rule itself."""
    one = route.experiments[0]
    bucket = bucket_of(bytes.fromhex(one.salt), one.id, unit_of(UNIT_KEY, "t1", user))
    index = group_of(bucket, [each.share for each in one.groups])
    return None if index is None else one.groups[index].name


def user_in(route: Route, name: str | None) -> str:
    return next(user for number in range(1_000) if group(route, user := f"user-{number}") == name)


async def test_users_stay_in_their_group_and_the_rest_is_stables(start: Any, tried: Route, store: Store) -> None:
    gateway = await start(tried)
    users = [f"user-{number}" for number in range(60)]
    for user in users * 2:
        assert await ask(gateway, user) == 200
    rows = await until(lambda: len(found := observations(store)) == 120 and found)
    expected = {unit_of(UNIT_KEY, "t1", user): group(tried, user) for user in users}
    assert len(set(expected.values())) == 4
    for row in rows:
        name = expected[row.unit]
        assert row.arm == (name or "stable")
        assert row.rollout == ("assistant:tone" if name else None)
        assert row.revision == ("assistant-v2-bbbb" if name == "warm" else "assistant-v1-aaaa")
        assert row.counted
    exposed = exposures(store)
    assert {row.unit: row.arm for row in exposed} == {unit: name for unit, name in expected.items() if name}
    assert all(row.closes_at - row.first_at == pytest.approx(70.0) for row in exposed)


def test_shares_are_kept() -> None:
    groups = [3_000, 3_000, 1_000]
    buckets = (bucket_of(b"salt", "assistant:tone", str(number)) for number in range(20_000))
    found = Counter(group_of(bucket, groups) for bucket in buckets)
    shares = {0: 0.3, 1: 0.3, 2: 0.1, None: 0.3}
    assert all(found[index] / 20_000 == pytest.approx(share, abs=0.013) for index, share in shares.items())


async def test_a_rollout_takes_the_others_alone(start: Any, canary: Route, tried: Route, store: Store) -> None:
    both = msgspec.structs.replace(canary, experiments=tried.experiments)
    gateway = await start(both)
    users = [f"user-{number}" for number in range(60)]
    for user in users:
        assert await ask(gateway, user) == 200
    rows = await until(lambda: len(found := observations(store)) == 60 and found)
    taking_part = {unit_of(UNIT_KEY, "t1", user) for user in users if group(tried, user)}
    assert {row.unit for row in rows if row.rollout == "assistant:tone"} == taking_part
    rest = [row for row in rows if row.unit not in taking_part]
    assert {row.rollout for row in rest} == {"r1"}
    assert {row.arm for row in rest} == {"control", "candidate"}


async def test_the_older_experiment_keeps_its_users(start: Any, tried: Route, store: Store) -> None:
    stable = tried.stable
    younger = experiment(("left", 5_000, stable), ("right", 5_000, stable), id_="assistant:later")
    gateway = await start(msgspec.structs.replace(tried, experiments=(*tried.experiments, younger)))
    for name in ("plain", "warm", "holdout", None):
        assert await ask(gateway, user_in(tried, name)) == 200
    rows = await until(lambda: len(found := observations(store)) == 4 and found)
    assert [row.rollout for row in rows] == ["assistant:tone"] * 3 + ["assistant:later"]


async def test_a_failing_variant_is_answered_by_stable_and_counts_as_failed(
    start: Any, tried: Route, candidate: Engine, store: Store
) -> None:
    candidate.behaviour = Behaviour(status=500)
    gateway = await start(msgspec.structs.replace(tried, eject_after=2))
    user = user_in(tried, "warm")
    for _ in range(4):
        assert await ask(gateway, user) == 200
    assert len(candidate.requests) == 2  # then it is ejected: nobody waits for it any more
    rows = await until(lambda: len(found := observations(store)) == 8 and found)
    first = [row for row in rows if row.attempt == 0]
    assert [(row.arm, row.outcome, row.counted) for row in first] == [("warm", "error", True)] * 4
    assert [row.error for row in first] == ["status_500"] * 2 + ["ejected"] * 2
    second = [row for row in rows if row.attempt == 1]
    assert [(row.arm, row.revision, row.outcome) for row in second] == [("warm", "assistant-v1-aaaa", "ok")] * 4
    assert await ask(gateway, user_in(tried, "plain")) == 200


async def test_the_first_variants_failure_is_the_users_where_it_is_stable(
    start: Any, tried: Route, stable: Engine, store: Store
) -> None:
    stable.behaviour = Behaviour(status=500)
    gateway = await start(tried)
    assert await ask(gateway, user_in(tried, "plain")) >= 500
    [row] = await until(lambda: observations(store))
    assert (row.arm, row.attempt, row.outcome) == ("plain", 0, "error")


async def test_a_variant_gets_the_services_prompt_and_its_own(start: Any, tried: Route, stable: Engine) -> None:
    prompted = msgspec.structs.replace(tried.stable, revision="assistant-v3-cccc", system_prompt="Be warm.")
    one = experiment(("plain", 5_000, tried.stable), ("warm", 5_000, prompted))
    route = msgspec.structs.replace(tried, experiments=(one,), rules=Rules(prompt="You are Ada."))
    gateway = await start(route)
    for name in ("plain", "warm"):
        assert await ask(gateway, user_in(route, name)) == 200
    assert [body["messages"][0]["content"] for body in stable.requests] == ["You are Ada.", "You are Ada.\n\nBe warm."]


async def test_groups_that_do_not_fit_are_refused(start: Any, idle: Route, store: Store) -> None:
    gateway: RunningGateway = await start(idle)
    crowded = experiment(("plain", 6_000, idle.stable), ("warm", 6_000, idle.stable))
    bad = store.publish_route(msgspec.structs.replace(idle, experiments=(crowded,)))
    good = await until(lambda: [lease for lease in store.leases() if lease.complete_through > 0])
    assert good[0].routes["assistant"] < bad.version
    assert await ask(gateway, "user-1") == 200
