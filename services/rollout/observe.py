"""One look at everything outside: store, registry, platform, all at once. Called by `reconcile`; decides nothing.

A registry or platform that is away is said to be away: the registry's last known aliases stay (marked stale), the platform's part is None.
Without the store there is no look: its errors go up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from services.common import events
from services.common.clock import DAY, HOUR, turn
from services.common.identifiers import uuid7
from services.rollout.errors import EvaluationInvalid, RegistryError, RegistryRejected
from services.rollout.observed import Aliases, Evaluations, Identity, Observed, Refusal, VersionInfo
from services.rollout.planning import Caution, Traffic, caution, traffic_of
from services.rollout.platforms.base import Platform, PlatformError, RevisionState
from services.rollout.registry import Registry
from services.rollout.resources import LLMService
from services.rollout.revisions import engine_of
from services.rollout.scaling import FirstTokens, first_tokens
from services.rollout.status import Condition, RolloutStatus
from services.rollout.together import Together
from services.store import RolloutRow, Standing, Store

log = logging.getLogger(__name__)

PLATFORM_TIMEOUT: Final = 15.0
"""Seconds; a look must not wait for a platform that hangs."""
HISTORY_SECONDS: Final = 7 * DAY
"""How far back stable's history is read for the design prior, and a service's traffic for its plan."""
TRAFFIC_SECONDS: Final = HOUR
"""A service's traffic is measured so often; it reads up to 200,000 rows twice."""
FIRST_TRAFFIC_SECONDS: Final = 300
"""Within this time after the controller's start, a thousand services take their turns."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A look: what `decide` sees, and what the rest of the loop needs of the same moment."""

    observed: Observed
    row: RolloutRow | None
    now: float
    watermark: float


def fresh_identity() -> Identity:
    """A name and a salt that no rollout had before."""
    return Identity(uuid7(), secrets.token_hex(16))


class Observer:
    """Looks at one service. Remembers the last known aliases for the time when the registry is away."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        platform: Platform,
        standings: Together[Standing],
        owner: str,
        identity: Callable[[], Identity] = fresh_identity,
    ) -> None:
        """`standings`: where services stand in the store. `owner`: this controller's name in the registry's owner tags, without the
        service. `identity`: draws names of new rollouts."""
        self._store, self._registry, self._platform, self._standings = store, registry, platform, standings
        self._owner, self._identity = owner, identity
        self._aliases: Aliases | None = None
        self._versions: dict[str, VersionInfo | None] = {}
        self._claimed: tuple[str, str, str] | None = None
        self._unchanged: tuple[tuple[str, int], float] | None = None
        """Stable's engine and its ready replicas, and since when (store's time) it has had them."""
        self._traffic: Traffic | None = None
        self._traffic_due: float | None = None
        self._cautioned: tuple[LLMService, Caution | None] | None = None

    async def look(
        self,
        service: LLMService,
        conditions: tuple[Condition, ...],
        refused: Mapping[str, Refusal],
        tried: tuple[str, ...] = (),
    ) -> Sight:
        """`tried`: versions that experiments need. Raises StoreError; nothing else that is away is an error."""
        stored, aliases, engines = await asyncio.gather(
            self._standings.of(service.name), self._steering(service), self._engines(service.name)
        )
        quiet, answers = await self._demand(service, stored)
        await self._measure(service, stored)
        row = stored.rollout
        status = RolloutStatus.model_validate(row.status) if row is not None else None
        active = status is not None and status.active
        observed = Observed(
            route=stored.route,
            gateways=len(stored.leases),
            acknowledged=_acknowledged(service.name, stored),
            rollout=status,
            rules=_rules(row) if active else None,
            conditions=conditions,
            aliases=aliases,
            engines=engines,
            quiet=quiet,
            first_tokens=self._first_tokens(service, stored, engines, answers),
            users_per_day=self._traffic.users_per_day if self._traffic is not None else None,
            caution=await self._warned(service),
            pinned=await self._pinned(service, tried),
            tried=tried,
            refused=refused,
            commands=stored.commands,
            identity=self._identity(),
        )
        if status is not None and status.debt.tag:
            observed = replace(observed, tags=await self._tags(status))
        if status is not None and status.active and status.stage == "gate":
            observed = await self._gate(observed, status, observed.rules or service)
        return Sight(observed, row, stored.now, stored.watermark)

    async def _demand(self, service: LLMService, stored: Standing) -> tuple[bool, list[tuple[float, float]]]:
        """Whether nobody has asked for long enough to end the engines, and how long first tokens took; read where scaling goes by it."""
        scaling = service.spec.engine.autoscaling
        quiet, answers = False, []
        since = stored.now - scaling.downscale_delay
        if scaling.min == 0:
            quiet = not await asyncio.to_thread(self._store.asked_since, service.name, since)
        if scaling.target_ttft is not None:
            since = min(since, stored.now - scaling.upscale_delay)
            answers = await asyncio.to_thread(self._store.first_tokens, service.name, since)
        return quiet, answers

    def _first_tokens(
        self,
        service: LLMService,
        stored: Standing,
        engines: Mapping[str, RevisionState] | None,
        answers: list[tuple[float, float]],
    ) -> FirstTokens | None:
        """What they say since stable's engine last had more or fewer replicas."""
        scaling = service.spec.engine.autoscaling
        state = (
            engines.get(engine_of(stored.route.stable)) if engines is not None and stored.route is not None else None
        )
        if scaling.target_ttft is None or state is None:
            return None
        replicas = state.name, state.ready_replicas
        if self._unchanged is None or self._unchanged[0] != replicas:
            self._unchanged = replicas, stored.now
        since = self._unchanged[1]
        return first_tokens(answers, stored.now, since, scaling.upscale_delay, scaling.downscale_delay)

    async def _measure(self, service: LLMService, stored: Standing) -> None:
        """The service's traffic, once an hour; a stable that serves is what rollouts will be compared with."""
        if self._traffic_due is None:
            self._traffic_due = stored.now + turn(service.name, FIRST_TRAFFIC_SECONDS)
        if stored.route is None or stored.now < self._traffic_due:
            return
        self._traffic_due = stored.now + TRAFFIC_SECONDS
        since, revision, horizon = (
            stored.now - HISTORY_SECONDS,
            stored.route.stable.revision,
            service.spec.rollout.horizon,
        )

        def read() -> Traffic | None:
            usage = self._store.usage(service.name, since)
            if usage is None or usage["seconds"] < TRAFFIC_SECONDS:
                return None  # a few minutes say little of a day
            return traffic_of(usage, self._store.baseline(service.name, revision, since, horizon))

        self._traffic = await asyncio.to_thread(read)
        self._cautioned = None

    async def _warned(self, service: LLMService) -> Caution | None:
        """Why the resource asks for too much; reckoned anew when it or its traffic has changed."""
        if self._traffic is None:
            return None
        if self._cautioned is None or self._cautioned[0] is not service:
            self._cautioned = service, await asyncio.to_thread(caution, service, self._traffic)
        return self._cautioned[1]

    async def _steering(self, service: LLMService) -> Aliases | None:
        names = service.spec.model
        try:
            owner = await self._foreign_owner(service)
            champion, challenger = await asyncio.gather(
                self._registry.alias(names.registered_model, names.champion),
                self._registry.alias(names.registered_model, names.challenger),
            )
        except RegistryError as error:
            log.warning(events.REGISTRY_AWAY, {"service": service.name, "error": error})
            if self._aliases is not None:
                self._aliases = replace(self._aliases, fresh=False)
        else:
            self._aliases = Aliases(champion, challenger, owner=owner)
        return self._aliases

    async def _pinned(self, service: LLMService, tried: tuple[str, ...]) -> Mapping[str, VersionInfo | None]:
        """The versions beside stable; while the registry is away those that were known."""
        names = service.spec.model
        wanted = dict.fromkeys((*names.pinned, *tried))
        for version in wanted:
            try:
                self._versions[version] = await self._registry.version(names.registered_model, version)
            except RegistryError as error:
                log.warning(events.REGISTRY_AWAY, {"service": service.name, "error": error})
        return {version: self._versions[version] for version in wanted if version in self._versions}

    async def _foreign_owner(self, service: LLMService) -> str | None:
        """Another owner of our aliases. Asked until they are ours, then not again."""
        names = service.spec.model
        key = (names.registered_model, names.champion, names.challenger)
        if self._claimed == key:
            return None
        me = f"{self._owner}/{service.name}"
        try:
            for alias in (names.champion, names.challenger):
                owner = await self._registry.claim(names.registered_model, alias, me)
                if owner != me:
                    return owner
        except RegistryRejected as error:
            told = {"service": service.name, "model": names.registered_model, "error": error}
            log.info(events.ALIASES_UNCLAIMED, told)
            return None
        self._claimed = key
        return None

    async def release(self, service: LLMService) -> None:
        """Gives the service's aliases up. Raises RegistryError."""
        names = service.spec.model
        self._claimed = None
        for alias in (names.champion, names.challenger):
            await self._registry.release(names.registered_model, alias, f"{self._owner}/{service.name}")

    async def _engines(self, service: str) -> dict[str, RevisionState] | None:
        try:
            async with asyncio.timeout(PLATFORM_TIMEOUT):
                return await self._platform.observe(service)
        except PlatformError as error:
            log.warning(events.PLATFORM_AWAY, {"service": service, "error": error})
        except TimeoutError:
            silence = f"no answer within {PLATFORM_TIMEOUT:g} s"
            log.warning(events.PLATFORM_AWAY, {"service": service, "error": silence})
        return None

    async def _tags(self, status: RolloutStatus) -> Mapping[str, str] | None:
        try:
            info = await self._registry.version(status.model, status.version)
        except RegistryError as error:
            log.warning(events.REGISTRY_AWAY, {"service": status.service, "rollout": status.id, "error": error})
            return None
        return info.tags if info is not None else None

    async def _gate(self, observed: Observed, status: RolloutStatus, rules: LLMService) -> Observed:
        def history() -> Mapping[str, Any]:
            since = self._store.now() - HISTORY_SECONDS
            return self._store.baseline(status.service, status.champion_revision, since, rules.spec.rollout.horizon)

        baseline = await asyncio.to_thread(history)
        return replace(observed, baseline=baseline, evaluations=await self._evaluations(status))

    async def _evaluations(self, status: RolloutStatus) -> Evaluations | None:
        try:
            candidate, champion = await asyncio.gather(
                self._registry.version(status.model, status.version),
                self._registry.version(status.model, status.champion_version),
            )
            return Evaluations(
                candidate=await self._registry.evaluation(candidate) if candidate else None,
                champion=await self._registry.evaluation(champion) if champion else None,
            )
        except EvaluationInvalid as error:
            return Evaluations(None, None, invalid=str(error))
        except RegistryError as error:
            log.warning(events.REGISTRY_AWAY, {"service": status.service, "rollout": status.id, "error": error})
            return None


def _acknowledged(service: str, stored: Standing) -> bool:
    """Of the leases and the route of one look, so that a gateway that comes in between cannot be missed."""
    if stored.route is None or not stored.leases:
        return False
    version = stored.route.version
    return all(lease.routes.get(service, 0) >= version for lease in stored.leases)


def _rules(row: RolloutRow | None) -> LLMService | None:
    """The resource as it was at the rollout's start; one that this program cannot read any more gives way to the present one."""
    try:
        return LLMService.model_validate(row.spec) if row is not None else None
    except ValidationError:
        return None
