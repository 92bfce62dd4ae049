"""Users without a gateway: writes into a real store what a gateway would have recorded for them, obeying the service's published route.

For tests of the controller's loop, where thousands of users must pass in a second. Time is the hand clock's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.common.assignment import arm_of, bucket_of, group_of
from services.common.routing import Route
from services.rollout.resources import LLMService
from services.store import Exposure, Feedback, GatewayLease, Observation, Record, Store
from tests.fakes.rollout_rows import HandClock


@dataclass(frozen=True)
class Behaviour:
    """What users of a revision meet: probabilities per user, seconds."""

    failure: float = 0.01
    displeased: float = 0.1
    ttft: float = 0.05
    speed: float = 100.0


class Traffic:
    """One gateway's records. `behave` says how a registry version behaves."""

    def __init__(
        self, store: Store, clock: HandClock, service: LLMService, behave: Callable[[str], Behaviour], seed: int = 1
    ) -> None:
        self._store, self._clock, self._service, self._behave = store, clock, service, behave
        self._random = random.Random(seed)
        self._sequence = 0
        self._users = 0
        self.wrong_bucket = False
        """Records every exposure with a bucket that is not the unit's."""

    def pass_time(self, seconds: float, users: int) -> None:
        """So many new users come, evenly; then the gateway renews its lease."""
        start = self._clock.now
        route = self._store.route(self._service.name)
        records: list[Record] = []
        for number in range(users if route is not None else 0):
            assert route is not None
            records += self._user(route, start + seconds * number / users)
        self._clock.now = start + seconds
        self._store.write(records)
        self.renew()

    def renew(self) -> None:
        """The gateway lives, obeys the newest route, and has delivered everything."""
        routes = {name: route.version for name, route in self._store.routes({}).items()}
        now = self._clock.now
        self._store.renew_lease(GatewayLease("g1", "b1", None, routes, now, now + 120, self._sequence, 0, 0))

    def _user(self, route: Route, at: float) -> list[Record]:
        self._users += 1
        unit = f"user-{self._users}"
        arm: Any = "stable"
        bucket = None
        records: list[Record] = []
        rollout, horizon, settle = route.rollout, route.horizon, route.settle
        if route.stage == "canary" and rollout is not None:
            bucket = bucket_of(bytes.fromhex(route.salt), rollout, unit)
            arm = arm_of(bucket, route.weight)
        target = route.candidate if arm == "candidate" and route.candidate is not None else route.stable
        for one in route.experiments:
            place = bucket_of(bytes.fromhex(one.salt), one.id, unit)
            index = group_of(place, [group.share for group in one.groups])
            if index is not None:
                group, bucket = one.groups[index], place
                arm, target = group.name, group.target or route.stable
                rollout, horizon, settle = one.id, one.horizon, one.settle
                break
        common: dict[str, Any] = {
            "service": route.service, "rollout": rollout, "unit": unit, "route_version": route.version, "step": route.step,
        }  # fmt: skip
        if arm != "stable":
            assert bucket is not None
            records.append(
                Exposure(
                    **common, arm=arm, bucket=bucket + int(self.wrong_bucket), first_at=at, horizon_at=at + horizon,
                    closes_at=at + horizon + settle, **self._stamp(),
                )
            )  # fmt: skip
        request = f"request-{self._users}"
        records.append(self._answer(request, common, arm, target.revision, target.version, at))
        if self._random.random() < self._behave(target.version).displeased:
            mark: dict[str, Any] = {"kind": "thumb", "value": -1.0, "at": at + 1.0}
            records.append(
                Feedback(id=f"mark-{request}", request_id=request, service=route.service, **mark, **self._stamp())
            )
        if route.stage == "rehearsal" and route.candidate is not None:
            for side, mirrored in (("candidate", route.candidate), ("control", route.stable)):
                extra = {"kind": "mirror", "pair": request}
                name = f"{request}-{side}"
                records.append(self._answer(name, common, side, mirrored.revision, mirrored.version, at, **extra))
        return records

    def _answer(
        self, name: str, common: dict[str, Any], arm: Any, revision: str, version: str, at: float, **extra: Any
    ) -> Observation:
        behaviour = self._behave(version)
        failed = self._random.random() < behaviour.failure
        ttft = behaviour.ttft * self._random.uniform(0.8, 1.25)
        return Observation(
            **common, request_id=name, revision=revision, arm=arm, started_at=at, streamed=True, ttft=None if failed else ttft,
            duration=ttft + 20 / behaviour.speed, tokens_out=None if failed else 20, outcome="error" if failed else "ok",
            status=500 if failed else 200, **extra, **self._stamp(),
        )  # fmt: skip

    def _stamp(self) -> dict[str, Any]:
        self._sequence += 1
        return {"gateway": "g1", "boot": "b1", "sequence": self._sequence}
