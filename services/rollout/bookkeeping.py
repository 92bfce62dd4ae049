"""Keeps what costs are reckoned from: of each look how many replicas engines have and which prices hold, where that has changed. Called by
`reconcile`; asks the platform nothing, and an unchanged service the store nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from services.common.routing import Route, Target
from services.rollout.observed import Observed
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from services.rollout.resources_cost import Cost
from services.rollout.revisions import engine_of
from services.store import Store


class Bookkeeper:
    """One service's. While the platform is away its engines are taken to run on as they did."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._replicas: tuple[Mapping[str, int], Mapping[str, str]] | None = None
        self._price: tuple[Cost | None] | None = None
        """None: not noted yet."""

    async def look(self, service: LLMService, seen: Observed, now: float) -> None:
        """Raises StoreError; then all is noted at the next look."""
        if seen.engines is not None:
            found = claimed(seen.engines), shared(seen.engines, seen.route)
            if found != self._replicas:
                await asyncio.to_thread(self._store.note_replicas, service.name, *found, now)
                self._replicas = found
        price = (service.spec.cost,)
        if price != self._price:
            await asyncio.to_thread(self._store.note_prices, service.name, document(service.spec.cost), now)
            self._price = price


def document(cost: Cost | None) -> dict[str, Any] | None:
    """As the store keeps it: without what is not set."""
    return None if cost is None else cost.model_dump(mode="json", by_alias=True, exclude_none=True)


def claimed(engines: Mapping[str, RevisionState]) -> dict[str, int]:
    """Replicas of each engine: those that are ready; one that starts or has failed holds its fewest, and one at least."""
    found = {}
    for name, state in engines.items():
        if state.base is not None or state.phase == "absent":
            continue
        if state.phase in ("starting", "failed"):
            found[name] = max(state.ready_replicas, state.replicas[0] if state.replicas is not None else 1, 1)
        else:
            found[name] = state.ready_replicas
    return found


def shared(engines: Mapping[str, RevisionState], route: Route | None) -> dict[str, str]:
    """Revision -> engine, of adapters and prompts."""
    found = {name: state.base for name, state in engines.items() if state.base is not None}
    if route is not None:
        found.update(
            (target.revision, engine_of(target)) for target in _targets(route) if target.revision != engine_of(target)
        )
    return found


def _targets(route: Route) -> Iterator[Target]:
    yield route.stable
    if route.candidate is not None:
        yield route.candidate
    yield from route.pinned
    for experiment in route.experiments:
        yield from (group.target for group in experiment.groups if group.target is not None)
