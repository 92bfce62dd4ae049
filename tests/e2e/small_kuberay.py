"""A stand-in for the KubeRay operator where a cluster has none: real pods from a RayService's own templates, `small_engine` in Ray's place.

What the platform relies on is real: images are pulled, model files fetched by the init container, memory is limited, probes are asked, a
Service has the ready pods alone. Ray is not: what Ray Serve would say of an engine follows from whether its pod is ready. Without the
definition of RayServices the cluster gets a lax one for the time.
"""

from __future__ import annotations

import copy
import json
import secrets
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.e2e.kube import CommandFailed, run

DEFINITION = "rayservices.ray.io"
LONGEST_NAME = 47
SOURCE = Path(__file__).with_name("small_engine.py")
_CLUSTER, _TYPE = "ray.io/cluster", "ray.io/node-type"


class SmallKubeRay:
    """Looks at all RayServices every second until `stop`. A cluster that does not answer is asked again."""

    def __init__(self) -> None:
        self._own_definition = DEFINITION not in run("kubectl", "get", "customresourcedefinitions", "--output=name")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="small-kuberay")
        self._served: set[str] = set()  # uids of RayServices that have been ready
        self.trouble = ""

    def start(self) -> None:
        if self._own_definition:
            run("kubectl", "create", "--filename=-", stdin=json.dumps(_definition()))
            run("kubectl", "wait", f"crd/{DEFINITION}", "--for=condition=Established", "--timeout=60s")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        if self._own_definition:
            run("kubectl", "delete", "customresourcedefinition", DEFINITION, "--ignore-not-found")

    def _work(self) -> None:
        while not self._stopped.wait(1):
            try:
                for service in _items(DEFINITION):
                    self._look(service)
            except CommandFailed as error:
                self.trouble = str(error)

    def _look(self, service: dict[str, Any]) -> None:
        metadata = service["metadata"]
        if metadata.get("deletionTimestamp"):
            return
        name, namespace = metadata["name"], metadata["namespace"]
        if len(name) > LONGEST_NAME:
            self._tell(service, "False", "ValidationFailed", {})
            return
        pods = _items("pods", "--namespace", namespace, f"--selector={_CLUSTER}={name}")
        for pod in pods:
            if pod["status"].get("phase") in ("Failed", "Succeeded"):
                run("kubectl", "delete", "pod", pod["metadata"]["name"], "--namespace", namespace, "--wait=false")
        living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        made = [*_missing(service, living), *([] if service.get("status") else _service(service))]
        if made:
            run("kubectl", "apply", "--server-side", "--filename=-", stdin=json.dumps(_list(made)))
        ready = any(_is_ready(pod) for pod in living if pod["metadata"]["labels"][_TYPE] == "worker")
        if ready:
            self._served.add(metadata["uid"])
        broken = "UNHEALTHY" if metadata["uid"] in self._served else "DEPLOYING"
        revision = metadata["labels"]["understudy.dev/revision"]
        application = {"status": "RUNNING" if ready else broken, "message": ""}
        self._tell(service, str(ready), "NonZeroServeEndpoints" if ready else "Initializing", {revision: application})

    @staticmethod
    def _tell(service: dict[str, Any], ready: str, reason: str, applications: dict[str, Any]) -> None:
        said = service.get("status") or {}
        told = [(one["status"], one["reason"]) for one in said.get("conditions", ())]
        if told == [(ready, reason)] and said.get("activeServiceStatus", {}).get("applicationStatuses") == applications:
            return
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": "Ready", "status": ready, "reason": reason, "message": "", "lastTransitionTime": at}
        status = {"conditions": [condition], "activeServiceStatus": {"applicationStatuses": applications}}
        metadata = service["metadata"]
        command = ["kubectl", "patch", DEFINITION, metadata["name"], "--namespace", metadata["namespace"]]
        run(*command, "--subresource=status", "--type=merge", f"--patch={json.dumps({'status': status})}")


def _items(*what: str) -> list[dict[str, Any]]:
    scope = [] if "--namespace" in what else ["--all-namespaces"]
    found: list[dict[str, Any]] = json.loads(run("kubectl", "get", *what, *scope, "--output=json"))["items"]
    return found


def _list(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _is_ready(pod: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def _metadata(service: dict[str, Any], name: str, labels: dict[str, str]) -> dict[str, Any]:
    own = service["metadata"]
    owner = {"apiVersion": "ray.io/v1", "kind": "RayService", "name": own["name"], "uid": own["uid"]}
    return {"name": name, "namespace": own["namespace"], "labels": labels, "ownerReferences": [owner]}


def _service(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The Service that leads to the engines, and their program."""
    name = service["metadata"]["name"]
    spec = {"selector": {_CLUSTER: name, _TYPE: "worker"}, "ports": [{"name": "serve", "port": 8000}]}
    program = {"engine.py": SOURCE.read_text()}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(service, f"{name}-serve-svc", {}), "spec": spec},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(service, name, {}), "data": program},
    ]


def _missing(service: dict[str, Any], living: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pods that there should be: a head, which does nothing, and the wanted workers."""
    cluster = service["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0]
    there = [pod["metadata"]["labels"][_TYPE] for pod in living]
    workers = group["replicas"] - there.count("worker")
    made = [_pod(service, "worker", group["template"]) for _ in range(workers)]
    return made if "head" in there else [*made, _pod(service, "head", cluster["headGroupSpec"]["template"])]


def _pod(service: dict[str, Any], kind: str, template: dict[str, Any]) -> dict[str, Any]:
    name = service["metadata"]["name"]
    spec = copy.deepcopy(template["spec"])
    (container,) = spec["containers"]
    first = "; ".join(container.get("command", ["true"]))
    does = "python /small/engine.py" if kind == "worker" else "sleep infinity"
    # As in KubeRay, the container's own command comes before what is started, in one shell; which here hands SIGTERM on.
    container["command"] = ["bash", "-c", f"{first}; {does} & child=$!; trap 'kill $child' TERM; wait $child"]
    container["resources"]["requests"]["cpu"] = "50m"
    if kind == "head":
        container["resources"] = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
    container["volumeMounts"] = [*container.get("volumeMounts", []), {"name": "small", "mountPath": "/small"}]
    spec["volumes"] = [*spec.get("volumes", []), {"name": "small", "configMap": {"name": name}}]
    labels = {**template["metadata"]["labels"], _CLUSTER: name, _TYPE: kind}
    metadata = _metadata(service, f"{name}-{kind}-{secrets.token_hex(3)}", labels)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _definition() -> dict[str, Any]:
    names = {"kind": "RayService", "plural": "rayservices", "singular": "rayservice", "listKind": "RayServiceList"}
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION},
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": names,
            "versions": [{**version, "subresources": {"status": {}}}],
        },
    }
