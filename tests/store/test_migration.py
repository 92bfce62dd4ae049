"""The schema: made once whoever makes it, equal to what the code believes, and refused where it differs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import services.store.migrations
from services.store import Command, SchemaMismatch, Store, StoreError, StoreUnavailable, migrate, open_store
from services.store.schema import SCHEMA_REVISION, metadata


def test_the_newest_revision_is_the_one_the_code_expects() -> None:
    scripts = ScriptDirectory(str(Path(services.store.migrations.__file__).parent))
    assert scripts.get_current_head() == SCHEMA_REVISION


def test_migrations_make_the_tables_that_the_code_believes_in(store: Store) -> None:
    with store._database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_again_changes_nothing(url: str, store: Store) -> None:
    store.add_command(command := Command("c1", "assistant", None, "pause", "me", "", 1.0))
    migrate(url)
    assert store.commands("assistant") == [command]


@pytest.mark.integration
def test_two_processes_migrate_at_once(empty_url: str) -> None:
    program = "import sys; from services.store import migrate; migrate(sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-W", "error", "-c", program, empty_url]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    opened = open_store(empty_url)
    opened.ping()
    opened.close()


def test_an_empty_database_asks_for_migration(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).touch()
    opened = open_store(empty_url)
    with pytest.raises(SchemaMismatch, match="understudy migrate"):
        opened.ping()
    migrate(empty_url)
    opened.ping()  # the same object goes on once someone has migrated
    opened.close()


def test_a_newer_database_is_refused(url: str) -> None:
    opened = open_store(url)
    with opened._database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    opened.close()
    reopened = open_store(url)
    with pytest.raises(SchemaMismatch, match="9999"):
        reopened.ping()
    with pytest.raises(SchemaMismatch, match="newer"):
        migrate(url)
    reopened.close()


def test_a_missing_file_is_named_and_not_made(tmp_path: Path) -> None:
    opened = open_store(f"sqlite:///{tmp_path}/nowhere/understudy.db")
    with pytest.raises(StoreUnavailable, match=r"nowhere/understudy\.db: run `understudy migrate`"):
        opened.ping()
    assert list(tmp_path.iterdir()) == []


def test_migrating_makes_the_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a b/c%20d?/understudy.db".replace("?", "")
    migrate(url)
    opened = open_store(url)
    opened.ping()
    opened.close()


@pytest.mark.parametrize("url", ["", "understudy.db", "mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///"):
        open_store(url)
