"""From a revision to a RayService: the object by which KubeRay (1.7 or later) runs one revision in a Ray cluster of its own.

Pure. The platform `kuberay` calls it. The application inside is the one that `application` makes, so a revision serves alike wherever it
runs; no code of this project runs beside the engine, only before it: an init container fetches the version's files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from services.serving.application import EngineSpec, scaled, serve_application
from services.serving.artifacts import dereference
from services.serving.errors import InvalidEngineSpec
from services.serving.sources import CLAIMS, claim_of

API_VERSION: Final = "ray.io/v1"
SERVICE_LABEL: Final = "understudy.dev/service"
REVISION_LABEL: Final = "understudy.dev/revision"
MANAGED_BY: Final = ("app.kubernetes.io/managed-by", "understudy")
HEAD, WORKER, FETCH = "ray-head", "ray-worker", "fetch"
"""Names of the containers."""
SERVE_PORT: Final = 8000
MODELS: Final = "/var/lib/understudy/models"
"""Where versions' files are, in every container that needs them."""

_RAY_VERSION: Final = "2.60.0"  # tells KubeRay which probes and which authentication Ray knows
# KubeRay appends 16 characters to make names of pods and Services out of this one, and refuses longer ones.
_LONGEST_NAME: Final = 47
# KubeRay never passes a new bound on to a running cluster. So this one is out of the way: Serve's max_replicas bounds the engines.
_MOST_REPLICAS: Final = 1000
_GROUP: Final = 10001  # owns new volumes, so that the fetching container may write and the engine may read them
_SCHEDULING: Final = ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "runtimeClassName")

_CONFINED: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_TMP: Final = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  Ray's and HAProxy's sockets, every home and cache
_SCRATCH: Final = [_TMP, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108

# The head runs no engine: GCS, dashboard, Serve's controller and the router of requests. Engines' pods carry the traffic.
_HEAD_RESOURCES: Final = {"requests": {"cpu": "250m", "memory": "1536Mi"}, "limits": {"memory": "4Gi"}}
_AUTOSCALER_RESOURCES: Final = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
_FETCH_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}

_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/tmp",  # noqa: S108  the images' homes cannot be written
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    # A proxy tells that a request waits for an engine to start; Ray's own ten seconds would be added to every such start.
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers that built the application stay idle with all of vLLM imported, 1 GB each.
    "RAY_num_workers_soft_limit": "0",
    # Engines' words go to the pod's log, where `kubectl logs` and the controller read them.
    "RAY_LOG_TO_STDERR": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What is alike for every revision of an installation.

    `fetch_image` fetches files, with `fetch_environment` (entries of a container's `env`: the registry's address, credentials by
    `valueFrom`). `memory` is what one engine worker gets where the resource does not say. `keep_artifacts`: versions that a node's
    cache keeps besides those in use. `drain_seconds`: how long an engine that is being removed goes on answering what it has begun.
    """

    fetch_image: str
    engine_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    fetch_environment: tuple[Mapping[str, Any], ...] = ()
    memory: str = "8Gi"
    keep_artifacts: int = 3
    drain_seconds: int = 45


@dataclass(frozen=True, slots=True)
class _Pods:
    """One revision's pods: how many a replica takes, and what goes into them."""

    labels: Mapping[str, str]
    pod: Mapping[str, Any]
    settings: PodSettings
    engine: EngineSpec
    artifact: tuple[str, str] | None  # source and digest
    workers: int  # ranks of one replica
    ranks: int  # of them, in one pod

    @property
    def pods_a_replica(self) -> int:
        return self.workers // self.ranks


def object_name(revision: str) -> str:
    """Name of a revision's RayService: the revision's own where KubeRay takes it, else a shortened one with a hash."""
    if len(revision) <= _LONGEST_NAME and revision[0].isalpha():
        return revision
    digest = hashlib.sha256(revision.encode()).hexdigest()[:8]
    return f"r-{revision[: _LONGEST_NAME - 11].rstrip('-')}-{digest}"


def serve_address(revision: str, namespace: str) -> str:
    """Where KubeRay's Service for the revision answers, as scheme, host and port."""
    return f"http://{object_name(revision)}-serve-svc.{namespace}:{SERVE_PORT}"


def head_address(revision: str, namespace: str) -> str:
    """Where the revision's Ray head answers, even while there is no engine's pod; as scheme, host and port."""
    return f"http://{object_name(revision)}-head-svc.{namespace}:{SERVE_PORT}"


def application_of(service: Mapping[str, Any]) -> dict[str, Any]:
    """The application that a RayService made here runs."""
    config: dict[str, Any] = json.loads(service["spec"]["serveConfigV2"])
    return dict(config["applications"][0])


def rescaled(service: Mapping[str, Any], replicas: tuple[int, int]) -> dict[str, Any]:
    """A RayService made here with other bounds of its engine's replicas, as far as it must be applied; running ones go on."""
    config = json.loads(service["spec"]["serveConfigV2"])
    config["applications"] = [scaled(application, replicas) for application in config["applications"]]
    ours = ("name", "namespace", "labels", "ownerReferences")
    return {
        "apiVersion": API_VERSION,
        "kind": "RayService",
        "metadata": {key: service["metadata"][key] for key in ours if key in service["metadata"]},
        "spec": {**service["spec"], "serveConfigV2": json.dumps(config, sort_keys=True)},
    }


def ray_service(
    name: str,
    service: str,
    artifact: str,
    engine: EngineSpec,
    pod: Mapping[str, Any],
    settings: PodSettings,
    namespace: str,
    owner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The object for the revision `name` of `service`.

    `artifact` is a reference (`artifacts.reference`), whose files are fetched, or an absolute path that the image or a volume of `pod`
    has. `pod` holds the fields of the resource's `engine` that speak of pods, in its own words (camelCase). `owner` is an owner
    reference. Raises InvalidEngineSpec.
    """
    found = dereference(artifact)
    if found is None and not artifact.startswith("/"):
        raise InvalidEngineSpec(f"{artifact} has no digest: nothing could tell whether a pod got the right files")
    application = serve_application(name, service, f"{MODELS}/{found[1]}" if found else artifact, engine)
    workers = len(application["args"]["llm_configs"][0]["placement_group_config"]["bundles"])
    # Tensor-parallel ranks talk at every layer: they share a pod, and so a node, unless the resource spreads them.
    ranks = pod.get("ranksPerPod", engine.arguments.get("tensor_parallel_size", 1))
    if not isinstance(ranks, int) or ranks < 1 or workers % ranks:
        raise InvalidEngineSpec(f"ranksPerPod ({ranks}) must divide the {workers} workers of a replica")
    # No app.kubernetes.io/name: KubeRay gives pods its own, and looks for the head by it.
    labels = {
        SERVICE_LABEL: service,
        REVISION_LABEL: name,
        "app.kubernetes.io/part-of": "understudy",
        **dict([MANAGED_BY]),
    }
    pods = _Pods(labels, pod, settings, engine, found, workers, ranks)
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},  # noqa: S104  the pod's own network
        "applications": [application],
    }
    metadata: dict[str, Any] = {"name": object_name(name), "namespace": namespace, "labels": labels}
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {
        "apiVersion": API_VERSION,
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            # A revision never changes; only the numbers in the config do, and those KubeRay hands to the running cluster.
            "upgradeStrategy": {"type": "None"},
            "serveConfigV2": json.dumps(config, sort_keys=True),
            "excludeHeadPodFromServeSvc": True,  # so that losing the head loses no request
            "rayClusterConfig": _cluster(pods),
        },
    }


def _cluster(pods: _Pods) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "rayVersion": _RAY_VERSION,
        "authOptions": {"mode": "token"},  # Ray's ports run any code for whoever reaches them
        # Always, because it cannot be turned on later, when a rollout asks for more replicas than the engine began with.
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            # The second version forbids restarts in place, and with them every trace of why an engine died.
            "version": "v1",
            "idleTimeoutSeconds": 300,
            "imagePullPolicy": pods.settings.image_pull_policy,
            "resources": _AUTOSCALER_RESOURCES,
            "securityContext": dict(_CONFINED),
            "env": [{"name": "HOME", "value": _ENVIRONMENT["HOME"]}],
            "volumeMounts": [_TMP],
        },
        "headGroupSpec": _head(pods),
        "workerGroupSpecs": [_worker_group(pods)],
    }
    tolerance = pods.pod.get("headFaultTolerance")
    if tolerance:
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": tolerance["redisAddress"]}
        if secret := tolerance.get("passwordSecret"):
            reference = {"name": secret["name"], "key": secret.get("key", "password")}
            cluster["gcsFaultToleranceOptions"]["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return cluster


def _head(pods: _Pods) -> dict[str, Any]:
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": SERVE_PORT}
    container = {
        **_ray_container(pods, HEAD, ports),
        "resources": _HEAD_RESOURCES,
        "volumeMounts": _SCRATCH,
    }
    # No engine may be placed here: it declares nothing that one could take.
    parameters = {"num-cpus": "0", "num-gpus": "0", "object-store-memory": "100000000", "dashboard-host": "0.0.0.0"}  # noqa: S104
    spec = {**_pod_spec(pods), "containers": [container], "volumes": _scratch_volumes()}
    return {"rayStartParams": parameters, "template": _template(pods, spec, "ray-head")}


def _worker_group(pods: _Pods) -> dict[str, Any]:
    """One pod a replica, or several that hold its ranks together."""
    resources = _worker_resources(pods)
    cpus = float(pods.engine.resources.get("CPU", 0)) * pods.ranks
    parameters = {
        "num-cpus": str(max(1, math.ceil(cpus))),
        "num-gpus": resources["limits"].get("nvidia.com/gpu", "0"),
        "object-store-memory": "200000000",  # an LLM's tokens do not go through it
    }
    mounts = [*_SCRATCH, *pods.pod.get("volumeMounts", ())]
    volumes = [*_scratch_volumes(), *pods.pod.get("volumes", ())]
    container = {**_ray_container(pods, WORKER, {"serve": SERVE_PORT}), "resources": resources}
    # KubeRay's own probe wants programs that an image need not have.
    container["readinessProbe"] = {
        "httpGet": {"path": "/-/healthz", "port": "serve"},
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": 2,
    }
    spec = {**_pod_spec(pods), "automountServiceAccountToken": False}
    spec.update({field: pods.pod[field] for field in _SCHEDULING if pods.pod.get(field)})
    if pods.artifact is not None:
        source, digest = pods.artifact
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
        volumes.append({"name": "models", **_cache_volume(pods.pod.get("artifactCache") or {})})
        if claim := claim_of(source):
            volumes.append({"name": "source", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        # Held as long as Ray runs: the cache is pruned of what nobody holds. KubeRay puts its own command behind this one.
        container["command"] = [f"exec 9<{MODELS}/{digest}.lock && flock --shared 9"]
        spec["initContainers"] = [_fetching(pods, source, digest)]
    container["volumeMounts"] = mounts
    spec.update(containers=[container], volumes=volumes)
    return {
        "groupName": "engine",
        "replicas": pods.engine.min_replicas * pods.pods_a_replica,
        "minReplicas": 0,  # Serve's replicas keep their pods; a bound of its own could never be changed
        "maxReplicas": _MOST_REPLICAS * pods.pods_a_replica,
        "numOfHosts": 1,
        "rayStartParams": parameters,
        "template": _template(pods, spec, "engine"),
    }


def _fetching(pods: _Pods, source: str, digest: str) -> dict[str, Any]:
    arguments = ["--source", source, "--digest", digest, "--cache", MODELS, "--keep", str(pods.settings.keep_artifacts)]
    mounts: list[dict[str, Any]] = [_TMP, {"name": "models", "mountPath": MODELS}]
    if claim := claim_of(source):
        mounts.append({"name": "source", "mountPath": f"{CLAIMS}/{claim}", "readOnly": True})
    return {
        "name": FETCH,
        "image": pods.settings.fetch_image,
        "imagePullPolicy": pods.settings.image_pull_policy,
        "command": ["python", "-m", "services.serving.fetch", *arguments],
        "env": [{"name": "HOME", "value": _ENVIRONMENT["HOME"]}, *map(dict, pods.settings.fetch_environment)],
        "resources": _FETCH_RESOURCES,
        "securityContext": dict(_CONFINED),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _ray_container(pods: _Pods, name: str, ports: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": name,
        "image": pods.pod.get("image") or pods.settings.engine_image,
        "imagePullPolicy": pods.settings.image_pull_policy,
        "env": _environment(pods),
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "securityContext": dict(_CONFINED),
        # vLLM drops what it has begun when it is told to end, so it is told late. New requests stop at once: the pod has left its Service.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(pods.settings.drain_seconds)]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _environment(pods: _Pods) -> list[dict[str, Any]]:
    values = {**_ENVIRONMENT, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(pods.settings.drain_seconds)}
    if not pods.engine.resources.get("GPU"):
        values["OMP_NUM_THREADS"] = str(max(1, int(pods.engine.resources.get("CPU", 1))))
        values["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # pods may move between cores
        values["TORCHDYNAMO_DISABLE"] = "1"  # compiling at the first request needs a compiler, and seconds
    variables = {name: {"name": name, "value": value} for name, value in values.items()}
    variables.update({variable["name"]: dict(variable) for variable in pods.pod.get("environment", ())})
    return list(variables.values())


def _worker_resources(pods: _Pods) -> dict[str, dict[str, str]]:
    """Requests and limits of one pod. CPU has no limit: throttled engines are slow in a way that no metric explains."""
    memory = _times((pods.pod.get("resources") or {}).get("memory") or pods.settings.memory, pods.ranks)
    cpus = float(pods.engine.resources.get("CPU", 0)) or 1.0
    requests = {"cpu": f"{math.ceil(1000 * cpus * pods.ranks)}m", "memory": memory}
    limits = {"memory": memory}
    gpus = float(pods.engine.resources.get("GPU", 0)) * pods.ranks
    if gpus != int(gpus):
        raise InvalidEngineSpec(
            f"a pod takes whole GPUs, not {gpus:g}: engines that share one belong on platform serve"
        )
    if gpus:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(int(gpus))
    return {"requests": requests, "limits": limits}


def _times(quantity: str, factor: int) -> str:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", quantity)
    if found is None:
        raise InvalidEngineSpec(f"memory {quantity!r} is no quantity of Kubernetes: write for example 16Gi")
    return f"{Decimal(found[1]) * factor}{found[2]}"


def _pod_spec(pods: _Pods) -> dict[str, Any]:
    secrets = [{"name": name} for name in pods.settings.image_pull_secrets]
    secrets += [dict(secret) for secret in pods.pod.get("imagePullSecrets", ()) if dict(secret) not in secrets]
    spec: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            "fsGroup": _GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "terminationGracePeriodSeconds": pods.settings.drain_seconds + 30,
    }
    return {**spec, "imagePullSecrets": secrets} if secrets else spec


def _template(pods: _Pods, spec: Mapping[str, Any], component: str) -> dict[str, Any]:
    return {"metadata": {"labels": {**pods.labels, "app.kubernetes.io/component": component}}, "spec": dict(spec)}


def _scratch_volumes() -> list[dict[str, Any]]:
    return [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}]


def _cache_volume(cache: Mapping[str, Any]) -> dict[str, Any]:
    if path := cache.get("hostPath"):
        return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    if claim := cache.get("claim"):
        return {"persistentVolumeClaim": {"claimName": claim}}
    return {"emptyDir": {}}
