"""A small OpenAI-compatible engine on aiohttp that does what a test tells it: answer, dawdle, fail, break off, hang.

`Engine` is a server on a free port; `behaviour` may be changed at any time, or replaced by a function of the request's body. It answers
as vLLM does: compact JSON, usage in a chunk of its own, `code` of errors a number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """How the engine answers. Times in seconds."""

    words: tuple[str, ...] = ("the", " capital", " of", " france", " is", " paris")
    first_after: float = 0.0
    gap: float = 0.0
    status: int = 200
    error: str = "engine error"
    break_after: int | None = None
    """Words after which a stream's connection is cut."""
    error_after: int | None = None
    """Words after which a stream reports an error."""
    hang: bool = False
    """Never answers."""
    finish: str = "stop"
    """Why an answer ends."""
    raw: bytes | None = None
    """Sent in place of an answer."""


Choose = Callable[[Mapping[str, Any]], Behaviour]


@dataclass
class Engine:
    """One engine. `requests`: bodies received, in order. `cancelled`: answers whose client left. `running`: being answered."""

    behaviour: Behaviour | Choose = field(default_factory=Behaviour)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    most_running: int = 0
    port: int = 0

    @property
    def address(self) -> str:
        """Base URL, ending in `/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(request.headers.copy())
        does = self.behaviour if isinstance(self.behaviour, Behaviour) else self.behaviour(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if does.hang:
                await asyncio.Event().wait()
            await asyncio.sleep(does.first_after)
            if does.raw is not None:
                return web.Response(body=does.raw, content_type="application/json")
            if does.status != 200:
                detail = {"message": does.error, "type": "BadRequestError", "param": None, "code": does.status}
                return web.json_response({"error": detail}, status=does.status)
            if body.get("stream"):
                return await self._stream(request, body, does, chat=chat)
            await asyncio.sleep(does.gap * len(does.words))
            return web.Response(text=_dump(_whole(body, does, chat=chat)), content_type="application/json")
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _stream(
        self, request: web.Request, body: Mapping[str, Any], does: Behaviour, *, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def event(data: str) -> None:
            await response.write(f"data: {data}\n\n".encode())

        if chat:
            await event(_dump(_chunk(body, {"role": "assistant", "content": ""}, chat=True)))
        for number, word in enumerate(does.words):
            if number == does.break_after and request.transport is not None:
                request.transport.close()
                return response
            if number == does.error_after:
                await event(_dump({"error": {"message": "boom", "type": "InternalServerError", "code": 500}}))
                return response
            if number:
                await asyncio.sleep(does.gap)
            await event(_dump(_chunk(body, {"content": word}, chat=chat)))
        await event(_dump(_chunk(body, {}, chat=chat, finish=does.finish)))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {**_chunk(body, {}, chat=chat), "choices": [], "usage": _usage(does)}
            await event(_dump(usage))
        await event("[DONE]")
        return response


@contextlib.asynccontextmanager
async def serve(engine: Engine, port: int = 0) -> AsyncIterator[Engine]:
    """Runs the engine; `engine.port` is known inside the block."""
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", engine.chat)
    app.router.add_post("/v1/completions", engine.completions)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    engine.port = runner.addresses[0][1]
    try:
        yield engine
    finally:
        await runner.cleanup()


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _usage(does: Behaviour) -> dict[str, int]:
    return {"prompt_tokens": 7, "total_tokens": 7 + len(does.words), "completion_tokens": len(does.words)}


def _chunk(
    body: Mapping[str, Any], delta: Mapping[str, str], *, chat: bool, finish: str | None = None
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice.update({"delta": dict(delta)} if chat else {"text": delta.get("content", "")})
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {"id": "engine-1", "object": kind, "created": 1, "model": body["model"], "choices": [choice]}


def _whole(body: Mapping[str, Any], does: Behaviour, *, chat: bool) -> dict[str, Any]:
    text = "".join(does.words)
    choice: dict[str, Any] = {"index": 0, "finish_reason": does.finish}
    choice.update({"message": {"role": "assistant", "content": text}} if chat else {"text": text})
    kind = "chat.completion" if chat else "text_completion"
    head = {"id": "engine-1", "object": kind, "created": 1, "model": body["model"]}
    return {**head, "choices": [choice], "usage": _usage(does)}
