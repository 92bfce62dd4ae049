"""The commands as a person or a program meets them: output, exit codes, and one line on stderr for everything that can go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import run
from services.store import RolloutRow, Store
from tests.fakes.rollout_rows import HandClock, audit, gate, reading, route, row

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store but the one that a test names."""
    monkeypatch.chdir(tmp_path)
    for variable in ("UNDERSTUDY_STORE_URL", "UNDERSTUDY_CONTROLLER_STORE_URL"):
        monkeypatch.delenv(variable, raising=False)


def fails(capture: Capture, arguments: Sequence[str], code: int) -> str:
    """Runs a command that must fail; its one line on stderr."""
    assert run(arguments) == code
    captured = capture.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def document(capture: Capture, arguments: Sequence[str]) -> dict[str, Any]:
    assert run([*arguments, "-o", "json"]) == 0
    loaded: dict[str, Any] = json.loads(capture.readouterr().out)
    return loaded


def test_status_says_what_serves_and_what_is_awaited(running: RolloutRow, url: str, capsys: Capture) -> None:
    assert run(["status", "--store", url]) == 0
    table = capsys.readouterr().out
    for word in (
        "assistant-v1-7c1f",
        "assistant-v3-7c1f",
        "canary step 2 of 2",
        "50 %",
        "66 candidate, 70 control",
        "ttft is not yet shown",
    ):
        assert word in table
    assert "gateway" not in table  # all is well with them, so nothing is said

    one = document(capsys, ["status", "assistant", "--store", url])["services"][0]
    assert one["stable"] == {"revision": "assistant-v1-7c1f", "version": "1"}
    assert (one["rollout"]["stage"], one["rollout"]["weight"], one["rollout"]["verdict"]) == (
        "canary",
        50.0,
        "continue",
    )
    assert (one["gateways"], one["gateways_up_to_date"]) == (1, 1)


def test_status_says_when_gateways_lag_or_are_gone(
    running: RolloutRow, store: Store, clock: HandClock, url: str, capsys: Capture
) -> None:
    store.publish_route(route())
    assert run(["status", "--store", url]) == 0
    assert "1 of 1 gateways have not yet taken the newest route" in capsys.readouterr().out
    store.end_lease("g1", "b1")
    assert run(["status", "--store", url]) == 0
    assert "no gateway is alive" in capsys.readouterr().out


def test_status_of_a_service_without_rollout(store: Store, url: str, capsys: Capture) -> None:
    store.publish_route(route())
    assert run(["status", "--store", url]) == 0
    assert "no rollout yet" in capsys.readouterr().out
    assert "assistant-v1-7c1f serves everyone" in fails(capsys, ["explain", "assistant", "--store", url], 3)


def test_explain_gives_the_numbers_and_the_trail(running: RolloutRow, url: str, capsys: Capture) -> None:
    assert run(["explain", "assistant", "--store", url]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "assistant-v3-7c1f is in canary step 2 since",
        "Of 300 held-out questions the candidate answered 91.0 % rightly, the champion 90.0 %.",
        "40 prompts were answered by both revisions out of users' sight, 38 of them judged.",
        "4 judgements turned with the order of the answers and count as ties.",
        "On 2 pairs the judge's answer could not be read; they are left out.",
        "9 people compared 12 pairs of answers, each person counting once; 3 pairs were ties, 1 turned with the order of the answers",
        "the candidate stood first in 6, and the answer shown first was preferred in 4.",
        "Users who gave a bad mark: 50.0 % for 66 users of the candidate, 12.5 % for 70 of the control",
        "+37.5 points (between +11.0 points and +60.0 points)",
        "e-value 12.5; 80 would show it",
        "+19.4 % (between −20.0 % and +62.0 %)",
        "the interval reaches +62.0 % and must stay within +50.0 %",
        "Waiting: ttft is not yet shown (AwaitingEvidence).",
        "StepPassed",
    ):
        assert words in text


def test_explain_of_a_past_rollout_by_id(store: Store, clock: HandClock, url: str, capsys: Capture) -> None:
    store.publish_route(route())
    over = row(
        "r2", "2", stage="finished", verdict="abort", reason="FeedbackHarmful", message="feedback: too many bad marks",
        metric="feedback", decided_in="canary", decided_at=clock.now + 90, finished_at=clock.now + 90, step=1,
    )  # fmt: skip
    store.commit_look(
        over,
        evidence={},
        readings=[reading("feedback")],
        at=clock.now,
        audit=[audit("r2", "abort", "FeedbackHarmful", "x")],
    )
    told = document(capsys, ["explain", "r2", "--store", url])
    assert told["headline"] == "assistant-v2-7c1f was rolled back in canary step 2 after 1 min 30 s."
    assert told["seconds"] == 90
    assert told["metrics"][0]["candidate"] == 0.5
    assert (
        told["metrics"][0]["judged"]
        == "Harm is shown: worse than the margin of +10.0 points (e-value 95; 80 sufficed)."
    )
    assert [entry["reason"] for entry in told["audit"]] == ["FeedbackHarmful"]


def test_rollouts_lists_newest_first_and_says_when_there_are_none(
    store: Store, clock: HandClock, url: str, capsys: Capture
) -> None:
    store.publish_route(route())
    assert run(["rollouts", "--store", url]) == 0
    assert "no rollout yet" in capsys.readouterr().out
    for number in ("2", "3"):
        clock.now += 10
        store.commit_look(row(f"r{number}", number, started_at=clock.now), evidence={}, at=clock.now)
    assert [one["id"] for one in document(capsys, ["rollouts", "--store", url])["rollouts"]] == ["r3", "r2"]
    assert [one["id"] for one in document(capsys, ["rollouts", "--limit", "1", "--store", url])["rollouts"]] == ["r3"]


def test_an_order_is_recorded_with_who_and_why(running: RolloutRow, store: Store, url: str, capsys: Capture) -> None:
    assert run(["abort", "assistant", "--reason", "wrong prices", "--wait", "0", "--store", url]) == 0
    assert "recorded" in capsys.readouterr().out
    [order] = store.commands("assistant")
    assert (order.verb, order.rollout, order.note) == ("abort", "r3", "wrong prices")
    assert order.actor


def test_an_order_without_answer_fails_but_stays(running: RolloutRow, store: Store, url: str, capsys: Capture) -> None:
    line = fails(capsys, ["pause", "assistant", "--wait", "0.01", "--store", url], 1)
    assert "has not answered within 0.01 s" in line
    assert [order.verb for order in store.commands("assistant")] == ["pause"]


def test_orders_name_what_is_missing(store: Store, url: str, capsys: Capture) -> None:
    assert "no service 'assistant' in this store; it knows none" in fails(
        capsys, ["abort", "assistant", "-r", "x", "--store", url], 3
    )
    store.publish_route(route())
    assert "nothing to abort" in fails(capsys, ["abort", "assistant", "-r", "x", "--store", url], 3)
    assert "--reason" in fails(capsys, ["abort", "assistant", "--store", url], 2)
    assert store.commands("assistant", pending=False) == []


@pytest.mark.parametrize("command", [["status", "other"], ["rollouts", "other"], ["explain", "other"]])
def test_unknown_names_are_not_found(running: RolloutRow, url: str, capsys: Capture, command: list[str]) -> None:
    line = fails(capsys, [*command, "--store", url], 3)
    assert "'other'" in line
    assert "assistant" in line


def test_an_empty_store_has_nothing_to_show(url: str, capsys: Capture) -> None:
    assert "understudy serve" in fails(capsys, ["status", "--store", url], 3)


def test_no_store_given(capsys: Capture) -> None:
    assert "UNDERSTUDY_STORE_URL" in fails(capsys, ["status"], 2)


def test_the_demos_store_is_the_default(running: RolloutRow, database: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/run").symlink_to(database.parent)
    assert document(capsys, ["status"])["services"][0]["service"] == "assistant"


def test_a_store_of_the_wrong_kind_keeps_its_password_to_itself(capsys: Capture) -> None:
    line = fails(capsys, ["status", "--store", "mysql://me:secret@host/understudy"], 2)
    assert "secret" not in line
    assert "postgresql://" in line


def test_a_missing_file_is_no_store_and_is_not_made_one(tmp_path: Path, capsys: Capture) -> None:
    assert "understudy migrate" in fails(capsys, ["status", "--store", f"sqlite:///{tmp_path}/none.db"], 4)
    assert not (tmp_path / "none.db").exists()


def test_an_unreachable_database(capsys: Capture) -> None:
    line = fails(capsys, ["status", "--store", "postgresql://me:secret@127.0.0.1:1/understudy"], 4)
    assert "cannot be reached" in line
    assert "secret" not in line


def test_a_database_without_schema_names_the_remedy_and_migrate_is_it(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "old.db").touch()
    url = f"sqlite:///{tmp_path}/old.db"
    assert "understudy migrate" in fails(capsys, ["status", "--store", url], 1)
    assert run(["migrate", "--store", url]) == 0
    assert run(["migrate", "--store", url]) == 0
    capsys.readouterr()
    assert "no service yet" in fails(capsys, ["status", "--store", url], 3)


def test_a_file_that_is_no_database(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.db").write_text("these are notes " * 100)
    assert "notes.db failed" in fails(capsys, ["status", "--store", f"sqlite:///{tmp_path}/notes.db"], 1)


def test_a_rollout_of_another_version_of_the_platform(
    store: Store, clock: HandClock, url: str, capsys: Capture
) -> None:
    strange = row("r2", "2")
    strange = RolloutRow(
        **{**{name: getattr(strange, name) for name in strange.__slots__}, "status": {**strange.status, "mood": "good"}}
    )
    store.commit_look(strange, evidence={}, at=clock.now)
    line = fails(capsys, ["rollouts", "--store", url], 1)
    assert "another version of the platform" in line
    assert "mood" in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["sttus"], "sttus"),
        (["status", "--colour"], "--colour"),
        (["explain"], "SERVICE|ROLLOUT"),
        (["status", "-o", "xml"], "xml"),
        (["rollouts", "--limit", "0"], "--limit"),
        (["abort", "a", "-r", "x", "--wait", "-1"], "understudy abort --help"),
    ],
)
def test_wrong_usage(capsys: Capture, arguments: list[str], word: str) -> None:
    assert word in fails(capsys, arguments, 2)


def test_the_demo_needs_a_checkout(capsys: Capture) -> None:
    assert "needs a checkout of the repository" in fails(capsys, ["demo"], 3)


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_configuration_that_is_not_there(capsys: Capture, command: str) -> None:
    assert "no file none.yaml" in fails(capsys, [command, "--config", "none.yaml"], 3)


def test_help_teaches(capsys: Capture) -> None:
    assert run([]) == 0
    text = capsys.readouterr().out
    assert "understudy explain assistant" in text
    for command in (
        "status",
        "rollouts",
        "explain",
        "trace",
        "logs",
        "abort",
        "promote",
        "pause",
        "resume",
        "approve",
        "migrate",
        "erase",
        "serve",
        "demo",
        "doctor",
    ):
        assert command in text
        assert run([command, "--help"]) == 0
        assert f"understudy {command}" in capsys.readouterr().out


def test_doctor_says_what_is_missing_and_fails(tmp_path: Path, capsys: Capture) -> None:
    assert run(["doctor", "--environment", str(tmp_path / "none"), "--state", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "make setup" in captured.out
    assert captured.err.startswith("understudy: no engine can run here yet: see ")
    assert "engine environment" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_gate_refusal_is_told_by_its_numbers(store: Store, clock: HandClock, url: str, capsys: Capture) -> None:
    refused = row(
        "r6", "6", stage="finished", verdict="abort", reason="GateHarmful", message="v6 answers 21.0% of 300 items rightly, v2 90.0%",
        metric="accuracy", decided_in="gate", decided_at=clock.now + 2, finished_at=clock.now + 2, gate=gate(0.21),
    )  # fmt: skip
    store.commit_look(refused, evidence={}, at=clock.now)
    told = document(capsys, ["explain", "assistant", "--store", url])
    assert told["sentences"] == ["v6 answers 21.0% of 300 items rightly, v2 90.0% (GateHarmful)."]
    assert told["metrics"] == []


def program(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The plug-in of kubectl as a process, looking into a store."""
    code = "import sys; sys.argv[0] = 'kubectl-understudy'; from services.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, "--store", url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_pipe_gets_plain_unfolded_lines(running: RolloutRow, url: str) -> None:
    done = program(url, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_the_process_ends_with_the_code(running: RolloutRow, url: str) -> None:
    done = program(url, "explain", "other")
    assert done.returncode == 3
    assert done.stderr.startswith("kubectl understudy: no service or rollout 'other'")


def test_help_needs_nothing_slow() -> None:
    """`--help` and completion are typed often: the database, numpy and MLflow may not be loaded for them."""
    code = (
        "import sys; from services.cli.main import run; run(['--help']); "
        "print([m for m in ('sqlalchemy', 'numpy', 'pydantic', 'mlflow', 'aiohttp', 'kubernetes') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
