"""Deletes what must not or need not be kept: one user's data on demand, old rows by age. Called by the controller and the command line.

Rows go in small transactions, so that no gateway's write waits long behind them; an interrupted call is finished by the next.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Table, and_, delete, exists, or_, select, tuple_, union_all

from services.store.database import Database
from services.store.judging import MATERIAL_SECONDS
from services.store.schema import (
    assignment_faults,
    audit,
    commands,
    experiments,
    exposures,
    feedback,
    judge_material,
    judgements,
    leases,
    observations,
    prices,
    readings,
    replicas,
    rollouts,
    route_history,
    routes,
    samples,
    streams,
    usage_hours,
)

_CHUNK: Final = 5_000  # rows of one transaction: some tens of milliseconds


class Housekeeping:
    """The part of the store that forgets."""

    _database: Database

    def erase_user(self, unit: str) -> int:
        """Delete every row of a unit, feedback on its requests included; returns how many there were.

        What is left of the user is in sums alone: evidence, readings, sequence numbers.
        """
        own = select(observations.c.request_id).where(observations.c.unit == unit)
        deleted = self._delete(feedback, feedback.c.request_id.in_(own))
        for table in (observations, exposures, assignment_faults, judge_material, judgements, samples):
            deleted += self._delete(table, table.c.unit == unit)
        return deleted

    def prune(self, service: str, older_than: float, audit_older_than: float) -> int:
        """Delete a service's rows from before the time `older_than` (not an age), and its audit entries and what its costs are reckoned
        from, where that is from before `audit_older_than`.

        Kept whatever their age: rows of rollouts and experiments that have not finished, the newest route, rollouts, experiments.
        With any service go the judge's material after an hour, and what is left of gateways that have not been heard of since `older_than`.

        Returns:
            How many rows there were.
        """
        with self._database.read() as connection:
            now = self._database.now(connection)
        deleted = self._delete(judge_material, judge_material.c.at <= now - MATERIAL_SECONDS)
        old = and_(feedback.c.service == service, feedback.c.stored_at < older_than, _of_no_running_rollout())
        deleted += self._delete(feedback, old)
        mine = and_(observations.c.service == service, observations.c.started_at < older_than)
        deleted += self._delete(observations, and_(mine, _finished(observations)))
        deleted += self._delete(samples, and_(samples.c.service == service, samples.c.at < older_than))
        newest = select(routes.c.version).where(routes.c.service == service).scalar_subquery()
        past = and_(route_history.c.service == service, route_history.c.version < newest)
        deleted += self._delete(route_history, and_(past, route_history.c.published_at < older_than))
        answered = and_(commands.c.service == service, commands.c.handled_at < older_than)
        deleted += self._delete(commands, answered)
        deleted += self._delete(audit, and_(audit.c.service == service, audit.c.at < audit_older_than))
        deleted += self._delete(
            usage_hours, and_(usage_hours.c.service == service, usage_hours.c.hour < audit_older_than)
        )
        for table, of in ((replicas, ("service", "engine")), (prices, ("service",))):
            gone = and_(table.c.service == service, _superseded(table, of, audit_older_than))
            deleted += self._delete(table, gone)
        own = union_all(*(select(table.c.id).where(table.c.service == service) for table in (rollouts, experiments)))
        for table, time in (
            (exposures, exposures.c.closes_at),
            (assignment_faults, assignment_faults.c.at),
            (judgements, judgements.c.at),
            (readings, readings.c.at),
        ):
            deleted += self._delete(table, and_(table.c.rollout.in_(own), time < older_than, _finished(table)))
        deleted += self._delete(leases, leases.c.lease_until < older_than)
        return deleted + self._delete(streams, streams.c.stored_at < older_than)

    def _delete(self, table: Table, condition: ColumnElement[bool]) -> int:
        key = tuple_(*table.primary_key.columns)
        some: Any = select(*table.primary_key.columns).where(condition).limit(_CHUNK)
        deleted = 0
        while True:
            with self._database.write() as connection:
                count = connection.execute(delete(table).where(key.in_(some))).rowcount
            deleted += count
            if count < _CHUNK:
                return deleted


def _superseded(table: Table, of: tuple[str, ...], before: float) -> ColumnElement[bool]:
    """The row tells of a time before `before` alone: another of the same `of` has followed it by then."""
    next_ = table.alias()
    same = and_(*(next_.c[name] == table.c[name] for name in of))
    return exists().where(same, next_.c.since > table.c.since, next_.c.since <= before)


def _finished(table: Table) -> ColumnElement[bool]:
    """The row belongs to no rollout or experiment, or to one that does not run."""
    return or_(table.c.rollout.is_(None), table.c.rollout.not_in(_running()))


def _of_no_running_rollout() -> ColumnElement[bool]:
    return ~(
        select(observations.c.request_id)
        .where(observations.c.request_id == feedback.c.request_id, observations.c.rollout.in_(_running()))
        .exists()
    )


def _running() -> Any:
    """Ids of the rollouts and experiments that have not finished."""
    return union_all(*(select(table.c.id).where(table.c.finished_at.is_(None)) for table in (rollouts, experiments)))
