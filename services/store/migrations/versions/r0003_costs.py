"""Costs: usage by hour, replicas and prices over time; of each request the key and the tokens that the engine had cached.

Revision ID: 0003
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    """Add tables and columns."""
    op.add_column("observations", sa.Column("tokens_cached", sa.Integer(), nullable=True))
    op.add_column("observations", sa.Column("key", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "usage_hours",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("hour", sa.Double(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("answered", sa.BigInteger(), nullable=False),
        sa.Column("tokens_in", sa.BigInteger(), nullable=False),
        sa.Column("tokens_cached", sa.BigInteger(), nullable=False),
        sa.Column("tokens_out", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("service", "hour", "revision", "arm", "rollout", "kind", "tenant", "key"),
    )
    op.create_table(
        "replicas",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("service", "engine", "since"),
    )
    op.create_table(
        "revision_engines",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("service", "revision"),
    )
    op.create_table(
        "prices",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("service", "since"),
    )
