"""What a gateway answers to requests that are wrong: OpenAI's error body, a request id, the right status, and no engine's time."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.routing import Route
from services.store import open_store
from tests.fakes.gateway import ADMIN_KEY, KEY, RunningGateway
from tests.fakes.openai_engine import Engine

CHAT = "/v1/chat/completions"
GOOD = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}


async def send(
    gateway: RunningGateway,
    body: bytes,
    path: str = CHAT,
    method: str = "POST",
    key: str | None = f"Bearer {KEY}",
    **headers: str,
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    given = {"Content-Type": "application/json", **headers} | ({"Authorization": key} if key is not None else {})
    async with (
        aiohttp.ClientSession(headers=given) as http,
        http.request(method, gateway.url + path, data=io.BytesIO(body)) as response,
    ):
        text = await response.read()
        assert len(response.headers["x-request-id"]) == 36
        return response.status, json.loads(text), response.headers.copy()


def body(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


@pytest.mark.parametrize(
    ("data", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b'{"model": "assistant",', 400, "invalid_json", None),
        (b'{"model": "assistant"} x', 400, "invalid_json", None),
        (b"[1]", 400, "invalid_type", None),
        (b'{"model": "assistant", "messages": [NaN]}', 400, "invalid_json", None),
        (b'{"model": "\xff"}', 400, "invalid_encoding", None),
        (b'{"messages": ' + b"[" * 500_000, 400, "too_deep", None),
        (b'{"messages": ' + b'[{"a":' * 100 + b"1" + b"}]" * 100 + b"}", 400, "too_deep", None),
        (b"{}", 400, "missing_model", "model"),
        (body(model=None), 400, "invalid_type", "model"),
        (body(model=""), 400, "missing_model", "model"),
        (body(model=["assistant"]), 400, "invalid_type", "model"),
        (body(model="gpt-99"), 404, "model_not_found", "model"),
        (body(model="assistant@v"), 404, "model_not_found", "model"),
        (body(messages="hi"), 400, "invalid_type", "messages"),
        (body(messages=[]), 400, "empty_messages", "messages"),
        (b'{"model": "assistant"}', 400, "missing_messages", "messages"),
        (body(stream="yes"), 400, "invalid_type", "stream"),
        (body(stream_options=[]), 400, "invalid_type", "stream_options"),
        (body(user=7), 400, "invalid_type", "user"),
        (body(user="x" * 600), 400, "too_long", "user"),
        (body(n=10_000), 400, "out_of_range", "n"),
        (body(n="two"), 400, "invalid_type", "n"),
        (body(priority=-5), 400, "unsupported_parameter", "priority"),
        (
            body(response_format={"type": "json_schema", "json_schema": {"schema": {"minItems": 1_000_000_000}}}),
            400, "schema_bound", "response_format",
        ),
        (body(tools=[{"function": {"parameters": {"pattern": "a{1,900000000}"}}}]), 400, "schema_bound", "tools"),
        (body(guided_regex="(a{99999}){99999}"), 400, "schema_bound", "guided_regex"),
        (body(guided_grammar="x" * 70_000), 400, "schema_too_large", "guided_grammar"),
        (b" " * (2 * 1024 * 1024 + 1), 413, "request_too_large", None),
    ],
    ids=lambda value: None if not isinstance(value, bytes) else repr(value[:40]),
)  # fmt: skip
async def test_bodies(
    start: Any, idle: Route, stable: Engine, data: bytes, status: int, code: str, param: str | None
) -> None:
    gateway = await start(idle)
    got, answer, _ = await send(gateway, data)
    assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert stable.requests == []


async def test_a_syntax_error_is_told_with_its_place(start: Any, idle: Route) -> None:
    gateway = await start(idle)
    _, answer, _ = await send(gateway, b'{"model": tru}')
    assert "byte 11" in answer["error"]["message"]


@pytest.mark.parametrize(
    "key", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/feedback"])
async def test_keys(start: Any, idle: Route, key: str | None, path: str) -> None:
    gateway = await start(idle)
    method = "GET" if path == "/v1/models" else "POST"
    data = json.dumps({"request_id": "x", "kind": "copy"}).encode() if path == "/v1/feedback" else body()
    status, answer, headers = await send(gateway, data, path, method, key)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert headers["www-authenticate"] == "Bearer"
    assert KEY not in json.dumps(answer)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/load_lora_adapter", 404, "not_found"),
        ("POST", "/v1/unload_lora_adapter", 404, "not_found"),
        ("POST", "/invocations", 404, "not_found"),
        ("POST", "/tokenize", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
async def test_routes(start: Any, idle: Route, method: str, path: str, status: int, code: str) -> None:
    gateway = await start(idle)
    got, answer, _ = await send(gateway, body(), path, method)
    assert (got, answer["error"]["code"]) == (status, code)


async def test_the_clients_headers_do_not_reach_the_engine(start: Any, idle: Route, stable: Engine) -> None:
    gateway = await start(idle)
    status, _, _ = await send(gateway, body(), **{"X-Data-Parallel-Rank": "1", "Cookie": "a=b"})
    assert status == 200
    assert {name.lower() for name in stable.headers[0]} <= {
        "host",
        "content-type",
        "content-length",
        "x-request-id",
        "accept",
    }


async def test_a_body_just_within_the_limit_reaches_the_engine(start: Any, idle: Route, stable: Engine) -> None:
    gateway = await start(idle)
    status, _, _ = await send(gateway, body(messages=[{"role": "user", "content": "x" * 2_000_000}]))
    assert status == 200
    assert len(stable.requests[0]["messages"][0]["content"]) == 2_000_000


async def test_a_quota_says_when_to_come_back(start: Any, idle: Route) -> None:
    gateway = await start(idle, quotas={"requests_per_minute": 6, "burst_seconds": 10})
    assert (await send(gateway, body()))[0] == 200
    status, answer, headers = await send(gateway, body())
    assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "10")


async def test_content_filters(start: Any, idle: Route, stable: Engine) -> None:
    gateway = await start(idle, content_filters=[{"name": "secrets", "pattern": r"pass\w+ is \"x"}])
    parts = [{"role": "user", "content": [{"type": "text", "text": 'my Password is "x"'}]}]
    status, answer, _ = await send(gateway, body(messages=parts))
    assert (status, answer["error"]["code"]) == (400, "content_filter")
    assert "assword" not in json.dumps(answer)
    assert (await send(gateway, body()))[0] == 200
    assert len(stable.requests) == 1


async def test_a_gateway_that_never_reached_the_store_is_not_ready(start: Any, tmp_path: Path) -> None:
    gateway = await start(None, store_factory=lambda _: open_store(f"sqlite:///{tmp_path}/elsewhere.db"))
    assert (await send(gateway, b"", "/readyz", "GET"))[0] == 503
    assert (await send(gateway, b"", "/healthz", "GET"))[0] == 200


async def test_a_gateway_of_an_empty_store_is_ready_and_knows_no_model(start: Any) -> None:
    gateway = await start(None)
    assert (await send(gateway, b"", "/readyz", "GET"))[0] == 200
    assert (await send(gateway, b"", "/healthz", "GET"))[0] == 200
    assert (await send(gateway, body()))[0] == 404


# --- the server below the application


async def talk(gateway: RunningGateway, *parts: bytes) -> bytes:
    """Sends raw bytes; what comes back until the server closes."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    got = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        while data := await reader.read(65536):
            got += data
    finally:
        writer.close()
        await writer.wait_closed()
    return got


def raw(*headers: str, version: str = "1.1", data: bytes = b"") -> bytes:
    lines = [f"POST {CHAT} HTTP/{version}", "Host: a", f"Authorization: Bearer {KEY}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


@pytest.mark.parametrize("split", [False, True])
async def test_an_upgrade_to_http2_is_passed_over_and_loses_no_body(
    start: Any, idle: Route, stable: Engine, split: bool
) -> None:
    gateway = await start(idle)
    data = body()
    head = raw(
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABk",
        f"Content-Length: {len(data)}",
    )
    got = await talk(
        gateway,
        *([head, data] if split else [head + data]),
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert b"paris" in got
    assert len(stable.requests) == 1


async def test_http_1_0_gets_no_chunks(start: Any, idle: Route) -> None:
    gateway = await start(idle)
    data = body(stream=True)
    got = await talk(gateway, raw(f"Content-Length: {len(data)}", version="1.0", data=data))
    head, _, text = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert text.startswith(b"data: {")
    assert text.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "sent",
    [
        raw(
            "Content-Length: 4", "Transfer-Encoding: chunked", data=b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        ),
        raw("Content-Length: 4", "Content-Length: 5", data=b"hello"),
        raw("Content-Length: -1", data=b"hello"),
        b"GET /healthz HTTP/1.1\nHost: a\n\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
async def test_smuggled_and_malformed_requests_get_one_refusal(start: Any, idle: Route, sent: bytes) -> None:
    gateway = await start(idle)
    got = await talk(gateway, sent)
    assert got.count(b"HTTP/1.1 ") == 1
    assert got.startswith(b"HTTP/1.1 400 ")
    head, _, text = got.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "sent", [raw("X-A: " + "a" * 40_000), raw(*[f"X-{n}: {'a' * 1000}" for n in range(40)]), b"GET /" + b"a" * 40_000]
)
async def test_headers_are_bounded(start: Any, idle: Route, sent: bytes) -> None:
    gateway = await start(idle)
    got = await talk(gateway, sent)
    assert got.startswith(b"HTTP/1.1 431 ")
    assert got.count(b"HTTP/1.1 ") == 1


async def test_a_client_that_dawdles_is_not_waited_for(start: Any, idle: Route) -> None:
    gateway = await start(idle, limits={"header_seconds": 0.1, "body_seconds": 0.1})
    assert b'"header_timeout"' in await talk(gateway, b"GET /healthz HTTP/1.1\r\nHost:")
    assert b'"body_timeout"' in await talk(gateway, raw("Content-Length: 10", "Connection: close", data=b"{"))


async def test_a_pinned_request_with_a_number_that_nobody_can_hold_is_the_engines_to_judge(
    start: Any, idle: Route, stable: Engine
) -> None:
    gateway = await start(idle)
    body = b'{"model": "assistant@v1", "messages": [{"role": "user", "content": "hi", "x": 1e999}]}'
    status, _, _ = await send(gateway, body, key=f"Bearer {ADMIN_KEY}")
    assert status == 200
    assert len(stable.requests) == 1
