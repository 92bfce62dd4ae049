"""The stage after promotion: the old revision stays warm, the new one is compared with frozen history. Part of `decide`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.common.routing import Target
from services.rollout import reasons
from services.rollout.deliberation import Deliberation
from services.rollout.resources import split_key
from services.rollout.status import Debt, RolloutStatus


def watch(d: Deliberation) -> None:
    """Rolls back on an alarm; ends when the window is over or a person starts something new."""
    rollout = d.rollout
    if d.evidence.alarm is not None:
        alarm = d.evidence.alarm
        roll_back(
            d, reasons.WATCH[split_key(alarm.metric)[0]], alarm.message, metric=alarm.metric, evidence=alarm.evidence
        )
        return
    if rollout.stage_started_at is None:
        if not d.observed.acknowledged and d.observed.gateways > 0:
            d.wait(reasons.AWAITING_GATEWAYS, "waiting for the gateways to acknowledge the new stable")
            return
        d.start_clock()
    elapsed = d.elapsed or 0.0
    window = d.rules.spec.rollout.rollback_window
    challenger = d.observed.aliases.challenger if d.observed.aliases else None
    if elapsed >= window or (challenger is not None and challenger.version != rollout.version):
        d.change(stage="finished", previous=None)
        d.emit(
            "watch",
            reasons.WATCH_ENDED,
            "the rollback window is over" if elapsed >= window else "a new challenger ends the watch",
        )
        return
    watched = f"; watched: {', '.join(d.evidence.watched)}" if d.evidence.watched else ""
    d.wait(reasons.AWAITING_EVIDENCE, f"old revision warm for {window - elapsed:.0f} s more{watched}")


def roll_back(
    d: Deliberation,
    reason: str,
    message: str,
    *,
    metric: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    actor: str = "controller",
) -> None:
    """The old target serves again at once, and the registry is told."""
    rollout = d.rollout
    if rollout.previous is None:
        return
    d.stable = msgspec.convert(rollout.previous, Target)
    d.change(
        verdict="abort",
        reason=reason,
        message=message,
        metric=metric,
        decided_in="watch",
        decided_at=d.now,
        stage="finished",
        debt=_debt(rollout),
    )
    d.emit("abort", reason, message, evidence or {}, actor)


def _debt(rollout: RolloutStatus) -> Debt:
    """Takes the alias back where the registry was told of the promotion; where it was not, the debt is settled at the next look."""
    if rollout.trigger == "specification":
        return Debt()
    return Debt(champion=rollout.champion_version, expected=rollout.version, challenger=True, tag=True)
