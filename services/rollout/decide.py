"""The decision of one look: pure, so that every situation can be tested and any look repeated. Called by `reconcile` (file mode and cluster
alike); the stages are in `stages` and `watch`, what serves in `serving`.

    rollout: gate ─▶ rehearsal ─▶ canary 0 ─▶ … ─▶ canary n ─▶ watch ─▶ finished
               └─────────┴────────────┴──── abort, error ────────▲   (hold: stays until a person decides)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from services.rollout import commands, reasons
from services.rollout.actions import Action, ClearChallenger, SetChampion, TagVersion
from services.rollout.deliberation import Deliberation
from services.rollout.drift_answer import answer_drift
from services.rollout.experiment import experiment
from services.rollout.observed import EvidenceView, Observed, VersionInfo
from services.rollout.pinning import pin
from services.rollout.resources import LLMService
from services.rollout.revisions import SYSTEM_PROMPT, engine_name, engine_of, kind_of, revision_of, weights_of
from services.rollout.serving import no_lora, serve
from services.rollout.stages import canary, gate, rehearsal
from services.rollout.status import Debt, RolloutStatus, ServiceStatus
from services.rollout.watch import watch


class Decision(NamedTuple):
    """What to do, in order, and the status after it."""

    actions: tuple[Action, ...]
    status: ServiceStatus


_STAGES: Final[dict[str, Callable[[Deliberation], None]]] = {
    "gate": gate,
    "rehearsal": rehearsal,
    "canary": canary,
    "watch": watch,
}


def decide(service: LLMService, observed: Observed, evidence: EvidenceView, now: float) -> Decision:
    """What this look wants done and the status after it. `now` is the store's time, in seconds since the epoch.

    Wanting the same thing at every look until it is seen to be done is what makes a crash at any point harmless.
    """
    d = Deliberation(service, observed, evidence, now)
    if d.active and evidence.counts:
        d.change(counts=d.rollout.counts.model_copy(update=dict(evidence.counts)))
    if d.active and evidence.ratio is not None:
        d.change(ratio={"eValue": evidence.ratio.e_value, "threshold": evidence.ratio.threshold})
    _judge_registry(d)
    _judge_engine(d)
    if observed.caution is not None:
        d.condition("Plan", False, observed.caution.reason, observed.caution.message)
    answer_drift(d)
    pin(d)
    experiment(d)
    commands.obey(d)
    if d.active:
        _interrupt(d)
    if d.active:
        _STAGES[d.rollout.stage](d)
    if d.has_rollout:
        settle(d)
    _begin(d)
    serve(d)
    return Decision(tuple(d.actions), d.done())


def _judge_registry(d: Deliberation) -> None:
    aliases = d.observed.aliases
    if aliases is None:
        d.condition("Registry", False, reasons.REGISTRY_UNAVAILABLE, "the registry has not been reached yet")
    elif not aliases.fresh:
        d.condition(
            "Registry",
            False,
            reasons.REGISTRY_UNAVAILABLE,
            "the registry is away; its last known aliases stay in force",
        )
    elif aliases.owner is not None:
        d.condition(
            "Registry",
            False,
            reasons.ALIAS_CONFLICT,
            f"{aliases.owner} owns the aliases; two owners would fight over them",
        )
    else:
        d.condition("Registry", True, "Reachable", "the registry answers")


def _judge_engine(d: Deliberation) -> None:
    """Pods are made by platform kuberay alone; a wish that nobody obeys must not look granted."""
    if ignored := d.service.spec.engine.ignored:
        message = f"platform serve starts no pods: {', '.join(ignored)} of spec.engine do nothing"
        d.condition("EngineFields", False, reasons.ENGINE_FIELDS_IGNORED, message)


def _interrupt(d: Deliberation) -> None:
    """A person moved an alias under a rollout."""
    rollout, aliases = d.rollout, d.observed.aliases
    if aliases is None or not aliases.fresh:
        return
    champion = aliases.champion.version if aliases.champion else None
    challenger = aliases.challenger.version if aliases.challenger else None
    ours = {rollout.champion_version} if rollout.undecided else {rollout.version}
    if rollout.debt.champion is not None and rollout.debt.expected is not None:
        ours.add(rollout.debt.expected)
    if champion not in ours:
        d.finish(
            "abort",
            reasons.CHAMPION_MOVED,
            f"a person moved champion to {f'v{champion}' if champion else 'no version'}",
        )
    elif rollout.undecided and rollout.trigger == "challenger" and challenger != rollout.version:
        if challenger is None:
            d.finish("abort", reasons.CHALLENGER_DELETED, "a person deleted the alias challenger")
        else:
            d.finish("abort", reasons.CHALLENGER_MOVED, f"a person moved challenger to v{challenger}")


def settle(d: Deliberation) -> None:
    """Tells the registry what it has not been told yet; forgets what is seen to be done. A rollout is called finished after that: MLflow
    cannot take an alias off on a condition, so a challenger that is set while the last one's alias goes could go with it.
    """
    _tell_registry(d)
    if not d.active and d.rollout.finished_at is None and not d.rollout.debt.open:
        d.change(finished_at=d.now)


def _tell_registry(d: Deliberation) -> None:
    rollout, aliases, debt = d.rollout, d.observed.aliases, d.rollout.debt
    if not debt.open or aliases is None or not aliases.fresh:
        return
    champion = aliases.champion.version if aliases.champion else None
    if debt.champion is not None and debt.expected is not None:
        if champion == debt.expected and champion != debt.champion:
            d.actions.append(SetChampion(debt.champion, debt.expected))
        else:
            debt = debt.model_copy(update={"champion": None, "expected": None})
    if debt.challenger:
        if aliases.challenger is not None and aliases.challenger.version == rollout.version:
            d.actions.append(ClearChallenger(rollout.version))
        else:
            debt = debt.model_copy(update={"challenger": False})
    if debt.tag:
        tags = {
            "understudy.verdict": rollout.verdict,
            "understudy.reason": rollout.reason,
            "understudy.rollout": rollout.id,
        }
        if d.observed.tags is not None and tags.items() <= d.observed.tags.items():
            debt = debt.model_copy(update={"tag": False})
        else:
            d.actions.append(TagVersion(rollout.version, tags))
    d.change(debt=debt)


def _begin(d: Deliberation) -> None:
    """Starts a rollout where a person set `challenger`, or changed the engine's specification under the champion."""
    aliases = d.observed.aliases
    if d.observed.rollout is not None and d.observed.rollout.finished_at is None:
        return  # the end of the last one is stored first
    if aliases is None or not aliases.fresh or aliases.owner is not None:
        return
    champion, challenger = aliases.champion, aliases.challenger
    if champion is None or d.stable is None or d.stable.version != champion.version:
        return
    if challenger is not None and challenger.version != champion.version:
        _begin_challenger(d, champion, challenger)
    elif challenger is not None:
        d.condition(
            "Challenger",
            False,
            reasons.ALREADY_CHAMPION,
            f"v{challenger.version} is champion already; the alias is taken off",
        )
        d.actions.append(ClearChallenger(challenger.version))
    elif kind_of(champion) is not None and engine_name(d.service, champion) != engine_of(d.stable):
        _begin_specification(d, champion)


def _begin_challenger(d: Deliberation, champion: VersionInfo, challenger: VersionInfo) -> None:
    kind = kind_of(challenger)
    _open(d, challenger, champion, "challenger")
    if kind is None:
        named = challenger.tags.get("understudy.kind", "weights")
        message = (
            f"v{challenger.version} is tagged {named!r}: weights, adapters (with base version) and prompts (with base version and system "
            "prompt) can be served"
        )
        d.finish("abort", reasons.KIND_UNSUPPORTED, message)
    elif kind != "weights" and weights_of(challenger) != weights_of(champion):
        base = f"the weights of v{weights_of(challenger)}, but v{weights_of(champion)}'s serve"
        message = f"v{challenger.version} is {'an adapter' if kind == 'adapter' else 'a prompt'} on {base}"
        d.finish("abort", reasons.BASE_NOT_CHAMPION, message)
    elif kind == "adapter" and d.service.spec.engine.lora is None:
        d.finish("abort", reasons.ADAPTER_REFUSED, no_lora(challenger))


def _begin_specification(d: Deliberation, champion: VersionInfo) -> None:
    if kind_of(champion) == "adapter" and d.service.spec.engine.lora is None:
        d.condition("Specification", False, reasons.ADAPTER_REFUSED, no_lora(champion))
        return
    engines = d.observed.engines
    if engines is None or d.stable is None or d.stable.model not in engines or engines[d.stable.model].phase != "ready":
        return  # stable cannot be compared with; `serve` brings the champion up under the new specification
    if d.has_rollout and d.rollout.revision == revision_of(d.service, champion) and d.rollout.verdict != "advance":
        d.condition(
            "Specification",
            False,
            reasons.SPECIFICATION_REJECTED,
            f"{d.rollout.revision} was rolled out and ended: {d.rollout.message}",
        )
        return
    _open(d, champion, champion, "specification")


def _open(d: Deliberation, candidate: VersionInfo, champion: VersionInfo, trigger: str) -> None:
    assert d.stable is not None  # noqa: S101  checked by _begin
    kind = kind_of(candidate) or "weights"
    engine = engine_name(d.service, candidate)
    shared = kind == "prompt" and trigger == "challenger" and weights_of(candidate) == weights_of(champion)
    d.open(
        RolloutStatus.model_validate(
            {
                "id": d.observed.identity.id,
                "service": d.service.name,
                "model": d.service.spec.model.registered_model,
                "version": candidate.version,
                "revision": revision_of(d.service, candidate),
                "kind": kind,
                "trigger": trigger,
                "salt": d.observed.identity.salt,
                "engine": engine_of(d.stable) if shared else engine,
                "weights_version": weights_of(candidate),
                "system_prompt": candidate.tags.get(SYSTEM_PROMPT),
                "champion_version": champion.version,
                "champion_revision": d.stable.revision,
                "started_at": d.now,
                "debt": Debt(),
            }
        )
    )
    d.emit("start", reasons.ROLLOUT_STARTED, f"{d.rollout.revision} against {d.stable.revision}")
