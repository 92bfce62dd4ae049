"""Users of a revision that serves everyone, when there are no arms: what the watch after a promotion compares, and with what.

Called by the controller's looks at a watch. A visit stands for a user as an exposure does in a rollout, and is read the same way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, exists, select
from sqlalchemy import func as sql

from services.common.clock import HOUR
from services.store.closing import closed_unit, closing_page, starts
from services.store.database import Database
from services.store.recording import FEEDBACK_COLUMNS, OBSERVATION_COLUMNS, feedback_record, observation
from services.store.records import Exposure, Feedback, Observation
from services.store.rows import ClosedUnit, Cursor, History
from services.store.schema import feedback, observations, plain, stored

HOURLY_REQUESTS: Final = 1_000
LONGEST: Final = 900.0
"""Seconds; what takes longer to answer is not seen by a watch."""


class Visits:
    """The part of the store that a watch is folded from."""

    _database: Database

    def first_visits(
        self,
        service: str,
        revision: str,
        since: float,
        after: Cursor,
        until: float,
        horizon: float,
        settle: float,
        limit: int = 20_000,
        as_of: float | None = None,
    ) -> list[ClosedUnit]:
        """Each user's first visit to a revision as stable from `since` on: `after` < (closes_at, unit), closes_at <= `until`, in that
        order, at most `limit`. It begins when the first of the user's requests has ended, has what began within `horizon` seconds of that
        (0: that request alone) and the feedback until it closes, `settle` seconds later. `as_of` as for `closed_units`.
        """
        page = _page(service, revision, since, after, until, horizon + settle, limit, as_of)
        units = page.subquery()
        within = and_(
            observations.c.unit == units.c.unit,
            observations.c.started_at >= since,
            observations.c.started_at < units.c.first_at + horizon
            if horizon
            else _ended(observations) == units.c.first_at,
            _served(observations, service, revision),
            *stored(observations, as_of),
        )
        requests = (
            select(*OBSERVATION_COLUMNS)
            .select_from(units.join(observations, within))
            .order_by(_ended(observations), observations.c.request_id)
        )
        said = (
            select(*FEEDBACK_COLUMNS)
            .select_from(
                units.join(observations, within).join(feedback, feedback.c.request_id == observations.c.request_id)
            )
            .where(feedback.c.at <= units.c.closes_at, *stored(feedback, as_of))
            .order_by(feedback.c.at, feedback.c.id)
        )
        with self._database.read() as connection:
            visits = connection.execute(page).all()
            if not visits:
                return []
            rows = _by(map(observation, connection.execute(requests)), "unit")
            marks = _by(map(feedback_record, connection.execute(said)), "request_id")
        return [_visit(rows[visit.unit], marks, visit.first_at, horizon, visit.closes_at) for visit in visits]

    def visits_before(
        self, service: str, revision: str, since: float, until: float, horizon: float, settle: float
    ) -> History:
        """Visits to a revision as stable or control, closed and stored in [since, until]: of each user the first of every hour. Of every
        hour the first 1,000 requests are read, so that a week of a busy service costs no more than a week of a quiet one.
        """
        rows: list[Observation] = []
        marks: defaultdict[str, list[Feedback]] = defaultdict(list)
        share: dict[int, float] = {}
        with self._database.read() as connection:
            for hour in range(int(since // HOUR), math.ceil(until / HOUR)):
                begin, end = max(since, hour * HOUR), min(until, (hour + 1) * HOUR)
                ours = and_(
                    observations.c.service == service,
                    observations.c.revision == revision,
                    observations.c.arm.in_(("stable", "control")),
                    *plain(observations),
                    observations.c.started_at >= begin,
                    observations.c.started_at < end,
                    *stored(observations, until),
                )
                oldest = select(*OBSERVATION_COLUMNS).where(ours).order_by(observations.c.started_at)
                some = [observation(row) for row in connection.execute(oldest.limit(HOURLY_REQUESTS))]
                if not some:
                    continue
                last = some[-1].started_at
                share[hour] = (last - begin) / (end - begin) if len(some) == HOURLY_REQUESTS else 1.0
                said = (
                    select(*FEEDBACK_COLUMNS)
                    .select_from(observations.join(feedback, feedback.c.request_id == observations.c.request_id))
                    .where(ours, observations.c.started_at <= last, *stored(feedback, until))
                    .order_by(feedback.c.at, feedback.c.id)
                )
                for mark in map(feedback_record, connection.execute(said)):
                    marks[mark.request_id].append(mark)
                rows += some
        visits: defaultdict[tuple[str, float], list[Observation]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: (row.started_at + row.duration, row.request_id)):
            ended = row.started_at + row.duration
            mine = visits[row.unit, ended // HOUR]
            if not mine or row.started_at < mine[0].started_at + mine[0].duration + horizon:
                mine.append(row)
        found = ((mine, mine[0].started_at + mine[0].duration) for mine in visits.values())
        whole = horizon + settle
        return History(
            tuple(_visit(mine, marks, at, horizon, at + whole) for mine, at in found if at + whole <= until), share
        )


def _ended(table: Any) -> ColumnElement[float]:
    ended: ColumnElement[float] = table.c.started_at + table.c.duration
    return ended


def _served(table: Any, service: str, revision: str) -> ColumnElement[bool]:
    """Answered by the revision as stable. By unit, and not by service and time as SQLite would have it: hence the concatenation."""
    here = table.c.service.concat("") == service
    return and_(here, table.c.revision == revision, table.c.arm == "stable", *plain(table))


def _page(
    service: str,
    revision: str,
    since: float,
    after: Cursor,
    until: float,
    whole: float,
    limit: int,
    as_of: float | None,
) -> Select[Any]:
    """(unit, first_at, closes_at) of the visits that close in the window; costs what is new, not the time since `since`."""
    begin, end = starts(after, until, whole)
    grouped = (
        select(observations.c.unit, sql.min(_ended(observations)).label("first_at"))
        .where(
            observations.c.service == service,
            observations.c.revision == revision,
            observations.c.arm == "stable",
            *plain(observations),
            observations.c.started_at >= max(since, begin - LONGEST),
            observations.c.started_at <= end,
            _ended(observations) >= begin,
            *stored(observations, as_of),
        )
        .group_by(observations.c.unit)
        .subquery()
    )
    earlier = observations.alias("earlier")
    came_before = exists().where(
        earlier.c.unit == grouped.c.unit,
        earlier.c.started_at >= since,
        _ended(earlier) < begin,
        _served(earlier, service, revision),
        *stored(earlier, as_of),
    )
    return closing_page(grouped, after, until, whole, limit).where(~came_before)


def _by(rows: Iterable[Any], name: str) -> defaultdict[str, list[Any]]:
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[getattr(row, name)].append(row)
    return found


def _visit(
    rows: Sequence[Observation], marks: dict[str, list[Feedback]], at: float, horizon: float, closes_at: float
) -> ClosedUnit:
    """As if the user had been exposed by the first answer."""
    first = rows[0]
    exposure = Exposure(
        rollout=first.rollout or "", service=first.service, unit=first.unit, arm=first.arm, bucket=first.bucket or 0, step=0,
        route_version=first.route_version, first_at=at, horizon_at=at + horizon, closes_at=closes_at, gateway=first.gateway,
        boot=first.boot, sequence=first.sequence,
    )  # fmt: skip
    return closed_unit(exposure, rows, marks)
