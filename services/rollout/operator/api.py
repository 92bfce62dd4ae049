"""The Kubernetes API server: the one module that imports the `kubernetes` package, which brings configuration, credentials and TLS. Used by
the operator, by the platform `kuberay` (as `KubernetesObjects`) and by the command line.

Objects are plain mappings, calls run in threads, every wait is bounded. Throttling, 5xx and lost connections are tried again after a
drawn pause; an API server that did not answer all of a call's tries is left alone for a moment, so that a thousand services do not queue
behind one that is away. Decides nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import urllib3
from kubernetes import client
from kubernetes import config as untyped_config

from services.common.clock import rfc3339
from services.rollout.platforms.kubernetes_objects import KubernetesRejected, KubernetesUnavailable, NoCluster, Objects

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 10.0
TRIES: Final = 4
PAUSE_SECONDS: Final = 0.2
"""Before the second try; doubled for each further one, then drawn between half and all of it."""
LONGEST_PAUSE_SECONDS: Final = 5.0
REST_SECONDS: Final = 2.0
"""How long the API server is left alone once all tries of a call had no answer."""
PAGE: Final = 500

config: Final[Any] = untyped_config  # the package has types for its clients, none for this part
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_COUNTED: Final = 10_000  # events whose repetitions are remembered
_NOTE: Final = 1024  # characters of an event's message


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource as the API server's paths name it; `group` is empty for the core's."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """`group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version


LLM_SERVICE: Final = Kind("understudy.dev", "v1alpha1", "llmservices", "LLMService")


class Credentials(NamedTuple):
    """What another client of the same API server needs; paths name files."""

    server: str
    ca_path: str | None
    authorization: str | None
    """The whole header, scheme included."""
    certificate_path: str | None
    key_path: str | None
    verify: bool


class _Answer(NamedTuple):
    status: int
    body: bytes
    retry_after: float


class KubernetesApi:
    """One API server. Implements `KubernetesObjects`. Used from one event loop."""

    def __init__(self, configuration: client.Configuration, namespace: str, *, threads: int = 8) -> None:
        """`namespace`: the one that is meant where none is said."""
        self.namespace = namespace
        self._configuration = configuration
        configuration.connection_pool_maxsize = threads
        self._client = client.ApiClient(configuration)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="kubernetes")
        self.turns = asyncio.Semaphore(max(1, threads - 2))
        """For what may wait, so that a thousand such calls neither use up their time in a queue nor keep the others from a thread."""
        self._counted: dict[str, int] = {}
        self._plurals: dict[tuple[str, str], str] = {}
        self._rest_until = float("-inf")

    @classmethod
    def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> KubernetesApi:
        """The cluster of a kubeconfig (None: kubectl's own); in a pod without one, the pod's cluster.

        Raises:
            NoCluster: neither is there.
        """
        configuration = client.Configuration()
        try:
            config.load_kube_config(kubeconfig, context, client_configuration=configuration)
            _, active = config.list_kube_config_contexts(kubeconfig)
            if context is not None:
                active = next(c for c in config.list_kube_config_contexts(kubeconfig)[0] if c["name"] == context)
            return cls(configuration, active["context"].get("namespace") or "default")
        except config.ConfigException as error:
            if kubeconfig is not None or context is not None:
                raise NoCluster(f"the kubeconfig cannot be used: {error}") from error
        try:
            config.load_incluster_config(client_configuration=configuration)
            return cls(configuration, _NAMESPACE_FILE.read_text().strip())
        except (config.ConfigException, OSError) as error:
            raise NoCluster(f"there is no kubeconfig, and this is no pod: {error}") from error

    def credentials(self) -> Credentials:
        """As they are now; a service account's token changes within the hour."""
        of = self._configuration
        token = of.get_api_key_with_prefix("BearerToken", alias="authorization")
        return Credentials(of.host, of.ssl_ca_cert, token, of.cert_file, of.key_file, bool(of.verify_ssl))

    async def close(self) -> None:
        """Ends threads and connections; calls under way are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.rest_client.pool_manager.clear()

    # KubernetesObjects

    async def get(self, group: str, version: str, namespace: str, plural: str, name: str) -> dict[str, Any] | None:
        """See `KubernetesObjects.get`."""
        try:
            return await self._json("GET", _path(group, version, namespace, plural, name))
        except KubernetesRejected as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, group: str, version: str, namespace: str | None, plural: str, label_selector: str = ""
    ) -> Objects:
        """See `KubernetesObjects.list`; without a namespace those of all."""
        found: Objects = []
        page = {"limit": str(PAGE)} | ({"labelSelector": label_selector} if label_selector else {})
        while True:
            answer = await self._json("GET", _path(group, version, namespace, plural), page)
            found += answer.get("items", [])
            if not (rest := answer.get("metadata", {}).get("continue")):
                return found
            page["continue"] = rest

    async def apply(self, object: Mapping[str, Any], manager: str) -> dict[str, Any]:
        """See `KubernetesObjects.apply`."""
        metadata = object["metadata"]
        group, _, version = object["apiVersion"].rpartition("/")
        plural = await self._plural(object["apiVersion"], object["kind"])
        path = _path(group, version, metadata.get("namespace"), plural, metadata["name"])
        query = {"fieldManager": manager, "force": "true"}
        return await self._json("PATCH", path, query, object, "application/apply-patch+yaml")

    async def delete(
        self, group: str, version: str, namespace: str, plural: str, name: str, grace_seconds: int | None = None
    ) -> None:
        """See `KubernetesObjects.delete`."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._json("DELETE", _path(group, version, namespace, plural, name), None, options)
        except KubernetesRejected as error:
            if error.status != 404:
                raise

    async def pods(self, namespace: str, label_selector: str) -> Objects:
        """See `KubernetesObjects.pods`."""
        return await self.list("", "v1", namespace, "pods", label_selector)

    async def pod_log(self, namespace: str, pod: str, container: str, lines: int, previous: bool) -> str:
        """See `KubernetesObjects.pod_log`."""
        query = {"container": container, "tailLines": str(lines), "previous": str(previous).lower()}
        try:
            answer = await self._ask("GET", _path("", "v1", namespace, "pods", pod, "log"), query)
        except KubernetesRejected as error:
            if error.status in (400, 404):  # no such pod, or its container has no log (yet)
                return ""
            raise
        return answer.body.decode(errors="replace")

    # What the operator and the command line need beyond that

    async def ping(self) -> None:
        """Returns if the API server answers, in one try."""
        await self._ask("GET", "/readyz", tries=1)

    async def apply_status(
        self, kind: Kind, object: Mapping[str, Any], status: Mapping[str, Any], manager: str
    ) -> None:
        """Server-side apply of the status of an object that is there. Raises KubernetesRejected (404, 409) where it is there no more."""
        metadata = object["metadata"]
        document = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            # With the uid nothing is written to (or made as) another object of that name.
            "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
            "status": status,
        }
        path = _path(kind.group, kind.version, metadata["namespace"], kind.plural, metadata["name"], "status")
        query = {"fieldManager": manager, "force": "true"}
        await self._json("PATCH", path, query, document, "application/apply-patch+yaml")

    async def annotate(
        self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str | None]
    ) -> dict[str, Any]:
        """Sets annotations (None takes one away). The object as it is now; KubernetesRejected (404) where there is none."""
        path = _path(kind.group, kind.version, namespace, kind.plural, name)
        return await self._json(
            "PATCH", path, None, {"metadata": {"annotations": annotations}}, "application/merge-patch+json"
        )

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        manager: str | None = None,
    ) -> dict[str, Any]:
        """A JSON patch, under a field manager's name. The object as it is now; KubernetesRejected (422) where a `test` in it fails."""
        path = _path(kind.group, kind.version, namespace, kind.plural, name)
        query = {"fieldManager": manager} if manager is not None else None
        return await self._json("PATCH", path, query, [*operations], "application/json-patch+json")

    async def event(
        self, about: Mapping[str, Any], type: str, reason: str, action: str, message: str, key: str
    ) -> None:
        """A Kubernetes event about an object; the same `key` again counts the one that is there."""
        metadata, now = about["metadata"], rfc3339(time.time())
        identity = f"{metadata['uid']}/{key}"
        name = f"{metadata['name']}.{sha256(identity.encode()).hexdigest()[:16]}"
        document = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                **{field: metadata[field] for field in ("name", "namespace", "uid", "resourceVersion")},
                **{field: about[field] for field in ("apiVersion", "kind")},
            },
            "type": type,
            "reason": reason,
            "action": action,
            "message": message[:_NOTE],
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "understudy"},
            "reportingComponent": "understudy.dev/controller",
            "reportingInstance": "controller",
        }
        path = _path("", "v1", metadata["namespace"], "events")
        try:
            await self._json("POST", path, None, document)
            return
        except KubernetesRejected as error:
            if error.status != 409:
                raise
        # Who may write events may not always read them: the count is this process's own.
        if len(self._counted) > _COUNTED:
            self._counted.clear()
        count = self._counted[name] = self._counted.get(name, 1) + 1
        again = {"count": count, "lastTimestamp": now, "message": message[:_NOTE]}
        await self._json("PATCH", f"{path}/{name}", None, again, "application/merge-patch+json")

    async def _plural(self, api_version: str, kind: str) -> str:
        known = self._plurals.get((api_version, kind))
        if known is None:
            root = "/api" if "/" not in api_version else "/apis"
            found = await self._json("GET", f"{root}/{api_version}")
            self._plurals |= {(api_version, r["kind"]): r["name"] for r in found["resources"] if "/" not in r["name"]}
            known = self._plurals.get((api_version, kind))
        if known is None:
            raise KubernetesRejected(404, f"the cluster knows no {kind} in {api_version}")
        return known

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        answer = await self._ask(method, path, query, body, content_type)
        try:
            document: dict[str, Any] = json.loads(answer.body)
        except ValueError as error:
            raise KubernetesUnavailable(f"{method} {path}: the answer is no JSON") from error
        return document

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        tries: int = TRIES,
    ) -> _Answer:
        if time.monotonic() < self._rest_until:
            raise KubernetesUnavailable(f"{method} {path}: the API server did not answer a moment ago")
        data = None if body is None else json.dumps(body).encode()
        loop, failure = asyncio.get_running_loop(), ""
        for number in range(tries):
            pause = min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0**number) * random.uniform(0.5, 1.0)
            try:
                answer = await loop.run_in_executor(
                    self._threads, self._send, method, path, dict(query or {}), data, content_type
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if answer.status < 300:
                    self._rest_until = float("-inf")
                    return answer
                failure = _words(answer)
                if answer.status not in _AGAIN:
                    raise KubernetesRejected(answer.status, f"{method} {path}: {failure}")
                pause = max(pause, min(answer.retry_after, LONGEST_PAUSE_SECONDS))
            if number + 1 < tries:
                await asyncio.sleep(pause)
        self._rest_until = time.monotonic() + REST_SECONDS
        raise KubernetesUnavailable(f"{method} {path}: {failure}")

    def _send(self, method: str, path: str, query: dict[str, str], body: bytes | None, content_type: str) -> _Answer:
        """One request, in a thread. The package's own request method would read meaning into content types; its connections do not."""
        headers = {"Accept": "application/json, */*;q=0.5", "User-Agent": "understudy"}
        if body is not None:
            headers["Content-Type"] = content_type
        token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        url = self._configuration.host.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        response = self._client.rest_client.pool_manager.request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            retries=False,
        )
        return _Answer(response.status, response.data, _seconds(response.headers.get("Retry-After")))


def _path(group: str, version: str, namespace: str | None, plural: str, *rest: str) -> str:
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    parts = [root, *(("namespaces", namespace) if namespace else ()), plural, *rest]
    return "/".join(parts)


def _words(answer: _Answer) -> str:
    """What the API server said; its answers are `Status` objects with a message."""
    try:
        said = json.loads(answer.body).get("message")
    except (ValueError, AttributeError):
        said = None
    return f"{answer.status} {said or answer.body[:300].decode(errors='replace')}"


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0.0)
    except ValueError:
        return 0.0  # a date, which no API server sends
