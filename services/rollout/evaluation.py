"""What the judge says of a stable that has drifted: its scores of answers since the alarm against those before. Called by `drift`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from services.evidence import BoundedMean
from services.rollout.observe import HISTORY_SECONDS
from services.rollout.resources import LLMService
from services.store import Judgement, Sample, Store

LEVEL: Final = 0.05
"""Of both intervals together."""
LEAST: Final = 30
"""Users of before, with fewer of whom nothing is compared."""
_ROLLOUTS: Final = 20
"""The newest, among which the one that promoted stable is looked for."""


def evaluate(store: Store, service: LLMService, revision: str, alarmed_at: float, now: float) -> str | None:
    """The result in words, once enough users' answers are judged; None before. Raises StoreError.

    Before is what the judge said of the same revision in the week before the alarm, or of its answers in the rehearsal.
    """
    samples = store.scores(service.name, revision, alarmed_at, now)
    scores = _one_a_user(samples)
    if len(scores) < service.spec.drift.evaluation.users:
        return None
    past = _one_a_user(store.scores(service.name, revision, alarmed_at - HISTORY_SECONDS, alarmed_at))
    when = "before"
    if len(past) < LEAST:
        past, when = _rehearsed(store, service.name, revision, {one.judge for one in samples}), "in its rehearsal"
    now_mean, now_low, now_high = _mean(scores)
    told = f"judged since: {now_mean:.2f} of {len(scores)} users ({now_low:.2f} to {now_high:.2f})"
    if len(past) < LEAST:
        return f"{told}; nothing from before to compare it with"
    mean, low, high = _mean(past)
    worse = "worse" if now_high < low else "better" if now_low > high else "no difference shown"
    return f"{told}, {mean:.2f} of {len(past)} {when} ({low:.2f} to {high:.2f}): {worse}"


def _one_a_user(samples: Iterable[Sample]) -> list[float]:
    first: dict[str, float] = {}
    for one in samples:
        if one.score is not None:
            first.setdefault(one.unit, one.score)
    return list(first.values())


def _rehearsed(store: Store, service: str, revision: str, judges: Container[str | None]) -> list[float]:
    """What the same judge scored the revision as candidate."""
    row = next((row for row in store.rollouts(service, _ROLLOUTS) if row.revision == revision), None)
    judged: list[Judgement] = [] if row is None else store.judgements(row.id, 0)
    return [one.candidate for one in judged if one.judge in judges]


def _mean(scores: list[float]) -> tuple[float, float, float]:
    mean = BoundedMean()
    mean.update(scores)
    low, high = mean.interval(LEVEL / 2)
    return mean.mean or 0.0, low, high
