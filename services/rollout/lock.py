"""One controller a store: a lock that ends with its holder. Taken by the controller before its first look; asked at each look.

SQLite: an advisory lock on a file beside the database. PostgreSQL: a session's advisory lock; when the session is lost the lock is too, and
the controller must stop acting until it has a new one.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from services.rollout.errors import LockHeld
from services.rollout.together import Together

_KEY: Final = 0x756E6465727374  # "underst" in ASCII: any number will do that no other program is likely to use


class Lock(Protocol):
    """Held by one process at a time."""

    def take(self) -> None:
        """Takes the lock, or makes sure that it is still held. Raises LockHeld."""
        ...

    def release(self) -> None:
        """Gives it back."""
        ...


def controller_lock(store_url: str) -> Lock:
    """The lock of a store."""
    url = make_url(store_url)
    if url.get_backend_name() == "sqlite":
        return FileLock(Path(f"{url.database}.controller.lock"))
    return SessionLock(url.set(drivername="postgresql+psycopg"))


def holding(lock: Lock) -> Together[None]:
    """The lock as the loops of many services ask for it."""

    def ask(services: Collection[str]) -> dict[str, None]:
        lock.take()
        return dict.fromkeys(services)

    return Together(ask)


class FileLock:
    """`flock` on a file; the kernel gives it back when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        if self._descriptor is not None:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise LockHeld(f"another controller acts on this store ({self._path} is locked); end it first") from error
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class SessionLock:
    """`pg_try_advisory_lock` on a connection of its own."""

    def __init__(self, url: Any) -> None:
        # Every wait is bounded: a database that hangs must not keep a controller from noticing that it has lost the lock.
        waits = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "options": "-c statement_timeout=5000"}
        self._engine: Engine = create_engine(
            url, pool_size=1, max_overflow=0, isolation_level="AUTOCOMMIT", connect_args=waits
        )
        self._connection: Connection | None = None
        self._turn = threading.Lock()

    def take(self) -> None:
        with self._turn:
            try:
                if self._connection is not None:
                    self._connection.execute(text("select 1"))
                    return
                connection = self._engine.connect()
                if connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": _KEY}).scalar():
                    self._connection = connection
                    return
                connection.close()
            except SQLAlchemyError as error:
                self._drop()
                raise LockHeld("the lock's connection to the database is lost; waiting to take it again") from error
            raise LockHeld("another controller acts on this store; end it first")

    def release(self) -> None:
        with self._turn:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
        self._engine.dispose()
