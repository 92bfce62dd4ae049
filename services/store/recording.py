"""Takes the gateways' records in. Called by every gateway several times a second, with up to thousands of records at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, select

from services.store import streams
from services.store.database import Database
from services.store.records import Exposure, Feedback, Observation, Preference, Record
from services.store.rows import PEOPLE
from services.store.schema import assignment_faults, exposures, feedback, judgements, observations

OBSERVATION_COLUMNS = tuple(observations.c[name] for name in Observation.__struct_fields__)
EXPOSURE_COLUMNS = tuple(exposures.c[name] for name in Exposure.__struct_fields__)
FEEDBACK_COLUMNS = tuple(feedback.c[name] for name in Feedback.__struct_fields__)

_LOOKUP = 1_000  # units asked for in one statement


class Recording:
    """The part of the store that gateways write records to."""

    _database: Database

    def write(self, batch: Sequence[Record]) -> None:
        """Store records in one transaction: all, or on an error none.

        Where the connection broke in the commit itself they may be stored all the same; a repeat puts that right.

        A record whose key is already there is ignored, so a batch may be repeated whenever it is unknown whether it arrived. Of exposures
        the first one stored stays; a later one of the same unit on another arm is kept as an assignment fault. NUL characters, which
        PostgreSQL cannot hold, become U+FFFD.

        Raises:
            StoreUnavailable: repeat the batch later.
            StoreError: a record breaks the schema; repeating the batch does not help.
        """
        if not batch:
            return
        seen: list[Observation] = []
        exposed: list[Exposure] = []
        told: list[Feedback] = []
        preferred: list[Preference] = []
        received: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for record in batch:
            received[record.gateway, record.boot].append(record.sequence)
            if isinstance(record, Observation):
                seen.append(record)
            elif isinstance(record, Exposure):
                exposed.append(record)
            elif isinstance(record, Feedback):
                told.append(record)
            else:
                preferred.append(record)
        # Several gateways may expose one unit: in one order for everybody, two transactions cannot wait for each other.
        exposed.sort(key=lambda e: (e.rollout, e.unit))
        with self._database.write() as connection:
            at = self._database.now(connection)
            self._insert(connection, observations, seen, at)
            self._insert(connection, exposures, exposed, at)
            self._insert(connection, feedback, told, at)
            self._note_faults(connection, exposed)
            self._insert_preferences(connection, preferred)
            streams.note(self._database, connection, received, at)

    def request(self, request_id: str) -> Observation | None:
        """The live attempt whose answer the client got (the last one), or None; for feedback that came to another gateway."""
        return self._first_observation(observations.c.request_id == request_id, observations.c.kind == "live")

    def assignment_faults(self, rollout: str, as_of: float | None = None) -> int:
        """Exposures of this rollout that contradict the unit's first one (another arm); any is a fault of the assignment. `as_of`: those
        until then, for a replay.
        """
        query = select(assignment_faults.c.unit).where(assignment_faults.c.rollout == rollout)
        if as_of is not None:
            query = query.where(assignment_faults.c.at <= as_of)
        with self._database.read() as connection:
            return len(connection.execute(query).all())

    def _first_observation(self, *conditions: ColumnElement[bool]) -> Observation | None:
        query = select(*OBSERVATION_COLUMNS).where(*conditions).order_by(observations.c.attempt.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else observation(row)

    def _insert(self, connection: Connection, table: Table, records: Sequence[Record], at: float) -> None:
        if records:
            rows = [_row(record, at) for record in records]
            connection.execute(self._database.insert(table).on_conflict_do_nothing(), rows)

    def _insert_preferences(self, connection: Connection, records: Sequence[Preference]) -> None:
        """They stand among the judgements, in whose turns they are numbered."""
        if records:
            self._database.serialise(connection, "judgements")
            rows = [
                {"pair": one.pair, "rollout": one.rollout, "unit": one.unit, "candidate": one.candidate,
                 "stable": 1 - one.candidate, "judge": PEOPLE, "at": one.at}
                for one in records
            ]  # fmt: skip
            connection.execute(self._database.insert(judgements).on_conflict_do_nothing(), rows)

    def _note_faults(self, connection: Connection, exposed: Sequence[Exposure]) -> None:
        by_rollout: defaultdict[str, list[Exposure]] = defaultdict(list)
        for exposure in exposed:
            by_rollout[exposure.rollout].append(exposure)
        faults = []
        for rollout, its in by_rollout.items():
            stored: dict[str, str] = {}
            for start in range(0, len(its), _LOOKUP):
                units = [e.unit for e in its[start : start + _LOOKUP]]
                here = (exposures.c.rollout == rollout) & exposures.c.unit.in_(units)
                stored.update(
                    (row.unit, row.arm)
                    for row in connection.execute(select(exposures.c.unit, exposures.c.arm).where(here))
                )
            faults += [
                {"rollout": rollout, "unit": e.unit, "arm": e.arm, "at": e.first_at}
                for e in its
                if stored.get(e.unit, e.arm) != e.arm
            ]
        if faults:
            connection.execute(self._database.insert(assignment_faults).on_conflict_do_nothing(), faults)


def _row(record: Record, at: float) -> dict[str, Any]:
    row = msgspec.structs.asdict(record)
    row["stored_at"] = at
    for name, value in row.items():
        if isinstance(value, str) and "\0" in value:
            row[name] = value.replace("\0", "\ufffd")
    return row


def observation(row: Iterable[Any]) -> Observation:
    """The record of a row selected as OBSERVATION_COLUMNS."""
    return Observation(**dict(zip(Observation.__struct_fields__, row, strict=True)))


def exposure(row: Iterable[Any]) -> Exposure:
    """The record of a row selected as EXPOSURE_COLUMNS."""
    return Exposure(**dict(zip(Exposure.__struct_fields__, row, strict=True)))


def feedback_record(row: Iterable[Any]) -> Feedback:
    """The record of a row selected as FEEDBACK_COLUMNS."""
    return Feedback(**dict(zip(Feedback.__struct_fields__, row, strict=True)))
