"""Alembic's environment: runs the revisions on the connection that `services.store.migration` has opened, inside its transaction."""

from __future__ import annotations

from alembic import context

from services.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # true of both databases, though Alembic assumes otherwise of SQLite
)
with context.begin_transaction():
    context.run_migrations()
