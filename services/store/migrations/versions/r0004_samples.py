"""Samples: what is known of single answers of a stable that serves.

Revision ID: 0004
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"


def upgrade() -> None:
    """Add the table."""
    key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "samples",
        sa.Column("id", key, nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("unit", key, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("judge", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
        sa.Column("language", sa.String(), nullable=True),
        sa.Column("words", sa.Integer(), nullable=True),
        sa.Column("terms", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("samples_time", "samples", ["service", "at"])
    op.create_index("samples_unit", "samples", ["unit"])
