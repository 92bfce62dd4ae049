"""`understudy replay`, as people and programs meet it; what a replay gives is tested in `tests/rollout`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import run
from services.store import Store
from tests.fakes.rollout_rows import START, audit, gate, route, row

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def fallen(store: Store) -> str:
    """A rollout that fell at the gate."""
    store.publish_route(route())
    ended: dict[str, Any] = {"stage": "finished", "verdict": "abort", "reason": "GateHarmful", "decided_in": "gate"}
    one = row("r2-long-id", "2", gate=gate(0.2), decided_at=START + 9, finished_at=START + 9, message="worse", **ended)
    store.commit_look(one, evidence={}, at=START + 9, audit=[audit("r2-long-id", "abort", "GateHarmful", "worse")])
    return one.id


def test_what_was_and_what_would_have_been(fallen: str, url: str, capsys: Capture) -> None:
    arguments = ["replay", "assistant", "--since", "2023-01-01", "--store", url]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "rolled back" in text
    assert "the same" in text
    assert "nothing can be played" in text
    assert run([*arguments, "-o", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["replays"]
    assert (one["rollout"], one["faithful"], one["same"]) == (fallen, True, True)
    assert (one["recorded"]["verdict"], one["recorded"]["stage"]) == ("abort", "gate")


def test_one_rollout_by_the_beginning_of_its_id(fallen: str, url: str, capsys: Capture) -> None:
    assert run(["replay", "--rollout", "r2", "--store", url, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["replays"][0]["rollout"] == fallen
    assert run(["replay", "assistant", "--store", url]) == 0
    assert "none began in that time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rollout", "r9"], 3, "no rollout 'r9'"),
        (["--since", "yesterday"], 2, "write an age such as 7d or 12h, or a date"),
        (["other"], 3, "no rollout of 'other' in this store"),
        (["--resource", "missing.yaml"], 3, "no file missing.yaml"),
    ],
)
def test_what_is_wrong_is_said(
    fallen: str, url: str, capsys: Capture, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    assert run(["replay", *arguments, "--store", url]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_cluster_has_no_rows(capsys: Capture) -> None:
    assert run(["replay", "assistant", "--context", "kind"]) == 2
    assert "name it with --store URL" in capsys.readouterr().err
