"""`demo.users`: what users do follows from the answer they got, against a real HTTP server."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from demo.users import Behaviour, Crowd
from pipelines.dataset import KINDS, questions


class Engine:
    """Answers every question with `answer(prompt)` and keeps the feedback."""

    def __init__(self) -> None:
        self.right = True
        self.whole = True
        self.status = self.then = 200
        self.feedback: list[dict[str, object]] = []
        self.users: list[str] = []
        self.answers = {q.prompt: q.answer for kind in KINDS for q in questions(kind)}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/feedback", self.take)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.users.append(body["user"])
        if self.status != 200:
            status, self.status = self.status, self.then
            return web.json_response({"error": {"message": "no", "type": "server_error"}}, status=status)
        text = self.answers[body["messages"][-1]["content"]] if self.right else "nobody knows"
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "x-request-id": f"r{len(self.users)}"}
        )
        await response.prepare(request)
        for word, reason in (("it", None), ("is", None), (text, "stop" if self.whole else None)):
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
            delta = {"choices": [{"index": 0, "delta": {"content": f" {word}"}, "finish_reason": reason}]}
            await response.write(b"data: " + json.dumps(chunk | delta).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def take(self, request: web.Request) -> web.Response:
        self.feedback.append(await request.json())
        return web.json_response({}, status=201)


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Engine, str]]:
    fake = Engine()
    async with TestServer(fake.app()) as server:
        yield fake, str(server.make_url("/v1"))


async def crowd_of(url: str, users: int, **behaviour: float) -> Crowd:
    settings = Behaviour(arrivals_per_second=60, mean_requests=1.5, mean_pause=0.01, **behaviour)
    stop = asyncio.Event()
    async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        crowd = Crowd(client, "assistant", settings, random.Random(3), "test")
        arriving = asyncio.create_task(crowd.arrive(stop))
        while crowd.counts.users < users:
            await asyncio.sleep(0.01)
        stop.set()
        await arriving
    return crowd


async def test_right_answers_are_praised(engine: tuple[Engine, str]) -> None:
    fake, url = engine
    crowd = await crowd_of(url, 20, leaves=0.0, praises_right=0.5, blames_right=0.0)
    assert crowd.counts.wrong == 0
    assert crowd.counts.right == crowd.counts.requests >= 20
    assert {(f["kind"], f["value"]) for f in fake.feedback} == {("thumb", 1)}
    assert crowd.counts.thumbs_up == len(fake.feedback) > 0


async def test_wrong_answers_bring_blame_repeats_and_escalations(engine: tuple[Engine, str]) -> None:
    fake, url = engine
    fake.right = False
    crowd = await crowd_of(
        url, 25, leaves=0.0, praises_wrong=0.0, blames_wrong=0.4, repeats_wrong=0.3, escalates_wrong=0.3
    )
    kinds = Counter(str(f["kind"]) for f in fake.feedback)
    assert crowd.counts.right == 0
    assert kinds == {
        "thumb": crowd.counts.thumbs_down,
        "retry": crowd.counts.retries,
        "escalation": crowd.counts.escalations,
    }
    assert all(kinds.values())
    assert {f["value"] for f in fake.feedback if f["kind"] == "thumb"} == {-1}


async def test_users_who_leave_say_nothing_and_failures_are_counted(engine: tuple[Engine, str]) -> None:
    fake, url = engine
    crowd = await crowd_of(url, 8, leaves=1.0)
    assert crowd.counts.left == crowd.counts.requests >= 8
    assert fake.feedback == []
    fake.status = fake.then = 503
    crowd = await crowd_of(url, 8, leaves=0.0)
    assert crowd.counts.failed == crowd.counts.requests >= 8
    assert "503" in crowd.counts.last_error


async def test_an_answer_that_is_cut_short_failed(engine: tuple[Engine, str]) -> None:
    fake, url = engine
    fake.whole = False
    crowd = await crowd_of(url, 8, leaves=0.0)
    assert crowd.counts.failed == crowd.counts.requests >= 8
    assert crowd.counts.right == crowd.counts.wrong == 0


async def test_a_failed_request_is_sent_again_and_counts_once(engine: tuple[Engine, str]) -> None:
    fake, url = engine
    fake.status = 503
    crowd = await crowd_of(url, 8, leaves=0.0, repeats_failed=2)
    assert (crowd.counts.repeated, crowd.counts.failed) == (1, 0)
    assert crowd.counts.right == crowd.counts.requests >= 8
