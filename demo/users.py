"""Simulated users: they arrive at random, ask several questions through the OpenAI SDK, read the streamed answer
and react to it.

`python -m demo.users` runs as a process of its own, started by `demo.story`; its counts go to a file that the live view reads. Nothing here
knows which revision answered: what a user thinks comes from the text alone (`pipelines.dataset.is_correct`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
from pydantic import Field

from pipelines.dataset import Question, is_correct, user_questions
from services.rollout.resources_base import Resource


class Behaviour(Resource):
    """How users behave; probabilities are per answer."""

    arrivals_per_second: float = Field(default=4.0, gt=0, description="New users per second (Poisson).")
    mean_requests: float = Field(default=3.0, ge=1, description="Questions a user asks, on average (geometric).")
    mean_pause: float = Field(default=0.8, gt=0, description="Seconds between two questions, on average (exponential).")
    leaves: float = Field(default=0.02, ge=0, le=1, description="Leaves in the middle of the answer.")
    praises_right: float = Field(default=0.3, ge=0, le=1, description="Thumb up for a right answer.")
    blames_right: float = Field(default=0.02, ge=0, le=1, description="Thumb down for a right answer: noise.")
    praises_wrong: float = Field(default=0.02, ge=0, le=1, description="Thumb up for a wrong answer: noise.")
    blames_wrong: float = Field(default=0.4, ge=0, le=1, description="Thumb down for a wrong answer.")
    repeats_wrong: float = Field(default=0.2, ge=0, le=1, description="Asks the same again after a wrong answer.")
    escalates_wrong: float = Field(default=0.1, ge=0, le=1, description="Asks for a person after a wrong answer.")
    repeats_failed: int = Field(
        default=0, ge=0, le=10, description="Times a failed request is sent again before it counts as failed."
    )


@dataclass
class Counts:
    """What has happened so far, all users together."""

    users: int = 0
    requests: int = 0
    right: int = 0
    wrong: int = 0
    left: int = 0
    failed: int = 0
    repeated: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    retries: int = 0
    escalations: int = 0
    last_error: str = ""


class _CutShort(Exception):
    """An answer ended before its last chunk."""


class Crowd:
    """All simulated users of one run."""

    def __init__(
        self, client: openai.AsyncOpenAI, model: str, behaviour: Behaviour, rng: random.Random, run: str
    ) -> None:
        self.client, self.model, self.behaviour, self.rng, self.run = client, model, behaviour, rng, run
        self.counts = Counts()
        self.questions = user_questions(rng)
        self._alive: set[asyncio.Task[None]] = set()

    async def arrive(self, stop: asyncio.Event) -> None:
        """Let users arrive until `stop` is set, then wait for those still here."""
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), self.rng.expovariate(self.behaviour.arrivals_per_second))
            except TimeoutError:
                self.counts.users += 1
                task = asyncio.create_task(self._visit(f"{self.run}-user-{self.counts.users}"))
                self._alive.add(task)
                task.add_done_callback(self._alive.discard)
        await asyncio.gather(*self._alive, return_exceptions=True)

    async def _visit(self, user: str) -> None:
        more = 1 - 1 / self.behaviour.mean_requests
        question = next(self.questions)
        while True:
            again = await self._ask(user, question)
            if not again and self.rng.random() >= more:
                return
            question = question if again else next(self.questions)
            await asyncio.sleep(self.rng.expovariate(1 / self.behaviour.mean_pause))

    async def _ask(self, user: str, question: Question) -> bool:
        """Ask one question and react; True when the user asks the same again."""
        self.counts.requests += 1
        leaves = self.rng.random() < self.behaviour.leaves
        for left in range(self.behaviour.repeats_failed, -1, -1):
            try:
                request, text = await self._stream(user, question, leaves)
                break
            except (openai.OpenAIError, httpx2.HTTPError, _CutShort) as error:
                self.counts.last_error = f"{type(error).__name__}: {error}"[:200]
                if left == 0:
                    self.counts.failed += 1
                    return False
                self.counts.repeated += 1
                await asyncio.sleep(1)
        if leaves and text:
            self.counts.left += 1
            return False
        return await self._react(request, is_correct(question, text))

    async def _stream(self, user: str, question: Question, leaves: bool) -> tuple[str, str]:
        """The request's id and the answer; only its beginning where the user leaves."""
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[{"role": "user", "content": question.prompt}],
            stream=True,
            temperature=0,
            max_tokens=24,
            user=user,
        )
        text, finished = "", False
        async with raw.parse() as stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finished = finished or choice.finish_reason is not None
                if leaves and text:
                    break
        if not finished and not (leaves and text):
            raise _CutShort("the stream ended without a reason")
        return raw.headers["x-request-id"], text

    async def _react(self, request: str, right: bool) -> bool:
        """Give the feedback that the answer deserves, mostly; True when the user asks again."""
        behaviour, chance = self.behaviour, self.rng.random()
        if right:
            self.counts.right += 1
            if chance < behaviour.praises_right:
                await self._feedback(request, "thumb", 1)
            elif chance < behaviour.praises_right + behaviour.blames_right:
                await self._feedback(request, "thumb", -1)
            return False
        self.counts.wrong += 1
        if chance < behaviour.praises_wrong:
            await self._feedback(request, "thumb", 1)
        elif (chance := chance - behaviour.praises_wrong) < behaviour.blames_wrong:
            await self._feedback(request, "thumb", -1)
        elif (chance := chance - behaviour.blames_wrong) < behaviour.repeats_wrong:
            await self._feedback(request, "retry", 1)
            return True
        elif chance - behaviour.repeats_wrong < behaviour.escalates_wrong:
            await self._feedback(request, "escalation", 1)
        return False

    async def _feedback(self, request: str, kind: str, value: float) -> None:
        body: dict[str, Any] = {"request_id": request, "kind": kind, "value": value}
        try:
            await self.client.post("/feedback", cast_to=object, body=body)
        except openai.OpenAIError as error:
            self.counts.last_error = f"feedback: {type(error).__name__}: {error}"[:200]
            return
        if kind == "thumb":
            self.counts.thumbs_up += value > 0
            self.counts.thumbs_down += value < 0
        else:
            self.counts.retries += kind == "retry"
            self.counts.escalations += kind == "escalation"


async def _report(counts: Counts, path: Path, done: asyncio.Event) -> None:
    """Write the counts once a second, whole or not at all."""
    while True:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(counts)))
        partial.replace(path)
        if done.is_set():
            return
        try:
            await asyncio.wait_for(done.wait(), 1.0)
        except TimeoutError:
            continue


async def simulate(url: str, key: str, model: str, behaviour: Behaviour, seed: int, run: str, counts: Path) -> None:
    """Run users against the gateway at `url` (ending in `/v1`) until SIGTERM or SIGINT."""
    stop, done = asyncio.Event(), asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
        crowd = Crowd(client, model, behaviour, random.Random(seed), run)
        report = asyncio.create_task(_report(crowd.counts, counts, done))
        await crowd.arrive(stop)
        done.set()
        await report


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Simulated users for the demo; the API key is read from UNDERSTUDY_API_KEY."
    )
    parser.add_argument("--url", required=True, help="the gateway's base URL, ending in /v1")
    parser.add_argument("--model", default="assistant", help="the service to ask")
    parser.add_argument("--behaviour", default="{}", help="JSON of Behaviour's fields")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", default="demo", help="prefix of the users' names")
    parser.add_argument("--counts", type=Path, required=True, help="file for the counts, replaced each second")
    options = parser.parse_args()
    behaviour = Behaviour.model_validate_json(options.behaviour)
    key = os.environ["UNDERSTUDY_API_KEY"]
    asyncio.run(simulate(options.url, key, options.model, behaviour, options.seed, options.run, options.counts))


if __name__ == "__main__":
    main()
