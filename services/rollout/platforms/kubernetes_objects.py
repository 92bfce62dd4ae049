"""What a platform asks of a Kubernetes API server: custom objects and the pods they lead to. `services.rollout.operator.api` implements it.

Called by platforms that make Kubernetes objects. Objects are plain mappings as the API server has them. Every method waits a bounded time
and repeats what may be repeated (throttling, 5xx, lost connections) before it raises.

    KubernetesError
    ├── KubernetesUnavailable   retryable: the API server did not answer, or is too busy
    ├── KubernetesRejected      permanent: the API server understood the request and refused it
    └── NoCluster               permanent: nothing says where a cluster is, or how to get in
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Objects = list[dict[str, Any]]


class KubernetesError(Exception):
    """The API server did not do what was asked."""


class KubernetesUnavailable(KubernetesError):
    """The API server did not answer or had no capacity; the same call may succeed later."""


class KubernetesRejected(KubernetesError):
    """The API server refused the request; repeating it unchanged is useless. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NoCluster(KubernetesError):
    """There is neither a readable kubeconfig nor a pod's service account."""


class KubernetesObjects(Protocol):
    """Every method may raise KubernetesUnavailable or KubernetesRejected."""

    async def get(self, group: str, version: str, namespace: str, plural: str, name: str) -> dict[str, Any] | None:
        """The object; None: there is none of that name."""
        ...

    async def list(self, group: str, version: str, namespace: str, plural: str, label_selector: str) -> Objects:
        """The objects that carry the labels. Raises KubernetesRejected (404) where the resource's definition is not installed."""
        ...

    async def apply(self, object: Mapping[str, Any], manager: str) -> dict[str, Any]:
        """Server-side apply with force, under the field manager `manager`. The object as it is now."""
        ...

    async def delete(
        self, group: str, version: str, namespace: str, plural: str, name: str, grace_seconds: int | None
    ) -> None:
        """Asks for the object's end (dependents in the background); no error where there is none. None: the object's own grace period."""
        ...

    async def pods(self, namespace: str, label_selector: str) -> Objects:
        """The pods that carry the labels."""
        ...

    async def pod_log(self, namespace: str, pod: str, container: str, lines: int, previous: bool) -> str:
        """The container's last lines (`previous`: of its last run); empty where there is no such log."""
        ...
