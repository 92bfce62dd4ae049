"""What a gateway logs of requests: by id, never by what they say."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from typing import Any

import pytest

from services.common.logs import JsonLines
from services.common.routing import Route
from services.gateway.requests import ModelRequest
from tests.fakes.collector import Collector, collect
from tests.fakes.gateway import KEY
from tests.fakes.openai_engine import Behaviour, Engine
from tests.gateway.test_feedback import say
from tests.gateway.test_tracing import PROMPT, ask, otlp


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collect(Collector()) as running:
        yield running


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """Everything that is logged, at debug."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines("gateway"))
    own, root = logging.getLogger("services"), logging.getLogger()
    root.addHandler(handler)
    before = own.level
    own.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    own.setLevel(before)


async def test_each_line_of_a_request_has_its_ids_and_no_text(
    start: Any, canary: Route, stable: Engine, candidate: Engine, collector: Collector, lines: StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    gateway = await start(canary, otlp=otlp(collector))
    asked = [(await ask(gateway, user=f"zorro{n}", stream=n % 2 == 0))[1] for n in range(4)]
    candidate.behaviour = stable.behaviour = Behaviour(status=500, error=f"cannot read {PROMPT}")
    asked += [(await ask(gateway, user=f"zorro{n}"))[1] for n in range(4)]
    asked.append((await ask(gateway, model="nobody"))[1])
    asked.append((await ask(gateway, messages="what did the oracle"))[1])
    await say(gateway, request_id=asked[0], kind="comment", comment="the oracle erred")

    def crash(request: ModelRequest, *_: object, **__: object) -> bytes:
        raise ValueError(bytes(request.fields["messages"]))

    monkeypatch.setattr(ModelRequest, "engine_body", crash)
    asked.append((await ask(gateway))[1])
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    requests = [line for line in told if "request_id" in line]
    assert {line["request_id"] for line in requests} == set(asked)
    assert all(line["trace_id"] == line["request_id"].replace("-", "") for line in requests)
    assert {line["event"] for line in requests} >= {"attempt.ended", "request.refused", "request.crashed"}
    failed = [line for line in requests if line["event"] == "attempt.ended" and line["outcome"] == "error"]
    assert {line["level"] for line in failed} == {"info"}
    for text in ("oracle", "zorro", KEY):
        assert text not in lines.getvalue()
