"""Hands the controller what has become final since its last look: closed units, mirrored pairs, and what came too late.

Called once a look for each running rollout. Every query here costs work in what is new, not in the rollout's history, and gives the same
rows in the same order whatever the size of the batches and the number of restarts, provided `until` is at most the watermark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    Subquery,
    and_,
    exists,
    func,
    or_,
    select,
    tuple_,
)

from services.store.database import Database
from services.store.past import pasts_of
from services.store.recording import (
    EXPOSURE_COLUMNS,
    FEEDBACK_COLUMNS,
    OBSERVATION_COLUMNS,
    exposure,
    feedback_record,
    observation,
)
from services.store.records import Exposure, Feedback, Observation
from services.store.rows import ClosedUnit, Cursor, MirroredPair, Past
from services.store.schema import exposures, feedback, live, mirrored, observations, stored

_ALL: Final = 2**62  # a LIMIT makes SQLite answer the subquery first, which is the small one, and not last
_ROUNDING: Final = 1e-3  # seconds; widens an indexed range whose exact bounds are tested on the rounded sum


class Closing:
    """The part of the store that the evidence is folded from."""

    _database: Database

    def closed_units(
        self, rollout: str, after: Cursor, until: float, limit: int = 20_000, as_of: float | None = None
    ) -> list[ClosedUnit]:
        """Units with `after` < (closes_at, unit) and closes_at <= `until`, in that order, at most `limit`. `as_of`: by the rows that were
        stored at that time, for a replay.
        """
        page = (
            select(*EXPOSURE_COLUMNS)
            .where(
                exposures.c.rollout == rollout,
                exposures.c.closes_at
                >= after[0],  # implied by the next; PostgreSQL's planner can estimate only this one
                tuple_(exposures.c.closes_at, exposures.c.unit) > after,
                exposures.c.closes_at <= until,
                *stored(exposures, as_of),
            )
            .order_by(exposures.c.closes_at, exposures.c.unit)
            .limit(limit)
        )
        with self._database.read() as connection:
            units = [exposure(row) for row in connection.execute(page)]
            if not units:
                return []
            requests = _requests_of(connection, page, as_of)
            said = _feedback_on(connection, page, as_of)
            pasts = pasts_of(connection, page, as_of)
        return [closed_unit(unit, requests[unit.unit], said, pasts.get(unit.unit)) for unit in units]

    def mirrored_pairs(
        self,
        rollout: str,
        after: Cursor,
        until: float,
        settle: float,
        limit: int = 20_000,
        as_of: float | None = None,
    ) -> list[MirroredPair]:
        """Pairs with `after` < (closes_at, pair) and closes_at <= `until`, in that order, at most `limit`. `as_of` as for `closed_units`.

        closes_at is the earliest started_at of the pair's rows plus `settle` seconds, which must not change during a rollout.
        """
        page = _pairs_page(rollout, after, until, settle, limit, as_of)
        named = page.subquery()
        query = (
            select(*OBSERVATION_COLUMNS)
            .select_from(named.join(observations, observations.c.pair == named.c.pair))
            .where(mirrored(observations), *stored(observations, as_of))
            .order_by(observations.c.started_at, observations.c.request_id, observations.c.attempt)
        )
        with self._database.read() as connection:
            closing = [(row.pair, row.closes_at) for row in connection.execute(page)]
            sides: defaultdict[str, dict[str, Observation]] = defaultdict(dict)
            if closing:
                for row in map(observation, connection.execute(query)):
                    sides[str(row.pair)].setdefault(row.arm, row)
        return [_pair(pair, closes_at, sides[pair]) for pair, closes_at in closing]

    def late_rows(self, rollout: str, since: float, watermark: float) -> int:
        """Rows stored after `since` of units that had closed at or before `watermark`: too late to count, though they would have.

        Observations started within the unit's horizon, feedback on them given before the unit closed, and the exposures themselves.
        """
        counts_for_it = and_(observations.c.rollout == rollout, live(observations), observations.c.counted)
        rows = select(func.count()).select_from(
            observations.join(exposures, _of_closed_unit(observations.c, rollout, watermark))
        )
        rows = rows.where(counts_for_it, observations.c.stored_at > since)
        units = select(func.count()).select_from(exposures)
        units = units.where(
            exposures.c.rollout == rollout, exposures.c.stored_at > since, exposures.c.closes_at <= watermark
        )
        service = select(exposures.c.service).where(exposures.c.rollout == rollout).limit(1).scalar_subquery()
        recent = (
            select(feedback.c.id, feedback.c.request_id, feedback.c.at)
            .where(feedback.c.service == service, feedback.c.stored_at > since)
            .limit(_ALL)
            .subquery()
        )
        about = (
            select(recent.c.id, recent.c.at, observations.c.unit, observations.c.started_at)
            .select_from(recent.join(observations, recent.c.request_id == observations.c.request_id))
            .where(counts_for_it)
            .limit(_ALL)
            .subquery()
        )
        said = select(func.count(about.c.id.distinct())).where(about.c.at <= exposures.c.closes_at)
        said = said.select_from(about.join(exposures, _of_closed_unit(about.c, rollout, watermark)))
        with self._database.read() as connection:
            return sum(connection.scalar(query) or 0 for query in (rows, units, said))


def _of_closed_unit(request: Any, rollout: str, watermark: float) -> ColumnElement[bool]:
    """The exposure is that of the request's unit, which has closed, and the request began within its horizon."""
    return and_(
        exposures.c.rollout == rollout,
        exposures.c.unit == request.unit,
        exposures.c.closes_at <= watermark,
        request.started_at >= exposures.c.first_at,
        request.started_at < exposures.c.horizon_at,
    )


def _asked_by(units: Subquery) -> ColumnElement[bool]:
    """The request is one of the unit, begun within its horizon."""
    return and_(
        observations.c.unit == units.c.unit,
        observations.c.rollout == units.c.rollout,
        observations.c.started_at >= units.c.first_at,
        observations.c.started_at < units.c.horizon_at,
    )


def _requests_of(connection: Connection, page: Select[Any], as_of: float | None) -> dict[str, list[Observation]]:
    """Per unit of the page, its live and counted rows within the horizon, by time."""
    units = page.subquery()
    query = (
        select(*OBSERVATION_COLUMNS)
        .select_from(units.join(observations, _asked_by(units)))
        .where(live(observations), observations.c.counted, *stored(observations, as_of))
        .order_by(observations.c.started_at, observations.c.request_id, observations.c.attempt)
    )
    found: defaultdict[str, list[Observation]] = defaultdict(list)
    for row in map(observation, connection.execute(query)):
        found[row.unit].append(row)
    return found


def _feedback_on(connection: Connection, page: Select[Any], as_of: float | None) -> dict[str, list[Feedback]]:
    """Per request of the page's units, the feedback given before the unit closed, by time."""
    units = page.subquery()
    said = and_(feedback.c.request_id == observations.c.request_id, feedback.c.at <= units.c.closes_at)
    query = (
        select(*FEEDBACK_COLUMNS)
        .select_from(units.join(observations, _asked_by(units)).join(feedback, said))
        .where(live(observations), observations.c.counted, *stored(observations, as_of), *stored(feedback, as_of))
        .order_by(feedback.c.at, feedback.c.id)
    )
    found: defaultdict[str, dict[str, Feedback]] = defaultdict(dict)
    for row in map(feedback_record, connection.execute(query)):
        found[row.request_id][row.id] = row  # a request with two attempts gives its feedback twice
    return {request: list(its.values()) for request, its in found.items()}


def closed_unit(
    unit: Exposure, requests: Sequence[Observation], said: Mapping[str, Sequence[Feedback]], past: Past | None = None
) -> ClosedUnit:
    """The unit with its requests, and of what was `said` on each request what was given before it closed."""
    about = {f.id: f for request in requests for f in said.get(request.request_id, ()) if f.at <= unit.closes_at}
    return ClosedUnit(unit, tuple(requests), tuple(sorted(about.values(), key=lambda f: (f.at, f.id))), past)


def _pairs_page(
    rollout: str, after: Cursor, until: float, settle: float, limit: int, as_of: float | None
) -> Select[Any]:
    """(pair, closes_at) of the pairs whose earliest row lies in the window."""
    here = and_(mirrored(observations), observations.c.rollout == rollout, *stored(observations, as_of))
    begin, end = starts(after, until, settle)
    grouped = (
        select(observations.c.pair, func.min(observations.c.started_at).label("first_at"))
        .where(here, observations.c.started_at >= begin, observations.c.started_at <= end)
        .group_by(observations.c.pair)
        .subquery()
    )
    earlier = observations.alias("earlier")
    begun_before = exists().where(mirrored(earlier), earlier.c.pair == grouped.c.pair, earlier.c.started_at < begin)
    return closing_page(grouped, after, until, settle, limit).where(~begun_before)


def starts(after: Cursor, until: float, seconds: float) -> tuple[float, float]:
    """When that began which closes in the window, `seconds` after its beginning; somewhat widened."""
    return after[0] - seconds - _ROUNDING, until - seconds + _ROUNDING


def closing_page(grouped: Subquery, after: Cursor, until: float, seconds: float, limit: int) -> Select[Any]:
    """Of the groups (key, first_at) those with `after` < (closes_at, key) and closes_at <= `until`, in that order: (key, first_at,
    closes_at), which is `seconds` after first_at.
    """
    key, first_at = grouped.c
    closes_at = (first_at + seconds).cast(Float(53))
    return (
        select(key, first_at, closes_at.label("closes_at"))
        .where(or_(closes_at > after[0], and_(closes_at == after[0], key > after[1])), closes_at <= until)
        .order_by(closes_at, key)
        .limit(limit)
    )


def _pair(pair: str, closes_at: float, sides: dict[str, Observation]) -> MirroredPair:
    candidate, stable = sides.get("candidate"), sides.get("control")
    some = candidate or stable
    return MirroredPair(pair, some.unit if some else "", closes_at, candidate, stable)
