"""The adapter against an API server that throttles, breaks off, refuses and goes away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from services.rollout.operator import api as module
from services.rollout.operator.api import LLM_SERVICE, KubernetesApi
from services.rollout.platforms.kubernetes_objects import KubernetesRejected, KubernetesUnavailable, NoCluster
from tests.fakes.kubernetes_api import FakeKubernetes, throttled

WHERE = (LLM_SERVICE.group, LLM_SERVICE.version, "default", LLM_SERVICE.plural)


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    fake = FakeKubernetes()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def api(server: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubernetesApi]:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "REST_SECONDS", 0.0)
    monkeypatch.setattr(module, "READ_SECONDS", 0.3)
    client = server.connect(tmp_path)
    yield client
    await client.close()


async def test_objects_come_and_go(server: FakeKubernetes, api: KubernetesApi) -> None:
    made = await api.apply(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {"name": "a", "namespace": "default", "labels": {"x": "1"}},
            "spec": {"n": 1},
        },
        "understudy",
    )
    assert made["metadata"]["generation"] == 1
    where = ("ray.io", "v1", "default", "rayservices")
    assert [one["metadata"]["name"] for one in await api.list(*where, "x=1")] == ["a"]
    assert await api.list(*where, "x=2") == []
    found = await api.get(*where, "a")
    assert found is not None
    assert found["spec"] == {"n": 1}
    await api.delete(*where, "a", None)
    await api.delete(*where, "a", None)
    assert await api.get(*where, "a") is None
    with pytest.raises(KubernetesRejected, match="knows no Cat"):
        await api.apply({**made, "kind": "Cat"}, "understudy")


async def test_lists_are_read_to_their_end(
    server: FakeKubernetes, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    for number in range(5):
        server.put(f"s{number}", {})
    assert len(await api.list(*WHERE)) == 5


async def test_throttling_and_5xx_are_stood(server: FakeKubernetes, api: KubernetesApi) -> None:
    server.put("assistant", {})
    server.fault = throttled(module.TRIES - 1)
    assert await api.get(*WHERE, "assistant") is not None
    server.fault = lambda _: web.Response(status=503)
    with pytest.raises(KubernetesUnavailable, match="503"):
        await api.get(*WHERE, "assistant")


async def test_it_comes_back_when_it_is_told_to(
    server: FakeKubernetes, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.2)
    server.put("assistant", {})
    server.fault = throttled(1, retry_after="3600")
    began = time.monotonic()
    assert await api.get(*WHERE, "assistant") is not None
    assert 0.2 <= time.monotonic() - began < 5, "as long as the API server says, within reason"


async def test_a_connection_that_breaks_or_hangs_is_given_up_in_time(
    server: FakeKubernetes, api: KubernetesApi
) -> None:
    server.put("assistant", {})

    def broken(request: web.Request) -> web.Response | None:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    server.fault = broken
    with pytest.raises(KubernetesUnavailable):
        await api.get(*WHERE, "assistant")
    server.fault = None
    await server.stop()
    with pytest.raises(KubernetesUnavailable):
        await api.ping()
    await server.start()
    await api.ping()
    assert await api.get(*WHERE, "assistant") is not None


async def test_a_server_that_is_away_is_left_alone_for_a_moment(
    server: FakeKubernetes, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_SECONDS", 60.0)
    asked: list[str] = []

    def away(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503)

    server.fault = away
    for _ in range(3):
        with pytest.raises(KubernetesUnavailable):
            await api.get(*WHERE, "assistant")
    assert len(asked) == module.TRIES


async def test_refusals_are_permanent_and_asked_once(server: FakeKubernetes, api: KubernetesApi) -> None:
    asked: list[str] = []

    def forbidden(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"message": "llmservices is forbidden"}, status=403)

    server.fault = forbidden
    with pytest.raises(KubernetesRejected, match="llmservices is forbidden") as caught:
        await api.get(*WHERE, "assistant")
    assert caught.value.status == 403
    assert len(asked) == 1


async def test_a_status_is_never_written_to_another_object_of_the_name(
    server: FakeKubernetes, api: KubernetesApi
) -> None:
    old = server.put("assistant", {})
    await api.apply_status(LLM_SERVICE, old, {"stage": "idle", "step": 0}, "understudy")
    await api.apply_status(LLM_SERVICE, old, {"stage": "gate"}, "understudy")
    assert server.resource("assistant")["status"] == {"stage": "gate"}
    server.delete("assistant")
    server.put("assistant", {})
    with pytest.raises(KubernetesRejected):
        await api.apply_status(LLM_SERVICE, old, {"stage": "idle"}, "understudy")
    assert "status" not in server.resource("assistant")


async def test_the_same_event_is_counted(server: FakeKubernetes, api: KubernetesApi) -> None:
    about = server.put("assistant", {})
    for text in ("first", "second", "third"):
        await api.event(about, "Normal", "StepPassed", "step", text, "rollout-1/StepPassed")
    await api.event(about, "Warning", "ErrorsHarmful", "abort", "x" * 5000, "rollout-1/ErrorsHarmful")
    passed, harmful = server.events()
    assert (passed["count"], passed["message"], passed["reason"]) == (3, "third", "StepPassed")
    assert passed["involvedObject"]["uid"] == about["metadata"]["uid"]
    assert len(harmful["message"]) == 1024


async def test_logs_of_containers(server: FakeKubernetes, api: KubernetesApi) -> None:
    server.logs["pod", "engine"] = "last words\n"
    assert await api.pod_log("default", "pod", "engine", 10, False) == "last words\n"
    assert await api.pod_log("default", "pod", "none", 10, True) == ""


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoCluster):
        KubernetesApi.connect(str(tmp_path / "none"))
