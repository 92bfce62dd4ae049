"""The controller's memory: rollouts, evidence, readings, audit trail, commands. Written once a look, in one transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from services.common.identifiers import canonical_hash
from services.common.routing import Route
from services.store.database import Database
from services.store.routing import publish
from services.store.rows import AuditEntry, Command, RolloutRow
from services.store.schema import audit, commands, evidence, readings, rollouts

_AUDIT_COLUMNS = [c for c in audit.c if c.name != "digest"]


class Rollouts:
    """The part of the store that the controller writes and everybody else reads."""

    _database: Database

    def commit_look(
        self,
        row: RolloutRow,
        *,
        evidence: Mapping[str, Any] | None,
        readings: Sequence[Mapping[str, Any]] = (),
        at: float,
        audit: Sequence[AuditEntry] = (),
        route: Route | None = None,
    ) -> None:
        """Store all that one look has decided, or on an error nothing.

        The rollout's row is replaced, so is its evidence (None keeps the last), readings and audit entries are added, the route is
        published. Repeating a look with the same `at` changes nothing.

        Args:
            row: the rollout as it stands now.
            evidence: state from which the next look goes on; JSON, infinities allowed.
            readings: one a metric, each with `metric`; `at` and `stage` are added where missing.
            at: time of the look.
            audit: what happened in it.
            route: the service's route from now on.

        Raises:
            StoreUnavailable: repeat the same look later.
        """
        with self._database.write() as connection:
            self._put_rollout(connection, row)
            if evidence is not None:
                self._put_evidence(connection, row.id, at, evidence)
            self._put_readings(connection, row, at, readings)
            self._put_audit(connection, audit)
            if route is not None:
                publish(self._database, connection, route)

    def rollout(self, id: str) -> RolloutRow | None:
        """One rollout by id."""
        with self._database.read() as connection:
            row = connection.execute(select(rollouts).where(rollouts.c.id == id)).one_or_none()
        return None if row is None else RolloutRow(**row._mapping)

    def rollouts(self, service: str | None = None, limit: int = 100) -> list[RolloutRow]:
        """Rollouts of a service or of all, newest first."""
        query = select(rollouts).order_by(rollouts.c.started_at.desc(), rollouts.c.id.desc()).limit(limit)
        if service is not None:
            query = query.where(rollouts.c.service == service)
        with self._database.read() as connection:
            return [RolloutRow(**row._mapping) for row in connection.execute(query)]

    def evidence(self, rollout: str) -> Mapping[str, Any] | None:
        """The state of the rollout's evidence after its last look."""
        with self._database.read() as connection:
            found: Mapping[str, Any] | None = connection.scalar(
                select(evidence.c.document).where(evidence.c.rollout == rollout)
            )
        return found

    def keep_state(self, name: str, at: float, document: Mapping[str, Any]) -> None:
        """Store the state of evidence that belongs to no rollout; `evidence` gives it back. Repeating it changes nothing."""
        with self._database.write() as connection:
            self._put_evidence(connection, name, at, document)

    def readings(self, rollout: str) -> list[Mapping[str, Any]]:
        """What each look read of each metric, oldest first: {at, stage, step, metric, until and judged (the watermark and
        the judgement that were folded up to), and the reading's own fields}.
        """
        query = (
            select(readings.c.document)
            .where(readings.c.rollout == rollout)
            .order_by(readings.c.at, readings.c.stage, readings.c.metric)
        )
        with self._database.read() as connection:
            return list(connection.scalars(query))

    def append_audit(self, entries: Sequence[AuditEntry]) -> None:
        """Add entries; one that is there already, word for word and to the second's fraction, is ignored."""
        if entries:
            with self._database.write() as connection:
                self._put_audit(connection, entries)

    def audit(self, service: str | None = None, rollout: str | None = None, limit: int = 1000) -> list[AuditEntry]:
        """The newest `limit` entries of a service, of a rollout, or of all; oldest of them first."""
        query = select(*_AUDIT_COLUMNS).order_by(audit.c.id.desc()).limit(limit)
        if service is not None:
            query = query.where(audit.c.service == service)
        if rollout is not None:
            query = query.where(audit.c.rollout == rollout)
        with self._database.read() as connection:
            return [AuditEntry(**row._mapping) for row in reversed(connection.execute(query).all())]

    def audit_after(self, service: str, id: int, actions: Sequence[str], limit: int) -> list[AuditEntry]:
        """The oldest `limit` entries of these actions that are newer than entry `id`, oldest first."""
        query = (
            select(*_AUDIT_COLUMNS)
            .where(audit.c.service == service, audit.c.id > id, audit.c.action.in_(actions))
            .order_by(audit.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [AuditEntry(**row._mapping) for row in connection.execute(query)]

    def last_audit(self, service: str, actor: str) -> AuditEntry | None:
        """The newest entry of an actor."""
        query = (
            select(*_AUDIT_COLUMNS)
            .where(audit.c.service == service, audit.c.actor == actor)
            .order_by(audit.c.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else AuditEntry(**row._mapping)

    def add_command(self, command: Command) -> None:
        """Store a command for the controller; one with the same id is ignored."""
        with self._database.write() as connection:
            row = dataclasses.asdict(command)
            connection.execute(self._database.insert(commands).values(row).on_conflict_do_nothing())

    def commands(self, service: str, pending: bool = True) -> list[Command]:
        """A service's commands by time; only those not answered yet, or all."""
        query = select(commands).where(commands.c.service == service).order_by(commands.c.at, commands.c.id)
        if pending:
            query = query.where(commands.c.handled_at.is_(None))
        with self._database.read() as connection:
            return [Command(**row._mapping) for row in connection.execute(query)]

    def answer_command(self, id: str, answer: str) -> None:
        """Say what became of a command. Its first answer stays."""
        open_one = (commands.c.id == id) & commands.c.handled_at.is_(None)
        with self._database.write() as connection:
            now = self._database.now(connection)
            connection.execute(update(commands).where(open_one).values(handled_at=now, answer=answer))

    def _put_rollout(self, connection: Connection, row: RolloutRow) -> None:
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        self._database.upsert(connection, rollouts, values)

    def _put_evidence(self, connection: Connection, rollout: str, at: float, document: Mapping[str, Any]) -> None:
        self._database.upsert(connection, evidence, {"rollout": rollout, "at": at, "document": document})

    def _put_readings(
        self, connection: Connection, row: RolloutRow, at: float, documents: Sequence[Mapping[str, Any]]
    ) -> None:
        if documents:
            whole = [{"at": at, "stage": row.stage, **document} for document in documents]
            values = [
                {"rollout": row.id, "document": one, **{k: one[k] for k in ("at", "stage", "metric")}} for one in whole
            ]
            connection.execute(self._database.insert(readings).on_conflict_do_nothing(), values)

    def _put_audit(self, connection: Connection, entries: Sequence[AuditEntry]) -> None:
        rows = []
        for entry in entries:
            row = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.name != "id"}
            rows.append({**row, "digest": canonical_hash(row)})
        if rows:
            connection.execute(self._database.insert(audit).on_conflict_do_nothing(), rows)
