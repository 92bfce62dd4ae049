"""What a service cost, what its answers cost, and what they would have cost elsewhere. Pure; used by `understudy costs` and by the
controller's metrics, so that both say the same. Sums come from `costing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, variance
from typing import Final

from services.common.clock import DAY, HOUR
from services.evidence.mixtures import bernoulli_interval
from services.rollout.costing import Prices, Spend, Total, began, spread, total
from services.rollout.resources_cost import Cost
from services.store import CostRecords, Marks

WEEK: Final = 7
"""Days; a projection needs as many whole ones, and goes by whole weeks, so that no day of the week counts twice."""
WEEKS: Final = 4
CONFIDENCE: Final = 0.9
"""Of a projection's interval."""
STUDENT: Final = {7: 1.943180, 14: 1.770933, 21: 1.724718, 28: 1.703288}
"""Days -> 95th percentile of Student's t with one degree of freedom less: the bounds of CONFIDENCE."""
MARKS_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds; None: no bound."""

    estimate: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True)
class Projection:
    """What the running month will have cost, days by UTC."""

    amount: Interval
    days: int
    """Whole days that it was made of."""


@dataclass(frozen=True, slots=True)
class Good:
    """Answers that users called good, of those on which they said anything."""

    rated: int
    good: int
    share: Interval
    per_answer: Interval | None
    """What one good answer costs, if the answers that nobody marked are as good as the marked ones; None: none was good."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A model sold by the token, on the same traffic."""

    name: str
    amount: float
    """What the live requests' tokens would have cost."""
    break_even: float | None
    """Live requests a day from which the own replicas, as many as now, cost less; None: the own engine has no fixed cost."""
    break_even_tokens: float | None
    """The same in tokens, in and out together."""


@dataclass(frozen=True, slots=True)
class Report:
    """One service in [since, until)."""

    price: Cost
    """The one in force."""
    since: float
    """Later than what was asked for, where nothing was known before."""
    until: float
    spends: tuple[Spend, ...]
    total: Total
    idle: float
    """Of the total: engines in hours in which nobody asked."""
    mirrored: float
    """Of the total: mirrored copies."""
    today: float
    projection: Projection | None
    good: Good | None
    compared: tuple[Compared, ...]

    @property
    def days(self) -> float:
        """Length."""
        return (self.until - self.since) / DAY

    @property
    def per_thousand_answers(self) -> float | None:
        """What a thousand answers cost; None: there were none."""
        return 1_000 * self.total.amount / self.total.answered if self.total.answered else None

    @property
    def per_million_tokens(self) -> float | None:
        """What a million tokens cost, in and out together; None: there were none."""
        tokens = self.total.tokens_in + self.total.tokens_out
        return 1e6 * self.total.amount / tokens if tokens else None


def reach(since: float, now: float) -> float:
    """How far back `report` must have usage."""
    return min(since, month_start(now), day_start(now) - WEEKS * WEEK * DAY)


def report(records: CostRecords, prices: Prices, marks: Iterable[Marks], since: float, now: float) -> Report | None:
    """None: nothing is known yet. `records` must go back to `reach`, `marks` to `since`."""
    first = began(records, prices)
    if first is None:
        return None
    spends = spread(records, prices, max(first, reach(since, now)), now)
    since = min(max(since // HOUR * HOUR, first), now)
    shown = tuple(spend for spend in spends if spend.usage.hour + HOUR > since)
    price, sums = prices[-1][1], total(shown)
    return Report(
        price=price,
        since=since,
        until=now,
        spends=shown,
        total=sums,
        idle=sum(spend.amount for spend in shown if spend.usage.kind == "idle"),
        mirrored=sum(spend.amount for spend in shown if spend.usage.kind == "mirror"),
        today=sum(spend.amount for spend in spends if spend.usage.hour >= day_start(now)),
        projection=month(spends, first, now),
        good=satisfaction(marks, sums),
        compared=compared(price, sums, (now - since) / DAY),
    )


def satisfaction(marks: Iterable[Marks], sums: Total) -> Good | None:
    """None: nobody said anything. The bounds hold at every look at once, and take marks as independent."""
    marks = list(marks)
    rated, good = sum(one.rated for one in marks), sum(one.good for one in marks)
    if not rated:
        return None
    lower, upper = bernoulli_interval(good, rated, 1 - MARKS_CONFIDENCE)
    share = Interval(good / rated, lower, upper)
    if not good or not sums.answered:
        return Good(rated, good, share, None)
    each = sums.amount / sums.answered
    dearest = each / lower if lower > 0 else None
    return Good(rated, good, share, Interval(each * rated / good, each / upper, dearest))


def compared(price: Cost, sums: Total, days: float) -> tuple[Compared, ...]:
    """The models of `comparedWith`; without traffic none."""
    found = []
    tokens = sums.tokens_in + sums.tokens_out
    for model in price.compared_with:
        amount = model.of(sums.tokens_in, sums.tokens_cached, sums.tokens_out)
        if not sums.requests or not tokens:
            continue
        fixed = price.per_replica_hour is not None and amount > 0 and days > 0
        share = sums.amount / amount / days if fixed else None  # of the period's traffic, a day
        found.append(
            Compared(
                model.name,
                amount,
                None if share is None else share * sums.requests,
                None if share is None else share * tokens,
            )
        )
    return tuple(found)


def month(spends: Iterable[Spend], first: float, now: float) -> Projection | None:
    """The running month's cost; None with less than a week of whole days. `spends` from the month's start and four weeks back, if so
    much is known; `first`: since when."""
    today = day_start(now)
    whole: dict[float, float] = {}
    day = max(today - WEEKS * WEEK * DAY, math.ceil(first / DAY) * DAY)
    while day < today:
        whole[day] = 0.0
        day += DAY
    spent = 0.0
    for spend in spends:
        day = day_start(spend.usage.hour)
        if day in whole:
            whole[day] += spend.amount
        if day >= month_start(now):
            spent += spend.amount
    ahead = (month_start(month_start(now) + 31.5 * DAY) - now) / DAY
    return project([whole[day] for day in sorted(whole)], spent, ahead)


def project(days: Sequence[float], spent: float, ahead: float) -> Projection | None:
    """`spent` and what `ahead` further days will cost, by the last whole weeks of `days` (spends of whole days, oldest first).

    The days are taken as independent draws around one mean: the sum of m more has the variance s²(m + m²/n), s² being that of the n days,
    and Student's t with n - 1 degrees gives the bounds. What grows or falls week by week is beyond it.
    """
    count = min(len(days) // WEEK, WEEKS) * WEEK
    if not count:
        return None
    sample = days[-count:]
    mean = fmean(sample)
    wide = STUDENT[count] * math.sqrt(variance(sample, mean) * (ahead + ahead**2 / count))
    estimate = spent + mean * ahead
    return Projection(Interval(estimate, max(spent, estimate - wide), estimate + wide), count)


def day_start(at: float) -> float:
    """Midnight, UTC."""
    return at // DAY * DAY


def month_start(at: float) -> float:
    """Midnight of the first of the month, UTC."""
    return datetime.fromtimestamp(at, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
