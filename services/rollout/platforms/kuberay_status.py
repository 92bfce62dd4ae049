"""Reads what a cluster says of one revision: its RayService and the pods behind it. Pure; `kuberay.py` calls it.

Fields: KubeRay's `ray.io/v1` RayService status and Kubernetes' pod status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.rollout.platforms.base import Phase
from services.rollout.platforms.serve_status import first_and_last
from services.serving.application import bounds_of
from services.serving.fetch import PERMANENT
from services.serving.rayservice import FETCH, HEAD, WORKER, application_of

_NODE_TYPE: Final = "ray.io/node-type"
# Reasons that a container waits for which time alone does not cure. ErrImagePull is not among them: it is the first try.
_HOPELESS: Final = frozenset(
    {
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)
_PATIENT: Final = frozenset({"ErrImagePull"})
_LONGEST: Final = 500


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a pod from serving. `pod` and `container` say whose log may tell more; `restarted`: it is in the log of its last run."""

    message: str
    hopeless: bool
    pod: str
    container: str | None = None
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class RevisionSnapshot:
    """One revision at one moment. `pods` are those of its Ray cluster, `service` is the RayService."""

    name: str
    service: Mapping[str, Any]
    pods: Sequence[Mapping[str, Any]]

    def phase(self) -> tuple[Phase, str]:
        """Phase (`ready` here means that KubeRay routes to engines that Serve calls running) and why."""
        if self.service["metadata"].get("deletionTimestamp"):
            return "draining", "its pods finish what they have begun"
        condition = self._condition("Ready")
        if condition.get("reason") == "ValidationFailed":
            return "failed", f"KubeRay refuses the RayService: {condition.get('message', '')}"
        troubles = list(self.troubles())
        said = "; ".join(dict.fromkeys(trouble.message for trouble in troubles))
        application = self._application()
        status, words = application.get("status"), _message_of(application)
        lost = self._lost_head()
        if condition.get("status") == "True" and (status == "RUNNING" if lost is None else self._outlives_its_head()):
            return "ready", "; ".join(filter(None, (lost, said)))
        if (
            self.may_sleep
            and lost is None
            and status == "RUNNING"
            and not any(trouble.hopeless for trouble in troubles)
        ):
            return "ready", said  # KubeRay calls it not ready for want of engines, which the next request brings
        if lost is None and (status == "DEPLOY_FAILED" or (status == "UNHEALTHY" and not self.ready_replicas())):
            return "failed", "; ".join(filter(None, (words, said)))
        if any(trouble.hopeless for trouble in troubles):
            return "failed", said
        return "starting", "; ".join(filter(None, (said, lost))) or words or _progress(self.pods, condition)

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Fewest and most replicas that Serve is told to have."""
        return bounds_of(application_of(self.service))

    @property
    def may_sleep(self) -> bool:
        """Whether it may have no engine at all while nobody asks."""
        return self.bounds is not None and self.bounds[0] == 0

    def ready_replicas(self) -> int:
        """Replicas that answer: the one pod of each where its engine is, behind a proxy that has said so to the kubelet."""
        return sum(_is_ready(pod) for pod in self.pods if _type(pod) == "worker" and not _is_leaving(pod))

    def troubles(self) -> Iterator[Trouble]:
        """What is wrong with pods that are not ready."""
        for pod in self.pods:
            if not _is_ready(pod) and not _is_leaving(pod):
                yield from _troubles_of(pod)

    def last_words_of(self) -> tuple[str, str, bool] | None:
        """Pod, container and whether to read the log of its last run, where a failed engine left its words."""
        for trouble in self.troubles():
            if trouble.hopeless and trouble.container in (HEAD, WORKER):
                return trouble.pod, trouble.container, trouble.restarted
        workers = [pod for pod in self.pods if _type(pod) == "worker"]
        newest = max(workers, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)
        return (newest["metadata"]["name"], WORKER, False) if newest is not None else None

    def _lost_head(self) -> str | None:
        """What is wrong with the head, if anything; empty before there are any pods."""
        heads = [pod for pod in self.pods if _type(pod) == "head" and not _is_leaving(pod)]
        if any(map(_is_ready, heads)):
            return None
        if heads:
            return f"the Ray head {heads[0]['metadata']['name']} is not ready"
        return "there is no Ray head" if self.pods else ""

    def _outlives_its_head(self) -> bool:
        """With its state in Redis, a cluster that had come up serves on while the head is away."""
        cluster = self.service["spec"]["rayClusterConfig"]
        return bool(cluster.get("gcsFaultToleranceOptions")) and self.ready_replicas() > 0

    def _condition(self, kind: str) -> Mapping[str, Any]:
        conditions = self._status().get("conditions") or []
        return next((condition for condition in conditions if condition.get("type") == kind), {})

    def _application(self) -> Mapping[str, Any]:
        """Serve's word on the revision. KubeRay calls a cluster pending until it has been ready once, and active from then on."""
        for part in ("pendingServiceStatus", "activeServiceStatus"):
            applications = (self._status().get(part) or {}).get("applicationStatuses") or {}
            if found := applications.get(self.name):
                return dict(found)
        return {}

    def _status(self) -> Mapping[str, Any]:
        return self.service.get("status") or {}


def _message_of(application: Mapping[str, Any]) -> str:
    parts = [application, *(application.get("serveDeploymentStatuses") or {}).values()]
    messages = [part.get("message") for part in parts]
    return " ".join(dict.fromkeys(first_and_last(message) for message in messages if message and message.strip()))


def _troubles_of(pod: Mapping[str, Any]) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield Trouble(f"pod {name} is Pending: {condition.get('message') or condition.get('reason')}", False, name)
    if status.get("phase") == "Failed" and status.get("reason"):  # Evicted, NodeLost
        yield Trouble(f"pod {name} has failed: {status['reason']}: {status.get('message', '')}", False, name)
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if not container.get("ready") and (trouble := _trouble_of(name, container)):
            yield trouble


def _trouble_of(pod: str, container: Mapping[str, Any]) -> Trouble | None:
    name, state = container["name"], container.get("state") or {}
    waiting = state.get("waiting") or {}
    restarted = not state.get("terminated")
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    what = f"pod {pod}, container {name}"
    if ended.get("reason") == "OOMKilled":
        message = f"{what} was killed because it used more memory than its limit (OOMKilled)"
        return Trouble(message, True, pod, name, restarted)
    if ended and ended.get("exitCode"):
        words = " ".join((ended.get("message") or "").split())[-_LONGEST:]
        hopeless = ended["exitCode"] in PERMANENT if name == FETCH else waiting.get("reason") in _HOPELESS
        return Trouble(
            f"{what} ended with status {ended['exitCode']}: {words}".rstrip(": "), hopeless, pod, name, restarted
        )
    reason = waiting.get("reason")
    if reason in _HOPELESS | _PATIENT:
        return Trouble(f"{what}: {reason}: {waiting.get('message', '')}".rstrip(": "), reason in _HOPELESS, pod, name)
    return None


def _progress(pods: Sequence[Mapping[str, Any]], condition: Mapping[str, Any]) -> str:
    if not pods:
        return str(condition.get("message") or "waiting for the KubeRay operator to make pods")
    ready = sum(map(_is_ready, pods))
    return f"{ready} of {len(pods)} pods are ready"


def _type(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get(_NODE_TYPE, ""))


def _is_leaving(pod: Mapping[str, Any]) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)
