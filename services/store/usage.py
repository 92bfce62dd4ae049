"""How a service is used: users in time, how far apart their values lie. What plans of rollouts are made from; read once an hour at most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Final

from sqlalchemy import select

from services.common.clock import DAY
from services.store.database import Database
from services.store.history import BASELINE_REQUESTS
from services.store.schema import live, observations

PIECES: Final = 8
"""The time that was read is cut into so many pieces to see how many of the users come again."""


class Usage:
    """The part of the store for plans."""

    _database: Database

    def usage(self, service: str, since: float) -> Mapping[str, Any] | None:
        """Who asked a service from `since` on, by its live rows (the newest 200,000); None: nobody.

        Returns:
            {users, requests, seconds, users_per_day, growth, busiest_share, ttft_spread, ttft_missing, tokens_per_second_spread}.
            Different users within t days are about users_per_day · t^growth: 1 where all are new, 0 where always the same come.
            busiest_share: the largest part of the requests under one user. ttft_spread: standard deviation of the logarithm of the users'
            first TTFT, by its median and 95th percentile; ttft_missing: share of users without one; tokens_per_second_spread: of
            tokens by seconds with users as units, the linear parts' standard deviation over the ratio; None where nothing was measured.
        """
        rows = observations.c
        names = ("unit", "started_at", "attempt", "outcome", "streamed", "ttft", "tokens_out", "duration")
        query = (
            select(*(rows[name] for name in names))
            .where(rows.service == service, rows.started_at >= since, live(observations))
            .order_by(rows.started_at.desc())
            .limit(BASELINE_REQUESTS)
        )
        with self._database.read() as connection:
            now = self._database.now(connection)
            found = connection.execute(query).all()[::-1]
        if not found:
            return None
        seconds = max(now - found[0].started_at, 1.0)
        counts: dict[str, int] = {}
        for row in found:
            counts[row.unit] = counts.get(row.unit, 0) + 1
        growth = _growth([(row.started_at, row.unit) for row in found], seconds)
        return {
            "users": len(counts),
            "requests": len(found),
            "seconds": seconds,
            "users_per_day": len(counts) * (DAY / seconds) ** growth,
            "growth": growth,
            "busiest_share": max(counts.values()) / len(found),
            **_spreads(found),
        }


def _growth(asked: Sequence[tuple[float, str]], seconds: float) -> float:
    """Exponent with which the number of different users grows in time, between a piece of the time and the whole of it."""
    start = asked[0][0]
    pieces: list[set[str]] = [set() for _ in range(PIECES)]
    for at, unit in asked:
        pieces[min(PIECES - 1, int((at - start) / seconds * PIECES))].add(unit)
    everyone = len(set().union(*pieces))
    return min(1.0, max(0.0, math.log(everyone / fmean(len(piece) for piece in pieces)) / math.log(PIECES)))


def _spreads(rows: Sequence[Any]) -> dict[str, float | None]:
    first: dict[str, float | None] = {}
    sums: dict[str, list[float]] = {}
    for row in rows:
        if row.attempt == 0 and row.streamed:
            first.setdefault(row.unit, row.ttft)
        if row.outcome == "ok" and row.tokens_out is not None and row.duration > 0:
            mine = sums.setdefault(row.unit, [0.0, 0.0])
            mine[0], mine[1] = mine[0] + row.tokens_out, mine[1] + row.duration
    ttft = sorted(value for value in first.values() if value)
    spread = None
    if len(ttft) >= 20:
        spread = math.log(ttft[math.ceil(0.95 * len(ttft)) - 1] / ttft[math.ceil(0.5 * len(ttft)) - 1]) / 1.645
    return {
        "ttft_spread": spread,
        "ttft_missing": None if not first else 1 - len(ttft) / len(first),
        "tokens_per_second_spread": _ratio_spread(list(sums.values())) if len(sums) >= 20 else None,
    }


def _ratio_spread(sums: Sequence[Sequence[float]]) -> float | None:
    """Of (numerator, denominator) per unit: the standard deviation of the units' linear parts over the ratio of the sums."""
    over, under = (fmean(column) for column in zip(*sums, strict=True))
    return stdev(x / over - w / under for x, w in sums) if over > 0 else None
