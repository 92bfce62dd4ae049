"""A labelling tool at a real gateway process: both revisions pinned, compared by people over HTTP, stored once through a kill, and enough
for the rollout's evidence.
"""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest

from services.rollout.evidence_fold import Evidence
from services.rollout.plans import plans
from services.store import Store, migrate, open_store
from tests.fakes.gateway import KEY, hashed, route, target
from tests.fakes.gateway_process import Process
from tests.fakes.openai_engine import Engine, serve
from tests.fakes.recorded import exposures, observations, until
from tests.fakes.rollout_world import service

pytestmark = pytest.mark.integration

PEOPLE = 20
PINNING = json.dumps([{"name": "tool", "sha256": hashed(KEY), "scopes": ["pin"]}])
SERVICE = service(guardrails=[
    {"metric": "errors", "margin": 0.1, "mode": "nonInferior"}, {"metric": "preference", "margin": 0.1},
])  # fmt: skip


class Tool:
    """What Argilla, Label Studio or a product's own view would do."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url

    async def answer(self, model: str, question: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        async with self._http.post(f"{self._url}/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            return response.headers["x-request-id"]

    async def prefer(self, person: str, better: str, worse: str, left: str) -> int:
        said = {
            "kind": "preference",
            "request_id": better,
            "other_request_id": worse,
            "value": 1,
            "shown_first": left,
            "user": person,
        }
        async with self._http.post(f"{self._url}/v1/feedback", json=said) as response:
            return response.status


async def test_people_compare_answers_of_a_running_rollout(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/understudy.db"
    migrate(url)
    store = open_store(url)
    processes = [Process(url, tmp_path / "state", KEYS=PINNING, RECORDER__FLUSH_SECONDS="3600")]
    try:
        async with serve(Engine()) as old, serve(Engine()) as new:
            store.publish_route(
                route(target("assistant-v1-aaaa", "1", old.address), target("assistant-v2-bbbb", "2", new.address))
            )
            gateway = await processes[0].ready()
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
                tool = Tool(http, gateway.url)
                stable, candidate = await tool.answer("assistant@v1", "hi"), await tool.answer("assistant@v2", "hi")
                for person in range(PEOPLE):
                    for left in (stable, candidate):
                        assert await tool.prefer(f"person-{person}", stable, candidate, left) == 201
                assert await tool.prefer("person-0", candidate, stable, stable) == 201  # too late: it has been said
            # Nothing had been flushed: what survives, survives in the journal.
            gateway.child.send_signal(signal.SIGKILL)
            await gateway.ended()
            processes.append(Process(url, tmp_path / "state", KEYS=PINNING))
            await processes[1].ready()
            await until(lambda: len(store.judgements("r1", 0)) == 2 * PEOPLE, 10)
    finally:
        for process in processes:
            await asyncio.to_thread(process.stop)
    _decides(store)
    store.close()


def _decides(store: Store) -> None:
    evidence = Evidence("canary", plans(SERVICE, "canary", {}))
    evidence.fold_judgements(store.judgements("r1", 0))
    evidence.close_people(store.now() + 100, SERVICE.spec.rollout.horizon)
    view = evidence.view(0)
    [reading] = [one for one in view.readings if one.metric == "preference"]
    assert (reading.harmful, reading.n_candidate, reading.candidate) == (True, PEOPLE, 0.0)
    assert view.counts == view.counts | {
        "people": PEOPLE, "comparisons": PEOPLE, "comparisons_inconsistent": 0, "ordered": 2 * PEOPLE, "candidate_first": PEOPLE,
        "first_preferred": PEOPLE,
    }  # fmt: skip
    assert exposures(store) == []
    assert not any(row.counted for row in observations(store))
