"""The RayService of a revision."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from services.serving.application import EngineSpec
from services.serving.artifacts import reference
from services.serving.errors import InvalidEngineSpec
from services.serving.rayservice import PodSettings, object_name, ray_service

DIGEST = "a" * 64
NAME = "assistant-v4-7c1f"
GPU = "nvidia.com/gpu"
SETTINGS = PodSettings(
    "fetch:1",
    "engine:1",
    image_pull_secrets=("registry",),
    fetch_environment=(
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"},
        {"name": "MLFLOW_TRACKING_TOKEN", "valueFrom": {"secretKeyRef": {"name": "mlflow", "key": "token"}}},
    ),
)


def made(
    engine: EngineSpec | None = None,
    pod: dict[str, Any] | None = None,
    artifact: str = reference("runs:/1/model", DIGEST),
) -> dict[str, Any]:
    return ray_service(
        NAME, "assistant", artifact, engine or EngineSpec({}, {"CPU": 0.5}), pod or {}, SETTINGS, "models"
    )


def cluster(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service["spec"]["rayClusterConfig"]
    return found


def head(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cluster(service)["headGroupSpec"]
    return found


def group(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = cluster(service)["workerGroupSpecs"]
    return dict(found)


def worker(service: dict[str, Any]) -> dict[str, Any]:
    (container,) = group(service)["template"]["spec"]["containers"]
    return dict(container)


def specs(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield head(service)["template"]["spec"]
    yield group(service)["template"]["spec"]


def application(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = json.loads(service["spec"]["serveConfigV2"])["applications"]
    return dict(found)


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def test_the_engine_reads_what_the_init_container_fetched() -> None:
    service = made()
    spec = group(service)["template"]["spec"]
    (fetching,) = spec["initContainers"]
    loading = application(service)["args"]["llm_configs"][0]["model_loading_config"]
    mount = next(mount for mount in worker(service)["volumeMounts"] if mount["name"] == "models")
    assert loading == {"model_id": NAME, "model_source": f"{mount['mountPath']}/{DIGEST}"}
    assert mount["readOnly"]
    options = dict(zip(fetching["command"][3::2], fetching["command"][4::2], strict=True))
    assert options == {"--source": "runs:/1/model", "--digest": DIGEST, "--cache": mount["mountPath"], "--keep": "3"}
    assert fetching["image"] == "fetch:1"
    assert environment(fetching)["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "token" not in " ".join(fetching["command"])
    # It holds what it reads, so that nobody prunes it.
    assert f"{mount['mountPath']}/{DIGEST}.lock" in worker(service)["command"][0]


def test_an_artifact_that_is_a_path_is_not_fetched() -> None:
    service = made(artifact="/models/seven")
    assert "initContainers" not in group(service)["template"]["spec"]
    assert application(service)["args"]["llm_configs"][0]["model_loading_config"]["model_source"] == "/models/seven"


def test_a_claim_as_source_is_mounted_where_fetching_looks() -> None:
    spec = group(made(artifact=reference("pvc://weights/v1", DIGEST)))["template"]["spec"]
    mounts = {mount["mountPath"]: mount for mount in spec["initContainers"][0]["volumeMounts"]}
    mount = mounts["/var/lib/understudy/claims/weights"]
    assert mount["readOnly"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
    assert volume["persistentVolumeClaim"]["claimName"] == "weights"


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        (None, {"emptyDir": {}}),
        ({"hostPath": "/data"}, {"hostPath": {"path": "/data", "type": "DirectoryOrCreate"}}),
        ({"claim": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
    ],
)
def test_where_the_cache_is(cache: dict[str, str] | None, volume: dict[str, Any]) -> None:
    spec = group(made(pod={"artifactCache": cache} if cache else {}))["template"]["spec"]
    (found,) = [found for found in spec["volumes"] if found["name"] == "models"]
    assert found == {"name": "models", **volume}


def test_every_pod_meets_the_restricted_standard() -> None:
    service = made()
    containers = [cluster(service)["autoscalerOptions"]]
    for spec in specs(service):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        containers += [*spec["containers"], *spec.get("initContainers", [])]
        assert all("hostPath" not in volume for volume in spec["volumes"])
    assert len(containers) == 4
    for container in containers:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_every_mount_has_a_volume() -> None:
    pod = {
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    }
    service = made(pod=pod, artifact=reference("pvc://weights/v1", DIGEST))
    for spec in specs(service):
        volumes = [volume["name"] for volume in spec["volumes"]]
        assert len(volumes) == len(set(volumes))
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
    assert {"name": "ca", "mountPath": "/ca"} in worker(service)["volumeMounts"]


def test_scheduling_is_for_engines_and_images_for_all() -> None:
    pod: dict[str, Any] = {
        "image": "theirs:2",
        "imagePullSecrets": [{"name": "registry"}, {"name": "theirs"}],
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "runtimeClassName": "nvidia",
        "environment": [{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "MINE", "value": "1"}],
    }
    service = made(EngineSpec({}, {"GPU": 1.0}), pod)
    ray, engine = specs(service)
    scheduling = {"nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "runtimeClassName"}
    assert {field: engine[field] for field in scheduling} == {field: pod[field] for field in scheduling}
    assert not scheduling & ray.keys()
    for spec in (ray, engine):
        assert spec["containers"][0]["image"] == "theirs:2"
        assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "theirs"}]
        variables = environment(spec["containers"][0])
        assert (variables["HF_HUB_OFFLINE"], variables["MINE"]) == ("0", "1")
        assert len(variables) == len(spec["containers"][0]["env"])
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == variables["RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"] == "1"


@pytest.mark.parametrize(
    ("ranks", "resources", "pod", "pods", "taken"),
    [
        ((1, 1), {"CPU": 0.5}, {}, 1, {"cpu": "500m", "memory": "8Gi"}),
        (
            (1, 1),
            {"GPU": 1, "CPU": 4},
            {"resources": {"memory": "1.5Gi"}},
            1,
            {"cpu": "4000m", "memory": "1.5Gi", GPU: "1"},
        ),
        ((4, 1), {"GPU": 1}, {}, 1, {"cpu": "4000m", "memory": "32Gi", GPU: "4"}),
        ((4, 2), {"GPU": 1}, {}, 2, {"cpu": "4000m", "memory": "32Gi", GPU: "4"}),
        ((4, 1), {"GPU": 1}, {"ranksPerPod": 1}, 4, {"cpu": "1000m", "memory": "8Gi", GPU: "1"}),
    ],
)
def test_a_replica_has_pods_for_its_ranks(
    ranks: tuple[int, int], resources: dict[str, float], pod: dict[str, Any], pods: int, taken: dict[str, str]
) -> None:
    sizes = dict(zip(("tensor_parallel_size", "pipeline_parallel_size"), ranks, strict=True))
    service = made(EngineSpec(sizes, resources), pod)
    assert worker(service)["resources"]["requests"] == taken
    limits = {kind: amount for kind, amount in taken.items() if kind != "cpu"}
    assert worker(service)["resources"]["limits"] == limits
    assert (group(service)["minReplicas"], group(service)["replicas"]) == (0, pods)
    assert group(service)["rayStartParams"]["num-gpus"] == taken.get(GPU, "0")
    assert head(service)["rayStartParams"]["num-cpus"] == head(service)["rayStartParams"]["num-gpus"] == "0"
    # What Ray is told of a pod holds the ranks that are to be placed there.
    bundles = application(service)["args"]["llm_configs"][0]["placement_group_config"]["bundles"]
    together = bundles[: len(bundles) // pods]
    assert sum(bundle.get("CPU", 0) for bundle in together) <= int(group(service)["rayStartParams"]["num-cpus"])
    assert sum(bundle.get("GPU", 0) for bundle in together) == int(group(service)["rayStartParams"]["num-gpus"])


def test_more_replicas_change_nothing_that_would_need_a_new_cluster() -> None:
    few, many = (made(EngineSpec({}, {"GPU": 1}, minimum, 4)) for minimum in (1, 3))
    assert few["spec"]["serveConfigV2"] != many["spec"]["serveConfigV2"]
    for service in (few, many):
        del cluster(service)["workerGroupSpecs"][0]["replicas"]
    assert cluster(few) == cluster(many)
    assert group(few)["maxReplicas"] >= 4


def test_engines_drain_before_they_end() -> None:
    for spec in specs(made()):
        _, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert int(seconds) < spec["terminationGracePeriodSeconds"]


def test_the_cluster_is_closed_and_never_upgraded() -> None:
    service = made()
    assert cluster(service)["authOptions"] == {"mode": "token"}
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}
    assert "gcsFaultToleranceOptions" not in cluster(service)


def test_the_heads_state_in_redis() -> None:
    tolerance = {"redisAddress": "redis:6379", "passwordSecret": {"name": "redis", "key": "secret"}}
    options = cluster(made(pod={"headFaultTolerance": tolerance}))["gcsFaultToleranceOptions"]
    reference = {"secretKeyRef": {"name": "redis", "key": "secret"}}
    assert options == {"redisAddress": "redis:6379", "redisPassword": {"valueFrom": reference}}


def test_pods_say_whose_they_are() -> None:
    service = made()
    for labels in (
        service["metadata"]["labels"],
        head(service)["template"]["metadata"]["labels"],
        group(service)["template"]["metadata"]["labels"],
    ):
        assert (labels["understudy.dev/service"], labels["understudy.dev/revision"]) == ("assistant", NAME)
        assert "app.kubernetes.io/name" not in labels, "KubeRay's Service of the head would not find it"


def test_names_that_kuberay_takes() -> None:
    assert object_name(NAME) == NAME
    long = [f"{'a' * 39}-v{version}-7c1f" for version in range(100, 140)] + ["7up-v1-7c1f", f"{'b' * 36}-v1-7c1f-long"]
    names = {object_name(revision) for revision in long}
    assert len(names) == len(long)
    for name in names:
        assert len(name) <= 47
        assert name[0].isalpha()
        assert name[-1].isalnum()


@pytest.mark.parametrize(
    ("engine", "pod", "words"),
    [
        (EngineSpec({}, {"GPU": 0.5}), {}, "whole GPUs"),
        (EngineSpec({"tensor_parallel_size": 4}, {"GPU": 1}), {"ranksPerPod": 3}, "must divide the 4 workers"),
        (EngineSpec({}, {"CPU": 1}), {"resources": {"memory": "lots"}}, "no quantity"),
        (EngineSpec({"model": "x"}, {"CPU": 1}), {}, "set by the platform"),
    ],
)
def test_what_cannot_be_built_is_refused(engine: EngineSpec, pod: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidEngineSpec, match=words):
        made(engine, pod)
