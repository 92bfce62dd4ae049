"""The loop of one service: observe, fold the evidence, decide, store the look in one transaction, act outside. Called by the controller
every `rollout.look` seconds; the same in file mode and in a cluster.

A crash before the transaction repeats the look; a crash after it leaves wishes that the next look sees to be open and acts on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.common import events
from services.common.routing import Route
from services.evidence import StateFault
from services.rollout import removal
from services.rollout.actions import Emit, KeepExperiment, PublishRoute
from services.rollout.bookkeeping import Bookkeeper
from services.rollout.decide import Decision, decide
from services.rollout.drift import DriftKeeper
from services.rollout.errors import RegistryError
from services.rollout.evidence_fold import Evidence
from services.rollout.execute import Executor
from services.rollout.experiment_keeper import ExperimentKeeper
from services.rollout.metrics import Sample
from services.rollout.observe import HISTORY_SECONDS, Observer, Sight
from services.rollout.observed import EvidenceView
from services.rollout.plans import plans, segments_by_tenant
from services.rollout.prompt_drift import PromptKeeper
from services.rollout.removal import Retirement
from services.rollout.resources import GuardedStage, LLMService
from services.rollout.status import Condition, RolloutStatus
from services.rollout.watch_fold import Watched, begin_watch
from services.store import AuditEntry, RolloutRow, Store, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """What the last look saw and did, beyond its decision."""

    now: float
    """The store's time."""
    route: Route | None
    """The service's row of the routing table after the look."""
    readings: Sequence[Mapping[str, Any]]
    """The readings of the present stage, each with `stage`."""
    drift: Sequence[Watched] = ()
    """Where the detectors of stable's drift stand."""
    prompts: Sequence[Sample] = ()
    """Where the test of its prompts stands, and what users ask."""


class Reconciler:
    """One service. `service` may be replaced between looks when its resource changes."""

    def __init__(self, service: LLMService, store: Store, observer: Observer, executor: Executor) -> None:
        self.service = service
        self._store, self._observer, self._executor = store, observer, executor
        self._experiments, self._drift, self._prompts = ExperimentKeeper(store), DriftKeeper(store), PromptKeeper(store)
        self._books = Bookkeeper(store)
        self.conditions: tuple[Condition, ...] = ()
        self.last: Look | None = None
        self._retiring_since: float | None = None
        self._evidence: Evidence | None = None
        self._evidence_of: tuple[str, str] | None = None
        self._looked: tuple[float, float] | None = None
        self._readings: list[dict[str, Any]] = []

    async def look(self) -> Decision:
        """One look.

        Raises:
            StoreError: nothing was decided; what was folded is forgotten and read again from the store.
        """
        try:
            tried = await self._experiments.versions(self.service)
            sight = await self._observer.look(self.service, self.conditions, self._executor.refused, tried)
            sight = await self._drift.look(self.service, await self._experiments.look(self.service, sight))
            sight = await self._prompts.look(self.service, sight)
            await self._books.look(self.service, sight.observed, sight.now)
            rules = sight.observed.rules or self.service
            evidence = await self._folded(sight, rules)
            step = sight.observed.rollout.step if sight.observed.rollout else 0
            view = evidence.view(step) if evidence is not None else EvidenceView()
            decision = decide(self.service, sight.observed, view, sight.now)
            # Without either there is nothing to commit, and it is asked of many services.
            if decision.status.rollout is not None or decision.actions:
                await asyncio.to_thread(self._commit, sight, decision, evidence, view)
        except StoreError:
            self._evidence_of = None
            self._experiments.forget()
            raise
        rollout = decision.status.rollout
        if rollout is not None and rollout.id == sight.observed.identity.id:
            self._executor.forgive()
        self.conditions = decision.status.conditions
        seen = _seen(sight, decision, evidence, view)
        self.last = replace(seen, drift=self._drift.watched, prompts=tuple(self._prompts.measured()))
        await self._executor.run(self.service, rules, decision.actions, rollout.id if rollout is not None else None)
        return decision

    async def retire(self) -> Retirement:
        """One look at a service that is to be no more; asked again until it waits for nothing.

        Raises:
            StoreError: nothing was decided.
        """
        await (
            self._executor.close()
        )  # an engine that is still being started must not come up behind the one that removes it
        sight = await self._observer.look(self.service, self.conditions, {})
        await self._books.look(self.service, sight.observed, sight.now)
        self._retiring_since = self._retiring_since or sight.now
        elapsed = sight.now - self._retiring_since
        forgotten = sight.observed.route is None and await asyncio.to_thread(self._forgotten)
        decision = removal.end(self.service, sight.observed, forgotten, elapsed, sight.now)
        await asyncio.to_thread(self._commit, sight, decision, None, EvidenceView())
        await asyncio.to_thread(self._store.remove_route, self.service.name)
        await asyncio.to_thread(self._experiments.retire, self.service, sight.now)
        await asyncio.to_thread(self._store.forget_samples, self.service.name)
        await self._executor.run(self.service, sight.observed.rules or self.service, decision.actions)
        waiting = removal.waiting(sight.observed, decision.status.rollout, forgotten, elapsed)
        if waiting is None:
            try:
                await self._observer.release(self.service)
            except RegistryError as error:
                log.warning(events.ALIASES_KEPT, {"service": self.service.name, "error": error})
                waiting = removal.owed(elapsed)
        return Retirement(decision, waiting)

    def _forgotten(self) -> bool:
        """Whether every gateway alive knows that the service is no more; none alive: nobody has to."""
        name = self.service.name
        version = self._store.remove_route(name)
        return version is None or all(lease.routes.get(name, 0) >= version for lease in self._store.leases())

    async def close(self) -> None:
        """Ends what runs beside the looks."""
        await self._executor.close()

    async def _folded(self, sight: Sight, rules: LLMService) -> Evidence | None:
        """The evidence of the rollout's stage; None where nothing is measured."""
        rollout = sight.observed.rollout
        if rollout is None or not rollout.active or rollout.stage == "gate":
            self._evidence_of = None
            return None
        return await asyncio.to_thread(self._fold, rollout, sight, rules)

    def _fold(self, rollout: RolloutStatus, sight: Sight, rules: LLMService) -> Evidence:
        """The same up to the watermark. Runs in a thread: it reads the store and computes."""
        evidence = self._current(rollout, rules)
        if rollout.stage == "rehearsal":
            self._fold_rehearsal(evidence, rollout, rules, sight.watermark)
        elif rollout.stage == "canary":
            self._fold_canary(evidence, rollout, rules, sight.watermark)
        else:
            self._fold_watch(evidence, rollout, rules, sight.watermark)
        if self._looked is not None and rollout.stage == "canary":
            late = self._store.late_rows(rollout.id, *self._looked)
            if late:
                evidence.counts["late"] = evidence.counts.get("late", 0) + late
        self._looked = (sight.now, sight.watermark)
        return evidence

    def _current(self, rollout: RolloutStatus, rules: LLMService) -> Evidence:
        key = (rollout.id, rollout.stage)
        if self._evidence is not None and self._evidence_of == key:
            return self._evidence
        stored = self._store.evidence(rollout.id)
        evidence: Evidence | None = None
        segments = segments_by_tenant(rules)
        if stored is not None and stored["stage"] == rollout.stage:
            try:
                evidence = Evidence.from_json(stored, segments)
            except StateFault as fault:  # another program's: the rows are all there, and folded anew they say the same
                told = {"service": rollout.service, "rollout": rollout.id, "error": fault}
                log.warning(events.EVIDENCE_ANEW, told)
        if evidence is None and rollout.stage == "watch":
            evidence = Evidence("watch", {})
        elif evidence is None:
            stage: GuardedStage = "rehearsal" if rollout.stage == "rehearsal" else "canary"
            evidence = Evidence(stage, plans(rules, stage, rollout.baseline), segments)
        self._evidence, self._evidence_of, self._looked, self._readings = evidence, key, None, []
        return evidence

    def _fold_rehearsal(self, evidence: Evidence, rollout: RolloutStatus, rules: LLMService, until: float) -> None:
        # The copies of a pair run one after the other, so a pair may take twice as long as a request to end.
        settle = 2 * rules.spec.rollout.settle
        while pairs := self._store.mirrored_pairs(rollout.id, evidence.pairs, until, settle):
            evidence.fold_pairs(pairs, settle)
        self._fold_judgements(evidence, rollout, rules, until)
        if rules.judged:
            evidence.count_judging(self._store.judge_counts(rollout.id))

    def _fold_judgements(self, evidence: Evidence, rollout: RolloutStatus, rules: LLMService, until: float) -> None:
        """The judge's and people's. Comparisons are made beside the traffic, so the canary takes all of the rollout's."""
        while judgements := self._store.judgements(rollout.id, evidence.judged):
            evidence.fold_judgements(judgements)
        evidence.close_people(until, rules.spec.rollout.horizon)

    def _fold_canary(self, evidence: Evidence, rollout: RolloutStatus, rules: LLMService, until: float) -> None:
        self._fold_judgements(evidence, rollout, rules, until)
        if (faults := self._store.assignment_faults(rollout.id)) and evidence.fault is None:
            evidence.fault = f"{faults} units were sent to an arm other than their first"
            evidence.misassigned = True
        salt = bytes.fromhex(rollout.salt)
        weights: dict[int, int] | None = None
        while evidence.fault is None and (closed := self._store.closed_units(rollout.id, evidence.units, until)):
            if weights is None:
                history = self._store.route_history(rollout.service, rollout.started_at)
                weights = {route.version: route.weight for _, route in history if route.rollout == rollout.id}
            evidence.fold_units(closed, rollout.id, salt, weights)

    def _fold_watch(self, evidence: Evidence, rollout: RolloutStatus, rules: LLMService, until: float) -> None:
        """Users of the promoted revision against its predecessor's of the last days, frozen at the promotion."""
        promoted, salt = rollout.decided_at or rollout.started_at, bytes.fromhex(rollout.salt)
        horizon, settle = rules.spec.rollout.horizon, rules.spec.rollout.settle
        if evidence.watch is None:
            since = promoted - HISTORY_SECONDS
            history = self._store.visits_before(
                rollout.service, rollout.champion_revision, since, promoted, horizon, settle
            )
            evidence.watch = begin_watch(rules, history, salt, promoted)
        watch, evidence.watched_until = evidence.watch, until
        theirs = rollout.service, rollout.revision, promoted
        while visits := self._store.first_visits(*theirs, watch.prompt, until, 0.0, 0.0):
            watch.fold_prompt(visits, salt)
        while visits := self._store.first_visits(*theirs, watch.said, until, horizon, settle):
            watch.fold_said(visits, salt)

    def _commit(self, sight: Sight, decision: Decision, evidence: Evidence | None, view: EvidenceView) -> None:
        audit = [self._entry(sight.now, decision, action) for action in decision.actions if isinstance(action, Emit)]
        for entry in audit:
            told = {"action": entry.action, "reason": entry.reason, "words": entry.message}
            log.info(events.DECIDED, {"service": entry.service, "rollout": entry.rollout, **told})
        for action in decision.actions:
            if isinstance(action, KeepExperiment):
                self._experiments.keep(action.row, sight.now)
        route = next((action.route for action in decision.actions if isinstance(action, PublishRoute)), None)
        rollout = decision.status.rollout
        if rollout is None:
            # Before the first rollout there is no row to hang these on; audited first, since a route without its reason would be worse.
            self._store.append_audit(audit)
            if route is not None:
                self._store.publish_route(route)
            return
        seen = sight.observed.rollout  # the readings are of the stage and step before the decision
        step = seen.step if seen is not None else 0
        readings = [{**reading.to_json(), "step": step} for reading in view.readings]
        if readings == self._readings:
            readings = []
        same = sight.row is not None and sight.row.id == rollout.id and sight.row.status == rollout.to_json()
        if same and not audit and not readings and route is None:
            return
        self._store.commit_look(
            _row(rollout, self._spec(sight, rollout)),
            evidence=evidence.to_json() if evidence is not None and (readings or not same) else None,
            readings=[{**reading, **_folded(evidence, sight)} for reading in readings] if evidence is not None else (),
            at=sight.now,
            audit=audit,
            route=route,
        )
        self._readings = readings or self._readings

    def _spec(self, sight: Sight, rollout: RolloutStatus) -> Mapping[str, Any]:
        if sight.row is not None and sight.row.id == rollout.id:
            return sight.row.spec
        return self.service.model_dump(mode="json", by_alias=True)

    def _entry(self, at: float, decision: Decision, event: Emit) -> AuditEntry:
        rollout = decision.status.rollout
        about = rollout.id if rollout is not None and event.action != "condition" else None
        about = event.evidence.get("experiment", about)
        return AuditEntry(
            at=at,
            service=self.service.name,
            rollout=about,
            actor=event.actor,
            action=event.action,
            reason=event.reason,
            message=event.message,
            evidence=event.evidence,
        )


def _seen(sight: Sight, decision: Decision, evidence: Evidence | None, view: EvidenceView) -> Look:
    published = next((action.route for action in decision.actions if isinstance(action, PublishRoute)), None)
    readings = [{**reading.to_json(), "stage": evidence.stage} for reading in view.readings] if evidence else []
    return Look(sight.now, published or sight.observed.route, readings)


def _folded(evidence: Evidence, sight: Sight) -> dict[str, Any]:
    """Of which stage a reading is and up to where it was folded, so that a replay can stop at the same place."""
    return {"stage": evidence.stage, "until": sight.watermark, "judged": evidence.judged}


def _row(rollout: RolloutStatus, spec: Mapping[str, Any]) -> RolloutRow:
    return RolloutRow(
        id=rollout.id,
        service=rollout.service,
        model=rollout.model,
        version=rollout.version,
        revision=rollout.revision,
        stage=rollout.stage,
        verdict=rollout.verdict,
        reason=rollout.reason or None,
        started_at=rollout.started_at,
        finished_at=rollout.finished_at,
        spec=spec,
        status=rollout.to_json(),
    )
