"""What was recorded of a rollout, played to the controller's own loop: the store as it was at each look, and what was seen outside. Used by
`replay` alone.

Writes nothing into the store. What no row tells (engines, capacity, the registry) is taken to have been there, but for stages whose rules
are unchanged: what held one back then, holds it back again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgspec

from services.common.routing import Route
from services.rollout import reasons
from services.rollout.actions import Action
from services.rollout.execute import Executor
from services.rollout.observe import Observer, Sight
from services.rollout.observed import Aliases, Identity, Observed, Refusal, VersionInfo
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from services.rollout.revisions import engine_of
from services.rollout.status import Condition, Counts, Debt, RolloutStatus
from services.store import AuditEntry, ClosedUnit, Command, ExperimentRow, Judgement, MirroredPair, RolloutRow, Store

Place = tuple[str, int]
"""Stage and step."""
REHEARSAL: Final[Place] = ("rehearsal", 0)
FINISHED: Final[Place] = ("finished", 0)
_PASSED: Final = frozenset({reasons.GATE_PASSED, reasons.GATE_SKIPPED})
_WATCHED: Final = frozenset(reasons.WATCH.values())
_EVERY: Final = 1_000_000


class Moment(NamedTuple):
    """One look: its time, and the watermark and the judgement up to which it had folded."""

    at: float
    until: float
    judged: int


@dataclass(frozen=True, slots=True)
class Course:
    """What became of a recorded rollout, and when."""

    status: RolloutStatus
    rules: LLMService
    began: float
    """When the rehearsal was entered."""
    ended: float
    """The last moment of which there is a record."""
    looks: tuple[Moment, ...]
    """When the controller looked and something was new."""
    clocks: tuple[float, ...]
    """When a stage's clock started."""
    places: tuple[tuple[float, Place], ...]
    """When which stage and step was entered."""
    orders: tuple[Command, ...]
    pauses: tuple[tuple[float, bool], ...]
    """When the resource paused the rollout, and let it go on."""
    route: Route
    """The route before the rollout's first."""

    def place(self, at: float) -> Place:
        """Where the rollout stood."""
        return next(place for entered, place in reversed(self.places) if entered <= at)

    def left(self, place: Place) -> float:
        """When it left a stage or step; infinite where it did not."""
        after = (entered for (_, before), (entered, _) in itertools.pairwise(self.places) if before == place)
        return next(after, float("inf"))


def course_of(store: Store, row: RolloutRow) -> Course | None:
    """The record of a rollout; None where it did not come to the rehearsal, so that there is nothing to play.

    Raises:
        pydantic.ValidationError: row or resource are of another version of the platform.
    """
    status = RolloutStatus.model_validate(row.status)
    audit = sorted(store.audit(rollout=row.id, limit=_EVERY), key=lambda entry: (entry.at, entry.id or 0))
    began = next((entry.at for entry in audit if entry.reason in _PASSED), None)
    history = store.route_history(row.service)
    before = [route for _, route in history if route.rollout != row.id]
    if began is None or not before or status.decided_in == "gate":
        return None
    # A store written before these were kept: the time of the look stands in for them.
    folded = {
        r["at"]: Moment(r["at"], r.get("until", r["at"]), r.get("judged", _EVERY)) for r in store.readings(row.id)
    }
    for entry in audit:
        if entry.reason in _WATCHED:
            folded[entry.at] = Moment(entry.at, entry.evidence.get("until", entry.at), _EVERY)
    ended = row.finished_at or max([began, *folded, *(entry.at for entry in audit)])
    last, looks = Moment(began, began, 0), []
    for at in sorted({*folded, *(entry.at for entry in audit), began}):
        last = folded.get(at, last._replace(at=at))
        if began <= at <= ended:
            looks.append(last)
    return Course(
        status=status,
        rules=LLMService.model_validate(row.spec),
        began=began,
        ended=ended,
        looks=tuple(looks),
        clocks=tuple(entry.at for entry in audit if entry.reason == reasons.STAGE_RUNNING),
        places=tuple(_places(audit, began)),
        orders=tuple(one for one in store.commands(row.service, pending=False) if _meant(one, row, ended)),
        pauses=tuple((e.at, e.action == "pause") for e in audit if e.actor == "resource"),
        route=next(
            (route for _, route in reversed(history) if route.rollout is None and _older(history, route, row)),
            before[0],
        ),
    )


def _meant(order: Command, row: RolloutRow, ended: float) -> bool:
    """Whether a person's order was for this rollout: by its id, or by its time."""
    return order.rollout == row.id or (order.rollout is None and row.started_at <= order.at <= ended)


def _older(history: Sequence[tuple[float, Route]], route: Route, row: RolloutRow) -> bool:
    first = next((one.version for _, one in history if one.rollout == row.id), None)
    return first is None or route.version < first


def _places(audit: Sequence[AuditEntry], began: float) -> Iterator[tuple[float, Place]]:
    yield began, REHEARSAL
    step = -1
    for entry in audit:
        if entry.reason in (reasons.REHEARSAL_PASSED, reasons.STEP_PASSED):
            step += 1
            yield entry.at, ("canary", step)
        elif entry.action == "advance":
            yield entry.at, ("watch", 0)
        elif entry.action in ("abort", "error") or entry.reason == reasons.WATCH_ENDED:
            yield entry.at, FINISHED


def beginning(status: RolloutStatus) -> RolloutStatus:
    """The rollout as it was when it entered the rehearsal, its engine ready."""
    kept = status.model_copy(
        update={"counts": Counts(), "debt": Debt(), "approved": (), "conditions": (), "answered": {}}
    )
    none = dict.fromkeys(
        ("stage_started_at", "metric", "decided_in", "decided_at", "finished_at", "held_since", "paused_since", "paused_by", "ratio",
         "previous", "waiting_since")
    )  # fmt: skip
    place = {"stage": "rehearsal", "step": 0, "weight": 0.0, "admitted": True}
    return kept.model_copy(update={**none, **place, "verdict": "continue", "reason": "", "message": ""})


class RecordedStore(Store):
    """The store as it was at a moment; what a look writes is kept here and nowhere else."""

    def __init__(self, store: Store, row: RolloutRow, course: Course, step_of: Callable[[ClosedUnit], int]) -> None:
        super().__init__(store.url, store._database)
        status = beginning(course.status)
        self.now_at = Moment(course.began, course.began, 0)
        self.row = replace(row, stage=status.stage, status=status.to_json(), finished_at=None)
        self.route_now = course.route
        self.told: list[AuditEntry] = []
        """The audit trail of the replay."""
        self._step_of = step_of

    def commit_look(
        self,
        row: RolloutRow,
        *,
        evidence: Mapping[str, Any] | None,
        readings: Sequence[Mapping[str, Any]] = (),
        at: float,
        audit: Sequence[AuditEntry] = (),
        route: Route | None = None,
    ) -> None:
        self.row = row
        self.told += audit
        if route is not None:
            self.publish_route(route)

    def append_audit(self, entries: Sequence[AuditEntry]) -> None:
        self.told += entries

    def experiments(self, service: str | None = None) -> list[ExperimentRow]:
        """None: a rollout's users take part in no experiment, so none has a say in it."""
        return []

    def commit_experiment(
        self,
        row: ExperimentRow,
        *,
        at: float,
        evidence: Mapping[str, Any] | None = None,
        readings: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """A replay begins and ends none."""

    def keep_state(self, name: str, at: float, document: Mapping[str, Any]) -> None:
        """A replay looks at a rollout, not at what serves today."""

    def publish_route(self, route: Route) -> Route:
        self.route_now = msgspec.structs.replace(route, version=self.route_now.version + 1)
        return self.route_now

    def evidence(self, rollout: str) -> None:
        """Every replay folds from the start."""
        return

    def late_rows(self, rollout: str, since: float, watermark: float) -> int:
        return 0

    def assignment_faults(self, rollout: str, as_of: float | None = None) -> int:
        return super().assignment_faults(rollout, self.now_at.at)

    def closed_units(
        self,
        rollout: str,
        after: tuple[float, str],
        until: float,
        limit: int = 20_000,
        as_of: float | None = None,
    ) -> list[ClosedUnit]:
        found = super().closed_units(rollout, after, until, limit, self.now_at.at)
        return [
            replace(unit, exposure=msgspec.structs.replace(unit.exposure, step=self._step_of(unit))) for unit in found
        ]

    def first_visits(
        self,
        service: str,
        revision: str,
        since: float,
        after: tuple[float, str],
        until: float,
        horizon: float,
        settle: float,
        limit: int = 20_000,
        as_of: float | None = None,
    ) -> list[ClosedUnit]:
        return super().first_visits(service, revision, since, after, until, horizon, settle, limit, self.now_at.at)

    def mirrored_pairs(
        self,
        rollout: str,
        after: tuple[float, str],
        until: float,
        settle: float,
        limit: int = 20_000,
        as_of: float | None = None,
    ) -> list[MirroredPair]:
        return super().mirrored_pairs(rollout, after, until, settle, limit, self.now_at.at)

    def judgements(self, rollout: str, after: int, limit: int = 20_000) -> list[Judgement]:
        found = super().judgements(rollout, after, limit)
        return [one for one in found if one.sequence <= self.now_at.judged]


class RecordedObserver(Observer):
    """Shows the loop what was outside at the store's moment."""

    def __init__(self, store: RecordedStore, course: Course, rules: LLMService, identity: Identity) -> None:
        super().__init__(store, None, None, None, "")  # type: ignore[arg-type]  # neither registry nor platform is asked
        self._recorded, self._course, self._rules, self._none = store, course, rules, identity
        self.status = beginning(course.status)
        self._handed: set[str] = set()
        self.clocks = 0
        """Stages' clocks that the replay has started."""
        self.faithful = True
        """Whether the replay has been where the rollout was, so far."""
        self.held_back = False
        """Whether something outside keeps the stage from ending."""

    async def look(
        self,
        service: LLMService,
        conditions: tuple[Condition, ...],
        refused: Mapping[str, Refusal],
        tried: tuple[str, ...] = (),
    ) -> Sight:
        route, status, at = self._recorded.route_now, self.status, self._recorded.now_at.at
        orders = tuple(order for order in self._course.orders if order.at <= at and order.id not in self._handed)
        self._handed.update(order.id for order in orders)
        promoted = status.stage == "watch" or status.decided_in == "watch"
        observed = Observed(
            route=route,
            gateways=1,
            acknowledged=self._acknowledged(status, at),
            rollout=status,
            rules=self._rules,
            conditions=conditions,
            aliases=Aliases(
                champion=_version(status.version if promoted else status.champion_version),
                challenger=_version(status.version) if status.trigger == "challenger" and not promoted else None,
                fresh=not self.held_back,
            ),
            engines=self._engines_then(route, status),
            commands=orders,
            identity=self._none,
        )
        return Sight(observed, self._recorded.row, at, self._recorded.now_at.until)

    def _acknowledged(self, status: RolloutStatus, at: float) -> bool:
        """A stage's clock starts when it did, as long as the replay is where the rollout was; the canary's never before it had users."""
        started = sum(1 for clock in self._course.clocks if clock <= at)
        if status.stage == "watch":
            return True
        if self.faithful or (status.stage == "canary" and status.step == 0):
            return started > self.clocks
        return True

    def _engines_then(self, route: Route, status: RolloutStatus) -> dict[str, RevisionState]:
        """Ready and enough; none of the candidate's replicas is where something holds the stage back."""
        many = self._rules.spec.engine.autoscaling.max
        stable = {engine_of(route.stable), route.stable.model}
        names = {*stable, status.engine, *((status.revision,) if status.kind == "adapter" else ())}
        if status.previous is not None:
            names |= {str(status.previous["model"])}
        return {
            name: RevisionState(
                name, "ready", 0 if self.held_back and name not in stable else many, "http://recorded/v1", ""
            )
            for name in names
        }


class IdleExecutor(Executor):
    """Does nothing outside."""

    def __init__(self) -> None:
        pass

    @property
    def refused(self) -> dict[str, Refusal]:
        return {}

    def forgive(self) -> None:
        pass

    async def run(
        self, service: LLMService, rules: LLMService, actions: Sequence[Action], rollout: str | None = None
    ) -> None:
        pass

    async def close(self) -> None:
        pass


def _version(number: str) -> VersionInfo:
    return VersionInfo(number, "", {}, None)
