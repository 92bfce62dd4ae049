"""Brings a database to this program's schema. Called by `understudy migrate`, by the charts' job and by tests; imports Alembic."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from services.store.database import LOCK_SECONDS, parse_url, postgres_engine, sqlite_engine, translated
from services.store.errors import SchemaMismatch, StoreUnavailable

_PURPOSE: Final = 7_305_211_846_229_054
"""Number of PostgreSQL's advisory lock: two migrations wait for each other."""


def migrate(url: str) -> None:
    """Bring the database to the newest schema, in one transaction; a file and its folder are made where there are none.

    Safe to repeat and to call from two processes at once: the second waits, then finds nothing to do.

    Raises:
        StoreUnavailable: the database is away or locked.
        SchemaMismatch: the database is newer than this program.
    """
    parsed = parse_url(url)
    if parsed.drivername == "sqlite":
        Path(str(parsed.database)).absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = sqlite_engine(parsed, create=True)
    else:
        engine = postgres_engine(parsed)
    try:
        with translated():
            if parsed.drivername == "sqlite":
                _use_write_ahead_log(engine)
            with engine.connect() as connection:
                connection = connection.execution_options(writes=True)
                with connection.begin():
                    if parsed.drivername != "sqlite":
                        connection.execute(text("SELECT pg_advisory_xact_lock(:purpose)"), {"purpose": _PURPOSE})
                    _upgrade(connection)
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    configuration.attributes["connection"] = connection
    try:
        command.upgrade(configuration, "head")
    except CommandError as error:
        raise SchemaMismatch(f"the database was made by a newer version of Understudy ({error})") from error


def _use_write_ahead_log(engine: Engine) -> None:
    """A property of the file, set once. SQLite does not wait for locks in this statement, so two first starts must take turns."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with suppress(StoreUnavailable), translated():
            raw = engine.raw_connection()
            try:
                mode = raw.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
            finally:
                raw.close()
            if mode == ("wal",):
                return
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                "the database file stays locked, or its file system has no shared memory for SQLite's WAL"
            )
        time.sleep(0.05)
