"""`understudy experiment`: a list, one with its numbers and sentences, a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import run
from services.rollout.experiment import ExperimentStatus
from services.rollout.experiment_results import Result
from services.store import ExperimentRow, Store
from tests.fakes.rollout_rows import HandClock

RULES: dict[str, Any] = {
    "name": "tone",
    "variants": [{"name": "plain", "weight": 45, "version": "1"}, {"name": "warm", "weight": 45, "version": "2"}],
    "holdout": 5,
    "metrics": [{"metric": "errors", "margin": 0.1}],
    "horizon": "10s",
    "settle": "5s",
}


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "variant": "warm", "metric": "errors", "claim": "open", "margin": 0.1, "relative": False, "higher_is_better": False,
        "users": 200, "users_control": 210, "value": 0.2, "control": 0.1, "effect": 0.1, "lower": -0.02, "upper": 0.22,
        "e_better": 0.1, "e_worse": 12.0, "threshold": 160.0, "users_factor": 1.5,
    }  # fmt: skip
    return Result(**{**values, **changes})


@pytest.fixture
def tone(store: Store, clock: HandClock) -> HandClock:
    began = clock.now
    clock.now += 1_015.0
    results = (result(), result(variant="holdout", claim="worse", lower=0.01, users_factor=None))
    status = ExperimentStatus(
        salt="00", users={"plain": 210, "warm": 200, "holdout": 200}, results=results, looked_at=clock.now
    )
    row = ExperimentRow("assistant:tone", "assistant", "tone", began, None, None, RULES, status.to_json())
    for at in (began + 500, clock.now):
        store.commit_experiment(row, at=at, readings=[one.to_json() for one in results])
    return clock


def test_one_is_told_in_numbers_and_words(tone: HandClock, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "tone", "--store", url, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(group["name"], group["percent"], group["users"]) for group in document["groups"]] == [
        ("plain", 45.0, 210), ("warm", 45.0, 200), ("holdout", 5.0, 200),
    ]  # fmt: skip
    warm, held = document["results"]
    assert warm["decides_in"] == pytest.approx(200 * 0.5 / 0.2)  # a user of the smallest group in 5 s
    assert "No difference is shown yet" in warm["said"]
    assert "holdout is shown worse" in held["said"]
    assert held["decides_in"] is None
    assert run(["experiment", "--store", url]) == 0
    assert "holdout worse in errors" in " ".join(capsys.readouterr().out.split())


def test_a_page_is_written_and_needs_nothing_else(
    tone: HandClock, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "tone.html"
    assert run(["experiment", "assistant:tone", "--html", str(page), "--store", url]) == 0
    text = page.read_text()
    assert text.count("<figure>") == 2
    assert text.count("<svg") == 2
    assert "src=" not in text
    assert "http" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["other"], 3, "assistant:tone"), (["--html", "x.html"], 2, "name it"), (["tone", "-n", "prod"], 2, "--store")],
)
def test_what_cannot_be_shown_is_said(
    tone: HandClock, url: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    where = [] if "-n" in arguments else ["--store", url]
    assert run(["experiment", *arguments, *where]) == code
    assert message in capsys.readouterr().err
