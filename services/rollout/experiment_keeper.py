"""The experiments of one service between looks: reads the store's rows once, folds what closed, stores results. Called by `reconcile`;
decides nothing but that evidence is void. Most services have no experiment, and are looked at as often: a thread is used only where the
store is asked.

An experiment lasts weeks. Its results are read at every look in its first minutes, then ever more seldom, so that neither readings nor
state grow with the number of looks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from services.common import events
from services.evidence import StateFault
from services.rollout import reasons
from services.rollout.experiment import ExperimentStatus, rules_of, status_of, versions, with_status
from services.rollout.experiment_fold import ExperimentEvidence
from services.rollout.observe import Sight
from services.rollout.resources import LLMService
from services.rollout.resources_experiment import Experiment
from services.store import ExperimentRow, Store

log = logging.getLogger(__name__)

SELDOM: Final = 900.0
"""Seconds between two readings of an experiment's results, at most."""
PACE: Final = 0.01
"""They come when the experiment has lasted this much longer than at the last one."""


class ExperimentKeeper:
    """The rows as this controller, their only writer, knows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, ExperimentRow] | None = None
        self._evidence: dict[str, ExperimentEvidence] = {}

    async def versions(self, service: LLMService) -> tuple[str, ...]:
        """What must run beside stable. Raises StoreError."""
        rows = self._rows if self._rows is not None else await asyncio.to_thread(self._known, service)
        return versions(service.spec.experiments, list(rows.values()))

    async def look(self, service: LLMService, sight: Sight) -> Sight:
        """Folds what closed up to the watermark; the look with the rows as they stand then. Raises StoreError."""
        if self._rows is None or any(row.finished_at is None for row in self._rows.values()):
            rows = await asyncio.to_thread(self._read_all, service, sight)
        elif self._rows:
            rows = self._rows
        else:
            return sight
        return replace(sight, observed=replace(sight.observed, experiments=tuple(rows.values())))

    def keep(self, row: ExperimentRow, at: float) -> None:
        """Stores what was decided. Raises StoreError."""
        self._store.commit_experiment(row, at=at)
        if self._rows is not None:
            self._rows[row.id] = row

    def retire(self, service: LLMService, at: float) -> None:
        """The service is no more: what was measured so far is the result. Raises StoreError."""
        for row in list(self._known(service).values()):
            if row.finished_at is None:
                ended = {"state": "finished", "reason": reasons.SERVICE_DELETED, "message": "the service was deleted"}
                self.keep(replace(row, ended_at=row.ended_at or at, finished_at=at, status={**row.status, **ended}), at)

    def forget(self) -> None:
        """What is known may differ from what is stored: it is read again."""
        self._rows = None
        self._evidence.clear()

    def _known(self, service: LLMService) -> dict[str, ExperimentRow]:
        if self._rows is None:
            self._rows = {row.id: _readable(row) for row in self._store.experiments(service.name)}
        return self._rows

    def _read_all(self, service: LLMService, sight: Sight) -> dict[str, ExperimentRow]:
        rows = self._known(service)
        for row in list(rows.values()):
            if row.finished_at is None:
                self._read(row, sight)
        return rows

    def _read(self, row: ExperimentRow, sight: Sight) -> None:
        """New results, where they are due or the last ones."""
        rules, status = rules_of(row), status_of(row)
        closed = row.ended_at is not None and sight.watermark >= row.ended_at + rules.horizon + rules.settle
        pause = min(SELDOM, PACE * (sight.now - row.started_at))
        if not closed and status.looked_at is not None and sight.now < status.looked_at + pause:
            return
        evidence = self._folded(row, rules, status, sight.watermark)
        after = _described(status, evidence, sight.now)
        if closed:
            after = after.model_copy(update={"state": "finished"})
            row = replace(row, finished_at=sight.now)
        row = with_status(row, after)
        changed = (after.users, after.results, after.fault, after.state) != (
            status.users, status.results, status.fault, status.state
        )  # fmt: skip
        if changed:
            # Once it has finished nothing will be folded any more: digests of users need not stay.
            state: Mapping[str, Any] = {} if closed else evidence.to_json()
            readings = [result.to_json() for result in after.results]
            self._store.commit_experiment(row, at=sight.now, evidence=state, readings=readings)
        if self._rows is not None:
            self._rows[row.id] = row
        if closed:
            self._evidence.pop(row.id, None)

    def _folded(
        self, row: ExperimentRow, rules: Experiment, status: ExperimentStatus, until: float
    ) -> ExperimentEvidence:
        evidence = self._evidence.get(row.id) or self._restored(row, rules)
        self._evidence[row.id] = evidence
        if (faults := self._store.assignment_faults(row.id)) and evidence.fault is None:
            evidence.void(f"{faults} users were sent to a group other than their first", misassigned=True)
        salt = bytes.fromhex(status.salt)
        while evidence.fault is None and (closed := self._store.closed_units(row.id, evidence.units, until)):
            evidence.fold(closed, row.id, salt)
        return evidence

    def _restored(self, row: ExperimentRow, rules: Experiment) -> ExperimentEvidence:
        stored = self._store.evidence(row.id)
        if stored:
            try:
                return ExperimentEvidence.from_json(rules, stored)
            except (StateFault, KeyError) as fault:  # another program's: folded anew from the rows it says the same
                log.warning(events.EVIDENCE_ANEW, {"service": row.service, "rollout": row.id, "error": fault})
        return ExperimentEvidence(rules)


def _described(status: ExperimentStatus, evidence: ExperimentEvidence, now: float) -> ExperimentStatus:
    fault, reason = evidence.fault, reasons.EVIDENCE_FAULT
    if fault is not None and evidence.misassigned:
        reason = reasons.ASSIGNMENT_FAULT
    elif fault is None and (mismatch := evidence.mismatch()) is not None:
        fault, reason = mismatch, reasons.SAMPLE_RATIO_MISMATCH
    found = {"users": evidence.users, "results": tuple(evidence.results()), "looked_at": now}
    return status.model_copy(update={**found, "fault": fault, "fault_reason": reason if fault is not None else ""})


def _readable(row: ExperimentRow) -> ExperimentRow:
    """One that another program's version wrote, and this one cannot read, counts as ended: its name stays taken."""
    try:
        rules_of(row)
        status_of(row)
    except ValidationError as error:
        told = {"service": row.service, "rollout": row.id, "error": error.errors()[0]["msg"]}
        log.warning(events.EXPERIMENT_UNREADABLE, told)
        ended = row.ended_at if row.ended_at is not None else row.started_at
        return replace(row, ended_at=ended, finished_at=row.finished_at or ended)
    return row
