"""`understudy explain`: the evidence as a picture, and how the error budget was spent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from services.cli.main import run
from services.store import RolloutRow, Store
from tests.fakes.rollout_rows import TTFT, HandClock, reading

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def looks(running: RolloutRow, store: Store, clock: HandClock) -> RolloutRow:
    """Three looks at the rollout of `running`, the evidence of harm growing."""
    for number in range(1, 4):
        clock.now += 10
        ttft = {**TTFT, "upper": None if number == 1 else 0.62 - 0.05 * number, "effect": 0.01 * number}
        store.commit_look(
            running,
            evidence={},
            readings=[reading("feedback", e_harm=1.5**number, harmful=False), reading("ttft", **ttft)],
            at=clock.now,
        )
    return running


@pytest.mark.parametrize(("name", "begins"), [("evidence.png", b"\x89PNG"), ("evidence.SVG", b"<?xml")])
def test_a_picture_is_drawn(
    looks: RolloutRow, url: str, tmp_path: Path, capsys: Capture, name: str, begins: bytes
) -> None:
    assert run(["explain", "assistant", "--store", url, "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert "assistant-v3-7c1f is in canary step 2" in capsys.readouterr().out


def test_a_picture_says_what_it_shows(looks: RolloutRow, url: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.svg"
    assert run(["explain", "r3", "--store", url, "--plot", str(path)]) == 0
    drawn = path.read_text()
    for words in (
        "Users who gave a bad mark (feedback)",
        "Time to first token (ttft)",
        "margin: beyond it is harm",
        "e-value that shows harm",
    ):
        assert f"<!-- {words} -->" in drawn, "matplotlib names each text that it draws"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("e.gif", 2, "end the name in .png, .svg or .pdf"), ("no/e.png", 1, "cannot be written")],
)
def test_a_picture_that_cannot_be_drawn(
    looks: RolloutRow, url: str, tmp_path: Path, capsys: Capture, name: str, code: int, words: str
) -> None:
    assert run(["explain", "assistant", "--store", url, "--plot", str(tmp_path / name)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_without_matplotlib_it_says_how_to_get_it(
    looks: RolloutRow, url: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(["explain", "assistant", "--store", url, "--plot", str(tmp_path / "e.png")]) == 1
    assert capsys.readouterr().err.endswith("pip install matplotlib\n")


def test_the_error_budget_is_shared_out(looks: RolloutRow, url: str, capsys: Capture) -> None:
    assert run(["explain", "assistant", "--store", url]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "Of the 5 % for aborting a harmless candidate: gate 0.5 %, rehearsal 2 % (2 tests, 1 % each), canary 2.5 % (3 tests, 0.83 % each)."
        in text
    )
    assert "feedback in canary came nearest to its part: e-value 3.38 of 120." in text
    assert run(["explain", "assistant", "--store", url, "-o", "json"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert sum(test["level"] for test in budget["tests"]) == pytest.approx(budget["alpha"])
    assert [t["e_value"] for t in budget["tests"] if t["metric"] == "ttft"] == [None, None], "judged by its bounds"
