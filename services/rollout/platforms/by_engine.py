"""The platform of a service whose controller has several: each revision goes to the one that its resource names, and all of them are looked
at, so that a service can be rolled out from one platform to another. Made by the controller, one for each service.
"""

import logging
from collections.abc import Callable, Mapping

from services.common import events
from services.rollout.platforms.base import Platform, PlatformRejected, RevisionSpec, RevisionState

log = logging.getLogger(__name__)


class PlatformByEngine:
    """A `Platform` made of others, by the name that `engine.platform` has for them; `named` is what the resource says now."""

    def __init__(self, platforms: Mapping[str, Platform], named: Callable[[], str]) -> None:
        self._platforms, self._named = platforms, named
        self._refusals: dict[str, str] = {}
        self._seen: dict[str, str] = {}  # revision -> platform

    async def apply(self, revision: RevisionSpec) -> None:
        """See `Platform.apply`. Raises PlatformRejected where the controller has no such platform."""
        platform = self._platforms.get(revision.platform)
        if platform is None:
            has = " and ".join(self._platforms) or "none"
            raise PlatformRejected(
                f"engine.platform is {revision.platform}, but of platforms this controller has {has}"
            )
        await platform.apply(revision)

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        """See `Platform.scale`."""
        for platform in self._holding(name):
            await platform.scale(name, replicas)

    async def remove(self, name: str) -> None:
        """See `Platform.remove`."""
        for platform in self._holding(name):
            await platform.remove(name)

    def _holding(self, name: str) -> list[Platform]:
        """Where the revision was last seen; all where it was not."""
        where = self._seen.get(name)
        return list(self._platforms.values()) if where is None else [self._platforms[where]]

    async def observe(self, service: str) -> dict[str, RevisionState]:
        """See `Platform.observe`; one that does not answer leaves nothing known, but the refusal of one that is not used is no matter."""
        found: dict[str, RevisionState] = {}
        for name, platform in self._platforms.items():
            try:
                states = await platform.observe(service)
            except PlatformRejected as error:
                if name == self._named() or name in self._seen.values():
                    raise
                if self._refusals.get(name) != str(error):
                    log.info(events.PLATFORM_MISSING, {"service": service, "platform": name, "error": error})
                self._refusals[name] = str(error)
                continue
            found |= states
            self._seen |= dict.fromkeys(states, name)
        return found

    async def close(self) -> None:
        """See `Platform.close`."""
        for platform in self._platforms.values():
            await platform.close()
