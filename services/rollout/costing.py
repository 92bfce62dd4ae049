"""What requests cost: prices and replicas over time, spread over what was asked in each hour. Pure; used by `cost_report`, by the
controller's metrics and by `understudy costs`.

An engine's replicas cost whether anybody asks or not. What they cost in an hour is spread over all requests that began in it, mirrored
copies too, by engine seconds: a request's duration is what it kept of the engine, be it long prompts, long answers or waiting. An hour in
which nobody asked stays the engine's own, as idle. Engines that are billed by the token cost what their tokens do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from pydantic import ValidationError

from services.common.clock import HOUR
from services.rollout.resources_cost import Cost
from services.rollout.status import RolloutStatus
from services.store import CostRecords, Rate, Usage

Prices = Sequence[tuple[float, Cost]]
"""(since, price) by time, of one currency, at least one; the first holds before its time too."""
Counts = Sequence[tuple[float, int]]
"""(since, replicas) by time."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Spend:
    """What `usage` cost. Of an idle engine: revision is the engine, arm and kind are `idle`, and there are no requests."""

    usage: Usage
    engine: str
    amount: float


@dataclass(frozen=True, slots=True)
class Total:
    """Sum of spends. Requests, answers and tokens are the live ones: nobody asked for copies, and they cost all the same."""

    amount: float = 0.0
    requests: int = 0
    answered: int = 0
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class RolloutCost:
    """What a rollout cost above what serving would have cost without it."""

    engine: float
    """The candidate's own engine, from the rollout's start to its promotion or end."""
    mirrored: float
    """Mirrored copies that other engines answered."""
    warm: float
    """The old engine, kept for a rollback after the promotion."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.engine + self.mirrored + self.warm


def prices_of(documents: Iterable[tuple[float, Mapping[str, Any] | None]]) -> list[tuple[float, Cost]]:
    """The prices that count, of what the store has: those in the present currency, for nothing is converted. None where there is no price
    now."""
    read = [(since, _read(document)) for since, document in documents]
    if not read or read[-1][1] is None:
        return []
    currency = read[-1][1].currency
    return [(since, cost) for since, cost in read if cost is not None and cost.currency == currency]


def _read(document: Mapping[str, Any] | None) -> Cost | None:
    """None too for what another version of this program wrote and this one cannot read."""
    try:
        return None if document is None else Cost.model_validate(document)
    except ValidationError:
        return None


def price_at(prices: Prices, at: float) -> Cost:
    """The price in force."""
    return next((cost for since, cost in reversed(prices) if since <= at), prices[0][1])


def engine_cost(counts: Counts, prices: Prices, since: float, until: float) -> float:
    """What an engine's replicas cost in [since, until)."""
    cuts = sorted({since, until, *(at for at, _ in (*counts, *prices) if since < at < until)})
    amount = 0.0
    for start, end in pairwise(cuts):
        count = next((count for at, count in reversed(counts) if at <= start), 0)
        if count:
            amount += count * (end - start) / HOUR * (price_at(prices, start).per_replica_hour or 0.0)
    return amount


def spread(records: CostRecords, prices: Prices, since: float, until: float) -> list[Spend]:
    """What was spent in [since, until), by hour; `since` is taken to the hour's start."""
    return [spend for hour in _hours(records, prices, since, until) for spend in hour.spends]


def rates(records: CostRecords, prices: Prices, since: float, until: float) -> list[Rate]:
    """What one second and one token cost of each revision in each hour: `spread`, for requests that are not summed."""
    found = []
    for hour in _hours(records, prices, since, until):
        tokens = price_at(prices, hour.start).per_million_tokens
        each = (tokens.of(1, 0, 0), tokens.of(1, 1, 0), tokens.of(0, 0, 1)) if tokens else (0.0, 0.0, 0.0)
        for revision in sorted({one.revision for one in hour.usage}):
            found.append(Rate(hour.start, revision, hour.replicas / hour.seconds if hour.seconds else 0.0, *each))
    return found


def second_prices(records: CostRecords, prices: Prices, since: float, until: float) -> dict[str, float]:
    """What one second of a request cost of each engine in [since, until), idle hours left out: its price as long as the hour runs."""
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for hour in _hours(records, prices, since, until):
        if hour.usage:
            sums[hour.engine][0] += hour.replicas
            sums[hour.engine][1] += hour.seconds
    return {engine: cost / seconds for engine, (cost, seconds) in sums.items() if seconds}


@dataclass(frozen=True, slots=True)
class _Hour:
    """One engine's hour."""

    start: float
    engine: str
    replicas: float
    """What they cost."""
    usage: Sequence[Usage]
    price: Cost

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.usage)

    @property
    def spends(self) -> list[Spend]:
        if not self.usage:
            idle = Usage(self.start, self.engine, "idle", "", "idle", "", "", 0, 0, 0, 0, 0, 0.0)
            return [Spend(idle, self.engine, self.replicas)]
        seconds, requests = self.seconds, sum(one.requests for one in self.usage)
        tokens, made = self.price.per_million_tokens, []
        for one in self.usage:
            amount = self.replicas * (one.seconds / seconds if seconds else one.requests / requests)
            if tokens is not None:
                amount += tokens.of(one.tokens_in, one.tokens_cached, one.tokens_out)
            made.append(Spend(one, self.engine, amount))
        return made


def _hours(records: CostRecords, prices: Prices, since: float, until: float) -> list[_Hour]:
    """By time, then engine; without those in which an engine neither ran nor was asked."""
    used: defaultdict[tuple[float, str], list[Usage]] = defaultdict(list)
    first = since // HOUR * HOUR
    for one in records.usage:
        if first <= one.hour < until:
            used[one.hour, records.engines.get(one.revision, one.revision)].append(one)
    costs: dict[tuple[float, str], float] = dict.fromkeys(used, 0.0)
    for engine, counts in records.replicas.items():
        for (at, count), end in zip(counts, [*(at for at, _ in counts[1:]), until], strict=True):
            start, end = max(at, first), min(end, until)
            while count and start < end:
                hour = start // HOUR * HOUR
                stop = min(end, hour + HOUR)
                costs[hour, engine] = costs.get((hour, engine), 0.0) + engine_cost(
                    [(start, count)], prices, start, stop
                )
                start = stop
    return [
        _Hour(hour, engine, cost, used.get((hour, engine), ()), price_at(prices, hour))
        for (hour, engine), cost in sorted(costs.items())
        if cost or (hour, engine) in used
    ]


def total(spends: Iterable[Spend]) -> Total:
    """Their sum."""
    amount, sums = 0.0, [0] * 5
    for spend in spends:
        amount += spend.amount
        use = spend.usage
        if use.kind == "live":
            values = (use.requests, use.answered, use.tokens_in, use.tokens_cached, use.tokens_out)
            sums = [a + b for a, b in zip(sums, values, strict=True)]
    return Total(amount, *sums)


def grouped(spends: Iterable[Spend], by: Callable[[Spend], Key]) -> dict[Key, Total]:
    """Sums, by key in the order in which they come."""
    found: dict[Key, list[Spend]] = {}
    for spend in spends:
        found.setdefault(by(spend), []).append(spend)
    return {key: total(theirs) for key, theirs in found.items()}


def began(records: CostRecords, prices: Prices) -> float | None:
    """Since when costs are known: replicas are not before they were first seen. None: nothing was."""
    if prices[-1][1].per_replica_hour is None:
        return min((one.hour for one in records.usage), default=None)
    return min((counts[0][0] for counts in records.replicas.values()), default=None)


def rollout_cost(
    rollout: RolloutStatus, records: CostRecords, prices: Prices, spends: Iterable[Spend], now: float
) -> RolloutCost:
    """`spends` must reach back to the rollout's start.

    Live answers of the candidate's own engine are in its hours: stable would have given them without another replica. A rollout that was
    rolled back after its promotion is charged with its engine until then, and nothing for the old one, which would have run anyway.
    """
    stable = records.engines.get(rollout.champion_revision, rollout.champion_revision)
    own = rollout.engine if rollout.engine != stable else None
    promoted = rollout.decided_at if rollout.verdict == "advance" else None
    ended = rollout.finished_at if rollout.finished_at is not None else now

    def ran(engine: str, since: float, until: float) -> float:
        return engine_cost(records.replicas.get(engine, ()), prices, since, max(since, until))

    mirrored = sum(
        spend.amount
        for spend in spends
        if spend.usage.kind == "mirror"
        and spend.usage.rollout == rollout.id
        and (spend.engine != own or price_at(prices, spend.usage.hour).per_replica_hour is None)
    )
    return RolloutCost(
        engine=0.0 if own is None else ran(own, rollout.started_at, ended if promoted is None else promoted),
        mirrored=mirrored,
        warm=0.0 if own is None or promoted is None else ran(stable, promoted, ended),
    )
