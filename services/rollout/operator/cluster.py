"""The source of services in a cluster: every `LLMService` that is watched, one task a resource. Given to `controller`, which lets it act
only while the store's lock is held.

Names are unique over all watched namespaces: the oldest resource of a name has it, the others wait until it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final

from services.common import events
from services.rollout.operator.api import LLM_SERVICE
from services.rollout.operator.resource import ServiceResource, Surroundings
from services.rollout.operator.watch import Watch
from services.rollout.platforms.kubernetes_objects import KubernetesError

log = logging.getLogger(__name__)

LIST_SECONDS: Final = 60.0
"""Between lists of all resources. A watch that was broken off for long never tells what vanished meanwhile; a list does."""


class ClusterSource:
    """All resources of one namespace (None: of all)."""

    def __init__(self, around: Surroundings, namespace: str | None) -> None:
        self._around, self._namespace = around, namespace
        self._resources: dict[str, ServiceResource] = {}
        self._named: defaultdict[str, dict[str, ServiceResource]] = defaultdict(dict)
        """By name, then uid: every look asks who else has its name."""
        self._watch: Watch | None = None
        self._listed_at = float("-inf")

    async def refresh(self) -> None:
        """Begins to watch, and begins anew where watching has ended; lists all resources now and then."""
        if self._watch is not None and not self._watch.alive:
            await self._unwatch()
        now = self._around.clock.monotonic()
        if self._watch is not None and now < self._listed_at + LIST_SECONDS:
            return
        # All at once, before any of them acts: who has a name is known only then.
        if not await self._list():
            return
        self._listed_at = now
        if self._watch is None:
            self._watch = Watch(self._around.api, self._namespace, self.see, self.lose)
            self._watch.start()

    async def _list(self) -> bool:
        """Whether the API server said what there is. What the watch has told since it was asked is newer."""
        before = {uid: resource.body for uid, resource in self._resources.items()}
        try:
            found = await self._around.api.list(
                LLM_SERVICE.group, LLM_SERVICE.version, self._namespace, LLM_SERVICE.plural
            )
        except KubernetesError as error:
            log.warning(events.RESOURCES_UNLISTED, {"error": error})
            return False
        for body in found:
            known = self._resources.get(body["metadata"]["uid"])
            if known is None or known.body is before.get(body["metadata"]["uid"]):
                # The items of a list do not say what they are.
                self.see({**body, "apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind})
        for uid in before.keys() - {body["metadata"]["uid"] for body in found}:
            self.lose(before[uid])
        return True

    def services(self) -> Collection[str]:
        """See `Source`; resources go by their uid."""
        return self._resources

    async def keep(self, name: str) -> None:
        """See `Source`."""
        resource = self._resources[name]
        await resource.keep(lambda: self._holder(resource))
        del self._resources[name]
        others = self._named[resource.name]
        del others[name]
        for other in others.values():
            other.wake()
        if not others:
            del self._named[resource.name]

    async def stand_by(self) -> None:
        """See `Source`: another controller acts now, and whatever was known may be old when it is our turn again."""
        await self._unwatch()
        self._resources.clear()
        self._named.clear()

    def see(self, body: Mapping[str, Any]) -> None:
        """The cluster has this resource."""
        uid = body["metadata"]["uid"]
        if uid in self._resources:
            self._resources[uid].see(body)
        else:
            resource = self._resources[uid] = ServiceResource(body, self._around)
            self._named[resource.name][uid] = resource

    def lose(self, body: Mapping[str, Any]) -> None:
        """The cluster has this resource no more."""
        resource = self._resources.get(body["metadata"]["uid"])
        if resource is not None:
            resource.gone = True
            resource.wake()

    def _holder(self, resource: ServiceResource) -> Mapping[str, Any]:
        """Who has the resource's name: the oldest, by uid among those of the same second."""
        bodies = [other.body for other in self._named[resource.name].values()]
        return min(bodies, key=lambda body: (body["metadata"]["creationTimestamp"], body["metadata"]["uid"]))

    async def _unwatch(self) -> None:
        if self._watch is not None:
            await asyncio.to_thread(self._watch.stop)
            self._watch = None
