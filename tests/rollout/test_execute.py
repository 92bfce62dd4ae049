"""What of the resource's engine reaches the platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.rollout import reasons
from services.rollout.actions import ApplyRevision
from services.rollout.execute import Executor
from services.rollout.observed import VersionInfo
from services.rollout.platforms.base import RevisionSpec
from services.rollout.resources import Engine, LLMService
from services.rollout.revisions import engine_digest, engine_name, model_of
from services.store import migrate, open_store
from tests.fakes.adapter import write_adapter
from tests.fakes.platform import FakePlatform
from tests.fakes.registry import FakeRegistry
from tests.fakes.rollout_rows import HandClock

PODS: dict[str, Any] = {
    "image": "engine:1",
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}],
    "environment": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "artifactCache": {"claim": "models"},
    "headFaultTolerance": {"redisAddress": "redis:6379", "passwordSecret": {"name": "redis"}},
}


class Files:
    def __init__(self, folder: str = "/models") -> None:
        self._folder = folder

    async def fetch(self, info: VersionInfo) -> str:
        return f"{self._folder}/{info.version}"


def resource(**engine: Any) -> LLMService:
    return LLMService.model_validate(
        {"metadata": {"name": "a"}, "spec": {"model": {"registeredModel": "a"}, "engine": engine}}
    )


async def applied(tmp_path: Path, **engine: Any) -> RevisionSpec:
    service = resource(**engine)
    url = f"sqlite:///{tmp_path}/store.db"
    migrate(url)
    store, registry, platform = open_store(url), FakeRegistry(), FakePlatform()
    info = registry.add("1", digest="sha256:" + "ab" * 32)
    executor = Executor(store, registry, platform, Files(), HandClock())
    await executor.run(service, service, [ApplyRevision(engine_name(service, info), "1", (1, 4))])
    await executor.idle()
    store.close()
    (spec,) = platform.applied
    return spec


async def adapter_applied(tmp_path: Path, service: LLMService) -> tuple[FakePlatform, Executor]:
    """What becomes of the adapter that is v2, whose files are below `tmp_path`, and of v1 under it."""
    url = f"sqlite:///{tmp_path}/store.db"
    migrate(url)
    store, registry, platform = open_store(url), FakeRegistry(), FakePlatform()
    registry.add("1")
    info = registry.add("2", kind="adapter", base_version="1", digest="ab" * 32)
    executor = Executor(store, registry, platform, Files(str(tmp_path)), HandClock())
    action = ApplyRevision(model_of(service, info), "2", (0, 0), base=engine_name(service, info))
    await executor.run(service, resource(), [action])
    await executor.idle()
    store.close()
    return platform, executor


@pytest.mark.parametrize("platform", ["serve", "kuberay"])
async def test_an_adapter_is_checked_and_goes_to_its_engine_as_a_folder(tmp_path: Path, platform: str) -> None:
    write_adapter(tmp_path / "2", rank=32)
    service = resource(platform=platform, lora={"maxRank": 32}, artifactCache={"claim": "models"})
    found, executor = await adapter_applied(tmp_path, service)
    assert executor.refused == {}
    (spec,) = found.applied
    assert (spec.artifact, spec.platform) == (str(tmp_path / "2"), platform)
    assert spec.name.startswith("a-v2-")
    assert str(spec.base).startswith("a-v1-")
    assert spec.pod["artifactCache"] == {"claim": "models"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"rank": 32}, "rank 32 is above spec.engine.lora.maxRank, 16"), ({"peft_type": "IA3"}, "peft_type 'IA3'")],
)
async def test_files_that_are_no_adapter_for_the_engine_are_refused(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    write_adapter(tmp_path / "2", **fields)
    found, executor = await adapter_applied(tmp_path, resource(lora={"maxRank": 16}))
    assert found.applied == []
    (refusal,) = executor.refused.values()
    assert refusal.reason == reasons.ADAPTER_REFUSED
    assert words in refusal.message


async def test_room_for_adapters_is_an_argument_of_vllm(tmp_path: Path) -> None:
    spec = await applied(tmp_path, lora={"maxAdapters": 3, "maxRank": 64})
    assert spec.engine == {"enable_lora": True, "max_loras": 3, "max_lora_rank": 64}
    assert spec.base is None
    with pytest.raises(ValidationError, match=r"arguments.enable_lora is set by the field lora"):
        Engine.model_validate({"arguments": {"enable_lora": True}})


async def test_parallel_sizes_are_arguments_of_vllm_and_pods_get_their_fields(tmp_path: Path) -> None:
    spec = await applied(
        tmp_path,
        platform="kuberay",
        arguments={"dtype": "bfloat16"},
        tensorParallelSize=4,
        resources={"cpu": 2, "gpu": 1, "memory": "16Gi"},
        autoscaling={"max": 4, "targetOngoingRequests": 8, "upscaleDelay": "5s", "downscaleDelay": "1h"},
        **PODS,
    )
    assert spec.engine == {"dtype": "bfloat16", "tensor_parallel_size": 4}
    assert spec.resources == {"CPU": 2, "GPU": 1}, "the pods have the memory"
    assert spec.autoscaling == {"target_ongoing_requests": 8, "upscale_delay_s": 5, "downscale_delay_s": 3600}
    assert spec.pod["resources"] == {"cpu": 2, "gpu": 1, "memory": "16Gi"}
    assert spec.pod["volumes"] == PODS["volumes"]
    assert spec.pod["environment"][0]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token", "optional": False}
    assert spec.pod["headFaultTolerance"]["passwordSecret"] == {"name": "redis", "key": "password"}
    assert {"image", "tolerations", "artifactCache"} <= set(spec.pod)
    assert "affinity" not in spec.pod


async def test_on_a_running_cluster_memory_is_rays(tmp_path: Path) -> None:
    spec = await applied(tmp_path, resources={"cpu": 1, "memory": "2Gi"})
    assert spec.resources == {"CPU": 1, "memory": 2 * 1024**3}
    assert spec.engine == {}


def test_a_revision_is_named_by_what_was_changed_and_not_by_defaults() -> None:
    plain = engine_digest(Engine())
    assert engine_digest(Engine.model_validate({"tensorParallelSize": 1, "resources": {"cpu": 1}})) == plain
    assert engine_digest(Engine.model_validate({"autoscaling": {"max": 9}, "startTimeout": "1h"})) == plain
    assert engine_digest(Engine.model_validate({"image": "engine:2"})) != plain


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"arguments": {"tensor_parallel_size": 2}}, "is set by the field tensorParallelSize"),
        ({"platform": "kuberay", "resources": {"gpu": 0.5}}, "whole number"),
        ({"tensorParallelSize": 2, "ranksPerPod": 4}, "must divide"),
        ({"artifactCache": {"claim": "a", "hostPath": "/b"}}, "one of hostPath and claim"),
        ({"volumeMounts": [{"name": "a", "mountPath": "/a"}]}, "not among volumes"),
        ({"environment": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]}, "exclude each other"),
        ({"autoscaling": {"targetOngoingRequests": 65}}, "greater than maxOngoingRequests"),
    ],
)  # fmt: skip
def test_a_wrong_engine(engine: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Engine.model_validate(engine)


def test_wishes_that_no_platform_obeys_are_named() -> None:
    assert Engine.model_validate({**PODS, "platform": "serve"}).ignored == [
        "image", "tolerations", "environment", "volumes", "artifactCache", "headFaultTolerance",
    ]  # fmt: skip
    assert Engine.model_validate({**PODS, "platform": "kuberay"}).ignored == []
    assert Engine().ignored == []
