"""Summaries over time: a revision's history before a rollout, and series for reports. Called rarely; no gateway waits for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Final

from sqlalchemy import Float, and_, case, func, select

from services.store.database import Database
from services.store.marks import is_bad_mark
from services.store.schema import feedback, live, observations

BASELINE_REQUESTS: Final = 200_000
"""A baseline reads no more than the newest so many requests."""

_FAILED = observations.c.outcome == "error"


@dataclass(slots=True)
class _Unit:
    first_at: float
    failed: bool = False
    bad: bool = False
    requests: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Bucket:
    requests: int = 0
    errors: int = 0
    ttft: list[float] = field(default_factory=list)
    speed: list[tuple[float, float]] = field(default_factory=list)
    up: int = 0
    down: int = 0


class History:
    """The part of the store for lookers-on."""

    _database: Database

    def baseline(self, service: str, revision: str, since: float, horizon: float) -> Mapping[str, Any]:
        """How a revision did as stable (arms stable and control), from `since` on: what a rollout's design freezes at its start.

        A unit counts from its first request for `horizon` seconds, and only once these are over. At most the newest 200,000 requests
        are read.

        Returns:
            {units, requests, failure_rate, bad_feedback_rate, ttft_p50, tokens_per_second, since}. Rates are shares of units with a
            failure, or with a bad mark given within the horizon; ttft_p50 in seconds over streamed requests; tokens_per_second those
            of answered requests by their durations; `since` where reading began. None where nothing was measured.
        """
        ours = and_(
            observations.c.service == service,
            observations.c.revision == revision,
            observations.c.arm.in_(("stable", "control")),
            live(observations),
            observations.c.counted,
            observations.c.started_at >= since,
        )
        names = ("request_id", "unit", "started_at", "outcome", "streamed", "ttft", "tokens_out", "duration")
        query = (
            select(*(observations.c[name] for name in names))
            .where(ours)
            .order_by(observations.c.started_at.desc())
            .limit(BASELINE_REQUESTS)
        )
        with self._database.read() as connection:
            now = self._database.now(connection)
            rows = connection.execute(query).all()[::-1]
            if len(rows) == BASELINE_REQUESTS:
                since = rows[0].started_at
            marks = connection.execute(
                select(feedback.c.request_id, feedback.c.kind, feedback.c.value, feedback.c.at)
                .select_from(observations.join(feedback, feedback.c.request_id == observations.c.request_id))
                .where(ours, observations.c.started_at >= since)
            ).all()
        units, ttft, speed, requests = _by_unit(rows, now, horizon)
        unit_of = {row.request_id: row.unit for row in rows}
        for mark in marks:
            unit = units.get(unit_of.get(mark.request_id, ""))
            if unit and mark.request_id in unit.requests and mark.at < unit.first_at + horizon:
                unit.bad = unit.bad or is_bad_mark(mark.kind, mark.value)
        return {
            "units": len(units),
            "requests": requests,
            "failure_rate": fmean(unit.failed for unit in units.values()) if units else None,
            "bad_feedback_rate": fmean(unit.bad for unit in units.values()) if units else None,
            "ttft_p50": median(ttft) if ttft else None,
            "tokens_per_second": _ratio(speed),
            "since": since,
        }

    def series(self, rollout: str, bucket_seconds: float) -> list[Mapping[str, Any]]:
        """What each arm did over time in a rollout, live rows, by (at, arm).

        Returns:
            {at, arm, requests, errors, ttft_p50, tokens_per_second, thumbs_up, thumbs_down}; `at` is the bucket's start, a multiple of
            `bucket_seconds`; units as in `baseline`. A thumb falls into the bucket in which it was given. Reads all rows of the rollout.
        """
        ours = and_(observations.c.rollout == rollout, live(observations))
        names = ("arm", "started_at", "outcome", "streamed", "ttft", "tokens_out", "duration")
        rows = select(*(observations.c[name] for name in names)).where(ours).order_by(observations.c.started_at)
        thumbs = (
            select(feedback.c.id, observations.c.arm, feedback.c.at, feedback.c.value)
            .select_from(observations.join(feedback, feedback.c.request_id == observations.c.request_id))
            .where(ours, feedback.c.kind == "thumb")
            .distinct()
        )
        buckets: defaultdict[tuple[float, str], _Bucket] = defaultdict(_Bucket)
        with self._database.read() as connection:
            for row in connection.execute(rows):
                bucket = buckets[row.started_at // bucket_seconds * bucket_seconds, row.arm]
                bucket.requests += 1
                bucket.errors += row.outcome == "error"
                _measure(row, bucket.ttft, bucket.speed)
            for thumb in connection.execute(thumbs):
                bucket = buckets[thumb.at // bucket_seconds * bucket_seconds, thumb.arm]
                bucket.up += thumb.value > 0
                bucket.down += thumb.value < 0
        return [_described(at, arm, buckets[at, arm]) for at, arm in sorted(buckets)]

    def asked_since(self, service: str, since: float) -> bool:
        """Whether a live request of the service started at or after `since`."""
        query = (
            select(observations.c.started_at)
            .where(observations.c.service == service, observations.c.started_at >= since, live(observations))
            .limit(1)
        )
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def first_tokens(self, service: str, since: float, limit: int = 10_000) -> list[tuple[float, float]]:
        """(start, seconds to the first token) of the newest live streamed requests that stable's engine answered, started at or after
        `since`."""
        query = (
            select(observations.c.started_at, observations.c.ttft)
            .where(
                observations.c.service == service,
                observations.c.started_at >= since,
                observations.c.streamed,
                observations.c.ttft.is_not(None),
                observations.c.arm != "candidate",
                live(observations),
            )
            .order_by(observations.c.started_at.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [(row.started_at, row.ttft) for row in connection.execute(query)]

    def traffic(self, service: str, since: float, until: float, bucket_seconds: float) -> list[Mapping[str, Any]]:
        """Live requests of a service started in [since, until), by bucket and revision.

        Returns:
            {at, revision, requests, errors, units, units_failed}: `units` asked in the bucket, of whom `units_failed` had an error.
        """
        number = func.floor(observations.c.started_at / bucket_seconds, type_=Float(53))
        query = (
            select(
                number.label("number"),
                observations.c.revision,
                func.count().label("requests"),
                func.sum(case((_FAILED, 1), else_=0)).label("errors"),
                func.count(observations.c.unit.distinct()).label("units"),
                func.count(case((_FAILED, observations.c.unit)).distinct()).label("units_failed"),
            )
            .where(
                observations.c.service == service,
                observations.c.started_at >= since,
                observations.c.started_at < until,
                live(observations),
            )
            .group_by("number", observations.c.revision)
            .order_by("number", observations.c.revision)
        )
        with self._database.read() as connection:
            return [
                {
                    "at": row.number * bucket_seconds,
                    "revision": row.revision,
                    "requests": int(row.requests),
                    "errors": int(row.errors),
                    "units": int(row.units),
                    "units_failed": int(row.units_failed),
                }
                for row in connection.execute(query)
            ]


def _by_unit(
    rows: Sequence[Any], now: float, horizon: float
) -> tuple[dict[str, _Unit], list[float], list[tuple[float, float]], int]:
    """Units whose horizon is over, and the TTFTs, speeds and number of their requests within it; rows come by time."""
    units: dict[str, _Unit] = {}
    ttft: list[float] = []
    speed: list[tuple[float, float]] = []
    requests = 0
    for row in rows:
        unit = units.setdefault(row.unit, _Unit(row.started_at))
        if unit.first_at + horizon > now or row.started_at >= unit.first_at + horizon:
            continue
        requests += 1
        unit.requests.add(row.request_id)
        unit.failed = unit.failed or row.outcome == "error"
        _measure(row, ttft, speed)
    return {name: unit for name, unit in units.items() if unit.requests}, ttft, speed, requests


def _measure(row: Any, ttft: list[float], speed: list[tuple[float, float]]) -> None:
    if row.streamed and row.ttft is not None:
        ttft.append(row.ttft)
    if row.outcome == "ok" and row.tokens_out is not None and row.duration > 0:
        speed.append((row.tokens_out, row.duration))


def _ratio(speed: list[tuple[float, float]]) -> float | None:
    """Tokens per second: all tokens by all seconds."""
    return sum(tokens for tokens, _ in speed) / sum(seconds for _, seconds in speed) if speed else None


def _described(at: float, arm: str, bucket: _Bucket) -> Mapping[str, Any]:
    return {
        "at": at,
        "arm": arm,
        "requests": bucket.requests,
        "errors": bucket.errors,
        "ttft_p50": median(bucket.ttft) if bucket.ttft else None,
        "tokens_per_second": _ratio(bucket.speed),
        "thumbs_up": bucket.up,
        "thumbs_down": bucket.down,
    }
