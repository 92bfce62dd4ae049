"""Alembic's environment and the schema's revisions; run by `services.store.migration` alone."""
