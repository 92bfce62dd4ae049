"""Chat completions and completions through a real gateway, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest

from services.common.routing import Route
from services.store import Store
from tests.fakes.gateway import ADMIN_KEY, KEY, RunningGateway, route, target
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import exposures, observations, until


def client(gateway: RunningGateway, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def ask(text: str = "what is the capital of france") -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_an_answer_in_one_piece_names_the_model_as_the_client_did(
    start: Any, idle: Route, stable: Engine, store: Store
) -> None:
    gateway = await start(idle)
    async with client(gateway) as api:
        answer = await api.chat.completions.with_raw_response.create(model="assistant", messages=ask(), user="ada")
    parsed = answer.parse()
    assert parsed.choices[0].message.content == "the capital of france is paris"
    assert parsed.model == "assistant"
    assert stable.requests[0]["model"] == "assistant-v1-aaaa"
    assert "user" not in stable.requests[0]
    assert "Authorization" not in stable.headers[0]
    [row] = await until(lambda: observations(store))
    assert row.request_id == answer.headers["x-request-id"]
    assert (row.arm, row.outcome, row.status, row.tokens_in, row.tokens_out, row.ttft) == (
        "stable",
        "ok",
        200,
        7,
        6,
        None,
    )
    assert "x-understudy-revision" not in answer.headers


async def test_a_stream_is_measured_and_keeps_its_order(start: Any, idle: Route, stable: Engine, store: Store) -> None:
    stable.behaviour = Behaviour(first_after=0.05, gap=0.02)
    gateway = await start(idle)
    async with client(gateway) as api:
        stream = await api.chat.completions.create(model="assistant", messages=ask(), stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "the capital of france is paris"
    assert all(chunk.model == "assistant" for chunk in chunks)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)  # the usage chunk was ours
    [row] = await until(lambda: observations(store))
    assert row.streamed
    assert row.tokens_out == 6
    assert row.ttft is not None
    assert 0.05 <= row.ttft <= row.duration
    assert row.gap_mean is not None
    assert row.gap_max is not None
    assert 0.02 <= row.gap_mean <= row.gap_max


async def test_usage_that_the_client_asks_for_arrives(start: Any, idle: Route) -> None:
    gateway = await start(idle)
    async with client(gateway) as api:
        stream = await api.chat.completions.create(
            model="assistant", messages=ask(), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


@pytest.mark.parametrize("streamed", [False, True])
async def test_completions(start: Any, idle: Route, streamed: bool) -> None:
    gateway = await start(idle)
    async with client(gateway) as api:
        answer: Any = await api.completions.create(model="assistant", prompt="the capital", stream=streamed)
        texts = [chunk.choices[0].text async for chunk in answer] if streamed else [answer.choices[0].text]
    assert "".join(texts) == "the capital of france is paris"


async def test_the_revisions_prompt_comes_before_the_clients(start: Any, stable: Engine) -> None:
    gateway = await start(route(target("assistant-v1-aaaa", "1", stable.address, system_prompt='be "brief"')))
    async with client(gateway) as api:
        await api.chat.completions.create(model="assistant", messages=ask("hi"))
        await api.completions.create(model="assistant", prompt=["a", "b"])
    assert stable.requests[0]["messages"] == [
        {"role": "system", "content": 'be "brief"'},
        {"role": "user", "content": "hi"},
    ]
    assert stable.requests[1]["prompt"] == ['be "brief"\na', 'be "brief"\nb']


async def test_tools_and_unknown_fields_travel_untouched(start: Any, idle: Route, stable: Engine) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    gateway = await start(idle)
    async with client(gateway) as api:
        await api.chat.completions.create(
            model="assistant", messages=ask(), tools=[tool], temperature=0.5, extra_body={"top_k": 7}  # type: ignore[list-item]
        )  # fmt: skip
    sent = stable.requests[0]
    assert (sent["tools"], sent["temperature"], sent["top_k"]) == ([tool], 0.5, 7)


async def test_models(start: Any, idle: Route) -> None:
    gateway = await start(idle)
    async with client(gateway) as api:
        assert [model.id async for model in api.models.list()] == ["assistant"]
        assert (await api.models.retrieve("assistant")).id == "assistant"
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("nobody")


async def test_a_client_that_leaves_cancels_the_engine(start: Any, idle: Route, stable: Engine, store: Store) -> None:
    stable.behaviour = Behaviour(gap=30.0)
    gateway = await start(idle)
    async with client(gateway) as api:
        stream = await api.chat.completions.create(model="assistant", messages=ask(), stream=True)
        async for _ in stream:
            break
        await stream.close()
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.status) == ("cancelled", 499)
    await until(lambda: stable.cancelled == 1)
    assert stable.running == 0


async def test_a_client_that_leaves_before_the_first_token(
    start: Any, idle: Route, stable: Engine, store: Store
) -> None:
    stable.behaviour = Behaviour(hang=True)
    gateway = await start(idle)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"model": "assistant", "messages": ask()}
        with pytest.raises(asyncio.TimeoutError):
            await http.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=aiohttp.ClientTimeout(total=0.5))
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.ttft) == ("cancelled", None)
    await until(lambda: stable.cancelled == 1)


@pytest.mark.parametrize(
    ("behaviour", "error", "status"),
    [
        (Behaviour(gap=0.02, break_after=2), "reset", 502),
        (Behaviour(gap=0.02, error_after=2), "stream_error", 502),
        (Behaviour(gap=30.0), "timeout", 504),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error(
    start: Any, stable: Engine, store: Store, behaviour: Behaviour, error: str, status: int
) -> None:
    stable.behaviour = behaviour
    gateway = await start(
        route(target("assistant-v1-aaaa", "1", stable.address), total_time=0.5 if error == "timeout" else 5.0)
    )
    async with client(gateway) as api:
        stream = await api.chat.completions.create(model="assistant", messages=ask(), stream=True)
        with pytest.raises(openai.APIError):
            [chunk async for chunk in stream]
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.error, row.status) == ("error", error, status)
    assert row.ttft is not None


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (Behaviour(status=500), 502, "engine_error"),
        (Behaviour(status=503), 503, "overloaded"),
        (Behaviour(status=404, error="assistant-v1-aaaa is not here"), 502, "engine_error"),
        (Behaviour(raw=b"<html>"), 502, "engine_error"),
        (Behaviour(hang=True), 504, "engine_timeout"),
    ],
)
async def test_an_engines_failure_is_told_in_openais_shape(
    start: Any, stable: Engine, behaviour: Behaviour, status: int, code: str
) -> None:
    stable.behaviour = behaviour
    gateway = await start(
        route(target("assistant-v1-aaaa", "1", stable.address), total_time=0.3 if behaviour.hang else 5.0)
    )
    async with client(gateway) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.chat.completions.create(model="assistant", messages=ask())
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert "v1-aaaa" not in caught.value.message


async def test_the_engines_refusal_keeps_its_words_but_not_its_names(
    start: Any, idle: Route, stable: Engine, store: Store
) -> None:
    stable.behaviour = Behaviour(status=400, error="assistant-v1-aaaa takes at most 256 tokens")
    gateway = await start(idle)
    async with client(gateway) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            await api.chat.completions.create(model="assistant", messages=ask())
    assert caught.value.body == {
        "message": "assistant takes at most 256 tokens", "type": "invalid_request_error", "param": None, "code": None,
    }  # fmt: skip
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.status) == ("client_error", 400)


async def test_an_unreachable_engine(start: Any, unused_tcp_port: int) -> None:
    gateway = await start(route(target("assistant-v1-aaaa", "1", f"http://127.0.0.1:{unused_tcp_port}/v1")))
    async with client(gateway) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(model="assistant", messages=ask())
    assert (caught.value.status_code, caught.value.code) == (503, "no_engine")


async def test_a_second_address_answers_where_the_first_cannot_be_reached(
    start: Any, stable: Engine, unused_tcp_port: int
) -> None:
    addresses = (f"http://127.0.0.1:{unused_tcp_port}/v1", stable.address)
    gateway = await start(route(target("assistant-v1-aaaa", "1", stable.address, addresses=addresses)))
    async with client(gateway) as api:
        for _ in range(4):
            assert (await api.chat.completions.create(model="assistant", messages=ask())).choices


@pytest.mark.parametrize("reached", [True, False])
async def test_the_reserve_answers_only_where_no_address_can_be_reached(
    start: Any, stable: Engine, candidate: Engine, unused_tcp_port: int, reached: bool
) -> None:
    address = stable.address if reached else f"http://127.0.0.1:{unused_tcp_port}/v1"
    gateway = await start(route(target("assistant-v1-aaaa", "1", address, reserve=candidate.address)))
    async with client(gateway) as api:
        for _ in range(4):
            assert (await api.chat.completions.create(model="assistant", messages=ask())).choices
    assert (len(stable.requests), len(candidate.requests)) == ((4, 0) if reached else (0, 4))


async def test_the_row_is_recorded_before_the_last_byte(start: Any, idle: Route, store: Store) -> None:
    gateway = await start(idle)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"model": "assistant", "messages": ask(), "stream": True}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
            text = (await response.read()).decode()
            said = {"request_id": response.headers["x-request-id"], "kind": "thumb", "value": 1}
            async with http.post(f"{gateway.url}/v1/feedback", json=said) as answer:
                assert answer.status == 201
    assert text.endswith("data: [DONE]\n\n")


async def test_debug_keys_see_the_revision_and_pinned_requests_do_not_count(
    start: Any, canary: Route, store: Store
) -> None:
    gateway = await start(canary)
    async with client(gateway, ADMIN_KEY) as api:
        answer = await api.chat.completions.with_raw_response.create(model="assistant@v2", messages=ask())
        with pytest.raises(openai.NotFoundError):
            await api.chat.completions.create(model="assistant@v9", messages=ask())
    assert answer.headers["x-understudy-revision"] == "assistant-v2-bbbb"
    async with client(gateway) as api:
        with pytest.raises(openai.PermissionDeniedError):
            await api.chat.completions.create(model="assistant@v2", messages=ask())
    [row] = await until(lambda: observations(store))
    assert (row.counted, row.revision, row.bucket) == (False, "assistant-v2-bbbb", None)
    assert exposures(store) == []


async def test_u2028_in_an_answer_is_text(start: Any, idle: Route, stable: Engine) -> None:
    stable.behaviour = Behaviour(words=("a\u2028b", "\u0085c"))
    gateway = await start(idle)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"model": "assistant", "messages": ask(), "stream": True}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
            events = [event for event in (await response.read()).decode().split("\n\n") if event]
    contents = [json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(contents) == "a\u2028b\u0085c"
