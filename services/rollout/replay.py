"""Past rollouts under other rules: the controller's own loop over what was recorded. Called by `understudy replay`; writes nothing.

With its own rules a rollout comes out as it did. With others it goes on as long as the record tells what would have been: not beyond the
moment when the rollout ended, and with the users that its own steps gave to the arms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from services.rollout import reasons
from services.rollout.forecast import lasting
from services.rollout.observed import Identity
from services.rollout.reconcile import Reconciler
from services.rollout.recorded import (
    REHEARSAL,
    Course,
    IdleExecutor,
    Moment,
    Place,
    RecordedObserver,
    RecordedStore,
    course_of,
)
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.store import ClosedUnit, RolloutRow, Store

OUTSIDE: Final = frozenset(
    {
        reasons.ENGINE_FAILED,
        reasons.ENGINE_START_TIMEOUT,
        reasons.ARTIFACT_MISSING,
        reasons.ARTIFACT_MISMATCH,
        reasons.BASE_NOT_CHAMPION,
        reasons.ADAPTER_REFUSED,
        reasons.KIND_UNSUPPORTED,
        reasons.CHALLENGER_MOVED,
        reasons.CHALLENGER_DELETED,
        reasons.CHAMPION_MOVED,
        reasons.SERVICE_DELETED,
    }
)
"""Ends that no rule of a rollout decides."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a rollout, or would have. `unknown`: the record ends before these rules decide."""

    verdict: str
    reason: str
    message: str
    metric: str | None
    stage: str
    step: int
    at: float | None
    """When; None: it goes on."""
    control: int
    candidate: int
    pairs: int

    def same_as(self, other: Outcome) -> bool:
        """Whether verdict, reason, place and moment are the same."""
        mine, theirs = ((o.verdict, o.reason, o.metric, o.stage, o.step, o.at) for o in (self, other))
        return mine == theirs


@dataclass(frozen=True, slots=True)
class Replay:
    """One rollout beside itself."""

    row: RolloutRow
    recorded: Outcome
    replayed: Outcome
    limits: tuple[str, ...] = field(default=())
    """What cannot be known, and what was taken as recorded."""


async def replay(
    store: Store, row: RolloutRow, rules: LLMService | None = None, tell: Callable[[float], None] = lambda _: None
) -> Replay:
    """Plays a rollout again. `rules`: a resource whose `rollout` counts instead of the recorded one; None: its own. `tell`: gets the
    share that is done.

    Raises:
        pydantic.ValidationError: the row is of another version of the platform.
        StoreError: the store could not be read.
    """
    status = RolloutStatus.model_validate(row.status)
    recorded = _outcome(status)
    course = course_of(store, row)
    if course is None:
        return Replay(
            row, recorded, recorded, ("it ended before any user's request was copied; nothing can be played",)
        )
    own = course.rules
    theirs = own if rules is None else _with_rollout(own, rules)
    player = _Player(store, row, course, theirs)
    limits = list(_limits(own, rules) if rules is not None else ())
    for number, moment in enumerate(player.moments()):
        tell(number / max(1, len(course.looks)))
        if await player.look(moment):
            break
    played = player.status
    end = lasting(course.ended - row.started_at)
    if not played.undecided:
        outcome = _outcome(played)
    elif not status.active and status.reason in OUTSIDE and player.stopped is None:
        outcome = recorded
        limits.append(f"it was ended from outside ({status.reason}), whatever the rules")
    elif status.active:
        outcome = _outcome(played)
    elif played.verdict == "hold":
        outcome = _outcome(played)
        if status.verdict != "hold":
            limits.append(f"a person would have had to decide; the record ends after {end}")
    else:
        why = player.stopped or f"the record ends after {end}, when its own rules decided; these would have gone on"
        outcome = _outcome(played, verdict="unknown", message=why)
        limits.append(why)
    if player.parted_at is not None and rules is not None and own.spec.rollout.canary != theirs.spec.rollout.canary:
        limits.append("its users were given to the arms by the recorded steps, not by these")
    return Replay(row, recorded, outcome, tuple(limits))


class _Player:
    """The controller's loop, put before the record."""

    def __init__(self, store: Store, row: RolloutRow, course: Course, rules: LLMService) -> None:
        self._course, self._rules = course, rules
        self._own = rules == course.rules
        self._store = RecordedStore(store, row, course, self._step_of)
        self._observer = RecordedObserver(self._store, course, rules, Identity("", ""))
        self._loop = Reconciler(rules, self._store, self._observer, IdleExecutor())
        self._steps: list[float] = []
        """When the replay entered each canary step."""
        self.parted_at: float | None = None
        """Since when the replay is elsewhere than the rollout was."""
        self.stopped: str | None = None
        """Why nothing more can be known, before the record's end."""

    @property
    def status(self) -> RolloutStatus:
        """Where the replay stands."""
        return self._observer.status

    def moments(self) -> Iterator[Moment]:
        """The recorded looks; for other rules also those at which nothing was new then: time alone may decide."""
        interval = self._course.rules.spec.rollout.look
        last: Moment | None = None
        for moment in self._course.looks:
            while not self._own and last is not None and moment.at - last.at > 1.5 * interval:
                last = last._replace(at=last.at + interval)
                yield last
            yield moment
            last = moment

    async def look(self, moment: Moment) -> bool:
        """One look; True: there is nothing more to see."""
        before = _place(self.status)
        self._store.now_at = moment
        self._observer.held_back = self._held_back(before, moment.at)
        self._loop.service = self._paused(moment.at)
        told = len(self._store.told)
        decision = await self._loop.look()
        status = decision.status.rollout
        assert status is not None  # noqa: S101  a rollout that began does not vanish
        self._observer.status = status
        new = self._store.told[told:]
        self._observer.clocks += sum(entry.reason == reasons.STAGE_RUNNING for entry in new)
        if status.stage == "canary" and _place(status) != before:
            self._steps.append(moment.at)
        return self._compare(status, moment.at)

    def _compare(self, status: RolloutStatus, at: float) -> bool:
        there, here = self._course.place(at), _place(status)
        if here != there and self.parted_at is None:
            self.parted_at, self._observer.faithful = at, False
        if not status.active:
            return True
        if status.stage == "watch":
            if self.parted_at is not None:
                return True  # what the watch would have seen was not recorded
        elif here == REHEARSAL and there[0] == "canary":
            pairs = status.counts.pairs
            self.stopped = (
                f"the rehearsal was over with {pairs:,} pairs; these rules ask for more, which were never mirrored"
            )
            return True
        return False

    def _held_back(self, place: Place, at: float) -> bool:
        """Whether the stage lasted longer than its rules asked, which are unchanged: then something outside did it."""
        if self.parted_at is not None or place[0] not in ("rehearsal", "canary"):
            return False
        ours, theirs = self._rules.spec.rollout, self._course.rules.spec.rollout
        guards = (ours.alpha, ours.guardrails) == (theirs.alpha, theirs.guardrails)
        if place == REHEARSAL:
            same = ours.rehearsal == theirs.rehearsal and guards
        else:
            last = place[1] == len(ours.canary.steps) - 1
            was_last = place[1] == len(theirs.canary.steps) - 1
            same = (
                last == was_last
                and ours.canary.steps[place[1]] == theirs.canary.steps[place[1]]
                and (guards or not last)
            )
        return same and at < self._course.left(place)

    def _paused(self, at: float) -> LLMService:
        """The resource as it was then, as far as it paused the rollout."""
        paused = next((on for since, on in reversed(self._course.pauses) if since <= at), False)
        if paused == self._loop.service.spec.rollout.paused:
            return self._loop.service
        rollout = self._rules.spec.rollout.model_copy(update={"paused": paused})
        return self._rules.model_copy(update={"spec": self._rules.spec.model_copy(update={"rollout": rollout})})

    def _step_of(self, unit: ClosedUnit) -> int:
        """The step that the unit met: as recorded while the replay was where the rollout was, by time since."""
        exposure = unit.exposure
        if self.parted_at is None or exposure.first_at <= self.parted_at:
            return min(exposure.step, len(self._rules.spec.rollout.canary.steps) - 1)
        return max(0, sum(entered <= exposure.first_at for entered in self._steps) - 1)


def _place(status: RolloutStatus) -> Place:
    return status.stage, status.step if status.stage == "canary" else 0


def _outcome(status: RolloutStatus, verdict: str | None = None, message: str | None = None) -> Outcome:
    counts = status.counts
    return Outcome(
        verdict=verdict or status.verdict,
        reason=status.reason if verdict is None else "",
        message=message if message is not None else status.message,
        metric=status.metric,
        stage=status.decided_in or status.stage,
        step=status.step,
        at=status.decided_at or status.held_since if verdict is None else None,
        control=counts.users_control,
        candidate=counts.users_candidate,
        pairs=counts.pairs,
    )


def _with_rollout(own: LLMService, other: LLMService) -> LLMService:
    """The recorded resource with the other's rules; what the gateways had measured by stays as it was."""
    mine, theirs = own.spec.rollout, other.spec.rollout
    kept = {"horizon": mine.horizon, "settle": mine.settle, "look": mine.look, "paused": mine.paused}
    rehearsal = theirs.rehearsal.model_copy(
        update={"share": mine.rehearsal.share, "in_flight": mine.rehearsal.in_flight}
    )
    rollout = theirs.model_copy(update={**kept, "rehearsal": rehearsal})
    spec = own.spec.model_copy(update={"rollout": rollout, "privacy": other.spec.privacy})
    return own.model_copy(update={"spec": spec})


def _limits(own: LLMService, other: LLMService) -> Iterator[str]:
    mine, theirs = own.spec.rollout, other.spec.rollout
    changed = [name for name in ("horizon", "settle") if getattr(mine, name) != getattr(theirs, name)]
    changed += [
        f"rehearsal.{n}" for n in ("share", "in_flight") if getattr(mine.rehearsal, n) != getattr(theirs.rehearsal, n)
    ]
    if changed:
        yield f"{', '.join(changed).replace('in_flight', 'inFlight')} stay as recorded: users were measured by them"
    if mine.gate != theirs.gate:
        yield "the gate stays as recorded: its items are not in the store"
    if any(g.metric == "judge" for g in theirs.guardrails) and not own.judged:
        yield "nothing was judged then, so a guardrail on judge says nothing"
