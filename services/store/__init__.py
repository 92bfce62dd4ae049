"""The store: what was observed, decided and ordered, in SQLite or PostgreSQL. Gateway, controller and command line meet only here.

store.py          the object they hold, put together from the parts below
recording.py      records of the gateways      streams.py       proof that none was lost
routing.py        routes, leases               judging.py       material for the judge, and scores
closing.py        units and pairs that closed  rollouts.py      rollouts, evidence, audit, commands
history.py        baseline, series             housekeeping.py  erasure, retention
experiments.py    A/B experiments               past.py          users before their exposure
standing.py       where a service stands: all of it that a look begins with
usage.py          users in time, for plans    visits.py        users where there are no arms
costs.py          usage by hour, replicas, prices   marks.py   which marks are good
samples.py        sampled answers of stable
schema.py         tables                       migration.py, migrations/
database.py       transactions, dialects       errors.py        what it raises
records.py, rows.py   what goes in and comes out
"""

from services.store.costs import CostRecords, Marks, Rate, Usage, UserUsage
from services.store.errors import SchemaMismatch, StoreCorrupt, StoreError, StoreUnavailable
from services.store.judging import MATERIAL_SECONDS
from services.store.marks import is_bad_mark, is_good_mark
from services.store.records import Exposure, Feedback, FeedbackKind, Observation, Outcome, Preference, Record
from services.store.rows import (
    PEOPLE,
    AuditEntry,
    ClosedUnit,
    Command,
    Cursor,
    ExperimentRow,
    GatewayLease,
    History,
    JudgeMaterial,
    Judgement,
    MirroredPair,
    Past,
    RolloutRow,
    Sample,
    SampleKey,
    Standing,
)
from services.store.samples import material_of
from services.store.store import Store, open_store

__all__ = [
    "MATERIAL_SECONDS",
    "PEOPLE",
    "AuditEntry",
    "ClosedUnit",
    "Command",
    "CostRecords",
    "Cursor",
    "ExperimentRow",
    "Exposure",
    "Feedback",
    "FeedbackKind",
    "GatewayLease",
    "History",
    "JudgeMaterial",
    "Judgement",
    "Marks",
    "MirroredPair",
    "Observation",
    "Outcome",
    "Past",
    "Preference",
    "Rate",
    "Record",
    "RolloutRow",
    "Sample",
    "SampleKey",
    "SchemaMismatch",
    "Standing",
    "Store",
    "StoreCorrupt",
    "StoreError",
    "StoreUnavailable",
    "Usage",
    "UserUsage",
    "is_bad_mark",
    "is_good_mark",
    "material_of",
    "migrate",
    "open_store",
]


def migrate(url: str) -> None:
    """Bring the database at `url` to this program's schema; see `services.store.migration`. Safe to repeat, also at the same time."""
    from services.store.migration import migrate as run  # Alembic: half a second that only this call should pay

    run(url)
