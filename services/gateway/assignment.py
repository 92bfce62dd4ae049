"""Which arm answers a request: the unit, its bucket, the arm, and whether it counts. Called once a request; does no I/O.

The rule itself is `services.common.assignment`. This module adds what only a gateway knows: who the user is, which units are exposed
already, which are too heavy to compare, and whether the candidate may be used at all right now.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from services.common.assignment import arm_of, bucket_of
from services.common.identifiers import unit_of
from services.common.routing import Experiment, Target
from services.common.wire import Forbidden, NotFound
from services.gateway.auth import Caller
from services.gateway.routes import Entry

BLOCK: Final = 1_000
"""Requests of a service over which a unit's share of the traffic is taken."""
EXPOSURES: Final = 200_000
"""Exposures remembered, so that each is recorded once; the store ignores a repeat of one that was forgotten."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one request goes and how it counts."""

    unit: str
    arm: str
    """Or the group of an experiment."""
    bucket: int | None
    target: Target
    counted: bool
    exposed: bool
    """This request exposes the unit: the first of its rollout on control or candidate, or of an experiment."""
    experiment: Experiment | None = None
    """The one that the unit takes part in."""
    on_trial: bool = False
    """The target may fail users: stable answers in its place."""


@dataclass(slots=True)
class _Traffic:
    """One service's last requests."""

    rollout: str | None
    seen: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    heavy: set[str] = field(default_factory=set)


class Assigner:
    """Assigns requests to arms.

    Args:
        unit_key: key of the hash under which users appear.
        heavy_share: share of a block of requests above which a unit is left out for the rest of the rollout.
    """

    def __init__(self, unit_key: bytes, heavy_share: float) -> None:
        self._key = unit_key
        self._heavy_count = heavy_share * BLOCK
        self._traffic: dict[str, _Traffic] = {}
        self._exposed: OrderedDict[tuple[str, str], None] = OrderedDict()

    def unit(self, caller: Caller, user: str | None) -> str:
        """The keyed hash of a user; of the key itself where the request names none (a NUL keeps it apart from every user's name)."""
        return unit_of(self._key, caller.tenant, user if user else f"\0key\0{caller.name}")

    def place(self, entry: Entry, unit: str, *, lease_valid: bool, candidate_allowed: bool) -> Placement:
        """The arm of a request that names a service. An experiment's units take no part in a rollout.

        `candidate_allowed` is False while the lease is over or the candidate is ejected: then stable answers the units of both arms and
        they do not count, so that neither arm gains or loses users by it. So it is with an experiment's units where `lease_valid` is
        False.
        """
        route = entry.route
        heavy = self._is_heavy(entry, unit)
        for trial in entry.trials:
            found = trial.group_of(unit)
            if found is None:
                continue
            group, bucket = found
            if heavy or not lease_valid:
                return Placement(unit, "stable", None, route.stable, False, False, trial.experiment)
            target = group.target or route.stable
            first = self._expose(trial.experiment.id, unit)
            on_trial = target.revision != route.stable.revision
            return Placement(unit, group.name, bucket, target, True, first, trial.experiment, on_trial)
        if route.stage != "canary" or route.rollout is None or route.candidate is None:
            return Placement(unit, "stable", None, route.stable, True, False)
        if heavy:
            return Placement(unit, "stable", None, route.stable, False, False)
        bucket = bucket_of(entry.salt, route.rollout, unit)
        arm = arm_of(bucket, route.weight)
        if arm == "stable":
            return Placement(unit, arm, bucket, route.stable, True, False)
        if not candidate_allowed:
            return Placement(unit, "stable", None, route.stable, False, False)
        target = route.candidate if arm == "candidate" else route.stable
        on_trial = arm == "candidate"
        return Placement(unit, arm, bucket, target, True, self._expose(route.rollout, unit), on_trial=on_trial)

    def pin(self, entry: Entry, unit: str, version: str, caller: Caller) -> Placement:
        """The revision that `model: service@vN` names (`service@vN-HASH` where two of a version serve); outside the statistics.

        Raises:
            Forbidden: the key lacks the scope `pin`.
            NotFound: no such version is served.
        """
        if "pin" not in caller.scopes:
            raise Forbidden("This key may not pin a revision: it needs the scope `pin`.", param="model")
        route = entry.route
        variants = (group.target for experiment in route.experiments for group in experiment.groups)
        for target in (route.stable, route.candidate, *route.pinned, *variants):
            if target is not None and version in (target.version, target.revision.removeprefix(f"{route.service}-v")):
                return Placement(unit, "stable", None, target, False, False)
        raise NotFound(f"`{route.service}` serves no version {version}.", param="model", code="model_not_found")

    def heavy_units(self) -> int:
        """How many units are left out for their share of a service's traffic."""
        return sum(len(traffic.heavy) for traffic in self._traffic.values())

    def _expose(self, rollout: str, unit: str) -> bool:
        key = (rollout, unit)
        if key in self._exposed:
            self._exposed.move_to_end(key)
            return False
        self._exposed[key] = None
        if len(self._exposed) > EXPOSURES:
            self._exposed.popitem(last=False)
        return True

    def _is_heavy(self, entry: Entry, unit: str) -> bool:
        route = entry.route
        traffic = self._traffic.get(route.service)
        if traffic is None or traffic.rollout != route.rollout:
            # A new rollout forgives: who is heavy is seen anew, on counts that go on.
            traffic = _Traffic(route.rollout, traffic.seen, traffic.counts) if traffic else _Traffic(route.rollout)
            self._traffic[route.service] = traffic
        count = traffic.counts.get(unit, 0) + 1
        traffic.counts[unit] = count
        traffic.seen += 1
        if count > self._heavy_count:
            traffic.heavy.add(unit)
        if traffic.seen >= BLOCK:
            traffic.seen = 0
            traffic.counts.clear()
        return unit in traffic.heavy
