"""What costs are made of: usage by hour, replicas and prices over time, marks. Written by the controller, read by it and by
`understudy costs`; the arithmetic is `services.rollout.costing`.

An hour's requests are summed into `usage_hours` once, so that a month is read in hours and not in requests; what is not summed yet is
read from the rows. Users are not in the sums, and so need no erasing there: by user everything is read from the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Float,
    String,
    and_,
    case,
    column,
    func,
    or_,
    select,
    values,
)

from services.common.clock import DAY, HOUR
from services.store.database import Database
from services.store.marks import BAD, GOOD
from services.store.schema import feedback, leases, live, observations, prices, replicas, revision_engines, usage_hours

SETTLED_SECONDS: Final = HOUR
"""Time from an hour's end until it is summed: what began in it has ended by then, and its rows are here."""
RATES: Final = 1_000
"""Prices of one statement: databases bound its parameters."""

_KEYS: Final = ("hour", "revision", "arm", "rollout", "kind", "tenant", "key")
_SUMS: Final = ("requests", "answered", "tokens_in", "tokens_cached", "tokens_out", "seconds")


@dataclass(frozen=True, slots=True)
class Usage:
    """Attempts of one hour that have revision, arm, rollout, kind and key in common."""

    hour: float
    """Its start."""
    revision: str
    arm: str
    rollout: str
    """Or an experiment's id; empty: none."""
    kind: str
    """`live` or `mirror`."""
    tenant: str
    key: str
    requests: int
    answered: int
    """Of these, answered whole."""
    tokens_in: int
    tokens_cached: int
    """Of `tokens_in`, those that the engine had in its cache, as far as it tells."""
    tokens_out: int
    seconds: float
    """Sum of durations."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Answers of one day by what was said of them."""

    day: float
    """Its start, UTC."""
    revision: str
    arm: str
    tenant: str
    key: str
    rated: int
    """Answers with a good or a bad mark."""
    good: int
    """Of these, those with a good mark and no bad one."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a revision's requests that began in one hour cost."""

    hour: float
    revision: str
    second: float
    """Of duration."""
    token_in: float
    token_cached: float
    token_out: float


@dataclass(frozen=True, slots=True)
class UserUsage:
    """One user's live requests, and what they cost."""

    unit: str
    requests: int
    answered: int
    tokens_in: int
    tokens_out: int
    cost: float


@dataclass(frozen=True, slots=True)
class CostRecords:
    """All that a service's costs are reckoned from."""

    usage: tuple[Usage, ...] = ()
    replicas: Mapping[str, Sequence[tuple[float, int]]] = field(default_factory=dict)
    """Engine -> (since, how many), by time."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """Revision -> engine, where they are not the same: adapters and prompts."""
    prices: tuple[tuple[float, Mapping[str, Any] | None], ...] = ()
    """(since, `spec.cost`), by time; None: there was none."""


def hour_of(at: float) -> float:
    """Start of the hour."""
    return at // HOUR * HOUR


class Costs:
    """The part of the store for costs."""

    _database: Database

    def note_replicas(self, service: str, counts: Mapping[str, int], engines: Mapping[str, str], at: float) -> None:
        """How many replicas each engine of the service has now; one that is missing has none any more. Stores what has changed.

        `engines`: revision -> engine, of revisions that share one.
        """
        with self._database.write() as connection:
            known = {engine: changes[-1][1] for engine, changes in _replicas(connection, service).items()}
            now = {**dict.fromkeys(known, 0), **counts}
            rows = [
                {"service": service, "engine": engine, "since": at, "replicas": count}
                for engine, count in now.items()
                if known.get(engine, 0) != count
            ]
            if rows:
                upsert = self._database.insert(replicas)
                upsert = upsert.on_conflict_do_update(
                    index_elements=list(replicas.primary_key.columns), set_={"replicas": upsert.excluded.replicas}
                )
                connection.execute(upsert, rows)
            shared = [{"service": service, "revision": one, "engine": engine} for one, engine in engines.items()]
            if shared:
                connection.execute(self._database.insert(revision_engines).on_conflict_do_nothing(), shared)

    def note_prices(self, service: str, document: Mapping[str, Any] | None, at: float) -> None:
        """The service's `spec.cost` now; stored where it differs from the last one."""
        with self._database.write() as connection:
            known = _prices(connection, service)
            if document == (known[-1][1] if known else None):
                return
            upsert = self._database.insert(prices).values(service=service, since=at, document=document)
            upsert = upsert.on_conflict_do_update(
                index_elements=list(prices.primary_key.columns), set_={"document": upsert.excluded.document}
            )
            connection.execute(upsert)

    def sum_usage(self, service: str) -> int:
        """Sums the service's hours that are settled and not summed yet, a day a transaction; returns how many there were.

        Must run before rows are deleted by age. Rows that come later than that (a gateway was cut off from the store) are in no sum.
        """
        count = 0
        while True:
            with self._database.read() as connection:
                now = self._database.now(connection)
                behind = connection.scalar(
                    select(func.min(leases.c.complete_through)).where(leases.c.lease_until > now)
                )
                until = hour_of(min(now if behind is None else behind, now) - SETTLED_SECONDS)
                start = _first_row(connection, service, _summed_until(connection, service))
                if start is None or start >= until:
                    return count
                found = _summed(connection, service, start, min(start + DAY, until))
            with self._database.write() as connection:
                rows = [
                    {"service": service, **{name: getattr(one, name) for name in (*_KEYS, *_SUMS)}} for one in found
                ]
                connection.execute(self._database.insert(usage_hours).on_conflict_do_nothing(), rows)
            count += len({one.hour for one in found})

    def cost_records(self, services: Collection[str], since: float) -> dict[str, CostRecords]:
        """What the costs of each are reckoned from: usage from the hour of `since` on, replicas and prices of all time."""
        with self._database.read() as connection:
            return {service: _records(connection, service, hour_of(since)) for service in services}

    def cost_services(self) -> list[str]:
        """Services that ever had prices or were used, by name."""
        with self._database.read() as connection:
            names = {*connection.scalars(select(prices.c.service).distinct())}
            names.update(connection.scalars(select(usage_hours.c.service).distinct()))
            names.update(connection.scalars(select(replicas.c.service).distinct()))
        return sorted(names)

    def marks(self, service: str, since: float, until: float) -> list[Marks]:
        """What was said of answers that began in [since, until), by day; reads the feedback, and no other request."""
        said = (
            select(
                feedback.c.request_id,
                func.max(case((GOOD, 1), else_=0)).label("good"),
                func.max(case((BAD, 1), else_=0)).label("bad"),
            )
            .where(feedback.c.service == service, feedback.c.stored_at >= since, or_(GOOD, BAD))
            .group_by(feedback.c.request_id)
            .subquery()
        )
        day = (func.floor(observations.c.started_at / DAY, type_=Float(53)) * DAY).label("day")
        by: tuple[ColumnElement[Any], ...] = (
            day,
            *(observations.c[name] for name in ("revision", "arm", "tenant", "key")),
        )
        query = (
            select(*by, func.count(), func.sum(case((said.c.bad == 0, said.c.good), else_=0)))
            .select_from(said.join(observations, observations.c.request_id == said.c.request_id))
            .where(
                live(observations),
                observations.c.outcome == "ok",
                observations.c.started_at >= since,
                observations.c.started_at < until,
            )
            .group_by(*by)
            .order_by(*by)
        )
        with self._database.read() as connection:
            return [Marks(*row) for row in connection.execute(query)]

    def users_usage(self, service: str, since: float, until: float, rates: Sequence[Rate]) -> list[UserUsage]:
        """What each user's live requests that began in [since, until) cost at these rates, dearest first; reads all of these requests, as
        far back as they are kept."""
        found: dict[str, UserUsage] = {}
        wanted = sorted(
            (rate for rate in rates if since < rate.hour + HOUR and rate.hour < until), key=lambda r: r.hour
        )
        with self._database.read() as connection:
            for start in range(0, len(wanted), RATES):
                for one in _users(connection, service, since, until, wanted[start : start + RATES]):
                    known = found.get(one.unit)
                    found[one.unit] = one if known is None else _both(known, one)
        return sorted(found.values(), key=lambda one: (-one.cost, one.unit))


def _records(connection: Connection, service: str, since: float) -> CostRecords:
    summed = _summed_until(connection, service)
    query = select(*(usage_hours.c[name] for name in (*_KEYS, *_SUMS))).where(
        usage_hours.c.service == service, usage_hours.c.hour >= since
    )
    usage = [Usage(*row) for row in connection.execute(query)]
    usage += _summed(connection, service, max(since, summed), None)
    shared = select(revision_engines.c.revision, revision_engines.c.engine).where(revision_engines.c.service == service)
    return CostRecords(
        usage=tuple(sorted(usage, key=lambda one: one.hour)),
        replicas=_replicas(connection, service),
        engines={row.revision: row.engine for row in connection.execute(shared)},
        prices=tuple(_prices(connection, service)),
    )


def _summed_until(connection: Connection, service: str) -> float:
    last = connection.scalar(select(func.max(usage_hours.c.hour)).where(usage_hours.c.service == service))
    return 0.0 if last is None else float(last) + HOUR


def _first_row(connection: Connection, service: str, since: float) -> float | None:
    """The hour of the first row at or after `since`."""
    query = select(func.min(observations.c.started_at)).where(
        observations.c.service == service, observations.c.started_at >= since
    )
    first = connection.scalar(query)
    return None if first is None else hour_of(float(first))


def _summed(connection: Connection, service: str, since: float, until: float | None) -> list[Usage]:
    """Usage by the rows, started in [since, until)."""
    rows = observations.c
    hour = (func.floor(rows.started_at / HOUR, type_=Float(53)) * HOUR).label("hour")
    rollout = func.coalesce(rows.rollout, "").label("rollout")
    named: list[ColumnElement[Any]] = [hour, rows.revision, rows.arm, rollout, rows.kind, rows.tenant, rows.key]
    query = (
        select(*named, func.count(), *(func.sum(what) for what in _MEASURED))
        .where(rows.service == service, rows.started_at >= since)
        .group_by(*named)
        .order_by(*named)
    )
    if until is not None:
        query = query.where(rows.started_at < until)
    return [Usage(*row) for row in connection.execute(query)]


_MEASURED: Final[tuple[ColumnElement[Any], ...]] = (
    case((observations.c.outcome == "ok", 1), else_=0),
    func.coalesce(observations.c.tokens_in, 0),
    func.coalesce(observations.c.tokens_cached, 0),
    func.coalesce(observations.c.tokens_out, 0),
    observations.c.duration,
)


def _replicas(connection: Connection, service: str) -> dict[str, list[tuple[float, int]]]:
    query = select(replicas).where(replicas.c.service == service).order_by(replicas.c.since)
    found: dict[str, list[tuple[float, int]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.engine, []).append((row.since, row.replicas))
    return found


def _prices(connection: Connection, service: str) -> list[tuple[float, Mapping[str, Any] | None]]:
    query = select(prices.c.since, prices.c.document).where(prices.c.service == service).order_by(prices.c.since)
    return [(row.since, row.document) for row in connection.execute(query)]


def _users(connection: Connection, service: str, since: float, until: float, rates: Sequence[Rate]) -> list[UserUsage]:
    names = ("hour", "revision", "second", "token_in", "token_cached", "token_out")
    columns = [column(name, String if name == "revision" else Double) for name in names]
    rows = [tuple(getattr(rate, name) for name in names) for rate in rates]
    rate = values(*columns, name="rates").data(rows).cte("rates").c
    seen = observations.c
    cost = (
        seen.duration * rate.second
        + (func.coalesce(seen.tokens_in, 0) - func.coalesce(seen.tokens_cached, 0)) * rate.token_in
        + func.coalesce(seen.tokens_cached, 0) * rate.token_cached
        + func.coalesce(seen.tokens_out, 0) * rate.token_out
    )
    first, last = max(since, rates[0].hour), min(until, rates[-1].hour + HOUR)
    query = (
        select(seen.unit, func.count(), *(func.sum(what) for what in (_MEASURED[0], _MEASURED[1], _MEASURED[3], cost)))
        .select_from(observations)
        .join(
            rate.hour.table,
            and_(
                rate.hour == func.floor(seen.started_at / HOUR, type_=Float(53)) * HOUR, rate.revision == seen.revision
            ),
        )
        .where(
            seen.service == service,
            seen.started_at >= first,
            seen.started_at < last,
            live(observations),
        )
        .group_by(seen.unit)
    )
    return [UserUsage(*row) for row in connection.execute(query)]


def _both(one: UserUsage, other: UserUsage) -> UserUsage:
    return UserUsage(
        one.unit,
        one.requests + other.requests,
        one.answered + other.answered,
        one.tokens_in + other.tokens_in,
        one.tokens_out + other.tokens_out,
        one.cost + other.cost,
    )
