"""What people order: abort, promote, pause, resume, approve, pin, unpin; and `rollout.paused` in the resource. Part of `decide`; pure.

Every command is answered once. Its answer stays in the status until the store has it, so that a crash between the two obeys nothing twice.
"""

from __future__ import annotations

from services.rollout import reasons
from services.rollout.actions import AnswerCommand, SetChallenger
from services.rollout.deliberation import Deliberation
from services.rollout.engines import await_candidate
from services.rollout.watch import roll_back
from services.store import Command


def obey(d: Deliberation) -> None:
    """Obeys or refuses each pending command, in the order of their coming."""
    _follow_resource(d)
    answered = dict(d.rollout.answered) if d.has_rollout else {}
    pending = {command.id for command in d.observed.commands}
    kept = {id_: answer for id_, answer in answered.items() if id_ in pending}
    for command in d.observed.commands:
        if command.id not in kept:
            kept[command.id] = _obey(d, command)
        d.actions.append(AnswerCommand(command.id, kept[command.id]))
    if d.has_rollout and kept != answered:
        d.change(answered=kept)


def _obey(d: Deliberation, command: Command) -> str:
    if command.verb in ("pin", "unpin"):
        return _note_pins(d, command)
    if not d.has_rollout:
        return "refused: the service has had no rollout"
    rollout = d.rollout
    if command.rollout is not None and command.rollout != rollout.id:
        return f"refused: the newest rollout is {rollout.id}"
    if not rollout.active:
        return _revive(d, command)
    if rollout.stage == "watch":
        return _in_watch(d, command)
    if command.verb == "abort":
        d.finish("abort", reasons.ABORTED_BY_COMMAND, command.note or "aborted by command", actor=command.actor)
        return "aborted"
    if command.verb == "promote":
        return _promote(d, command)
    if command.verb == "pause":
        if d.paused:
            return "it is paused already"
        pause(d, "command", command.actor)
        return "paused"
    if command.verb == "resume":
        return _resume(d, command)
    if rollout.stage != "canary":
        return "refused: only canary steps are approved"
    if rollout.step not in rollout.approved:
        d.change(approved=(*rollout.approved, rollout.step))
        d.emit("approve", reasons.APPROVED, command.note or f"step {rollout.step + 1} is approved", actor=command.actor)
    return f"step {rollout.step + 1} is approved"


def _note_pins(d: Deliberation, command: Command) -> str:
    """The resource says what is pinned; the order that came with the change says who changed it, and why."""
    pinned = d.service.spec.model.pinned
    now = f"pinned: {', '.join(f'v{version}' for version in pinned)}" if pinned else "no version is pinned"
    reason = reasons.VERSION_PINNED if command.verb == "pin" else reasons.VERSION_UNPINNED
    d.emit(command.verb, reason, f"{command.note}; {now}" if command.note else now, actor=command.actor)
    return now


def _revive(d: Deliberation, command: Command) -> str:
    rollout, aliases = d.rollout, d.observed.aliases
    if command.verb == "resume" and rollout.verdict == "error" and rollout.trigger == "challenger":
        if aliases is None or not aliases.fresh:
            return "refused: the registry cannot be reached"
        if aliases.challenger is not None and aliases.challenger.version != rollout.version:
            return f"refused: v{aliases.challenger.version} is the challenger now"
        d.actions.append(SetChallenger(rollout.version))
        d.change(debt=rollout.debt.model_copy(update={"challenger": False}))
        return f"v{rollout.version} starts again under a new rollout"
    return f"refused: rollout {rollout.id} has ended with {rollout.verdict}"


def _in_watch(d: Deliberation, command: Command) -> str:
    if command.verb == "abort":
        roll_back(d, reasons.ABORTED_BY_COMMAND, command.note or "rolled back by command", actor=command.actor)
        return "rolled back"
    if command.verb == "promote":
        return "it is promoted already"
    return "refused: the candidate is promoted; only abort is possible in the rollback window"


def _promote(d: Deliberation, command: Command) -> str:
    if d.rollout.stage == "gate" or not await_candidate(d) or d.candidate is None:
        return "refused: the candidate's engine is not ready"
    if d.frozen is not None:
        return f"refused: {d.frozen} (spec.rollout.freezeWindows)"
    d.promote(reasons.PROMOTED_BY_COMMAND, command.note or "promoted by command", d.candidate, actor=command.actor)
    return "promoted"


def _resume(d: Deliberation, command: Command) -> str:
    rollout = d.rollout
    if d.paused:
        resume(d, command.actor)
        return "resumed"
    if rollout.held_since is None:
        return "it is neither paused nor held"
    weight = d.rules.spec.rollout.canary.steps[rollout.step].weight if rollout.stage == "canary" else 0.0
    d.change(verdict="continue", reason="", message="", held_since=None, stage_started_at=None, weight=weight)
    d.emit("resume", reasons.RESUMED, command.note or "resumed; the stage's time starts anew", actor=command.actor)
    return "resumed"


def _follow_resource(d: Deliberation) -> None:
    if not d.active or not d.rollout.undecided:
        return
    wanted = d.service.spec.rollout.paused
    if wanted and not d.paused:
        pause(d, "resource", "resource")
    elif not wanted and d.rollout.paused_by == "resource":
        resume(d, "resource")


def pause(d: Deliberation, by: str, actor: str) -> None:
    """Keeps the rollout where it is; harm still ends it."""
    d.change(paused_since=d.now, paused_by=by)
    d.emit("pause", reasons.PAUSED, f"paused by {by}", actor=actor)


def resume(d: Deliberation, actor: str) -> None:
    """Goes on; the pause does not count as stage time."""
    started, since = d.rollout.stage_started_at, d.rollout.paused_since or d.now
    moved = None if started is None else started + (d.now - max(since, started))
    d.change(paused_since=None, paused_by=None, stage_started_at=moved)
    d.emit("resume", reasons.RESUMED, "resumed", actor=actor)
