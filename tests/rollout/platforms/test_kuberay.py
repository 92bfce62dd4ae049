"""The KubeRay adapter against a cluster in memory and an engine that answers over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.rollout.platforms.base import PlatformRejected, PlatformUnavailable, RevisionSpec, RevisionState
from services.rollout.platforms.kuberay import KubeRayPlatform
from services.rollout.platforms.kubernetes_objects import KubernetesRejected, KubernetesUnavailable
from services.serving.artifacts import reference
from services.serving.rayservice import PodSettings
from tests.fakes.kuberay_operator import Cluster, Dns
from tests.fakes.openai_engine import Behaviour, Engine

ONE, TWO = "assistant-v1-aaaa", "assistant-v2-bbbb"
OWNER = {"apiVersion": "understudy.dev/v1alpha1", "kind": "LLMService", "name": "assistant", "uid": "u-1"}
SETTINGS = PodSettings("fetch:1", "engine:1")


def spec(name: str = ONE, **changes: Any) -> RevisionSpec:
    values: dict[str, Any] = {
        "service": "assistant",
        "artifact": reference("runs:/1/model", "a" * 64),
        "engine": {"dtype": "float32"},
        "resources": {"CPU": 1.0},
        "replicas": (1, 2),
        "max_ongoing_requests": 64,
        **changes,
    }
    return RevisionSpec(name=name, **values)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def platform(cluster: Cluster, engine: Engine) -> AsyncIterator[KubeRayPlatform]:
    app = web.Application()
    app.router.add_post("/{service}/{revision}/v1/completions", engine.completions)
    dns = Dns(cluster, "models")
    async with TestServer(app, host="127.0.0.1") as server:
        dns.port = server.port or 0
        connector = aiohttp.TCPConnector(resolver=dns, use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            platform = KubeRayPlatform(session, cluster, "models", SETTINGS, OWNER)
            yield platform
            await platform.close()


async def seen(platform: KubeRayPlatform, name: str = ONE) -> RevisionState:
    return (await platform.observe("assistant"))[name]


async def awaited(platform: KubeRayPlatform, until: Callable[[RevisionState], bool], name: str = ONE) -> RevisionState:
    async with asyncio.timeout(2):
        while not until(state := await seen(platform, name)):
            await asyncio.sleep(0.005)
        return state


async def brought_up(platform: KubeRayPlatform, cluster: Cluster, **changes: Any) -> RevisionState:
    await platform.apply(spec(**changes))
    cluster.ready(ONE)
    return await awaited(platform, lambda state: state.phase == "ready")


async def test_a_revision_is_ready_once_it_has_answered_at_its_address(
    platform: KubeRayPlatform, cluster: Cluster, engine: Engine
) -> None:
    await platform.apply(spec())
    state = await seen(platform)
    assert (state.phase, state.address) == ("starting", None)
    assert "head" in state.message
    cluster.run(ONE)
    assert (await seen(platform)).message == "1 of 2 pods are ready"
    engine.behaviour = Behaviour(status=503, error="no engine yet")
    cluster.ready(ONE)  # KubeRay's word alone is not enough
    state = await awaited(platform, lambda state: "503" in state.message)
    assert (state.phase, state.address) == ("starting", None)
    engine.behaviour = Behaviour()
    state = await awaited(platform, lambda state: state.phase == "ready")
    assert state.ready_replicas == 1
    assert state.address == f"http://{ONE}-serve-svc.models:8000/assistant/{ONE}/v1"
    assert {request["model"] for request in engine.requests} == {ONE}


async def test_what_is_applied_is_owned_and_named(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await platform.apply(spec())
    (applied, manager), *_ = cluster.applied
    assert manager == "understudy"
    assert applied["metadata"]["ownerReferences"] == [OWNER]
    assert applied["metadata"]["namespace"] == "models"


async def test_a_long_name_is_shortened_and_still_found(
    platform: KubeRayPlatform, cluster: Cluster, engine: Engine
) -> None:
    name = "3-" + "long" * 12 + "-v12-cafe"
    await platform.apply(spec(name))
    (object_name,) = cluster.services
    assert (await seen(platform, name)).phase == "starting"  # KubeRay took the name
    cluster.ready(object_name)
    state = await awaited(platform, lambda state: state.phase == "ready", name)
    assert state.address is not None
    assert state.address.endswith(f"/{name}/v1")
    await platform.remove(name)
    assert [deleted for deleted, _ in cluster.deleted] == [object_name]


async def test_a_revision_that_went_down_must_answer_anew(
    platform: KubeRayPlatform, cluster: Cluster, engine: Engine
) -> None:
    await brought_up(platform, cluster)
    cluster.fail_in_serve(ONE, "1 replica died", status="UNHEALTHY")
    assert (await seen(platform)).phase == "failed"
    engine.behaviour = Behaviour(status=503)
    cluster.ready(ONE)
    assert (await awaited(platform, lambda state: "503" in state.message)).phase == "starting"


async def test_a_lost_head_takes_the_revision_down(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await brought_up(platform, cluster)
    cluster.lose_head(ONE)
    state = await seen(platform)
    assert (state.phase, state.address, state.message) == ("starting", None, "there is no Ray head")


async def test_with_its_state_in_redis_a_cluster_outlives_its_head(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await brought_up(platform, cluster, pod={"headFaultTolerance": {"redisAddress": "redis:6379"}})
    cluster.lose_head(ONE)
    state = await seen(platform)
    assert (state.phase, state.ready_replicas, state.message) == ("ready", 1, "there is no Ray head")


async def test_a_pod_that_finds_no_gpu_says_so(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await platform.apply(spec(resources={"GPU": 1.0}))
    cluster.run(ONE)
    cluster.leave_pending(f"{ONE}-worker-0", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    state = await seen(platform)
    assert state.phase == "starting"  # a node may come
    assert "Pending: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu" in state.message


@pytest.mark.parametrize(
    ("container", "status", "phase", "words"),
    [
        ("ray-worker", {"waiting": "ErrImagePull"}, "starting", "ErrImagePull"),
        ("ray-worker", {"waiting": "ImagePullBackOff"}, "failed", "ImagePullBackOff"),
        ("ray-worker", {"reason": "OOMKilled", "exitCode": 137}, "failed", "more memory than its limit"),
        ("ray-worker", {"reason": "Error", "exitCode": 1, "message": "no\nspace"}, "failed", "status 1: no space"),
        ("fetch", {"reason": "Error", "exitCode": 4, "message": "holds other files"}, "failed", "holds other files"),
        ("fetch", {"reason": "Error", "exitCode": 75, "message": "MLflow is away"}, "starting", "MLflow is away"),
    ],
)
async def test_containers_that_do_not_start(
    platform: KubeRayPlatform, cluster: Cluster, container: str, status: dict[str, Any], phase: str, words: str
) -> None:
    await platform.apply(spec())
    cluster.run(ONE)
    cluster.fail_container(f"{ONE}-worker-0", container, **status)
    state = await seen(platform)
    assert state.phase == phase
    assert words in state.message


async def test_trouble_of_one_pod_does_not_take_down_a_revision_that_answers(
    platform: KubeRayPlatform, cluster: Cluster
) -> None:
    await brought_up(platform, cluster, replicas=(2, 2))
    cluster.fail_container(f"{ONE}-worker-1", "ray-worker", waiting="ImagePullBackOff")
    state = await seen(platform)
    assert (state.phase, state.ready_replicas) == ("ready", 1)
    assert "ImagePullBackOff" in state.message


async def test_a_failed_engine_says_why(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await platform.apply(spec())
    cluster.logs[f"{ONE}-worker-0", "ray-worker", False] = "INFO loading\nRuntimeError: tensor a must match tensor b\n"
    cluster.fail_in_serve(ONE, "The deployment failed to start.\n  File x\nRuntimeError: see above")
    state = await seen(platform)
    assert (state.phase, state.address) == ("failed", None)
    assert state.message == (
        "The deployment failed to start. RuntimeError: see above\nRuntimeError: tensor a must match tensor b"
    )


async def test_the_log_of_a_crashed_container_is_that_of_its_last_run(
    platform: KubeRayPlatform, cluster: Cluster
) -> None:
    await platform.apply(spec())
    cluster.run(ONE)
    cluster.logs[f"{ONE}-worker-0", "ray-worker", True] = "ValueError: bad dtype\n"
    cluster.fail_container(f"{ONE}-worker-0", "ray-worker", reason="Error", exitCode=1)
    assert (await seen(platform)).message.endswith("ValueError: bad dtype")


async def test_what_kuberay_refuses_has_failed(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await platform.apply(spec())
    cluster.services[ONE]["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "reason": "ValidationFailed", "message": "authOptions is wrong"}
    ]
    state = await seen(platform)
    assert (state.phase, state.message) == ("failed", "KubeRay refuses the RayService: authOptions is wrong")


async def test_a_removed_revision_drains_and_is_gone(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await brought_up(platform, cluster)
    await platform.apply(spec(TWO))
    await platform.remove(ONE)
    await platform.remove(ONE)
    assert cluster.deleted == [(ONE, None)]
    assert (await seen(platform)).phase == "draining"
    with pytest.raises(PlatformUnavailable, match="still being removed"):
        await platform.apply(spec())
    cluster.finish_deletion(ONE)
    assert set(await platform.observe("assistant")) == {TWO}
    assert await platform.observe("other") == {}
    await platform.remove("assistant-v9-ffff")


async def test_a_rayservice_of_others_is_left_alone(platform: KubeRayPlatform, cluster: Cluster) -> None:
    cluster.services[ONE] = {"metadata": {"name": ONE, "labels": {}}, "spec": {}, "status": {}}
    with pytest.raises(PlatformRejected, match="not ours"):
        await platform.apply(spec())
    await platform.remove(ONE)
    assert cluster.deleted == []
    assert await platform.observe("assistant") == {}


async def test_faults_of_the_api_server_are_told_apart(platform: KubeRayPlatform, cluster: Cluster) -> None:
    cluster.faults = [KubernetesUnavailable("timed out")]
    with pytest.raises(PlatformUnavailable, match="timed out"):
        await platform.observe("assistant")
    cluster.faults = [KubernetesRejected(404, "the cluster knows no RayService in ray.io/v1")]
    with pytest.raises(PlatformRejected, match="install the KubeRay operator"):
        await platform.observe("assistant")
    cluster.faults = [KubernetesRejected(409, "changed meanwhile")]
    with pytest.raises(PlatformUnavailable, match="changed"):
        await platform.apply(spec())
    cluster.faults = [KubernetesRejected(403, "cannot get rayservices")]
    with pytest.raises(PlatformRejected, match="cannot get"):
        await platform.remove(ONE)


async def test_an_engine_that_cannot_be_built_is_refused(platform: KubeRayPlatform, cluster: Cluster) -> None:
    with pytest.raises(PlatformRejected, match="whole GPUs"):
        await platform.apply(spec(resources={"GPU": 0.5}))
    with pytest.raises(PlatformRejected, match="no digest"):
        await platform.apply(spec(artifact="runs:/1/model"))
    assert cluster.applied == []


async def test_other_bounds_change_the_application_alone(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await brought_up(platform, cluster, replicas=(1, 2))
    before = cluster.services[ONE]["spec"]
    await platform.scale(ONE, (0, 2))
    assert (await seen(platform)).replicas == (0, 2)
    (applied, manager) = cluster.applied[-1]
    assert manager == "understudy"
    assert applied["metadata"]["ownerReferences"] == [OWNER]
    assert "status" not in applied
    changed = {key for key, value in applied["spec"].items() if before[key] != value}
    assert changed == {"serveConfigV2"}
    count = len(cluster.applied)
    await platform.scale(ONE, (0, 2))
    await platform.scale(TWO, (0, 2))
    assert len(cluster.applied) == count


async def test_without_an_engine_the_head_answers(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await brought_up(platform, cluster, replicas=(1, 2))
    await platform.scale(ONE, (0, 2))
    state = await seen(platform)
    assert state.address == f"http://{ONE}-head-svc.models:8000/assistant/{ONE}/v1"
    assert state.direct == f"http://{ONE}-serve-svc.models:8000/assistant/{ONE}/v1"
    cluster.sleep(ONE)
    state = await seen(platform)
    assert (state.phase, state.ready_replicas, state.direct) == ("ready", 0, None)
    assert state.address is not None
    cluster.leave_pending(cluster.wake(ONE), "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    state = await seen(platform)  # it is told, and the next request still may wait for it
    assert (state.phase, state.ready_replicas) == ("ready", 0)
    assert "Insufficient nvidia.com/gpu" in state.message
    cluster.fail_container(f"{ONE}-worker-0", "ray-worker", waiting="ImagePullBackOff")
    assert (await seen(platform)).phase == "failed"


async def test_one_that_never_ran_is_not_asleep(platform: KubeRayPlatform, cluster: Cluster) -> None:
    await platform.apply(spec(replicas=(0, 2)))
    cluster.run(ONE)
    assert (await seen(platform)).phase == "starting"
