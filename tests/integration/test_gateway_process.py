"""`python -m services.gateway` as a process: killed, stopped, cut off from its store, started wrongly."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from services.store import Store, migrate, open_store
from tests.fakes.collector import Collector, collect
from tests.fakes.gateway import route, target
from tests.fakes.gateway_process import Process
from tests.fakes.openai_engine import Behaviour, Engine, serve
from tests.fakes.recorded import feedback, observations, until

pytestmark = pytest.mark.integration

Start = Callable[..., Process]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path}/understudy.db"
    migrate(url)
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    async with serve(Engine()) as running:
        store.publish_route(route(target("assistant-v1-aaaa", "1", running.address)))
        yield running


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(url: str = store.url, state: Path = tmp_path / "state", **changes: str) -> Process:
            process = Process(url, state, **changes)
            stack.callback(process.stop)
            return process

        yield begin


async def test_a_killed_gateway_loses_no_finished_observation_and_counts_none_twice(
    start: Start, store: Store, engine: Engine, tmp_path: Path
) -> None:
    # Nothing is flushed before the kill: what survives, survives in the journal.
    gateway = await start(RECORDER__FLUSH_SECONDS="3600").ready()
    answers = await asyncio.gather(*(gateway.ask(f"user-{number}", stream=number % 2 == 0) for number in range(40)))
    await gateway.thumb(answers[0][0])
    assert len(observations(store)) < 40
    gateway.child.send_signal(signal.SIGKILL)
    await gateway.ended()
    [killed] = store.leases()
    again = await start().ready()
    await again.ask("ada")
    rows = await until(lambda: len(found := observations(store)) >= 41 and found, 10)
    assert {request_id for request_id, _ in answers} < {row.request_id for row in rows}
    assert len(rows) == 41
    assert len(feedback(store)) == 1
    await until(lambda: killed.boot not in {lease.boot for lease in store.leases()})
    assert [gap["missing"] for gap in store.gaps()] == [0, 0]
    assert [path for path in (tmp_path / "state/journal").iterdir() if path.name.startswith(killed.boot)] == []


async def test_sigterm_lets_answers_end_and_hands_over_everything(
    start: Start, store: Store, engine: Engine, tmp_path: Path
) -> None:
    engine.behaviour = Behaviour(gap=0.15)
    gateway = await start(RECORDER__FLUSH_SECONDS="3600", DRAIN_NOTICE_SECONDS="0.3").ready()
    answer = asyncio.create_task(gateway.ask(stream=True))
    await until(lambda: engine.running == 1)
    gateway.child.send_signal(signal.SIGTERM)
    async with aiohttp.ClientSession() as http:
        await until_status(http, f"{gateway.url}/readyz", 503)
    _, data = await answer
    assert data.endswith(b"data: [DONE]\n\n")
    assert await gateway.ended() == 0
    assert [row.outcome for row in observations(store)] == ["ok"]
    assert store.leases() == []
    assert list((tmp_path / "state/journal").iterdir()) == []


async def until_status(http: aiohttp.ClientSession, url: str, status: int) -> None:
    async with asyncio.timeout(5):
        while True:
            async with http.get(url) as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.01)


async def test_the_store_goes_and_comes_back(start: Start, store: Store, engine: Engine, tmp_path: Path) -> None:
    gateway = await start(RECORDER__MEMORY_ROWS="10").ready()
    await gateway.ask("before")
    await until(lambda: observations(store))
    store.close()
    moved = [(path, path.with_name("away-" + path.name)) for path in sorted(tmp_path.glob("understudy.db*"))]
    for path, away in moved:
        path.rename(away)
    (tmp_path / "understudy.db").mkdir()  # nothing can open it
    for number in range(30):
        await gateway.ask(f"user-{number}")
    await asyncio.sleep(0.5)
    (tmp_path / "understudy.db").rmdir()
    for leftover in tmp_path.glob("understudy.db*"):
        leftover.unlink()
    for path, away in moved:
        away.rename(path)
    rows = await until(lambda: len(found := observations(store)) == 31 and found, 15)
    assert sorted(row.sequence for row in rows) == list(range(1, 32))
    assert [gap["missing"] for gap in store.gaps()] == [0]


async def test_wrong_starts_say_what_to_do(start: Start, store: Store, engine: Engine, tmp_path: Path) -> None:
    gateway = await start().ready()

    same_folder = start()
    assert await same_folder.ended() == 1
    assert "belongs to another running gateway" in same_folder.words()

    same_port = start(state=tmp_path / "state-2", PORT=str(gateway.port))
    assert await same_port.ended() == 1
    assert "address already in use" in same_port.words()

    no_keys = start(state=tmp_path / "state-3", KEYS="", UNIT_KEY="short")
    assert await no_keys.ended() == 2
    words = no_keys.words()
    assert "UNDERSTUDY_GATEWAY_KEYS: Field required" in words
    assert "UNDERSTUDY_GATEWAY_UNIT_KEY: " in words
    assert "Traceback" not in words


async def test_its_log_is_json_its_level_changes_and_traces_go_where_the_environment_says(
    start: Start, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collect(Collector()) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=team%20a")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
        gateway = await start().ready()
        await gateway.ask()
        gateway.child.send_signal(signal.SIGUSR1)
        await asyncio.sleep(0.2)
        told, _ = await gateway.ask()
        gateway.child.send_signal(signal.SIGUSR2)
        await asyncio.sleep(0.2)
        await gateway.ask()
        gateway.child.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        lines = [json.loads(line) for line in gateway.words().splitlines()]
        assert [line["event"] for line in lines] == [
            "gateway.started",
            "process.level",
            "attempt.ended",
            "process.level",
        ]
        assert (lines[0]["traces"], lines[2]["request_id"]) == (collector.endpoint, told)
        assert lines[2]["trace_id"] in {span.trace_id for span in collector.spans}
        assert len(collector.named("POST /v1/chat/completions")) == 3
        assert collector.resource["service.name"] == "front"
        assert {headers["x-scope"] for headers in collector.headers} == {"team a"}


async def test_a_wrong_destination_of_traces_is_told_at_the_start(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    gateway = start()
    assert await gateway.ended() == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4317/v1/traces' is no address" in gateway.words()
