"""Empty stores, migrated once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.store import migrate, open_store


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store's file."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    migrate(f"sqlite:///{path}")
    store = open_store(f"sqlite:///{path}")
    store.close()
    return path.read_bytes()


@pytest.fixture
def url(template: bytes, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(template)
    return f"sqlite:///{tmp_path / 'store.db'}"
