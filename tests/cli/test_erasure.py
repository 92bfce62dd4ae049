"""`understudy erase`: the right user goes and nobody else; every way of bringing the key, and what is said without it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from services.cli.main import run
from services.common.identifiers import unit_of
from services.store import Store
from tests.fakes.records import exposure, observation
from tests.fakes.rollout_rows import HandClock

KEY = "k" * 32
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _users(store: Store, clock: HandClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tenants have a user `ada`, and one has `bob`; the key lies beside the store, as on a laptop."""
    for variable in ("UNDERSTUDY_STORE_URL", "UNDERSTUDY_CONTROLLER_STORE_URL"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "secrets.json").write_text(json.dumps({"unit_key": KEY}))
    for tenant, user in (("default", "ada"), ("default", "bob"), ("other", "ada")):
        unit = unit_of(KEY.encode(), tenant, user)
        store.write([observation(clock.now, unit=unit), exposure(clock.now, unit=unit)])


def left(store: Store) -> int:
    return sum(
        store.erase_user(unit_of(KEY.encode(), *one))
        for one in (("default", "ada"), ("default", "bob"), ("other", "ada"))
    )


def test_one_user_of_one_tenant_is_erased(store: Store, url: str, capsys: Capture) -> None:
    assert run(["erase", "--user", "ada", "--yes", "--store", url]) == 0
    assert capsys.readouterr().out == "2 rows of user 'ada' of tenant 'default' deleted\n"
    assert run(["erase", "--user", "ada", "--yes", "--store", url]) == 0
    assert capsys.readouterr().out == "nothing is stored of user 'ada' of tenant 'default'\n"
    assert left(store) == 4


def test_the_key_comes_from_a_file_or_from_standard_input(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "unit_key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("UNDERSTUDY_CONTROLLER_STORE_URL", url)
    assert run(["erase", "-u", "ada", "--tenant", "other", "-y", "--key-file", str(file)]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(KEY))
    assert run(["erase", "-u", "bob", "-y", "--key-file", "-"]) == 0
    assert capsys.readouterr().out.count("2 rows of user") == 2
    assert left(store) == 2


def test_it_asks_first(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(["erase", "--user", "ada", "--store", url]) == 130
    assert left(store) == 6


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--key-file", "none"], "no key in none"),
        (["--key-file", "short"], "at least 16 characters"),
        (["--key-file", "wrong.json"], "no key in wrong.json"),
    ],
)
def test_without_the_key_nothing_is_done(
    store: Store,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("abc")
    (tmp_path / "wrong.json").write_text("[]")
    assert run(["erase", "--user", "ada", "--yes", "--store", url, *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert len(said.splitlines()) == 1
    assert left(store) == 6


def test_a_key_from_standard_input_leaves_no_way_to_ask(url: str, capsys: Capture) -> None:
    assert run(["erase", "--user", "ada", "--key-file", "-", "--store", url]) == 2
    assert "say --yes" in capsys.readouterr().err
    assert run(["erase", "--user", "ada", "--yes", "--store", "postgresql://user@127.0.0.1:1/none"]) == 2
    assert "pass --key-file" in capsys.readouterr().err
