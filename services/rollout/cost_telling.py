"""Tells the metrics what a service costs, and the gateways what its requests cost now. Run by the controller beside the looks, one task for
each service with prices: no look waits for it or asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from services.common import events
from services.common import telemetry as names
from services.common.clock import DAY, HOUR, turn
from services.common.pricing import Price, document_of, key_of
from services.rollout.cost_report import Interval, Report, day_start, reach, report
from services.rollout.costing import Prices, began, grouped, prices_of, second_prices, spread, total
from services.rollout.metrics import Sample
from services.rollout.resources import LLMService
from services.rollout.resources_cost import Cost
from services.store import CostRecords, Store, StoreError

log = logging.getLogger(__name__)

PERIOD: Final = 300.0
"""Seconds between two readings of today's hours."""
WHOLE: Final = 12
"""Every so many readings the week and the month are read too: an hour."""
WINDOW: Final = 7 * DAY
"""Of what is told of answers and of break-even."""


class CostTeller:
    """One service's."""

    def __init__(
        self, service: LLMService, cost: Cost, store: Store, tell: Callable[[str, Sequence[Sample]], None]
    ) -> None:
        self._name, self._cost, self._store, self._tell = service.name, cost, store, tell
        self._slow: list[Sample] = []
        self._seconds: dict[str, float] = {}
        self._readings = 0

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until cancelled. Services begin at different times of the period."""
        await sleep(turn(self._name, PERIOD))
        while True:
            try:
                self._tell(self._name, await asyncio.to_thread(self.read))
            except StoreError as error:
                log.warning(events.COSTS_WAIT, {"service": self._name, "error": error})
            await sleep(PERIOD)

    def read(self) -> list[Sample]:
        """What is to be told the metrics now; the gateways' price is in the store. Raises StoreError."""
        now = self._store.now()
        whole = self._readings % WHOLE == 0
        since = reach(now - WINDOW, now) if whole else day_start(now)
        records = self._store.cost_records([self._name], since)[self._name]
        prices = prices_of(records.prices) or [(now, self._cost)]
        if whole:
            marks = self._store.marks(self._name, now - WINDOW, now)
            found = report(records, prices, marks, now - WINDOW, now)
            self._slow = [] if found is None else list(_lasting(found))
            until = now // HOUR * HOUR
            self._seconds = second_prices(records, [(now, self._cost)], until - DAY, until)
        self._readings += 1
        self._store.keep_state(key_of(self._name), now, document_of(self._price(now)))
        return [*_today(self._cost, records, prices, now), *self._slow]

    def _price(self, now: float) -> Price:
        """At what traces reckon: at present prices, and as busy as the engines were in the last day."""
        tokens = self._cost.per_million_tokens
        if tokens is None:
            return Price(at=now, currency=self._cost.currency, seconds=self._seconds)
        each = (tokens.of(1, 0, 0), tokens.of(1, 1, 0), tokens.of(0, 0, 1))
        return Price(at=now, currency=self._cost.currency, tokens=each)


def _today(cost: Cost, records: CostRecords, prices: Prices, now: float) -> Iterator[Sample]:
    yield names.COST_INFO, (cost.currency,), 1.0
    if cost.budget is not None:
        yield names.COST_BUDGET, (), cost.budget.per_day
    first = began(records, prices)
    spends = [] if first is None else spread(records, prices, max(first, day_start(now)), now)
    for (revision, arm, kind), sums in grouped(spends, lambda s: (s.usage.revision, s.usage.arm, s.usage.kind)).items():
        yield names.COST_TODAY, (revision, arm, kind), sums.amount
    sums = total(spends)
    for model in cost.compared_with:
        yield names.COST_COMPARED, (model.name,), model.of(sums.tokens_in, sums.tokens_cached, sums.tokens_out)


def _lasting(found: Report) -> Iterator[Sample]:
    if found.projection is not None:
        for bound, value in _bounds(found.projection.amount):
            yield names.COST_MONTH, (bound,), value
    if found.per_thousand_answers is not None:
        yield names.COST_PER_THOUSAND, (), found.per_thousand_answers
    if found.good is not None and found.good.per_answer is not None:
        for bound, value in _bounds(found.good.per_answer):
            yield names.COST_PER_GOOD, (bound,), value
    for model in found.compared:
        if model.break_even is not None:
            yield names.COST_BREAK_EVEN, (model.name,), model.break_even


def _bounds(of: Interval) -> Iterator[tuple[str, float]]:
    for bound, value in (("estimate", of.estimate), ("lower", of.lower), ("upper", of.upper)):
        if value is not None:
            yield bound, value
