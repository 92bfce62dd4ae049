"""Preferences of people through a real gateway and into the store, as a labelling tool would send them."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from services.common import telemetry
from services.common.routing import Route
from services.gateway.preferences import Answer, compared
from services.store import PEOPLE, Store
from tests.fakes.gateway import ADMIN_KEY, KEY, OTHER_KEY, RunningGateway, route, target
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import feedback, observations, until
from tests.gateway.test_feedback import say


async def pinned(gateway: RunningGateway, version: str, question: str = "hi", key: str = ADMIN_KEY) -> str:
    """The id of a pinned revision's answer; of the service's own where no version is named."""
    model = f"assistant@v{version}" if version else "assistant"
    body = {"model": model, "messages": [{"role": "user", "content": question}], "user": "tool"}
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{gateway.url}/v1/chat/completions"
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as response:
        await response.read()
        return response.headers["x-request-id"]


async def both(gateway: RunningGateway) -> tuple[str, str]:
    """Answers of stable and of the candidate to one question."""
    return await pinned(gateway, "1"), await pinned(gateway, "2")


async def prefer(gateway: RunningGateway, first: str, other: str, value: float, key: str = KEY, **more: Any) -> Any:
    return await say(gateway, key, kind="preference", request_id=first, other_request_id=other, value=value, **more)


async def test_preferences_are_stored_for_the_rollout(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    stable, candidate = await both(gateway)
    for user, first, other, value, shown in (
        ("ada", stable, candidate, 0, candidate),
        ("ada", candidate, stable, 0, stable),
        ("bob", candidate, stable, 0.5, None),
        ("cyd", stable, candidate, 1, None),
    ):
        told = {} if shown is None else {"shown_first": shown}
        status, answer = await prefer(gateway, first, other, value, user=user, id="task-7", **told)
        assert (status, answer) == (201, {"id": "task-7", "request_id": first})
    rows = await until(lambda: len(found := store.judgements("r1", 0)) == 4 and found)
    assert [(row.candidate, row.stable, row.judge) for row in rows] == [
        (1, 0, PEOPLE), (0, 1, PEOPLE), (0.5, 0.5, PEOPLE), (0, 1, PEOPLE),
    ]  # fmt: skip
    pairs = [row.pair.partition(":") for row in rows]
    assert [shown for _, _, shown in pairs] == ["candidate", "stable", "unknown", "unknown"]
    assert [pair == pairs[0][0] for pair, _, _ in pairs] == [True, True, False, False]
    assert len({row.unit for row in rows}) == 3
    assert all(not row.counted for row in observations(store))
    assert feedback(store) == []


async def test_who_changes_their_mind_or_sends_twice_has_said_it_once(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    stable, candidate = await both(gateway)
    for value, task in ((1, "a"), (1, "a"), (0, "b")):
        assert (await prefer(gateway, candidate, stable, value, user="ada", id=task))[0] == 201
    assert (await prefer(gateway, stable, candidate, 0, user="ada"))[0] == 201
    await until(lambda: [gap["rows"] for gap in store.gaps()] == [6])
    [row] = store.judgements("r1", 0)
    assert row.candidate == 1


async def test_without_a_name_it_is_who_asked_for_both(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    stable, candidate = await both(gateway)
    assert (await prefer(gateway, candidate, stable, 1))[0] == 201
    [row] = await until(lambda: store.judgements("r1", 0))
    assert row.unit == observations(store)[0].unit
    live = await pinned(gateway, "", key=KEY)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "user": "somebody"}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
            theirs = response.headers["x-request-id"]
    status, answer = await prefer(gateway, live, theirs, 1)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "missing_user", "user")


async def test_an_erased_persons_preferences_are_gone(start: Any, canary: Route, store: Store) -> None:
    gateway = await start(canary)
    stable, candidate = await both(gateway)
    await prefer(gateway, candidate, stable, 1, user="ada")
    await prefer(gateway, candidate, stable, 0, user="bob")
    ada, bob = await until(lambda: len(found := store.judgements("r1", 0)) == 2 and found)
    store.erase_user(ada.unit)
    assert [row.unit for row in store.judgements("r1", 0)] == [bob.unit]


async def test_metrics_tell_both_sides(start: Any, canary: Route) -> None:
    gateway = await start(canary)
    stable, candidate = await both(gateway)
    await prefer(gateway, candidate, stable, 1, user="ada")
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as response:
        text = await response.text()
    for revision, arm, mark in (
        ("assistant-v1-aaaa", "stable", "neutral"),
        ("assistant-v2-bbbb", "candidate", "good"),
    ):
        labels = f'arm="{arm}",kind="preference",mark="{mark}",revision="{revision}",service="assistant"'
        assert f"{telemetry.FEEDBACK}{{{labels}}} 1.0" in text


@pytest.mark.parametrize(
    ("said", "param", "code"),
    [
        ({"other_request_id": None}, "other_request_id", "missing_answer"),
        ({"value": None}, "value", "missing_value"),
        ({"value": 0.7}, "value", "out_of_range"),
        ({"value": -1}, "value", "out_of_range"),
        ({"comment": "nicer"}, "comment", "not_wanted"),
        ({"shown_first": "another"}, "shown_first", "unknown_answer"),
        ({"other_request_id": "no-such-request"}, "other_request_id", "request_not_found"),
        ({"kind": "thumb"}, "other_request_id", "not_wanted"),
        ({"kind": "thumb", "other_request_id": None, "shown_first": "x"}, "shown_first", "not_wanted"),
    ],
)
async def test_what_is_no_preference_is_refused(
    start: Any, canary: Route, store: Store, said: dict[str, Any], param: str, code: str
) -> None:
    gateway = await start(canary)
    stable, candidate = await both(gateway)
    given = {"kind": "preference", "request_id": candidate, "other_request_id": stable, "value": 1, "user": "ada"}
    fields = {name: value for name, value in (given | said).items() if value is not None}
    status, answer = await say(gateway, **fields)
    expected = 404 if code == "request_not_found" else 400
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (expected, param, code)
    await until(lambda: observations(store))
    assert store.judgements("r1", 0) == []


async def test_answers_that_cannot_be_compared(start: Any, canary: Route, stable: Engine) -> None:
    gateway = await start(canary)
    one, other = await both(gateway)
    stable.behaviour = Behaviour(status=500)
    broken = await pinned(gateway, "1")
    stable.behaviour = Behaviour()
    for first, second, code in (
        (one, one, "same_answer"),
        (one, await pinned(gateway, "1"), "same_revision"),
        (await pinned(gateway, "1", "who?"), other, "different_prompts"),
        (broken, other, "not_answered"),
    ):
        status, answer = await prefer(gateway, first, second, 1, user="ada")
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (400, code, "invalid_request_error")
    status, answer = await prefer(gateway, one, other, 1, key=OTHER_KEY)
    assert (status, answer["error"]["code"]) == (404, "request_not_found")


async def test_without_a_rollout_that_has_both_nothing_is_taken(
    start: Any, stable: Engine, candidate: Engine, store: Store
) -> None:
    first, second, third = (
        target(f"assistant-v{n}-{n * 4}", n, engine.address) for n, engine in (("1", stable), ("2", candidate), ("3", candidate))
    )  # fmt: skip
    gateway = await start(route(first, pinned=(second, third)))
    one, two, three = [await pinned(gateway, version) for version in "123"]
    status, answer = await prefer(gateway, one, two, 1, user="ada")
    assert (status, answer["error"]["code"]) == (400, "no_rollout")
    store.publish_route(route(first, second, pinned=(third,)))
    await until(
        lambda: gateway.app.completions is not None and gateway.app.completions._table.route("assistant").rollout
    )  # type: ignore[union-attr]
    assert (await prefer(gateway, one, two, 1, user="ada"))[0] == 201
    status, answer = await prefer(gateway, one, three, 1, user="ada")
    assert (status, answer["error"]["code"]) == (400, "other_revision")
    assert "assistant-v3-3333 is not in the rollout" in answer["error"]["message"]


async def test_two_revisions_of_one_version_are_pinned_by_their_names(
    start: Any, stable: Engine, candidate: Engine, store: Store
) -> None:
    old, new = target("assistant-v1-aaaa", "1", stable.address), target("assistant-v1-bbbb", "1", candidate.address)
    gateway = await start(route(old, new))
    one, two = await pinned(gateway, "1-aaaa"), await pinned(gateway, "1-bbbb")
    assert (await prefer(gateway, two, one, 1, user="ada"))[0] == 201
    rows = await until(lambda: len(found := observations(store)) == 2 and found)
    assert [row.revision for row in rows] == ["assistant-v1-aaaa", "assistant-v1-bbbb"]


async def test_answers_of_two_gateways(start: Any, canary: Route, store: Store, tmp_path: Any) -> None:
    first = await start(canary)
    second = await start(None, name="gateway-2", state_dir=tmp_path / "state-2")
    stable, candidate = await pinned(first, "1"), await pinned(second, "2")
    assert (await prefer(second, candidate, stable, 1, user="ada"))[0] == 201
    assert len(await until(lambda: store.judgements("r1", 0))) == 1


def test_answers_of_two_services_are_not_compared(canary: Route) -> None:
    mine = Answer("assistant", "t1", "u", "assistant-v1-aaaa", "stable", "ok")
    theirs = Answer("translator", "t1", "u", "translator-v1-aaaa", "stable", "ok")
    with pytest.raises(Exception, match="two services"):
        compared(("a", "b"), (mine, theirs), 1.0, None, canary, "u")
