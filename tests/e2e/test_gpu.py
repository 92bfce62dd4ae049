"""Engines that ask for GPUs go to nodes that have them, and wait with a reason where none is left. The node only claims the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from services.serving.application import EngineSpec
from services.serving.artifacts import reference
from services.serving.rayservice import PodSettings, ray_service
from tests.e2e.installation import Platform, version
from tests.e2e.kube import run, until

pytestmark = pytest.mark.e2e
GPU = "nvidia.com/gpu"
PATH = "/status/capacity/nvidia.com~1gpu"


@pytest.fixture
def one_gpu() -> Iterator[str]:
    """A node that claims one GPU, where the cluster has none."""
    nodes = json.loads(run("kubectl", "get", "nodes", "--output=json"))["items"]
    if any(GPU in node["status"]["allocatable"] for node in nodes):
        pytest.skip("the cluster has GPUs of its own; how many are free is not known here")
    name = str(nodes[0]["metadata"]["name"])
    patch = ("kubectl", "patch", "node", name, "--subresource=status", "--type=json")
    run(*patch, f"--patch={json.dumps([{'op': 'add', 'path': PATH, 'value': '1'}])}")

    def reported() -> bool:
        node = json.loads(run("kubectl", "get", "node", name, "--output=json"))
        return str(node["status"]["allocatable"].get(GPU)) == "1"

    until("the kubelet reports the GPU", reported, 120)
    yield name
    run(*patch, f"--patch={json.dumps([{'op': 'remove', 'path': PATH}])}")


def _workers(platform: Platform) -> dict[str, list[dict[str, Any]]]:
    """Workers of Ray by whether the scheduler has found a node."""
    found: dict[str, list[dict[str, Any]]] = {"True": [], "False": []}
    for pod in platform.namespace.pods("ray-worker"):
        for condition in pod["status"].get("conditions", []):
            if condition["type"] == "PodScheduled":
                found[condition["status"]].append({"node": pod["spec"].get("nodeName"), **condition})
    return found


def test_workers_land_where_gpus_are_and_wait_where_none_is_left(serving: Platform, one_gpu: str) -> None:
    worker = "ray.worker"
    serving.upgrade(
        f"{worker}.replicas=2", f"{worker}.gpus=1", f"{worker}.cpus=0", f"{worker}.resources.limits.nvidia\\.com/gpu=1",
        f"{worker}.resources.requests.cpu=50m", f"{worker}.resources.requests.memory=512Mi", wait=False,
    )  # fmt: skip
    try:

        def settled() -> dict[str, list[dict[str, Any]]] | None:
            workers = _workers(serving)
            return workers if (len(workers["True"]), len(workers["False"])) == (1, 1) else None

        workers = until("one worker has a node, one has none", settled, 60)
        assert workers["True"][0]["node"] == one_gpu
        assert workers["False"][0]["reason"] == "Unschedulable"
        assert f"Insufficient {GPU}" in workers["False"][0]["message"]
        serving.wait_for("condition=Ready", 60)
    finally:
        serving.upgrade(f"{worker}.replicas=0", f"{worker}.gpus=0")


def test_the_api_server_takes_a_ray_service_for_gpus(platform: Platform) -> None:
    if "rayservices.ray.io" not in run("kubectl", "get", "customresourcedefinitions", "--output=name"):
        pytest.skip("KubeRay's definitions are not installed in this cluster")
    made = ray_service(
        "assistant-v1-0123abcd",
        "assistant",
        reference("models:/assistant/1", "0" * 64),
        EngineSpec({"dtype": "bfloat16", "tensor_parallel_size": 2}, {"CPU": 4, "GPU": 1}, max_replicas=2),
        {"nodeSelector": {"accelerator": "l4"}, "tolerations": [{"key": GPU, "operator": "Exists"}]},
        PodSettings(f"understudy-controller:{version()}", f"understudy-engine:{version()}"),
        platform.namespace.name,
    )
    limits = made["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ]
    assert limits[GPU] == "2", "two ranks in one pod"
    platform.namespace.kubectl(
        "create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(made)
    )
