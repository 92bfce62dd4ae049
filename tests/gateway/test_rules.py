"""What a service declares for gateways (`spec.gateway`), enforced by a real one: quotas, content filters, system prompt."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from services.common.routing import Allowance, ContentFilter, Route, Rules
from services.gateway.answer_filter import AnswerFilter
from services.gateway.content_filters import Filter
from services.store import Store
from tests.fakes.gateway import KEY, OTHER_KEY, RunningGateway
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import observations, until
from tests.fakes.rollout_rows import HandClock


def ruled(route: Route, **rules: Any) -> Route:
    return msgspec.structs.replace(route, rules=Rules(**rules))


def check(pattern: str, action: str, applies_to: str = "both", name: str = "secrets", max_length: int = 20) -> Any:
    return ContentFilter(name=name, applies_to=applies_to, pattern=pattern, action=action, max_length=max_length)  # type: ignore[arg-type]


def client(gateway: RunningGateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)


async def send(gateway: RunningGateway, key: str = KEY, path: str = "chat/completions", **fields: Any) -> Any:
    """Status, body and headers."""
    body = {"model": "assistant", **({} if "prompt" in fields else {"messages": ask()}), **fields}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as http,
        http.post(f"{gateway.url}/v1/{path}", json=body) as response,
    ):
        return response.status, await response.read(), response.headers


def ask(text: str = "what is the capital of france") -> list[Any]:
    return [{"role": "user", "content": text}]


async def streamed(gateway: RunningGateway, **fields: Any) -> tuple[str, str | None]:
    """The text of a streamed answer and its finish reason."""
    async with client(gateway) as api:
        stream = await api.chat.completions.create(model="assistant", messages=ask(), stream=True, **fields)
        chunks = [chunk async for chunk in stream if chunk.choices]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    [reason] = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
    return text, reason


# --- quotas


async def test_a_services_quota_says_what_is_used_up_and_when_it_is_free(start: Any, idle: Route) -> None:
    gateway = await start(ruled(idle, per_key=Allowance(requests_per_minute=2)), clock=HandClock())
    assert [(await send(gateway))[0] for _ in range(2)] == [200, 200]
    status, body, headers = await send(gateway)
    error = json.loads(body)["error"]
    assert (status, error["type"], error["code"], headers["retry-after"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        "30",
    )
    assert "`assistant`: 2 requests a minute; try again in 30.0 s" in error["message"]
    assert (await send(gateway, OTHER_KEY))[0] == 200


async def test_tokens_of_an_answer_count_against_its_user(start: Any, idle: Route) -> None:
    gateway = await start(ruled(idle, per_user=Allowance(tokens_per_minute=10)), clock=HandClock())
    assert (await send(gateway, user="ada"))[0] == 200  # takes 13, as the engine counts
    status, body, headers = await send(gateway, user="ada")
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "24")
    assert (await send(gateway, user="bob"))[0] == 200


async def test_a_client_that_leaves_is_charged_for_what_came(
    start: Any, idle: Route, stable: Engine, store: Store
) -> None:
    stable.behaviour = Behaviour(words=("word ",) * 500, gap=0.01)
    gateway = await start(ruled(idle, per_user=Allowance(tokens_per_minute=10)))
    async with client(gateway) as api:
        stream = await api.chat.completions.create(model="assistant", messages=ask(), stream=True, user="ada")
        await anext(aiter(stream))
        await stream.close()
    await until(lambda: observations(store))
    assert (await send(gateway, user="ada"))[0] == 429


async def test_gateways_share_a_quota(start: Any, idle: Route, tmp_path: Any) -> None:
    published = ruled(idle, per_key=Allowance(requests_per_minute=2))
    first = await start(published)
    await start(None, state_dir=tmp_path / "second", name="gateway-2")
    await until(lambda: first.app.completions._table.gateways == 2)
    assert [(await send(first))[0] for _ in range(2)] == [200, 429]


# --- prompts


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": ask("my PASSWORD1")},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "my password1"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": '{"a": "password1"}'}}]}]},
        {"path": "completions", "prompt": "password1"},
        {"path": "completions", "prompt": ["a", "password1"]},
        {"path": "completions", "prompt": [1, 2, 3]},
    ],
)
async def test_a_blocked_prompt_reaches_no_engine(start: Any, idle: Route, stable: Engine, fields: Any) -> None:
    gateway = await start(ruled(idle, content_filters=(check(r"pass\w+\d", "block", "prompt"),)))
    status, body, _ = await send(gateway, **fields)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (400, "content_filter")
    assert "assword" not in error["message"]
    assert stable.requests == []


async def test_a_redacted_prompt_is_what_the_engine_gets(start: Any, idle: Route, stable: Engine) -> None:
    gateway = await start(ruled(idle, content_filters=(check(r"\d{4}", "redact", "prompt", "digits"),)))
    image = {"type": "image_url", "image_url": {"url": "https://example.com/1234.png"}}
    parts = [{"type": "text", "text": "pin 1234, 5678"}, image]
    assert (await send(gateway, messages=[{"role": "user", "content": parts, "name": "n1234"}]))[0] == 200
    [message] = stable.requests[0]["messages"]
    assert message == {
        "role": "user",
        "name": "n1234",
        "content": [{"type": "text", "text": "pin [digits], [digits]"}, image],
    }
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as response:
        metrics = await response.text()
    assert (
        'understudy_gateway_content_filter_effects_total{action="redact",filter="digits",service="assistant",text="prompt"} 1.0'
        in metrics
    )


async def test_a_text_that_is_no_unicode_is_refused(start: Any, idle: Route) -> None:
    gateway = await start(ruled(idle, content_filters=(check("x", "block"),)))
    body = b'{"model": "assistant", "messages": [{"role": "user", "content": "\\ud800 abcdefgh"}]}'
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(f"{gateway.url}/v1/chat/completions", data=body) as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_json")


# --- answers


async def test_a_stream_is_redacted_over_the_borders_of_its_chunks(start: Any, idle: Route, store: Store) -> None:
    gateway = await start(ruled(idle, content_filters=(check("capital of fra", "redact", "answer"),)))
    assert await streamed(gateway) == ("the [secrets]nce is paris", "stop")
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.error, row.tokens_out) == ("ok", None, 6)


async def test_a_blocked_stream_ends_before_the_match(start: Any, idle: Route, stable: Engine, store: Store) -> None:
    words = ("The ", "password ", "is ", "hun", "ter", "2") + (" and more",) * 200
    stable.behaviour = Behaviour(words=words, gap=0.005)
    gateway = await start(ruled(idle, content_filters=(check("hunter[0-9]", "block", "answer"),)))
    text, reason = await streamed(gateway)
    assert "The password is ".startswith(text)
    assert reason == "content_filter"
    await until(lambda: stable.cancelled == 1)  # the engine does not work for nobody
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.status, row.error, row.tokens_out) == ("filtered", 200, "secrets", None)
    assert row.ttft is not None


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_a_blocked_answer_in_one_piece_is_withheld(start: Any, idle: Route, store: Store, endpoint: str) -> None:
    gateway = await start(ruled(idle, content_filters=(check("paris", "block", "answer"),)))
    status, body, _ = await send(gateway, path=endpoint, **({} if endpoint.startswith("chat") else {"prompt": "q"}))
    answer = json.loads(body)
    assert (status, answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == (
        200,
        "content_filter",
        6,
    )
    assert b"paris" not in body
    assert b"capital" not in body
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.error, row.tokens_out) == ("filtered", "secrets", 6)


async def test_a_filtered_candidate_has_not_failed(start: Any, canary: Route, candidate: Engine, store: Store) -> None:
    candidate.behaviour = Behaviour(words=("the secret",))
    gateway = await start(ruled(canary, content_filters=(check("the secret", "block", "answer"),)))
    for number in range(20):
        assert (await send(gateway, user=f"user-{number}"))[0] == 200
    rows = await until(lambda: len(found := observations(store)) == 20 and found)
    assert {(row.arm, row.outcome, row.attempt) for row in rows} == {("candidate", "filtered", 0), ("control", "ok", 0)}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_the_engine_refuses_is_filtered(
    start: Any, idle: Route, stable: Engine, store: Store, stream: bool
) -> None:
    stable.behaviour = Behaviour(words=("I cannot",), finish="content_filter")
    gateway = await start(idle)
    assert (await streamed(gateway))[1] == "content_filter" if stream else (await send(gateway))[0] == 200
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.status, row.error) == ("filtered", 200, "refusal")


async def test_services_without_filters_get_the_engines_bytes(start: Any, idle: Route, stable: Engine) -> None:
    stable.behaviour = Behaviour(raw=b'{"choices": [], "model": "assistant-v1-aaaa", "odd":  [1.50]}')
    gateway = await start(ruled(idle, per_key=Allowance(requests_per_minute=1000)))
    assert (await send(gateway))[1] == b'{"choices": [], "model": "assistant", "odd":  [1.50]}'


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "model": "m",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": {"content": ["hunter2"]}}],
    }


def events(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks) + b"data: [DONE]\n\n"


def told(data: bytes) -> list[Any]:
    return [choice for line in data.split(b"\n\n")[:-2] for choice in json.loads(line[6:])["choices"]]


def test_each_text_of_each_choice_is_filtered_for_itself() -> None:
    screen = AnswerFilter((Filter(check("hunter2", "redact")),), 2)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "hun'}}
    data = screen.feed(
        events(
            chunk(0, role="assistant", content=""),
            chunk(0, reasoning="he said hun", reasoning_content="he said hun"),
            chunk(1, content="ter2 hun"),
            chunk(0, reasoning="ter2.", reasoning_content="ter2."),
            chunk(0, content="I"),
            chunk(0, tool_calls=[call]),
            chunk(1, content="ter2", finish="stop"),
            chunk(0, tool_calls=[{"index": 0, "function": {"arguments": 'ter2"}'}}]),
            chunk(0, finish="tool_calls"),
        )
    )
    assert data.endswith(b"data: [DONE]\n\n")
    assert b"logprobs" not in data
    deltas = [choice["delta"] for choice in told(data) if choice["index"] == 0]

    def text(name: str) -> str:
        return "".join(delta.get(name) or "" for delta in deltas)

    assert (text("reasoning"), text("reasoning_content"), text("content")) == ("he said [secrets].",) * 2 + ("I",)
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"a": "[secrets]"}'
    assert calls[0]["function"]["name"] == "f"
    other = [choice for choice in told(data) if choice["index"] == 1]
    assert "".join(choice["delta"].get("content", "") for choice in other) == "ter2 [secrets]"
    assert other[-1]["finish_reason"] == "stop"


def test_one_blocked_choice_leaves_the_others() -> None:
    screen = AnswerFilter((Filter(check("hunter2", "block")),), 2)
    data = screen.feed(events(chunk(0, content="hunter2"), chunk(1, content="fine"), chunk(0, content="x", finish="stop"),
                              chunk(1, finish="stop")))  # fmt: skip
    reasons = {choice["index"]: choice["finish_reason"] for choice in told(data)}
    assert reasons == {0: "content_filter", 1: "stop"}
    assert not screen.over
    assert screen.blocked == "secrets"
    assert b"fine" in data
    assert b"hunter2" not in data


def test_an_engine_that_names_no_finish_reason_loses_nothing() -> None:
    screen = AnswerFilter((Filter(check("hunter2", "redact")),), 1)
    data = screen.feed(events(chunk(content="so hunter2"), chunk(content=" it is")))
    assert "".join(choice["delta"].get("content", "") for choice in told(data)) == "so [secrets] it is"


# --- the service's prompt


async def test_the_services_prompt_comes_before_the_revisions(
    start: Any, idle: Route, stable: Engine, store: Store
) -> None:
    own = msgspec.structs.replace(idle.stable, system_prompt="Be brief.")
    gateway = await start(ruled(msgspec.structs.replace(idle, stable=own), prompt="You work for Acme."))
    await send(gateway)
    assert stable.requests[-1]["messages"][0] == {"role": "system", "content": "You work for Acme.\n\nBe brief."}
    changed = store.publish_route(ruled(idle, prompt="You work for Bolt."))
    await until(lambda: store.acknowledged("assistant", changed.version))
    await send(gateway)
    assert stable.requests[-1]["messages"][0] == {"role": "system", "content": "You work for Bolt."}


async def test_a_gateway_that_starts_from_its_disk_says_the_prompt_once(
    start: Any, idle: Route, stable: Engine, tmp_path: Any
) -> None:
    first = await start(ruled(idle, prompt="You work for Acme."))
    kept = (tmp_path / "state" / "routes.json").read_bytes()
    first.server.should_exit = True
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "routes.json").write_bytes(kept)
    second = await start(None, state_dir=tmp_path / "kept", name="gateway-2")
    await send(second)
    assert stable.requests[-1]["messages"][0]["content"] == "You work for Acme."


async def test_rules_that_cannot_be_obeyed_leave_the_last_good_ones(
    start: Any, idle: Route, stable: Engine, store: Store
) -> None:
    gateway = await start(ruled(idle, prompt="You work for Acme."))
    bad = store.publish_route(ruled(idle, content_filters=(check("(", "block"),)))
    store.publish_route(msgspec.structs.replace(idle, service="other"))
    await until(lambda: "other" in gateway.app.completions._table.services())
    await send(gateway)
    assert stable.requests[-1]["messages"][0]["content"] == "You work for Acme."
    assert not store.acknowledged("assistant", bad.version)
