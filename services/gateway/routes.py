"""The routing table as this gateway knows it: polled from the store, kept on disk, obeyed until its lease ends.

The poller is the only part of the gateway that talks to the store in good time; the hot path reads the table and never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path

import msgspec
from yarl import URL

from services.common import events
from services.common.assignment import BUCKETS, bucket_of, group_of
from services.common.clock import Clock
from services.common.patterns import BadPattern
from services.common.routing import Allowance, Experiment, Group, Route, Rules, Target
from services.common.wire import NotFound
from services.gateway.content_filters import Filter
from services.gateway.errors import BadRoute
from services.gateway.requests import Endpoint
from services.gateway.settings import GatewaySettings
from services.store import GatewayLease, Store

log = logging.getLogger(__name__)

_cache_decoder = msgspec.json.Decoder(list[Route])


class Standing:
    """How a revision on trial does in this gateway: so many failures in a row eject it for some time."""

    def __init__(self) -> None:
        self.failures = 0
        self.ejected_until = float("-inf")

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, now: float, eject_after: int, eject_seconds: float) -> bool:
        """Counts a failure; True when it ejects the revision. After the pause one failure more ejects it again, one success clears it."""
        self.failures += 1
        if self.failures < eject_after or now < self.ejected_until:
            return False
        self.ejected_until = now + eject_seconds
        return True


class Trial:
    """One experiment, with what is worth preparing once."""

    def __init__(self, service: str, experiment: Experiment) -> None:
        try:
            self._salt = bytes.fromhex(experiment.salt)
        except ValueError:
            raise BadRoute(f"{service}: the salt of experiment {experiment.id} is not hexadecimal") from None
        self._shares = tuple(group.share for group in experiment.groups)
        if sum(self._shares) > BUCKETS or min(self._shares, default=0) < 0:
            raise BadRoute(f"{service}: the groups of experiment {experiment.id} do not fit into {BUCKETS} buckets")
        self.experiment = experiment

    def group_of(self, unit: str) -> tuple[Group, int] | None:
        """The unit's group and bucket; None: it is outside."""
        bucket = bucket_of(self._salt, self.experiment.id, unit)
        index = group_of(bucket, self._shares)
        return None if index is None else (self.experiment.groups[index], bucket)


class Entry:
    """One service's route with what is worth preparing once, and the standing of revisions on trial with this gateway."""

    def __init__(self, route: Route) -> None:
        if not 0 <= route.weight <= 5_000:
            raise BadRoute(f"{route.service}: weight {route.weight} is outside 0 to 5,000")
        try:
            self.salt = bytes.fromhex(route.salt)
            self.mirror_salt = bytes.fromhex(route.mirror.salt) if route.mirror else b""
            self.sample_salt = bytes.fromhex(route.sample.salt) if route.sample else b""
        except ValueError:
            raise BadRoute(f"{route.service}: a salt is not hexadecimal") from None
        rules = route.rules or Rules()
        try:
            filters = tuple(Filter(one) for one in rules.content_filters)
        except BadPattern as error:
            raise BadRoute(f"{route.service}: a content filter's pattern is {error}") from None
        self.prompt_filters = tuple(one for one in filters if one.on_prompt)
        self.answer_filters = tuple(one for one in filters if one.on_answer)
        self.published = route
        self.route = _prompted(route, rules.prompt) if rules.prompt is not None else route
        """As published, with the service's prompt before each revision's own."""
        self.trials = tuple(Trial(route.service, experiment) for experiment in self.route.experiments)
        self._urls = {target.revision: _urls(route.service, target) for target in _targets(route)}
        self._turn = itertools.count()
        self.candidate = Standing()
        self.variants: dict[str, Standing] = {}
        """By revision: those of experiments."""

    def standing(self, revision: str) -> Standing:
        """Of a variant's revision."""
        return self.variants.setdefault(revision, Standing())

    def urls(self, target: Target, endpoint: Endpoint) -> list[URL]:
        """Where to send a request for a revision: all its addresses, beginning with the next in turn, then the one in reserve."""
        urls, reserve = self._urls[target.revision][endpoint]
        if len(urls) > 1:
            first = next(self._turn) % len(urls)
            urls = urls[first:] + urls[:first]
        return urls + reserve


class RoutingTable:
    """Rows of the table by service, and how fresh they are. Used from the event loop only."""

    def __init__(self, clock: Clock, lease_seconds: float) -> None:
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._entries: dict[str, Entry] = {}
        self._removed: dict[str, int] = {}
        self._known_since: dict[str, float] = {}
        self._contact = float("-inf")
        self._offset = clock.time() - clock.monotonic()
        self.gateways = 1
        """Live gateways, this one among them, as of the last look; they share the services' quotas."""

    def store_time(self) -> float:
        """Seconds since the epoch in the store's time, as measured at the last contact; never set back by this machine's wall clock."""
        return self._clock.monotonic() + self._offset

    def set_clock(self, store_now: float, at: float) -> None:
        """The store's clock read `store_now` when this machine's monotonic one read `at`."""
        self._offset = store_now - at

    def contact_made(self, at: float) -> None:
        """The lease was renewed by a look that began at `at` (monotonic): counted from its beginning, so that this gateway's lease never
        outlives what the store holds of it."""
        self._contact = at

    @property
    def contact_age(self) -> float:
        """Seconds since the last renewal of the lease began; infinite before the first."""
        return self._clock.monotonic() - self._contact

    @property
    def lease_valid(self) -> bool:
        return self.contact_age < self._lease_seconds

    def candidate_allowed(self, entry: Entry) -> bool:
        return self.lease_valid and self._clock.monotonic() >= entry.candidate.ejected_until

    def services(self) -> list[str]:
        return sorted(self._entries)

    def known_since(self, service: str) -> float:
        """Store time at which this process first had a row for the service."""
        return self._known_since[service]

    def versions(self) -> dict[str, int]:
        """What this gateway obeys by service, removed ones included: it must acknowledge those too."""
        return self._removed | {service: entry.route.version for service, entry in self._entries.items()}

    def routes(self) -> list[Route]:
        """As published."""
        return [entry.published for entry in self._entries.values()]

    def has_quotas(self) -> bool:
        """Whether any service declares quotas."""
        none = Allowance()
        declared = (entry.route.rules for entry in self._entries.values())
        return any(rules is not None and (rules.per_key, rules.per_user) != (none, none) for rules in declared)

    def revisions(self) -> set[str]:
        return {target.revision for entry in self._entries.values() for target in _targets(entry.route)}

    def route(self, service: str) -> Route | None:
        """The service's row; None: it is no more."""
        entry = self._entries.get(service)
        return None if entry is None else entry.route

    def find(self, model: str) -> tuple[Entry, str | None]:
        """The row for a model name, and the version it pins.

        Raises:
            NotFound: no such service.
        """
        entry = self._entries.get(model)
        if entry is not None:
            return entry, None
        service, separator, version = model.rpartition("@v")
        if separator and version and service in self._entries:
            return self._entries[service], version
        raise NotFound("No such model; `GET /v1/models` lists them.", param="model", code="model_not_found")

    def adopt(self, routes: Iterable[Route]) -> bool:
        """Takes over new rows; a row that cannot be obeyed is logged, not acknowledged, and the last good one stays."""
        changed = False
        for route in routes:
            old = self._entries.get(route.service)
            if route.removed:
                self._entries.pop(route.service, None)
                self._known_since.pop(route.service, None)
                self._removed[route.service] = route.version
                changed = True
                continue
            try:
                entry = Entry(route)
            except BadRoute as error:
                log.error(events.ROUTE_REFUSED, {"version": route.version, "error": error})
                continue
            if old is not None and old.route.candidate == entry.route.candidate:
                entry.candidate = old.candidate
            if old is not None and old.route.experiments == entry.route.experiments:
                entry.variants = old.variants
            self._entries[route.service] = entry
            self._removed.pop(route.service, None)
            self._known_since.setdefault(route.service, self.store_time())
            changed = True
        return changed


class RoutePoller:
    """Fetches the table each second and renews this gateway's lease.

    Args:
        lease: builds the lease to renew, from the acknowledged versions and the store's time.
        changed: called after a new table was adopted.
    """

    def __init__(
        self,
        store: Store,
        table: RoutingTable,
        settings: GatewaySettings,
        clock: Clock,
        executor: Executor,
        *,
        lease: Callable[[dict[str, int], float], GatewayLease],
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._table = table
        self._seconds = settings.poll_seconds
        self._cache = settings.state_dir / "routes.json"
        self._clock = clock
        self._executor = executor
        self._lease = lease
        self._changed = changed
        self._reachable: bool | None = None

    def load_cache(self) -> None:
        """Takes over the table of the last run, if there is one. Candidates get nothing before the store is reached: no lease yet."""
        try:
            routes = _cache_decoder.decode(self._cache.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning(events.CACHE_UNREADABLE, {"error": error})
            return
        self._table.adopt(routes)
        self._changed()

    async def run(self) -> None:
        """Polls until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(self._seconds)

    async def poll(self) -> bool:
        """One look; False when the store could not be reached."""
        loop = asyncio.get_running_loop()
        began = self._clock.monotonic()
        try:
            routes, now, at = await loop.run_in_executor(self._executor, self._fetch, self._table.versions())
            self._table.set_clock(now, at)
            if self._table.adopt(routes.values()):
                self._changed()
                await loop.run_in_executor(self._executor, self._keep, self._table.routes())
            lease = self._lease(self._table.versions(), now)
            await loop.run_in_executor(self._executor, self._store.renew_lease, lease)
            if self._table.has_quotas():
                self._table.gateways = max(1, len(await loop.run_in_executor(self._executor, self._store.leases)))
            self._table.contact_made(began)
        except Exception as error:  # noqa: BLE001  # whatever the store does, the gateway goes on with the table it has
            if self._reachable is not False:
                log.warning(events.STORE_AWAY, {"error": error})
            self._reachable = False
            return False
        if self._reachable is False:
            log.info(events.STORE_BACK)
        self._reachable = True
        return True

    def _fetch(self, known: dict[str, int]) -> tuple[dict[str, Route], float, float]:
        return self._store.routes(known), self._store.now(), self._clock.monotonic()

    def _keep(self, routes: list[Route]) -> None:
        temporary = self._cache.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(routes))
            temporary.replace(self._cache)
        except OSError as error:
            log.warning(events.CACHE_UNWRITABLE, {"error": error})
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def _prompted(route: Route, prompt: str) -> Route:
    def with_prompt(target: Target) -> Target:
        own = f"\n\n{target.system_prompt}" if target.system_prompt else ""
        return msgspec.structs.replace(target, system_prompt=prompt + own)

    def with_prompts(experiment: Experiment) -> Experiment:
        groups = tuple(
            msgspec.structs.replace(group, target=with_prompt(group.target)) if group.target is not None else group
            for group in experiment.groups
        )
        return msgspec.structs.replace(experiment, groups=groups)

    return msgspec.structs.replace(
        route,
        stable=with_prompt(route.stable),
        candidate=with_prompt(route.candidate) if route.candidate is not None else None,
        pinned=tuple(with_prompt(target) for target in route.pinned),
        experiments=tuple(with_prompts(experiment) for experiment in route.experiments),
    )


def _targets(route: Route) -> list[Target]:
    variants = (group.target for experiment in route.experiments for group in experiment.groups)
    return [target for target in (*variants, route.stable, route.candidate, *route.pinned) if target is not None]


def _urls(service: str, target: Target) -> dict[Endpoint, tuple[list[URL], list[URL]]]:
    """By endpoint: the addresses, and the reserve as a list of at most one."""
    if not target.addresses:
        raise BadRoute(f"{service}: revision {target.revision} has no address")
    reserve = (target.reserve,) if target.reserve is not None else ()
    for address in (*target.addresses, *reserve):
        if not address.startswith(("http://", "https://")):
            raise BadRoute(f"{service}: revision {target.revision} has the address {address!r}, which is no http URL")

    def urls(addresses: tuple[str, ...], endpoint: Endpoint) -> list[URL]:
        return [URL(f"{address.rstrip('/')}/{endpoint}") for address in addresses]

    endpoints: tuple[Endpoint, ...] = ("chat/completions", "completions")
    return {endpoint: (urls(target.addresses, endpoint), urls(reserve, endpoint)) for endpoint in endpoints}
