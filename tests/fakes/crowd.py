"""A crowd of users at several gateways, simulated: what each answer is like depends on who asks, when, and how busy the engine is.

For adversarial tests of the whole controller. The arms come from the gateways' own `Assigner`, so that heavy users are treated as in
production; exposures, observations, mirrored pairs and feedback go into a real store. Time is the hand clock's; everything is seeded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from services.common.routing import Route
from services.gateway.assignment import Assigner, Placement
from services.gateway.auth import Caller
from services.gateway.routes import Entry
from services.rollout.resources import LLMService
from services.store import Exposure, Feedback, GatewayLease, Observation, Record, Store
from tests.fakes.rollout_rows import HandClock

MIRRORED_LOAD = 1.0
"""Requests a second that an engine answers in rehearsal: a mirror never queues."""


@dataclass(frozen=True, slots=True)
class User:
    """Who asks: so many requests, at once or `pause` seconds apart."""

    name: str
    tenant: str = "web"
    requests: int = 1
    pause: float = 1.0
    kind: str = "person"


@dataclass(frozen=True, slots=True)
class Question:
    """One request as its engine meets it."""

    version: str
    user: User
    at: float
    load: float
    """Requests a second on this engine."""
    age: float
    """Seconds since users (or mirrored requests) first reached the engine."""
    chance: random.Random
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it; None: it was not measured."""

    ttft: float | None = 0.05
    gap: float | None = 0.01
    tokens: int | None = 20
    failed: bool = False
    left: bool = False
    """The client did not wait for the first token."""
    streamed: bool = True


@dataclass(slots=True)
class Door:
    """One gateway."""

    name: str
    assigner: Assigner
    sequence: int = 0
    exposed: set[str] = field(default_factory=set)

    def stamp(self) -> dict[str, Any]:
        self.sequence += 1
        return {"gateway": self.name, "boot": "b1", "sequence": self.sequence}


def good(question: Question) -> Answer:
    """One answer in a hundred fails; latency is lognormal."""
    if question.chance.random() < 0.01:
        return Answer(failed=True)
    return Answer(ttft=0.05 * question.chance.lognormvariate(0, 0.25))


def newcomer(number: int, chance: random.Random) -> User:
    """One to four requests, two in the mean."""
    return User(f"user-{number}", requests=1 + min(3, int(chance.expovariate(1.0))))


def silent(question: Question, answer: Answer) -> list[tuple[str, float]]:
    """Nobody says anything."""
    return []


class Crowd:
    """All traffic of one service. Replace `answer`, `says`, `newcomer`, `obeys` or `spoils` to make it adverse."""

    def __init__(self, store: Store, clock: HandClock, service: LLMService, gateways: int = 2, seed: int = 1) -> None:
        self._store, self._clock, self._service = store, clock, service
        self._chance = random.Random(seed)
        self.doors = [Door(f"g{number + 1}", Assigner(b"key", 0.1)) for number in range(gateways)]
        self.answer: Callable[[Question], Answer] = good
        self.says: Callable[[Question, Answer], list[tuple[str, float]]] = silent
        self.newcomer: Callable[[int, random.Random], User] = newcomer
        self.regulars: list[tuple[User, float]] = []
        """Users who ask all the time, so many requests a second."""
        self.obeys: Callable[[Route], Route] = lambda route: route
        """The route as the gateways have it."""
        self.spoils: Callable[[Door, Placement], Placement] = lambda door, placement: placement
        self._number = self._requests = 0
        self._load: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._due: list[tuple[float, int, User]] = []

    def pass_time(self, seconds: float, users: float) -> None:
        """So many new users come, evenly; those who are there go on asking; then the gateways renew their leases."""
        start, end = self._clock.now, self._clock.now + seconds
        published = self._store.route(self._service.name)
        if published is not None:
            entry = Entry(self.obeys(published))
            self._invite(start, seconds, users)
            now = sorted(item for item in self._due if item[0] < end)
            self._due = [item for item in self._due if item[0] >= end]
            asked: Counter[str] = Counter()
            records = [record for at, _, user in now for record in self._ask(entry, user, at, asked)]
            self._load = {revision: count / seconds for revision, count in asked.items()}
            self._clock.now = end
            self._store.write(records)
        self._clock.now = end
        self.renew()

    def renew(self) -> None:
        """The gateways live, obey the newest route, and have delivered everything."""
        routes = {name: route.version for name, route in self._store.routes({}).items()}
        now = self._clock.now
        for door in self.doors:
            self._store.renew_lease(GatewayLease(door.name, "b1", None, routes, now, now + 120, door.sequence, 0, 0))

    def _invite(self, start: float, seconds: float, users: float) -> None:
        whole = int(users) + (self._chance.random() < users % 1)
        for index in range(whole):
            self._number += 1
            user = self.newcomer(self._number, self._chance)
            at = start + seconds * (index + 0.5) / whole
            self._due += [(at + turn * user.pause, self._number, user) for turn in range(user.requests)]
        for user, rate in self.regulars:
            count = round(rate * seconds)
            self._due += [(start + seconds * turn / count, 0, user) for turn in range(count)]

    def _ask(self, entry: Entry, user: User, at: float, asked: Counter[str]) -> list[Record]:
        self._requests += 1
        door = self.doors[self._requests % len(self.doors)]
        unit = door.assigner.unit(Caller("key", user.tenant, frozenset(), None), user.name)
        placement = self.spoils(door, door.assigner.place(entry, unit, lease_valid=True, candidate_allowed=True))
        route, name = entry.route, f"request-{self._requests:07}"
        asked[placement.target.revision] += 1
        common: dict[str, Any] = {
            "service": route.service, "rollout": route.rollout, "unit": unit, "route_version": route.version, "step": route.step,
        }  # fmt: skip
        records: list[Record] = []
        if placement.exposed and placement.bucket is not None:
            horizon = at + route.horizon
            records.append(
                Exposure(
                    **common, arm=placement.arm, bucket=placement.bucket, first_at=at, horizon_at=horizon,
                    closes_at=horizon + route.settle, **door.stamp(),
                )
            )  # fmt: skip
        revision, version = placement.target.revision, placement.target.version
        question = self._question(revision, version, user, at, self._load.get(revision, 0.0))
        answer = self.answer(question)
        extra: dict[str, Any] = {"bucket": placement.bucket, "counted": placement.counted, "tenant": user.tenant}
        records.append(_row(name, answer, at, common | extra, placement.arm, revision, door))
        if not answer.left:
            for place, (kind, value) in enumerate(self.says(question, answer)):
                mark: dict[str, Any] = {"id": f"{name}-{place}", "request_id": name, "kind": kind, "value": value}
                records.append(Feedback(service=route.service, at=at + 1.0, **mark, **door.stamp()))
        if route.stage == "rehearsal" and route.candidate is not None and placement.counted:
            for arm, side in (("candidate", route.candidate), ("control", route.stable)):
                asked_again = self._question(side.revision, side.version, user, at, MIRRORED_LOAD)
                copy = replace(self.answer(replace(asked_again, mirrored=True)), streamed=True)
                paired = {"kind": "mirror", "pair": name, "tenant": user.tenant}
                records.append(_row(f"{name}-{arm}", copy, at, common | paired, arm, side.revision, door))
        return records

    def _question(self, revision: str, version: str, user: User, at: float, load: float) -> Question:
        first = self._first.setdefault(revision, at)
        return Question(version, user, at, load, at - first, self._chance)


def _row(
    name: str, answer: Answer, at: float, common: dict[str, Any], arm: Any, revision: str, door: Door
) -> Observation:
    none = answer.failed or answer.left
    tokens = answer.tokens or 20
    return Observation(
        **common, request_id=name, revision=revision, arm=arm, started_at=at, streamed=answer.streamed,
        ttft=None if none or not answer.streamed else answer.ttft, gap_mean=None if none else answer.gap,
        duration=(answer.ttft or 0.05) + (answer.gap or 0.01) * tokens, tokens_out=None if none else answer.tokens,
        outcome="error" if answer.failed else "cancelled" if answer.left else "ok", status=500 if answer.failed else 200,
        **door.stamp(),
    )  # fmt: skip
