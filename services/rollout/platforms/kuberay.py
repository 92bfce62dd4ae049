"""The platform `kuberay`: every revision as a RayService of its own, run by the KubeRay operator (1.7 or later).

The controller calls it, one object a service. It speaks to the API server through `KubernetesObjects` and to engines by HTTP; it never
speaks to Ray. It must not touch RayServices that lack its labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from services.rollout.platforms.base import PlatformRejected, PlatformUnavailable, RevisionSpec, RevisionState
from services.rollout.platforms.kuberay_status import RevisionSnapshot
from services.rollout.platforms.kubernetes_objects import KubernetesError, KubernetesObjects, KubernetesRejected
from services.rollout.platforms.serve_status import engine_error
from services.rollout.platforms.warm_up import WarmUps
from services.serving.application import EngineSpec, bounds_of, route_prefix
from services.serving.errors import InvalidEngineSpec
from services.serving.rayservice import (
    API_VERSION,
    MANAGED_BY,
    REVISION_LABEL,
    SERVICE_LABEL,
    PodSettings,
    application_of,
    head_address,
    object_name,
    ray_service,
    rescaled,
    serve_address,
)

MANAGER: Final = "understudy"
"""The field manager of what is applied."""

_GROUP, _VERSION = API_VERSION.split("/")
_PLURAL: Final = "rayservices"
_LOG_LINES: Final = 400
_NOT_FOUND: Final = 404
_MAY_PASS: Final = (409, 410, 429)  # changed meanwhile, expired, too many requests


class KubeRayPlatform:
    """A `Platform` on KubeRay, for the services of one namespace.

    `owner` is an owner reference to the resource that wants the revisions; without one they stay when it goes.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        kubernetes: KubernetesObjects,
        namespace: str,
        settings: PodSettings,
        owner: Mapping[str, Any] | None = None,
    ) -> None:
        self._kubernetes = kubernetes
        self._namespace, self._settings, self._owner = namespace, settings, owner
        self._warm_ups = WarmUps(session)
        self._last_words: dict[str, str] = {}

    async def apply(self, revision: RevisionSpec) -> None:
        """See `Platform.apply`. Raises PlatformRejected and PlatformUnavailable."""
        engine = EngineSpec(
            arguments=revision.engine,
            resources=revision.resources,
            min_replicas=revision.replicas[0],
            max_replicas=revision.replicas[1],
            max_ongoing_requests=revision.max_ongoing_requests,
            autoscaling=revision.autoscaling,
        )
        try:
            wanted = ray_service(
                revision.name,
                revision.service,
                revision.artifact,
                engine,
                revision.pod,
                self._settings,
                self._namespace,
                self._owner,
            )
        except InvalidEngineSpec as error:
            raise PlatformRejected(f"revision {revision.name}: {error}") from error
        present = await self._get(revision.name)
        if present is not None and not _is_ours(present, revision.name):
            raise PlatformRejected(f"there is a RayService {object_name(revision.name)} that is not ours: rename it")
        if present is not None and present["metadata"].get("deletionTimestamp"):
            raise PlatformUnavailable(f"revision {revision.name} is still being removed; will try again")
        try:
            await self._kubernetes.apply(wanted, MANAGER)
        except KubernetesError as error:
            raise self._translated(error) from error

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        """See `Platform.scale`. Raises PlatformRejected and PlatformUnavailable."""
        present = await self._get(name)
        if present is None or not _is_ours(present, name) or present["metadata"].get("deletionTimestamp"):
            return
        if bounds_of(application_of(present)) == replicas:
            return
        try:
            await self._kubernetes.apply(rescaled(present, replicas), MANAGER)
        except KubernetesError as error:
            raise self._translated(error) from error

    async def remove(self, name: str) -> None:
        """See `Platform.remove`. Raises PlatformRejected and PlatformUnavailable."""
        self._forget(name)
        present = await self._get(name)
        if present is None or not _is_ours(present, name) or present["metadata"].get("deletionTimestamp"):
            return
        try:
            await self._kubernetes.delete(_GROUP, _VERSION, self._namespace, _PLURAL, object_name(name), None)
        except KubernetesError as error:
            raise self._translated(error) from error

    async def observe(self, service: str) -> dict[str, RevisionState]:
        """See `Platform.observe`. Raises PlatformRejected and PlatformUnavailable."""
        selector = f"{SERVICE_LABEL}={service},{'='.join(MANAGED_BY)}"
        try:
            services = await self._kubernetes.list(_GROUP, _VERSION, self._namespace, _PLURAL, selector)
            pods = await self._kubernetes.pods(self._namespace, selector) if services else []
        except KubernetesError as error:
            raise self._translated(error) from error
        states = {}
        for found in services:
            name = found["metadata"]["labels"].get(REVISION_LABEL, "")
            own = [pod for pod in pods if pod["metadata"]["labels"].get(REVISION_LABEL) == name]
            states[name] = await self._state(service, RevisionSnapshot(name, found, own))
        return states

    async def close(self) -> None:
        """See `Platform.close`."""
        await self._warm_ups.close()

    async def _state(self, service: str, snapshot: RevisionSnapshot) -> RevisionState:
        name = snapshot.name
        phase, message = snapshot.phase()
        engines, head = (
            f"{at(name, self._namespace)}{route_prefix(service, name)}/v1" for at in (serve_address, head_address)
        )
        # Without engines there are no pods behind their Service: only the head can start one, so it is kept in reserve.
        address, direct = (head, engines) if snapshot.may_sleep else (engines, None)
        if phase != "ready":
            self._warm_ups.forget(name)
        elif not self._warm_ups.answered(name, address):
            phase, message = "starting", self._warm_ups.message(name)
        if phase == "failed":
            message = "\n".join(filter(None, (message, await self._engine_words(snapshot))))
        else:
            self._last_words.pop(name, None)
        ready = snapshot.ready_replicas()
        if phase != "ready":
            return RevisionState(name, phase, ready, None, message, replicas=snapshot.bounds)
        return RevisionState(name, phase, ready, address, message, direct if ready else None, snapshot.bounds)

    async def _engine_words(self, snapshot: RevisionSnapshot) -> str:
        """The line of the engine's log that names the cause: Serve's message often holds only that something below it broke."""
        if snapshot.name not in self._last_words and (where := snapshot.last_words_of()) is not None:
            pod, container, previous = where
            try:
                log = await self._kubernetes.pod_log(self._namespace, pod, container, _LOG_LINES, previous)
            except KubernetesError:
                return ""
            self._last_words[snapshot.name] = engine_error(log)
        return self._last_words.get(snapshot.name, "")

    def _forget(self, name: str) -> None:
        self._warm_ups.forget(name)
        self._last_words.pop(name, None)

    async def _get(self, revision: str) -> dict[str, Any] | None:
        try:
            return await self._kubernetes.get(_GROUP, _VERSION, self._namespace, _PLURAL, object_name(revision))
        except KubernetesError as error:
            raise self._translated(error) from error

    @staticmethod
    def _translated(error: KubernetesError) -> PlatformRejected | PlatformUnavailable:
        if not isinstance(error, KubernetesRejected):
            return PlatformUnavailable(str(error))
        if error.status == _NOT_FOUND:
            return PlatformRejected(
                "the cluster knows no RayService: install the KubeRay operator (1.7 or later), or use platform serve"
            )
        if error.status in _MAY_PASS:
            return PlatformUnavailable(str(error))
        return PlatformRejected(str(error))


def _is_ours(found: Mapping[str, Any], revision: str) -> bool:
    label, value = MANAGED_BY
    labels = found["metadata"].get("labels") or {}
    return labels.get(label) == value and labels.get(REVISION_LABEL) == revision
