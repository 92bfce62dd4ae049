"""Whether a service's stable does as it did: e-detectors against a week of its own, between rollouts. Called by `reconcile` with each look,
asks the store once an hour; `decide` tells it as the condition `Drift` and does what the resource says.

The history is frozen once stable has served for a day, and anew when another revision serves, or a week after an alarm: by then it is how
things are. After an alarm the judge may be asked what present answers are worth: `evaluation`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from services.common import events
from services.common.clock import DAY, HOUR, turn
from services.evidence import EvidenceError
from services.rollout.evaluation import evaluate
from services.rollout.observe import HISTORY_SECONDS, Sight
from services.rollout.plans import segments_by_tenant
from services.rollout.resources import LLMService
from services.rollout.watch_fold import Watch, Watched, begin_drift
from services.store import MATERIAL_SECONDS, Store
from services.store.visits import LONGEST

log = logging.getLogger(__name__)

SCHEMA: Final = 2
LEAST_SECONDS: Final = DAY
"""Nights differ from days."""
EVALUATION_SECONDS: Final = 60.0
"""Between two counts of what an evaluation has."""
_SALT: Final = b"drift"


@dataclass(slots=True)
class DriftState:
    """Detectors of one revision. `done`: up to where visits were folded; `scored`: the judge's scores; `alarmed_at`: when the first
    detector alarmed; `evaluated`: what the judge said of answers since, in words."""

    revision: str
    watch: Watch
    done: float
    scored: float
    alarmed_at: float | None = None
    evaluated: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "revision": self.revision,
            "watch": self.watch.to_json(),
            "done": self.done,
            "scored": self.scored,
            "alarmedAt": self.alarmed_at,
            "evaluated": self.evaluated,
        }


def kept(store: Store, service: str, segments: Mapping[str, Sequence[str]] = MappingProxyType({})) -> DriftState | None:
    """The service's detectors as the store has them; None: there are none yet, or another program's, which begin anew. `segments`: as for
    `Watch`, for who goes on folding."""
    saved = store.evidence(_key(service))
    try:
        if saved is None or saved["schema"] not in (1, SCHEMA):
            return None
        watch, done = Watch.from_json(saved["watch"], segments), saved["done"]
        scored, evaluated = saved.get("scored", done), saved.get("evaluated")  # schema 1 had neither
        return DriftState(saved["revision"], watch, done, scored, saved["alarmedAt"], evaluated)
    except (EvidenceError, KeyError) as fault:
        log.warning(events.DRIFT_ANEW, {"service": service, "error": fault})
        return None


class DriftKeeper:
    """The detectors of one service, kept in the store so that a restarted controller goes on with them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._state: DriftState | None = None
        self._due: float | None = None
        self._evaluation_due = 0.0
        self.watched: Sequence[Watched] = ()
        """Where each detector of the last look's stable stands."""

    async def look(self, service: LLMService, sight: Sight) -> Sight:
        """The look with what has drifted. Raises StoreError."""
        observed = sight.observed
        if self._due is None:
            self._state = await asyncio.to_thread(kept, self._store, service.name, segments_by_tenant(service))
            self._due = sight.now + turn(service.name, HOUR)
        stable = observed.route.stable.revision if observed.route is not None else None
        compared = observed.rollout is not None and observed.rollout.active  # then stable is its own measure
        if stable is not None and not compared and sight.now >= self._due:
            self._due = sight.now + HOUR
            await asyncio.to_thread(self._run, service, stable, sight)
        state = self._state if self._state is not None and self._state.revision == stable else None
        self.watched = () if state is None else state.watch.watched
        alarm = None if state is None or compared else state.watch.alarm(state.done)
        if state is None or alarm is None:
            return sight
        if service.spec.drift.on_alarm == "evaluate" and state.evaluated is None and sight.now >= self._evaluation_due:
            self._evaluation_due = sight.now + EVALUATION_SECONDS
            await asyncio.to_thread(self._evaluate, service, state, sight.now)
        return replace(sight, observed=replace(observed, drift=alarm, evaluated=state.evaluated))

    def _run(self, service: LLMService, revision: str, sight: Sight) -> None:
        state = self._state
        rules = service.spec.rollout
        # Whole hours, whose visits have all closed, and of which the judge has nothing more to say.
        until = (sight.watermark - rules.horizon - rules.settle) // HOUR * HOUR
        scored = (sight.watermark - MATERIAL_SECONDS) // HOUR * HOUR
        if state is not None and state.revision == revision and not _outdated(state, sight.now):
            if until <= state.done:
                return
            since = state.done - LONGEST
            found = self._store.visits_before(
                service.name, revision, since, sight.watermark, rules.horizon, rules.settle
            )
            visits = sorted(
                (visit for visit in found.visits if state.done <= visit.exposure.first_at < until),
                key=lambda visit: (visit.exposure.closes_at, visit.exposure.unit),
            )
            scores = self._store.scores(service.name, revision, state.scored, scored)
            # All is read: nothing fails between the first of these and `done`, or the same users would count twice.
            state.watch.fold_prompt(visits, _SALT)
            state.watch.fold_said(visits, _SALT)
            state.watch.fold_scores(scores)
            state.done, state.scored = until, max(state.scored, scored)
            if state.alarmed_at is None and state.watch.alarm(until) is not None:
                state.alarmed_at = sight.now
        else:
            state = self._frozen(service, revision, sight, until, scored)
        self._state = state
        if state is not None:
            self._keep(service, state, sight.now)

    def _frozen(
        self, service: LLMService, revision: str, sight: Sight, until: float, scored: float
    ) -> DriftState | None:
        rules = service.spec.rollout
        since = max(served_since(self._store, service.name, revision), until - HISTORY_SECONDS)
        if until - since < LEAST_SECONDS:
            return None
        found = self._store.visits_before(service.name, revision, since, sight.watermark, rules.horizon, rules.settle)
        history = [visit for visit in found.visits if visit.exposure.first_at < until]
        first = min((visit.exposure.first_at for visit in history), default=until)
        if until - first < LEAST_SECONDS / 2:  # hardly anybody came
            return None
        scores = self._store.scores(service.name, revision, since, scored)
        return DriftState(revision, begin_drift(service, history, scores, _SALT, until - first), until, scored)

    def _evaluate(self, service: LLMService, state: DriftState, now: float) -> None:
        assert state.alarmed_at is not None  # noqa: S101  there is an alarm
        state.evaluated = evaluate(self._store, service, state.revision, state.alarmed_at, now)
        if state.evaluated is not None:
            self._keep(service, state, now)

    def _keep(self, service: LLMService, state: DriftState, now: float) -> None:
        self._store.keep_state(_key(service.name), now, state.to_json())


def served_since(store: Store, service: str, revision: str) -> float:
    """Since when routes have had the revision as stable; infinite where none has."""
    since = math.inf
    for at, route in reversed(store.route_history(service)):
        if route.stable.revision != revision:
            break
        since = at
    return since


def _outdated(state: DriftState, now: float) -> bool:
    return state.alarmed_at is not None and now - state.alarmed_at > HISTORY_SECONDS


def _key(service: str) -> str:
    """Beside the evidence of rollouts, whose names are drawn and hold no colon first."""
    return f"drift:{service}"
