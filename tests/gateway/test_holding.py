"""Requests that wait for an engine to start: held within bounds, refused beyond them, answered once it runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest

from services.common.routing import Hold, Route
from services.store import Store
from tests.fakes.gateway import KEY, RunningGateway, route, target
from tests.fakes.openai_engine import Behaviour, Engine, serve
from tests.fakes.recorded import observations, until

HOLD = Hold(requests=2, seconds=1.5, awake=60.0)


class Sleeper:
    """An engine that is not there yet: nothing listens at its address until it is woken."""

    def __init__(self, stack: AsyncExitStack) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.engine = Engine(port=self.port)
        self._stack = stack

    async def wake(self) -> Engine:
        return await self._stack.enter_async_context(serve(self.engine, self.port))


@pytest.fixture
async def sleeper() -> AsyncIterator[Sleeper]:
    async with AsyncExitStack() as stack:
        yield Sleeper(stack)


def sleeping(engine: Engine, hold: Hold = HOLD, **changes: Any) -> Route:
    return route(target("assistant-v1-aaaa", "1", engine.address), hold=hold, **changes)


def held(gateway: RunningGateway) -> float:
    assert gateway.app.completions is not None
    labels = {"service": "assistant"}
    return gateway.app.completions._metrics.registry.get_sample_value("understudy_gateway_held_requests", labels) or 0.0


async def ask(gateway: RunningGateway, *, stream: bool = True) -> tuple[int, str, dict[str, str]]:
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{gateway.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
        ) as answer,
    ):
        return answer.status, await answer.text(), dict(answer.headers)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_waits_for_the_engine(start: Any, sleeper: Sleeper, store: Store, stream: bool) -> None:
    gateway = await start(sleeping(sleeper.engine))
    waiting = asyncio.create_task(ask(gateway, stream=stream))
    await until(lambda: held(gateway) == 1)
    await sleeper.wake()
    status, text, _ = await waiting
    assert status == 200
    assert "paris" in text
    assert held(gateway) == 0
    [row] = await until(lambda: observations(store))  # the tries that found nobody are no failures of stable
    assert (row.outcome, row.attempt, row.counted) == ("ok", 0, False)


async def test_what_the_proxy_says_is_no_answer_of_the_engine(start: Any, stable: Engine) -> None:
    said = [Behaviour(status=500, error=""), Behaviour()]
    stable.behaviour = lambda _: said.pop(0)
    gateway = await start(sleeping(stable))
    status, text, _ = await ask(gateway)
    assert (status, "paris" in text, len(stable.requests)) == (200, True, 2)


async def test_what_the_engine_says_is_passed_on(start: Any, stable: Engine, store: Store) -> None:
    stable.behaviour = Behaviour(status=500, error="CUDA error")
    gateway = await start(sleeping(stable))
    assert (await ask(gateway))[0] == 502
    [row] = await until(lambda: observations(store))
    assert (row.outcome, row.error, len(stable.requests)) == ("error", "status_500", 1)


async def test_beyond_the_bound_requests_are_refused(start: Any, sleeper: Sleeper, store: Store) -> None:
    gateway = await start(sleeping(sleeper.engine))
    waiting = [asyncio.create_task(ask(gateway)) for _ in range(2)]
    await until(lambda: held(gateway) == 2)
    status, text, headers = await ask(gateway)
    assert status == 503
    error = msgspec.json.decode(text)["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_starting")
    assert headers["Retry-After"] == "30"
    await sleeper.wake()
    assert [status for status, *_ in await asyncio.gather(*waiting)] == [200, 200]
    assert (await ask(gateway))[0] == 200
    assert gateway.app.completions is not None
    refused = gateway.app.completions._metrics.registry.get_sample_value(
        "understudy_gateway_refused_requests_total", {"service": "assistant", "reason": "engine_starting"}
    )
    assert refused == 1


async def test_a_proxy_that_keeps_the_request_is_waited_for_within_the_bound(start: Any, stable: Engine) -> None:
    """The stock way: the proxy takes the request and answers when a replica runs. Silence counts as waiting."""
    stable.behaviour = Behaviour(first_after=0.5)
    gateway = await start(sleeping(stable, time_to_first_byte=0.2), engine_silence_seconds=0.1)
    waiting = [asyncio.create_task(ask(gateway)) for _ in range(3)]
    answers = await asyncio.gather(*waiting)
    assert sorted(status for status, *_ in answers) == [200, 200, 503]
    assert held(gateway) == 0


async def test_an_engine_that_runs_and_hangs_is_not_waited_for(start: Any, stable: Engine) -> None:
    gateway = await start(sleeping(stable, time_to_first_byte=0.3), engine_silence_seconds=0.1)
    assert (await ask(gateway))[0] == 200  # it runs
    stable.behaviour = Behaviour(hang=True)
    assert (await ask(gateway))[0] == 504
    assert held(gateway) == 0


async def test_a_start_that_takes_too_long_is_given_up(start: Any, sleeper: Sleeper, store: Store) -> None:
    gateway = await start(sleeping(sleeper.engine, Hold(requests=2, seconds=0.4, awake=60.0)))
    status, text, _ = await ask(gateway)
    assert (status, "engine_starting" in text) == (503, True)
    assert held(gateway) == 0
    assert not observations(store)


async def test_a_client_that_leaves_frees_its_place(start: Any, sleeper: Sleeper) -> None:
    gateway = await start(sleeping(sleeper.engine, msgspec.structs.replace(HOLD, requests=1)))
    waiting = asyncio.create_task(ask(gateway))
    await until(lambda: held(gateway) == 1)
    waiting.cancel()
    await until(lambda: held(gateway) == 0)
    again = asyncio.create_task(ask(gateway))
    await sleeper.wake()
    assert (await again)[0] == 200


async def test_a_replica_that_has_gone_leads_to_the_proxy(start: Any, sleeper: Sleeper, stable: Engine) -> None:
    published = sleeping(stable)
    gone = msgspec.structs.replace(published.stable, addresses=(sleeper.engine.address,), reserve=stable.address)
    gateway = await start(msgspec.structs.replace(published, stable=gone))
    assert (await ask(gateway))[0] == 200
    assert len(stable.requests) == 1
