"""The first schema.

Revision ID: 0001
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None

KEY: Final = sa.String().with_variant(sa.String(collation="C"), "postgresql")
SERIAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
IN_ROLLOUT: Final = sa.text("rollout IS NOT NULL")
MIRRORED: Final = sa.text("kind = 'mirror'")


def upgrade() -> None:
    """Make all tables."""
    _observations()
    _units()
    _routing()
    _judging()
    _rollouts()
    _history()


def _observations() -> None:
    op.create_table(
        "observations",
        sa.Column("request_id", KEY, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=True),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("unit", KEY, nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("route_version", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("ttft", sa.Double(), nullable=True),
        sa.Column("duration", sa.Double(), nullable=False),
        sa.Column("gap_mean", sa.Double(), nullable=True),
        sa.Column("gap_max", sa.Double(), nullable=True),
        sa.Column("tokens_in", sa.Integer(), nullable=True),
        sa.Column("tokens_out", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("pair", KEY, nullable=True),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("client_request_id", sa.String(), nullable=True),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "attempt", "kind"),
    )
    op.create_index(
        "observations_mirrored",
        "observations",
        ["rollout", "started_at"],
        sqlite_where=MIRRORED,
        postgresql_where=MIRRORED,
    )
    op.create_index("observations_pair", "observations", ["pair"], sqlite_where=MIRRORED, postgresql_where=MIRRORED)
    op.create_index(
        "observations_stored",
        "observations",
        ["rollout", "stored_at"],
        sqlite_where=IN_ROLLOUT,
        postgresql_where=IN_ROLLOUT,
    )
    op.create_index("observations_time", "observations", ["service", "started_at"])
    op.create_index("observations_unit", "observations", ["unit", "rollout", "started_at"])
    op.create_table(
        "streams",
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("upto", sa.BigInteger(), nullable=False),
        sa.Column("ranges", sa.Text(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("gateway", "boot"),
    )


def _units() -> None:
    op.create_table(
        "exposures",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("unit", KEY, nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("route_version", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("horizon_at", sa.Double(), nullable=False),
        sa.Column("closes_at", sa.Double(), nullable=False),
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "unit"),
    )
    op.create_index("exposures_closing", "exposures", ["rollout", "closes_at", "unit"])
    op.create_index("exposures_stored", "exposures", ["rollout", "stored_at"])
    op.create_index("exposures_unit", "exposures", ["unit"])
    op.create_table(
        "assignment_faults",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("unit", KEY, nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "unit", "arm"),
    )
    op.create_table(
        "feedback",
        sa.Column("id", KEY, nullable=False),
        sa.Column("request_id", KEY, nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("feedback_request", "feedback", ["request_id"])
    op.create_index("feedback_stored", "feedback", ["service", "stored_at"])


def _routing() -> None:
    op.create_table(
        "routes",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service"),
    )
    op.create_table(
        "route_history",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service", "version"),
    )
    op.create_table(
        "leases",
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("routes", sa.Text(), nullable=False),
        sa.Column("complete_through", sa.Double(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("recorded", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("spilled", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("gateway", "boot"),
    )
    op.create_index("leases_until", "leases", ["lease_until"])


def _judging() -> None:
    op.create_table(
        "judge_material",
        sa.Column("pair", KEY, nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("unit", KEY, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pair"),
    )
    op.create_index("judge_material_rollout", "judge_material", ["rollout", "at"])
    op.create_table(
        "judgements",
        sa.Column("sequence", SERIAL, autoincrement=True, nullable=False),
        sa.Column("pair", KEY, nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("unit", KEY, nullable=False),
        sa.Column("candidate", sa.Double(), nullable=False),
        sa.Column("stable", sa.Double(), nullable=False),
        sa.Column("judge", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("pair"),
        sqlite_autoincrement=True,
    )
    op.create_index("judgements_rollout", "judgements", ["rollout", "sequence"])


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("expected", sa.String(), nullable=True),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("rollouts_service", "rollouts", ["service", "started_at"])
    op.create_table(
        "evidence",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("rollout"),
    )
    op.create_table(
        "readings",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "at", "stage", "metric"),
    )


def _history() -> None:
    op.create_table(
        "audit",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=True),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_rollout", "audit", ["rollout", "id"])
    op.create_index("audit_service", "audit", ["service", "id"])
    op.create_table(
        "commands",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=True),
        sa.Column("verb", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("handled_at", sa.Double(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("commands_service", "commands", ["service", "handled_at", "at"])
