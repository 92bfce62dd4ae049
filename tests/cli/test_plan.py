"""`understudy plan`, as people and programs meet it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import run
from services.store import RolloutRow, Store
from tests.fakes.rollout_rows import Gateway, route

Capture = pytest.CaptureFixture[str]

RESOURCE = """
apiVersion: understudy.dev/v1alpha1
kind: LLMService
metadata: {name: assistant}
spec:
  model: {registeredModel: assistant}
"""


@pytest.fixture(autouse=True)
def resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in ("UNDERSTUDY_STORE_URL", "UNDERSTUDY_CONTROLLER_STORE_URL"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "assistant.yaml"
    path.write_text(RESOURCE)
    return path


def document(capture: Capture, *arguments: str) -> dict[str, Any]:
    assert run(["plan", *arguments, "-o", "json"]) == 0
    loaded: dict[str, Any] = json.loads(capture.readouterr().out)
    return loaded


def test_a_plan_needs_no_platform(capsys: Capture) -> None:
    assert run(["plan", "-f", "assistant.yaml", "-u", "1500"]) == 0
    text = capsys.readouterr().out
    for words in (
        "At 1,500 users a day (as given) a rollout of assistant would be held for lack of users.",
        "held after 24 h",
        "Out of reach: the rehearsal comes to 150 of minPairs 200 in 24 h; with 2,100 users a day it could.",
        "Assumed of stable, since nothing was measured: errors: 1 % of the users",
    ):
        assert words in text
    found = document(capsys, "assistant", "-f", "assistant.yaml", "-u", "100000", "--stable", "errors=0.03")
    assert not found["held"]
    assert [stage["stage"] for stage in found["stages"]] == ["rehearsal", *["canary"] * 4]
    assert found["metrics"]["ttft"] == {"relative": True, "direction": "lower", "margin": 0.2, "mode": "nonInferior"}
    assert "errors" not in found["assumed"]


def test_users_who_come_again_make_it_longer(capsys: Capture) -> None:
    fresh = document(capsys, "-f", "assistant.yaml", "-u", "5000")
    again = document(capsys, "-f", "assistant.yaml", "-u", "5000", "--users-per-week", "7000")
    assert again["growth"] == pytest.approx(0.173, abs=0.001)
    seconds = [sum(stage["seconds"] for stage in plan["stages"]) for plan in (fresh, again)]
    assert seconds[1] > 1.5 * seconds[0], "fewer of its users are new, and only those tell"


def test_the_store_knows_the_resource_and_the_traffic(
    running: RolloutRow, store: Store, url: str, capsys: Capture
) -> None:
    gateway, now = Gateway(store), time.time()  # the command goes by the machine's clock
    for number in range(200):
        gateway.serve(f"u{number}", "stable", "1", now - 8_040 + 40 * number, rollout=None, ttft=0.1, thumb=None)
    found = document(capsys, "assistant", "--store", url)
    assert found["measured"] == "2 h"
    assert found["users_per_day"] == pytest.approx(200 / 8_040 * 86_400, rel=0.02)
    assert [stage["weight"] for stage in found["stages"]] == [0.0, 10.0, 50.0]
    assert "errors" not in found["assumed"]
    assert document(capsys, "assistant", "--store", url, "-u", "77")["users_per_day"] == 77


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-u", "100"], 2, "no store given"),
        (["-f", "assistant.yaml"], 2, "no store given"),
        (["-f", "missing.yaml", "-u", "1"], 3, "no file missing.yaml"),
        (["other", "-f", "assistant.yaml", "-u", "1"], 3, "no service 'other' in it; it has assistant"),
        (["-f", "assistant.yaml", "-u", "100", "--stable", "errors=2"], 2, "a share of users lies between 0 and 1, not 2"),
        (["-f", "assistant.yaml", "-u", "100", "--stable", "mood=2"], 2, "no guardrail 'mood'; it has errors, ttft, feedback"),
        (["-f", "assistant.yaml", "--users-per-week", "100"], 2, "--users-per-week needs --users-per-day beside it"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(arguments: list[str], code: int, words: str, capsys: Capture) -> None:
    assert run(["plan", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_store_without_rollout_or_traffic(store: Store, url: str, capsys: Capture) -> None:
    store.publish_route(route())
    assert run(["plan", "assistant", "--store", url, "-u", "10"]) == 3
    assert "before its first rollout: name its file with --resource FILE" in capsys.readouterr().err
    assert run(["plan", "-f", "assistant.yaml", "--store", url]) == 2
    assert "say --users-per-day N" in capsys.readouterr().err


def test_a_wrong_file_is_named_with_its_line(resource: Path, capsys: Capture) -> None:
    resource.write_text(RESOURCE.replace("registeredModel", "registered"))
    assert run(["plan", "-f", "assistant.yaml", "-u", "1"]) == 1
    assert "assistant.yaml:6" in capsys.readouterr().err
