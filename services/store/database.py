"""The connection to SQLite or PostgreSQL: transactions, the store's clock, and the dialects' few differences.

Called by the other modules of this package only. It knows no table but Alembic's. Every block of `read` and `write` is one transaction;
drivers' errors leave it as `services.store.errors`.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from services.common.clock import Clock
from services.store.errors import MIGRATE, SchemaMismatch, StoreError, StoreUnavailable, translate
from services.store.schema import SCHEMA_REVISION

LOCK_SECONDS: Final = 5.0
"""How long a transaction waits for another's lock before it is StoreUnavailable."""
STATEMENT_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5


def parse_url(url: str) -> URL:
    """The database's URL; `postgresql://` means psycopg 3.

    Raises:
        StoreError: not a URL of SQLite (a file) or PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError("the store's URL cannot be read: sqlite:///folder/understudy.db or postgresql://...") from None
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise StoreError(f"{parsed.drivername} is not supported: sqlite:///folder/understudy.db or postgresql://...")


class Database:
    """One engine with its transactions. Thread-safe."""

    def __init__(self, url: URL, clock: Clock) -> None:
        self._clock = clock
        self._sqlite = url.drivername == "sqlite"
        self._engine = sqlite_engine(url) if self._sqlite else postgres_engine(url)
        # SQLite lets one writer in at a time and makes the others poll; threads of one process had better queue here.
        self._writer = threading.Lock()
        self._schema_checked = False

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot: all statements of the block see the same state."""
        with translated(), self._engine.connect() as connection:
            if not self._sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                self._check_schema(connection)
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, kept whole or not at all."""
        with translated(), self._one_writer(), self._engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                self._check_schema(connection)
                yield connection

    def now(self, connection: Connection | None = None) -> float:
        """The store's clock, seconds since the epoch: the server's for PostgreSQL; a SQLite file lives on one machine, so its clock."""
        if self._sqlite:
            return self._clock.time()
        if connection is None:
            with self.read() as own:
                return self.now(own)
        return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)

    def insert(self, table: Table) -> Any:
        """The dialect's INSERT, which knows ON CONFLICT."""
        return sqlite.insert(table) if self._sqlite else postgresql.insert(table)

    def upsert(self, connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
        """Write a row in place of the one with its key, where there is one."""
        insert = self.insert(table).values(row)
        connection.execute(insert.on_conflict_do_update(index_elements=table.primary_key.columns, set_=row))

    def serialise(self, connection: Connection, purpose: str) -> None:
        """Until the transaction's end no other runs past this call with the same purpose. SQLite's writers are serial anyway."""
        if not self._sqlite:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:purpose, 0))"), {"purpose": purpose}
            )

    def _one_writer(self) -> AbstractContextManager[None]:
        return self._locked() if self._sqlite else nullcontext()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._writer.acquire(timeout=LOCK_SECONDS):
            raise StoreUnavailable("another thread is writing to the database")
        try:
            yield
        finally:
            self._writer.release()

    def _check_schema(self, connection: Connection) -> None:
        if self._schema_checked:
            return
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if found != SCHEMA_REVISION:
            raise SchemaMismatch(f"the database's schema is {found}, this program needs {SCHEMA_REVISION}: {MIGRATE}")
        self._schema_checked = True


@contextmanager
def translated() -> Iterator[None]:
    """Drivers' errors leave this block as the store's."""
    try:
        yield
    except SQLAlchemyError as error:
        raise translate(error) from error


def sqlite_engine(url: URL, *, create: bool = False) -> Engine:
    """An engine on a SQLite file; unless `create`, a missing file is an error and not a new, empty database."""
    engine = create_engine(
        "sqlite://",
        creator=_sqlite_opener(Path(str(url.database)), create),
        poolclass=QueuePool,
        pool_timeout=LOCK_SECONDS,
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Python's sqlite3 would begin late and turn a reader into a writer, which fails at once when another writes.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _sqlite_opener(path: Path, create: bool) -> Callable[[], sqlite3.Connection]:
    address = f"file:{quote(str(path.absolute()))}?mode={'rwc' if create else 'rw'}"

    def connect() -> sqlite3.Connection:
        if not create and not path.exists():
            raise StoreUnavailable(f"there is no database at {path}: {MIGRATE}")
        connection = sqlite3.connect(
            address,
            uri=True,
            timeout=LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute(
            "PRAGMA synchronous=NORMAL"
        )  # with WAL: safe against a crash of the process, may lose the last
        connection.create_function("floor", 1, math.floor, deterministic=True)  # not in every build of SQLite
        return connection

    return connect


def postgres_engine(url: URL) -> Engine:
    """An engine on PostgreSQL whose every wait is bounded."""
    options = f"-c statement_timeout={int(STATEMENT_SECONDS * 1000)} -c lock_timeout={int(LOCK_SECONDS * 1000)}"
    arguments = {
        "connect_timeout": CONNECT_SECONDS,
        "options": options,
        "application_name": "understudy",
        "tcp_user_timeout": int(STATEMENT_SECONDS * 1000),  # a peer that vanished without a word
    }
    return create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_timeout=LOCK_SECONDS)
