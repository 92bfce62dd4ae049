"""What a look does about a stable that has drifted: tells it, and what the judge said since; or takes the promotion back; or that users ask
something else. Part of `decide`; pure. What has drifted is `drift`'s and `prompt_drift`'s to say."""

from __future__ import annotations

from services.rollout import reasons
from services.rollout.deliberation import Deliberation
from services.rollout.resources import split_key
from services.rollout.resources_metrics import LENGTHS
from services.rollout.status import Debt


def answer_drift(d: Deliberation) -> None:
    """The condition `Drift`, its events, and `onAlarm`."""
    alarm, prompts = d.observed.drift, d.observed.prompts
    if alarm is None:
        if prompts is not None:
            d.condition("Drift", False, reasons.PROMPTS_DRIFTED, prompts.message)
        return
    asked = () if prompts is None else (prompts.message,)  # why, perhaps
    if d.observed.evaluated is not None:
        d.condition("Drift", False, reasons.DRIFT_EVALUATED, "; ".join((alarm.message, d.observed.evaluated, *asked)))
    else:
        d.condition("Drift", False, reasons.STABLE_DRIFTED, "; ".join((alarm.message, *asked)))
    worse = split_key(alarm.metric)[0] not in LENGTHS  # an answer's length is neither good nor bad
    if d.service.spec.drift.on_alarm == "rollBack" and worse and _last_promoted(d):
        rollout = d.rollout
        d.change(debt=Debt(champion=rollout.champion_version, expected=rollout.version), taken_back=True)
        message = f"{alarm.message}; champion is set back to v{rollout.champion_version}"
        d.emit("drift", reasons.DRIFT_ROLLED_BACK, message, alarm.evidence)


def _last_promoted(d: Deliberation) -> bool:
    """Whether stable is what the last rollout promoted over another version, and was not taken back before: who sets it up again then has
    decided. What it is set back to was not promoted last, so two versions that both drift do not take turns."""
    aliases = d.observed.aliases
    if d.active or not d.has_rollout or aliases is None or not aliases.fresh or aliases.owner is not None:
        return False
    rollout, champion = d.rollout, aliases.champion
    settled = rollout.verdict == "advance" and not rollout.debt.open and not rollout.taken_back
    serves = d.stable is not None and d.stable.revision == rollout.revision
    over = champion is not None and champion.version == rollout.version != rollout.champion_version
    return settled and serves and over
