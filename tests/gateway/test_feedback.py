"""Feedback through a real gateway and into the store."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from services.common.routing import Route
from services.store import Store
from tests.fakes.gateway import KEY, OTHER_KEY, RunningGateway
from tests.fakes.recorded import feedback, observations, until


async def answered(gateway: RunningGateway, user: str = "ada") -> str:
    """A request's id, as its client learns it."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "user": user}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{gateway.url}/v1/chat/completions", json=body) as response,
    ):
        await response.read()
        return response.headers["x-request-id"]


async def say(gateway: RunningGateway, key: str = KEY, **fields: Any) -> tuple[int, dict[str, Any]]:
    url, headers = f"{gateway.url}/v1/feedback", {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=fields) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ({"kind": "thumb", "value": -1}, -1.0),
        ({"kind": "rating", "value": 4, "comment": "good"}, 4.0),
        ({"kind": "comment", "comment": "wrong river"}, None),
        ({"kind": "edit", "value": 0.25}, 0.25),
        ({"kind": "retry"}, 1.0),
        ({"kind": "dwell", "value": 12.5, "user": "ada"}, 12.5),
    ],
)
async def test_feedback_is_stored(
    start: Any, idle: Route, store: Store, said: dict[str, Any], value: float | None
) -> None:
    gateway = await start(idle)
    request_id = await answered(gateway)
    status, answer = await say(gateway, request_id=request_id, **said)
    assert (status, answer["request_id"]) == (201, request_id)
    [row] = await until(lambda: feedback(store))
    assert (row.request_id, row.service, row.kind, row.value) == (request_id, "assistant", said["kind"], value)
    assert row.comment == said.get("comment")


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"kind": "rating", "value": 6}, "value"),
        ({"kind": "rating"}, "value"),
        ({"kind": "thumb", "value": 0}, "value"),
        ({"kind": "edit", "value": 1.5}, "value"),
        ({"kind": "retry", "value": 2}, "value"),
        ({"kind": "comment"}, "comment"),
        ({"kind": "comment", "comment": "a\x00b"}, "comment"),
        ({"kind": "applause", "value": 1}, "kind"),
        ({"kind": "thumb", "value": "up"}, "value"),
        ({"kind": "thumb", "value": 1, "stars": 5}, "stars"),
        ({"value": 1}, "kind"),
    ],
)
async def test_bad_feedback_is_refused(start: Any, idle: Route, store: Store, said: dict[str, Any], param: str) -> None:
    gateway = await start(idle)
    status, answer = await say(gateway, request_id=await answered(gateway), **said)
    assert (status, answer["error"]["param"]) == (400, param)
    await until(lambda: observations(store))
    assert feedback(store) == []


async def test_nobody_speaks_of_requests_that_are_not_theirs(start: Any, idle: Route) -> None:
    gateway = await start(idle)
    request_id = await answered(gateway)
    for status, answer in (
        await say(gateway, request_id="no-such-request", kind="copy"),
        await say(gateway, OTHER_KEY, request_id=request_id, kind="copy"),
        await say(gateway, request_id=request_id, kind="copy", user="bob"),
    ):
        assert (status, answer["error"]["code"]) == (404, "request_not_found")


async def test_the_clients_id_makes_it_count_once(start: Any, idle: Route, store: Store) -> None:
    gateway = await start(idle)
    request_id = await answered(gateway)
    for _ in range(2):
        status, answer = await say(gateway, request_id=request_id, kind="thumb", value=1, id="click-7")
        assert (status, answer["id"]) == (201, "click-7")
    await say(gateway, request_id=await answered(gateway), kind="thumb", value=1, id="click-7")
    await until(lambda: [gap["rows"] for gap in store.gaps()] == [5])
    assert len(feedback(store)) == 2


async def test_feedback_on_an_answer_of_another_gateway_that_the_store_does_not_have_yet(
    start: Any, idle: Route, tmp_path: Any
) -> None:
    first = await start(idle)
    second = await start(None, name="gateway-2", state_dir=tmp_path / "state-2")
    request_id = await answered(first)
    assert (await say(second, request_id=request_id, kind="copy"))[0] == 201
