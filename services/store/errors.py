"""What the store raises; every other error is a fault of this package.

    StoreError                the write itself was refused (a row that breaks the schema); trying again does not help
    ├── StoreUnavailable      connection lost, locked, timed out, disk full: repeat later, safe even if the commit had come through
    ├── StoreCorrupt          the database's file or pages are damaged: restore a backup
    └── SchemaMismatch        no tables, or those of another version: `understudy migrate`

`translate` is the one place where a driver's error becomes one of these. Callers never see SQLAlchemy, sqlite3 or psycopg.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

MIGRATE: Final = "run `understudy migrate`"


class StoreError(Exception):
    """The store did not do what was asked; its text names no row's content."""


class StoreUnavailable(StoreError):
    """Temporary: the same call may succeed later, and repeating it is safe."""


class StoreCorrupt(StoreError):
    """Permanent: the database is damaged."""


class SchemaMismatch(StoreError):
    """Permanent until someone migrates the database."""


# https://www.postgresql.org/docs/current/errcodes-appendix.html; a prefix is a class of codes.
_PG_UNAVAILABLE: Final = ("08", "53", "57", "58", "40", "25006", "55P03")
_PG_CORRUPT: Final = ("XX001", "XX002")
_PG_MISMATCH: Final = ("42P01", "42703", "42P10", "3F000")

_SQLITE_CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SQLITE_UNAVAILABLE: Final = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
)


def translate(error: SQLAlchemyError) -> StoreError:
    """The store's error for one of SQLAlchemy's. Statement and parameters stay out of the text: they hold users' comments."""
    if isinstance(error, PoolTimeout):
        return StoreUnavailable("no connection to the database became free in time")
    if not isinstance(error, DBAPIError) or error.orig is None:
        return StoreError(f"the database refused the statement ({type(error).__name__})")
    cause = error.orig
    first_line = (str(cause).splitlines() or [type(cause).__name__])[0]
    if isinstance(cause, sqlite3.Error):
        return _from_sqlite(cause, first_line)
    state: str | None = getattr(cause, "sqlstate", None)
    if state is None:
        # psycopg has no code for what happens before or after a session: refused, reset, gone away.
        lost = error.connection_invalidated or type(cause).__name__ in ("OperationalError", "InterfaceError")
        return StoreUnavailable(first_line) if lost else StoreError(type(cause).__name__)
    if state.startswith(_PG_UNAVAILABLE):
        return StoreUnavailable(first_line)
    if state in _PG_CORRUPT:
        return StoreCorrupt(first_line)
    if state in _PG_MISMATCH:
        return SchemaMismatch(f"{first_line}: {MIGRATE}")
    return StoreError(f"{type(cause).__name__} ({state})")


def _from_sqlite(cause: sqlite3.Error, text: str) -> StoreError:
    code = getattr(cause, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF  # the low byte is the code, the rest says more about it
    if primary in _SQLITE_CORRUPT:
        return StoreCorrupt(text)
    if primary in _SQLITE_UNAVAILABLE:
        return StoreUnavailable(text)
    if primary == sqlite3.SQLITE_ERROR and text.startswith(("no such table", "no such column")):
        return SchemaMismatch(f"{text}: {MIGRATE}")
    return StoreError(f"{type(cause).__name__}: {text}")
