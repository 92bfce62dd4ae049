"""The tables, as SQLAlchemy Core sees them. `migrations/` makes them; a test holds the two equal.

Who uses it: the other modules of this package. Nothing outside it names a table or a column.

Every index here is there for one question, named beside it; writes of the gateways pay for each.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Double,
    FromClause,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    literal_column,
    text,
)
from sqlalchemy.types import TypeDecorator

SCHEMA_REVISION: Final = "0004"
"""Alembic's newest revision. Kept here so that a gateway can check the schema without importing Alembic."""


class Document(TypeDecorator[Any]):
    """A JSON document in a text column.

    Text, not PostgreSQL's JSON type: evidence may hold infinities (a TTFT that never came), which PostgreSQL refuses and Python's
    reader and writer keep exactly.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


# Ordered by bytes in both databases (SQLite always does): cursors over (time, unit) must not depend on the server's language.
_Key = String().with_variant(String(collation="C"), "postgresql")
_Serial = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

observations = Table(
    "observations",
    metadata,
    Column("request_id", _Key, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("service", String, nullable=False),
    Column("rollout", String),
    Column("revision", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("unit", _Key, nullable=False),
    Column("bucket", Integer),
    Column("step", Integer, nullable=False),
    Column("route_version", BigInteger, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("ttft", Double),
    Column("duration", Double, nullable=False),
    Column("gap_mean", Double),
    Column("gap_max", Double),
    Column("tokens_in", Integer),
    Column("tokens_out", Integer),
    Column("outcome", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", String),
    Column("pair", _Key),
    Column("tenant", String, nullable=False),
    Column("client_request_id", String),
    Column("counted", Boolean, nullable=False),
    Column("gateway", String, nullable=False),
    Column("boot", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("stored_at", Double, nullable=False),
    Column("tokens_cached", Integer),
    Column("key", String, nullable=False, server_default=""),
)
_in_rollout = text("rollout IS NOT NULL")
_mirrored = text("kind = 'mirror'")
Index("observations_unit", *(observations.c[c] for c in ("unit", "rollout", "started_at")))  # closed units; erasure
Index("observations_time", *(observations.c[c] for c in ("service", "started_at")))  # traffic, baseline, retention
Index(
    "observations_stored",  # late rows, series
    *(observations.c[c] for c in ("rollout", "stored_at")),
    sqlite_where=_in_rollout,
    postgresql_where=_in_rollout,
)
Index(
    "observations_mirrored",  # mirrored pairs: those that closed since the last look
    *(observations.c[c] for c in ("rollout", "started_at")),
    sqlite_where=_mirrored,
    postgresql_where=_mirrored,
)
Index(
    "observations_pair",  # mirrored pairs: the rows of one
    observations.c.pair,
    sqlite_where=_mirrored,
    postgresql_where=_mirrored,
)

exposures = Table(
    "exposures",
    metadata,
    Column("rollout", String, primary_key=True),
    Column("unit", _Key, primary_key=True),
    Column("service", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("bucket", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("route_version", BigInteger, nullable=False),
    Column("first_at", Double, nullable=False),
    Column("horizon_at", Double, nullable=False),
    Column("closes_at", Double, nullable=False),
    Column("gateway", String, nullable=False),
    Column("boot", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("stored_at", Double, nullable=False),
)
Index("exposures_closing", *(exposures.c[c] for c in ("rollout", "closes_at", "unit")))  # closed units, in their order
Index("exposures_stored", *(exposures.c[c] for c in ("rollout", "stored_at")))  # late rows
Index("exposures_unit", exposures.c.unit)  # erasure

assignment_faults = Table(  # a unit that was sent to an arm other than the one it was first exposed to
    "assignment_faults",
    metadata,
    Column("rollout", String, primary_key=True),
    Column("unit", _Key, primary_key=True),
    Column("arm", String, primary_key=True),
    Column("at", Double, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("request_id", _Key, nullable=False),
    Column("service", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("value", Double),
    Column("comment", Text),
    Column("at", Double, nullable=False),
    Column("gateway", String, nullable=False),
    Column("boot", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("stored_at", Double, nullable=False),
)
Index("feedback_request", feedback.c.request_id)  # the feedback on a unit's requests
Index("feedback_stored", *(feedback.c[c] for c in ("service", "stored_at")))  # late rows, retention

streams = Table(  # which sequence numbers of one gateway process have arrived: the proof of no loss
    "streams",
    metadata,
    Column("gateway", String, primary_key=True),
    Column("boot", String, primary_key=True),
    Column("upto", BigInteger, nullable=False),
    Column("ranges", Document, nullable=False),
    Column("stored_at", Double, nullable=False),
)

routes = Table(  # the newest of each service; what gateways poll
    "routes",
    metadata,
    Column("service", String, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("published_at", Double, nullable=False),
    Column("document", Text, nullable=False),
)
route_history = Table(
    "route_history",
    metadata,
    Column("service", String, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("published_at", Double, nullable=False),
    Column("document", Text, nullable=False),
)

leases = Table(  # with the acknowledgements of route versions
    "leases",
    metadata,
    Column("gateway", String, primary_key=True),
    Column("boot", String, primary_key=True),
    Column("address", String),
    Column("routes", Document, nullable=False),
    Column("complete_through", Double, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("recorded", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("spilled", BigInteger, nullable=False),
    Column("ended_at", Double),
)
Index("leases_until", leases.c.lease_until)  # the gateways alive

judge_material = Table(
    "judge_material",
    metadata,
    Column("pair", _Key, primary_key=True),
    Column("rollout", String, nullable=False),
    Column("unit", _Key, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
)
Index("judge_material_rollout", *(judge_material.c[c] for c in ("rollout", "at")))
judgements = Table(
    "judgements",
    metadata,
    Column("sequence", _Serial, primary_key=True, autoincrement=True),
    Column("pair", _Key, nullable=False, unique=True),
    Column("rollout", String, nullable=False),
    Column("unit", _Key, nullable=False),
    Column("candidate", Double, nullable=False),
    Column("stable", Double, nullable=False),
    Column("judge", String, nullable=False),
    Column("at", Double, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even when the newest row was erased
)
Index("judgements_rollout", *(judgements.c[c] for c in ("rollout", "sequence")))

samples = Table(
    "samples",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("service", String, nullable=False),
    Column("revision", String, nullable=False),
    Column("unit", _Key, nullable=False),
    Column("tenant", String, nullable=False),
    Column("at", Double, nullable=False),
    Column("score", Double),
    Column("judge", String),
    Column("model", String),
    Column("embedding", LargeBinary),
    Column("language", String),
    Column("words", Integer),
    Column("terms", LargeBinary),
)
Index("samples_time", *(samples.c[c] for c in ("service", "at")))  # detectors, topics, retention
Index("samples_unit", samples.c.unit)  # erasure

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String, primary_key=True),
    Column("service", String, nullable=False),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("revision", String, nullable=False),
    Column("stage", String, nullable=False),
    Column("verdict", String),
    Column("reason", String),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("expected", String),
    Column("spec", Document, nullable=False),
    Column("status", Document, nullable=False),
)
Index("rollouts_service", *(rollouts.c[c] for c in ("service", "started_at")))
evidence = Table(
    "evidence",
    metadata,
    Column("rollout", String, primary_key=True),
    Column("at", Double, nullable=False),
    Column("document", Document, nullable=False),
)
readings = Table(
    "readings",
    metadata,
    Column("rollout", String, primary_key=True),
    Column("at", Double, primary_key=True),
    Column("stage", String, primary_key=True),
    Column("metric", String, primary_key=True),
    Column("document", Document, nullable=False),
)

experiments = (
    Table(  # their exposures, evidence and readings stand in the tables of rollouts, under the experiment's id
        "experiments",
        metadata,
        Column("id", String, primary_key=True),
        Column("service", String, nullable=False),
        Column("name", String, nullable=False),
        Column("started_at", Double, nullable=False),
        Column("ended_at", Double),
        Column("finished_at", Double),
        Column("spec", Document, nullable=False),
        Column("status", Document, nullable=False),
    )
)
Index("experiments_service", *(experiments.c[c] for c in ("service", "started_at")))

audit = Table(
    "audit",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("digest", String, nullable=False, unique=True),  # of the whole entry: a repeated write adds nothing
    Column("at", Double, nullable=False),
    Column("service", String, nullable=False),
    Column("rollout", String),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("evidence", Document, nullable=False),
    sqlite_autoincrement=True,
)
Index("audit_service", *(audit.c[c] for c in ("service", "id")))
Index("audit_rollout", *(audit.c[c] for c in ("rollout", "id")))
commands = Table(
    "commands",
    metadata,
    Column("id", String, primary_key=True),
    Column("service", String, nullable=False),
    Column("rollout", String),
    Column("verb", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("handled_at", Double),
    Column("answer", Text),
)
Index("commands_service", *(commands.c[c] for c in ("service", "handled_at", "at")))

usage_hours = Table(  # requests summed by hour of their start: what costs are made of, kept longer than the rows
    "usage_hours",
    metadata,
    Column("service", String, primary_key=True),
    Column("hour", Double, primary_key=True),
    Column("revision", String, primary_key=True),
    Column("arm", String, primary_key=True),
    Column("rollout", String, primary_key=True),  # empty: none
    Column("kind", String, primary_key=True),
    Column("tenant", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("answered", BigInteger, nullable=False),
    Column("tokens_in", BigInteger, nullable=False),
    Column("tokens_cached", BigInteger, nullable=False),
    Column("tokens_out", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
)
replicas = Table(  # how many an engine has, from `since` on
    "replicas",
    metadata,
    Column("service", String, primary_key=True),
    Column("engine", String, primary_key=True),
    Column("since", Double, primary_key=True),
    Column("replicas", Integer, nullable=False),
)
revision_engines = Table(  # of revisions that share an engine: adapters and prompts
    "revision_engines",
    metadata,
    Column("service", String, primary_key=True),
    Column("revision", String, primary_key=True),
    Column("engine", String, nullable=False),
)
prices = Table(  # `spec.cost` as it is in force from `since` on; null: there is none
    "prices",
    metadata,
    Column("service", String, primary_key=True),
    Column("since", Double, primary_key=True),
    Column("document", Document),
)


def live(table: FromClause) -> ColumnElement[bool]:
    """Rows of requests that users were answered. Written out, not bound, as in `mirrored`."""
    return table.c.kind == literal_column("'live'")


def plain(table: FromClause) -> tuple[ColumnElement[bool], ...]:
    """Live and counted, and the engine's own answer rather than a fallback's."""
    return live(table), table.c.counted, table.c.attempt == 0


def mirrored(table: FromClause) -> ColumnElement[bool]:
    """Rows of rehearsal. Written out, not bound: only so do the databases see that an index over these rows alone will do."""
    return table.c.kind == literal_column("'mirror'")


def stored(table: FromClause, as_of: float | None) -> list[ColumnElement[bool]]:
    """Which rows count for a replay. No condition where all do: what every look asks must stay what the indexes were made for."""
    return [] if as_of is None else [table.c.stored_at <= as_of]
