"""A cluster in memory with a KubeRay operator in it, as far as the platform `kuberay` sees them.

`Cluster` implements `KubernetesObjects`. A RayService that is applied gets its pods from its own templates; tests then move it on:
`schedule`, `run`, `ready`, or into one of the ways in which it fails. Its Service is known to `Dns` only once KubeRay would make it.
"""

from __future__ import annotations

import copy
import socket
from collections.abc import Mapping
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from services.rollout.platforms.kubernetes_objects import KubernetesError

LONGEST_NAME = 47


class Cluster:
    """Objects by name, pods by name; `logs` by (pod, container, previous). `faults` are raised by the next calls, in order."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.pods_by_name: dict[str, dict[str, Any]] = {}
        self.routed: set[str] = set()  # RayServices whose serve Service exists
        self.logs: dict[tuple[str, str, bool], str] = {}
        self.faults: list[KubernetesError] = []
        self.applied: list[tuple[dict[str, Any], str]] = []
        self.deleted: list[tuple[str, int | None]] = []

    # --- the API server

    async def get(self, group: str, version: str, namespace: str, plural: str, name: str) -> dict[str, Any] | None:
        self._check(group, version, plural)
        return copy.deepcopy(self.services.get(name))

    async def list(
        self, group: str, version: str, namespace: str, plural: str, label_selector: str
    ) -> list[dict[str, Any]]:
        self._check(group, version, plural)
        return [copy.deepcopy(found) for found in self.services.values() if _matches(found, label_selector)]

    async def apply(self, object: Mapping[str, Any], manager: str) -> dict[str, Any]:
        self._check(*object["apiVersion"].split("/"), "rayservices")
        wanted = copy.deepcopy(dict(object))
        self.applied.append((wanted, manager))
        name = wanted["metadata"]["name"]
        present = self.services.get(name)
        self.services[name] = wanted | {"status": present["status"] if present else {}}
        if present is None:
            self._begin(wanted)
        return wanted

    async def delete(
        self, group: str, version: str, namespace: str, plural: str, name: str, grace_seconds: int | None
    ) -> None:
        self._check(group, version, plural)
        self.deleted.append((name, grace_seconds))
        self.services[name]["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"

    async def pods(self, namespace: str, label_selector: str) -> list[dict[str, Any]]:
        return [copy.deepcopy(pod) for pod in self.pods_by_name.values() if _matches(pod, label_selector)]

    async def pod_log(self, namespace: str, pod: str, container: str, lines: int, previous: bool) -> str:
        return self.logs.get((pod, container, previous), "")

    # --- the operator, the scheduler, the kubelet and Ray

    def run(self, name: str) -> None:
        """Pods run, Ray's head answers, Serve starts the engine."""
        for pod in self.pods_of(name):
            pod["status"] = _running(pod, ready="head" in pod["metadata"]["name"])
        self._serve(name, "DEPLOYING", "")

    def ready(self, name: str) -> None:
        """Serve says RUNNING and KubeRay says Ready, whatever answers."""
        for pod in self.pods_of(name):
            pod["status"] = _running(pod, ready=True)
        self._serve(name, "RUNNING", "")
        self.routed.add(name)
        self._condition(name, "True", "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")

    def fail_in_serve(self, name: str, message: str, status: str = "DEPLOY_FAILED") -> None:
        """The engine gives up with an error of its own."""
        self.run(name)
        self._serve(name, status, message)

    def fail_container(
        self, pod: str, container: str, *, waiting: str = "CrashLoopBackOff", **terminated: object
    ) -> None:
        """A container ended (`reason`, `exitCode`, `message`) or never started; now it waits."""
        status: dict[str, Any] = {"name": container, "ready": False, "state": {"waiting": {"reason": waiting}}}
        if terminated:
            status["lastState"] = {"terminated": terminated}
        kind = "initContainerStatuses" if container == "fetch" else "containerStatuses"
        self.pods_by_name[pod]["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False"}],
            kind: [status],
        }

    def leave_pending(self, pod: str, message: str) -> None:
        """The scheduler finds no node."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self.pods_by_name[pod]["status"] = {"phase": "Pending", "conditions": [condition]}

    def sleep(self, name: str) -> None:
        """Serve has taken the last replica away, Ray's autoscaler its pods: KubeRay sees no endpoint, and nothing wrong."""
        for pod in self.pods_of(name):
            if "worker" in pod["metadata"]["name"]:
                del self.pods_by_name[pod["metadata"]["name"]]
        self._condition(name, "False", "ZeroServeEndpoints", "No serve endpoints")

    def wake(self, name: str) -> str:
        """Ray's autoscaler makes a worker again; its name."""
        group = self.services[name]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        self._pod(name, f"{name}-worker-0", "worker", group["template"])
        return f"{name}-worker-0"

    def lose_head(self, name: str) -> None:
        """The head's node is gone: KubeRay keeps its last word on the endpoints, and has none on the applications."""
        del self.pods_by_name[f"{name}-head"]
        self.services[name]["status"]["activeServiceStatus"]["applicationStatuses"] = {}

    def finish_deletion(self, name: str) -> None:
        """Pods have drained, finalizers are done."""
        del self.services[name]
        for pod in [pod["metadata"]["name"] for pod in self.pods_of(name)]:
            del self.pods_by_name[pod]

    def pods_of(self, name: str) -> list[dict[str, Any]]:
        """The pods of a RayService."""
        return [pod for pod in self.pods_by_name.values() if pod["metadata"]["labels"]["ray.io/cluster"] == name]

    def _begin(self, service: dict[str, Any]) -> None:
        name = service["metadata"]["name"]
        if len(name) > LONGEST_NAME or not name[0].isalpha():
            self._condition(name, "False", "ValidationFailed", f"RayService name {name} is invalid")
            return
        self._condition(name, "False", "Initializing", "RayService is initializing")
        cluster = service["spec"]["rayClusterConfig"]
        self._pod(name, f"{name}-head", "head", cluster["headGroupSpec"]["template"])
        for group in cluster["workerGroupSpecs"]:
            for index in range(group["replicas"]):
                self._pod(name, f"{name}-worker-{index}", "worker", group["template"])

    def _pod(self, cluster: str, name: str, kind: str, template: Mapping[str, Any]) -> None:
        labels = {**template["metadata"]["labels"], "ray.io/cluster": cluster, "ray.io/node-type": kind}
        metadata = {"name": name, "labels": labels, "creationTimestamp": "2026-11-01T00:00:00Z"}
        self.pods_by_name[name] = {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}}

    def _serve(self, name: str, status: str, message: str) -> None:
        revision = self.services[name]["metadata"]["labels"]["understudy.dev/revision"]
        application = {"status": status, "message": message, "serveDeploymentStatuses": {}}
        part = "activeServiceStatus" if name in self.routed or status == "RUNNING" else "pendingServiceStatus"
        self.services[name]["status"].update(
            {
                "pendingServiceStatus": {},
                "activeServiceStatus": {},
                part: {"applicationStatuses": {revision: application}},
            }
        )

    def _condition(self, name: str, status: str, reason: str, message: str) -> None:
        condition = {"type": "Ready", "status": status, "reason": reason, "message": message}
        self.services[name]["status"]["conditions"] = [condition]

    def _check(self, group: str, version: str, plural: str) -> None:
        assert (group, version, plural) == ("ray.io", "v1", "rayservices")
        if self.faults:
            raise self.faults.pop(0)


class Dns(AbstractResolver):
    """The cluster's names: Services that KubeRay has made, all answered at one port of this machine."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self.port = 0

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        name, _, namespace = host.replace("-head-svc.", "-serve-svc.").partition("-serve-svc.")
        if name not in self._cluster.routed or namespace != self._namespace or port != 8000:
            raise OSError(f"no such host: {host}:{port}")
        found: ResolveResult = {
            "hostname": host,
            "host": "127.0.0.1",
            "port": self.port,
            "family": socket.AF_INET,
            "proto": 0,
            "flags": 0,
        }
        return [found]

    async def close(self) -> None:
        pass


def _running(pod: Mapping[str, Any], *, ready: bool) -> dict[str, Any]:
    container = {"name": pod["spec"]["containers"][0]["name"], "ready": ready, "state": {"running": {}}}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [container]}


def _matches(found: Mapping[str, Any], selector: str) -> bool:
    labels = found["metadata"]["labels"]
    return all(labels.get(label) == value for label, _, value in (term.partition("=") for term in selector.split(",")))
