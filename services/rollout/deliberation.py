"""A decision in the making: what was seen, the status as it changes, the actions wanted so far. One is made by each call of `decide` and
handed through the stages. Touches nothing outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from services.common.routing import Experiment, Target
from services.rollout.actions import Action, Emit
from services.rollout.freezing import frozen_until
from services.rollout.observed import EvidenceView, Observed
from services.rollout.resources import LLMService
from services.rollout.status import Condition, Debt, RolloutStatus, ServiceStatus, Verdict


class Beside(NamedTuple):
    """How it stands with one version that runs beside stable. `reason`: what is wrong with it; None: nothing, it serves or will."""

    message: str
    target: Target | None = None
    reason: str | None = None


class Deliberation:
    """`service`: the resource now. `rules`: the resource that the rollout began under."""

    def __init__(self, service: LLMService, observed: Observed, evidence: EvidenceView, now: float) -> None:
        self.service = service
        self.rules = observed.rules or service
        self.observed = observed
        self.evidence = evidence
        self.now = now
        self.actions: list[Action] = []
        self.stable: Target | None = observed.route.stable if observed.route else None
        """The stable target wanted from this look on."""
        self.candidate: Target | None = None
        """The candidate's target, once its engine has answered."""
        self.pinned: tuple[Target, ...] = ()
        """Targets of pinned versions whose engines have answered."""
        self.pinned_engines: set[str] = set()
        """What pinned versions and those of experiments need on the platform, answering or not."""
        self.beside: dict[str, Beside] = {}
        """How it stands with each of these versions."""
        self.experiments: tuple[Experiment, ...] = ()
        """What gateways shall be told of experiments."""
        self._rollout = observed.rollout
        self._conditions: dict[str, Condition] = {}
        self._waits: dict[str, Condition] = {}

    @property
    def rollout(self) -> RolloutStatus:
        """The newest rollout; only for code that knows there is one."""
        if self._rollout is None:
            raise LookupError(f"{self.service.name} has had no rollout")
        return self._rollout

    @property
    def has_rollout(self) -> bool:
        """Whether the service has ever had a rollout."""
        return self._rollout is not None

    @property
    def active(self) -> bool:
        """Whether a rollout is under way."""
        return self._rollout is not None and self._rollout.active

    @property
    def experimenting(self) -> bool:
        """Whether an experiment is under way."""
        return any(row.ended_at is None for row in self.observed.experiments)

    def open(self, rollout: RolloutStatus) -> None:
        """A new rollout takes the place of the last one."""
        self._rollout = rollout
        self.rules = self.service

    def change(self, **fields: Any) -> None:
        """Changes fields of the rollout's status."""
        self._rollout = self.rollout.model_copy(update=fields)

    def emit(
        self,
        action: str,
        reason: str,
        message: str,
        evidence: Mapping[str, Any] | None = None,
        actor: str = "controller",
    ) -> None:
        """An audit row."""
        self.actions.append(Emit(action, reason, message, evidence or {}, actor))

    def condition(self, type_: str, status: bool, reason: str, message: str) -> None:
        """Something about the service; audited when its reason is new."""
        self._conditions[type_] = Condition(type=type_, status=status, reason=reason, message=message)
        before = next((c for c in self.observed.conditions if c.type == type_), None)
        if before is None or (before.status, before.reason) != (status, reason):
            self.emit("condition", reason, message)

    def wait(self, reason: str, message: str) -> None:
        """What the rollout is waiting for."""
        self._waits["Waiting"] = Condition(type="Waiting", status=True, reason=reason, message=message)

    def note(self, type_: str, reason: str, message: str) -> None:
        """Something to know about the rollout, beside what it waits for."""
        self._waits[type_] = Condition(type=type_, status=True, reason=reason, message=message)

    @property
    def paused(self) -> bool:
        """Whether a person, by command or in the resource, keeps the rollout where it is."""
        return self.rollout.paused_since is not None

    @property
    def frozen(self) -> str | None:
        """Until when nothing may go forward, in words; None: nothing is frozen. By the resource as it is now, so that an edit lifts it."""
        until = frozen_until(self.service.spec.rollout.freeze_windows, self.now)
        return None if until is None else f"frozen until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC"

    def start_clock(self) -> None:
        """Every gateway obeys: the stage's (step's) time counts from now."""
        self.change(stage_started_at=self.now)

    @property
    def elapsed(self) -> float | None:
        """Seconds on the stage's clock; None while it has not started."""
        started = self.rollout.stage_started_at
        return None if started is None else max(0.0, (self.rollout.paused_since or self.now) - started)

    def readings(self) -> dict[str, Any]:
        """The present readings, for audit rows."""
        return {reading.metric: reading.to_json() for reading in self.evidence.readings}

    def finish(
        self, verdict: Verdict, reason: str, message: str, *, metric: str | None = None, actor: str = "controller"
    ) -> None:
        """Ends the rollout without the candidate: weight 0, engine to go, alias to clear, version to tag."""
        rollout = self.rollout
        mine = rollout.trigger == "challenger"
        self.change(
            verdict=verdict,
            reason=reason,
            message=message,
            metric=metric,
            decided_in=rollout.stage,
            decided_at=self.now,
            stage="finished",
            weight=0.0,
            admitted=False,
            debt=rollout.debt.model_copy(update={"challenger": mine, "tag": mine}),
        )
        self.emit(verdict, reason, message, self.readings(), actor)

    def promote(self, reason: str, message: str, target: Target, *, actor: str = "controller") -> None:
        """The candidate becomes stable; the old target stays warm through the watch."""
        rollout = self.rollout
        assert self.stable is not None  # noqa: S101  a rollout begins only where a route is
        mine = rollout.trigger == "challenger"
        self.change(
            verdict="advance",
            reason=reason,
            message=message,
            decided_in=rollout.stage,
            decided_at=self.now,
            stage="watch",
            stage_started_at=None,
            weight=0.0,
            admitted=False,
            held_since=None,
            paused_since=None,
            previous=msgspec.json.decode(msgspec.json.encode(self.stable)),
            debt=Debt(
                champion=rollout.version if mine else None,
                expected=rollout.champion_version if mine else None,
                challenger=mine,
                tag=mine,
            ),
        )
        self.stable = target
        self.emit("advance", reason, message, self.readings(), actor)

    def done(self) -> ServiceStatus:
        """The status after this look."""
        if self._rollout is not None:
            waits = tuple(self._waits.values()) if self._rollout.active else ()
            self._rollout = self._rollout.model_copy(update={"conditions": waits})
        return ServiceStatus(conditions=tuple(self._conditions.values()), rollout=self._rollout)
