"""`kubectl understudy` against an API server: the same documents and orders as over the store, and one line for what the server refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cli import cluster, trace
from services.cli.main import run
from services.rollout.resource_status import service_status
from services.rollout.status import Condition, RolloutStatus, ServiceStatus
from services.store import RolloutRow
from tests.fakes.llmservice_api import ORDER, FakeApi, Served
from tests.fakes.rollout_rows import START, TTFT, reading, route, row, target

Capture = pytest.CaptureFixture[str]
Kubectl = Callable[..., int]

SERVING = Condition(type="Serving", status=True, reason="Serving", message="v1 serves")
STEPS: dict[str, Any] = {"rollout": {"canary": {"steps": [{"weight": 10}, {"weight": 50}]}}}
RUNNING = row(
    "r3", "3", stage="canary", step=1, weight=50.0,
    conditions=[{"type": "Waiting", "status": True, "reason": "AwaitingEvidence", "message": "ttft is not yet shown"}],
)  # fmt: skip
READINGS = (reading("feedback", e_harm=12.5, harmful=False), reading("ttft", **TTFT))


def said(now: RolloutRow | None = RUNNING, *before: RolloutRow, readings: tuple[Any, ...] = READINGS) -> dict[str, Any]:
    """The status as the operator writes it."""
    rollout = None if now is None else RolloutStatus.model_validate(now.status)
    canary = rollout is not None and rollout.stage == "canary"
    table = route(candidate=target("3"), rollout="r3", salt="00", stage="canary", weight=5000) if canary else route()
    history = [one for one in (now, *before) if one is not None]
    return service_status(
        ServiceStatus(conditions=(SERVING,), rollout=rollout),
        table,
        readings if canary else (),
        history,
        1,
        START + 30,
        None,
    )


def ended(rollout: str, version: str, verdict: str, **more: Any) -> RolloutRow:
    """A rollout that is over."""
    end = {
        "stage": "finished",
        "verdict": verdict,
        "decided_at": START + 90,
        "finished_at": START + 90,
        "decided_in": "canary",
    }
    return row(rollout, version, **{**end, **more})


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def kubectl(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubectl]:
    """Runs the plug-in as kubectl would."""
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(trace, "LOOK_SECONDS", 0.01)
    monkeypatch.setenv("UNDERSTUDY_STORE_URL", "sqlite:///not-asked-for.db")
    with Served(api) as served:
        config = served.kubeconfig(tmp_path / "config")
        yield lambda *arguments: run([*arguments, "--kubeconfig", str(config)], "kubectl understudy")


def failed(kubectl: Kubectl, capture: Capture, code: int, *arguments: str) -> str:
    """Runs a command that must fail; its one line on stderr."""
    assert kubectl(*arguments) == code
    lines = capture.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_status_over_the_resources(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(), **STEPS)
    api.put("translator", said(None), "other")
    api.put("new", None)
    assert kubectl("status") == 0
    table = capsys.readouterr().out
    for word in (
        "default    assistant  assistant-v1-7c1f  assistant-v3-7c1f  canary step 2 of 2  50 %",
        "66 an arm",
        "ttft is not yet shown",
        "the controller has not looked at it yet; no rollout yet",
    ):
        assert word in table
    assert "translator" not in table
    assert kubectl("status", "-A", "-o", "json") == 0
    services = json.loads(capsys.readouterr().out)["services"]
    assert [one["namespace"] for one in services] == ["default", "default", "other"]
    assert services[0]["rollout"]["weight"] == 50.0


def test_status_says_what_is_not_ready(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    status = said(None)
    status["conditions"][0] |= {"status": "False", "reason": "NameTaken", "message": "namespace a has an assistant"}
    api.put("assistant", status)
    assert kubectl("status", "assistant") == 0
    assert "not ready: namespace a has an assistant (NameTaken)" in capsys.readouterr().out


def test_explain_tells_what_the_status_holds(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(), **STEPS)
    assert kubectl("explain", "assistant") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "assistant-v3-7c1f is in canary step 2 since",
        "Waiting: ttft is not yet shown (AwaitingEvidence).",
        "Users who gave a bad mark: +37.5 points (between +11.0 points and +60.0 points) for 66 users an arm.",
        "(e-value 12.5; 80 would show it)",
        "Time to first token: +19.4 % (between −20.0 % and +62.0 %)",
        "the interval reaches +62.0 % and must stay within +50.0 %",
        "kubectl events --for llmservice/assistant -n default",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "harmful", "safe"),
    [
        (
            {"metric": "judge", "direction": "higher", "effect": -0.3, "lower": -0.4, "upper": -0.2, "e_harm": None},
            True,
            False,
        ),
        (
            {"metric": "judge", "direction": "higher", "effect": 0.0, "lower": -0.05, "upper": 0.1, "e_harm": None},
            False,
            True,
        ),
        ({"effect": 0.0, "e_harm": 0.2, "e_promote": 12.0}, False, True),
        ({"effect": 0.4, "e_harm": 81.0, "e_promote": 0.1}, True, False),
        ({"effect": None, "lower": None, "upper": None, "e_harm": None}, False, False),
    ],
)
def test_readings_decide_as_the_controllers_do(
    api: FakeApi, kubectl: Kubectl, capsys: Capture, changes: dict[str, Any], harmful: bool, safe: bool
) -> None:
    api.put("assistant", said(readings=(reading("errors", mode="nonInferior") | changes,)), **STEPS)
    assert kubectl("explain", "assistant", "-o", "json") == 0
    [metric] = json.loads(capsys.readouterr().out)["metrics"]
    assert (metric["harmful"], metric["non_inferior"]) == (harmful, safe)


def test_the_history_is_what_the_resources_remember(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    old = ended("r2", "2", "abort", reason="FeedbackHarmful", message="feedback: bad", started_at=START - 100)
    api.put("assistant", said(RUNNING, old), **STEPS)
    assert kubectl("rollouts", "assistant", "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)["rollouts"]
    assert [(one["id"], one["verdict"]) for one in told] == [("r3", "continue"), ("r2", "abort")]
    assert kubectl("explain", "r2") == 0
    assert "v2 was rolled back in the canary after 3 min 10 s." in capsys.readouterr().out
    assert kubectl("rollouts") == 0
    assert "FeedbackHarmful" in capsys.readouterr().out


def test_an_order_is_an_annotation_and_the_answer_is_waited_for(
    api: FakeApi, kubectl: Kubectl, capsys: Capture
) -> None:
    api.put("assistant", said())
    api.answer = "aborted"
    assert kubectl("abort", "assistant", "-r", "wrong prices") == 0
    assert capsys.readouterr().out == "assistant: aborted\n"
    [order] = api.orders
    assert order | {"id": "", "by": ""} == {
        "id": "",
        "by": "",
        "verb": "abort",
        "rollout": "r3",
        "note": "wrong prices",
    }
    assert order["id"]
    assert order["by"]
    api.answer = "refused: only canary steps are approved"
    assert "refused" in failed(kubectl, capsys, 1, "approve", "assistant")


def test_an_order_without_answer_fails_but_stays_and_is_joined(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said())
    assert "has not answered within 0.05 s" in failed(kubectl, capsys, 1, "pause", "assistant", "--wait", "0.05")
    assert kubectl("pause", "assistant", "--wait", "0") == 0
    assert len(api.orders) == 1
    assert "pause assistant by" in failed(kubectl, capsys, 1, "abort", "assistant", "-r", "x", "--wait", "0.05")
    assert json.loads(api.resources["default", "assistant"]["metadata"]["annotations"][ORDER])["verb"] == "pause"


def test_a_quicker_order_is_not_overwritten(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said())
    first = {"id": "first", "verb": "pause", "rollout": "r3", "note": "", "by": "joe"}

    def joe() -> None:
        api.put("assistant", said())
        api.resources["default", "assistant"]["metadata"]["annotations"] = {ORDER: json.dumps(first)}

    api.before_patch.append(joe)
    assert "pause assistant by joe still waits" in failed(
        kubectl, capsys, 1, "abort", "assistant", "-r", "x", "--wait", "0.1"
    )
    assert api.patches == 0


def test_what_has_happened_needs_no_order(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(ended("r2", "2", "abort")))
    assert kubectl("abort", "assistant", "-r", "x") == 0
    assert "is aborted already" in capsys.readouterr().out
    assert api.patches == 0
    api.put("assistant", said(None))
    assert "nothing to promote" in failed(kubectl, capsys, 3, "promote", "assistant", "-r", "x")


def test_refusals_of_the_api_server_are_one_line(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    assert "no LLMService in namespace default" in failed(kubectl, capsys, 3, "status")
    api.put("assistant", said())
    api.put("assistant", said(), "other")
    assert "no service 'x' in namespace default; it has assistant" in failed(kubectl, capsys, 3, "status", "x")
    assert "namespaces default, other: name one with -n" in failed(kubectl, capsys, 2, "explain", "assistant", "-A")
    api.denied = {"PATCH"}
    line = failed(kubectl, capsys, 1, "abort", "assistant", "-r", "x")
    assert "not allowed" in line
    assert 'User "jane"' in line
    api.installed = False
    assert "install Understudy's chart" in failed(kubectl, capsys, 1, "status")


def test_where_to_look(
    api: FakeApi, kubectl: Kubectl, url: str, running: RolloutRow, tmp_path: Path, capsys: Capture
) -> None:
    api.put("translator", said(None), "other")
    config = tmp_path / "config"
    # An option of the cluster wins over a store in the environment, a store that is typed over the program's name.
    assert run(["status", "--kubeconfig", str(config), "--context", "here", "-n", "other", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["services"][0]["service"] == "translator"
    assert run(["status", "--store", url, "-o", "json"], "kubectl understudy") == 0
    assert json.loads(capsys.readouterr().out)["services"][0]["service"] == "assistant"
    assert "exclude each other" in failed(kubectl, capsys, 2, "status", "--store", url)
    assert "nowhere" in failed(kubectl, capsys, 2, "status", "--context", "nowhere")
    config.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", config.read_text()))
    assert "cannot be reached" in failed(kubectl, capsys, 4, "status")
    config.unlink()
    assert "--kubeconfig" in failed(kubectl, capsys, 2, "status")


def test_kubectls_plugin_looks_where_kubectl_does(api: FakeApi, tmp_path: Path) -> None:
    api.put("translator", said(None), "other")
    code = "import sys; sys.argv[0] = '/usr/bin/kubectl-understudy'; from services.cli.main import main; main()"
    with Served(api) as served:
        config = served.kubeconfig(tmp_path / "config", namespace="other")
        environment = {**os.environ, "KUBECONFIG": str(config), "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", code, "status"], env=environment, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "translator" in done.stdout


def test_logs_by_arm_and_component(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(), engine={"platform": "kuberay"})
    for version in ("1", "3"):
        labels = {"understudy.dev/service": "assistant", "understudy.dev/revision": target(version).revision}
        api.pod(f"engine-{version}", f"old\nhello of v{version}", labels)
    api.pod(
        "gw",
        "hello of the gateway",
        {"app.kubernetes.io/part-of": "understudy", "app.kubernetes.io/component": "gateway"},
    )
    assert kubectl("logs", "assistant", "--arm", "candidate", "--tail", "1") == 0
    assert capsys.readouterr().out == "[engine-3/engine] hello of v3\n"
    assert kubectl("logs", "assistant") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert kubectl("logs", "assistant", "-c", "gateway") == 0
    assert "hello of the gateway" in capsys.readouterr().out
    assert "no pod in namespace default carries" in failed(kubectl, capsys, 3, "logs", "assistant", "-c", "controller")
    assert "--arm is about engines" in failed(
        kubectl, capsys, 2, "logs", "assistant", "-c", "gateway", "--arm", "stable"
    )
    api.put("assistant", said(None), engine={"platform": "kuberay"})
    assert "no candidate now" in failed(kubectl, capsys, 3, "logs", "assistant", "--arm", "candidate")
    api.put("assistant", said(), engine={"platform": "serve"})
    api.pod(
        "ray", "hello of Ray", {"app.kubernetes.io/part-of": "understudy", "app.kubernetes.io/component": "ray-worker"}
    )
    assert kubectl("logs", "assistant") == 0
    assert capsys.readouterr().out == "[ray/engine] hello of Ray\n"
    assert "share Ray's pods" in failed(kubectl, capsys, 2, "logs", "assistant", "--arm", "stable")


def test_logs_need_a_cluster(capsys: Capture) -> None:
    assert run(["logs", "assistant", "--store", "sqlite:///x.db"]) == 2
    assert "cluster's pods" in capsys.readouterr().err


def test_trace_follows_the_resource_to_its_end(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(), **STEPS)
    over = ended("r3", "3", "abort", reason="FeedbackHarmful", message="feedback: too many bad marks", step=1)
    reads = 0
    answer = api.handle

    def handle(method: str, target: str, body: Any) -> tuple[int, Any]:
        nonlocal reads
        reads += 1
        if reads == 3:  # the rollout ends, and another one begins, between two looks
            api.put("assistant", said(row("r4", "4", started_at=START + 95), over), **STEPS)
        return answer(method, target, body)

    api.handle = handle  # type: ignore[method-assign]
    assert kubectl("trace", "assistant", "--timeout", "10") == 1
    lines = [re.sub(r"^\[[\d:]+\] ", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("rollout r3 of assistant: assistant-v3-7c1f")
    assert lines[1] == "canary step 2, 50 % of users"
    assert "waiting: ttft is not yet shown" in lines[4]
    assert lines[5:] == [
        "v3 was rolled back in the canary after 1 min 30 s. feedback: too many bad marks (FeedbackHarmful)."
    ]


def test_trace_of_a_promoted_rollout_succeeds(api: FakeApi, kubectl: Kubectl) -> None:
    api.put("assistant", said(ended("r3", "3", "advance")))
    assert kubectl("trace", "assistant") == 0
    api.put("assistant", said(row("r3", "3", stage="canary", verdict="hold", held_since=START)))
    assert kubectl("trace", "assistant") == 1


def test_pin_changes_the_resource_and_says_who_did(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(None), model={"registeredModel": "assistant", "pinned": ["2"]})
    api.answer = "pinned: v2, v3"
    assert kubectl("pin", "assistant", "--version", "3", "--reason", "to read its answers") == 0
    assert capsys.readouterr().out == "assistant: pinned: v2, v3\n"
    resource = api.resources["default", "assistant"]
    assert resource["spec"]["model"]["pinned"] == ["2", "3"]
    (order,) = api.orders
    assert (order["verb"], order["rollout"], order["note"]) == ("pin", None, "to read its answers")
    assert api.patches == 1  # the change and who made it are seen together
    assert "kubectl-understudy" in api.managers
    assert kubectl("pin", "assistant", "--version", "3") == 0
    assert "v3 is pinned already" in capsys.readouterr().out
    assert kubectl("pin", "assistant", "--remove", "2") == 0
    assert resource["spec"]["model"]["pinned"] == ["3"]
    assert api.orders[-1]["verb"] == "unpin"
    assert api.patches == 2


def test_pin_loses_nobody_elses_change(api: FakeApi, kubectl: Kubectl) -> None:
    api.put("assistant", said(None), model={"registeredModel": "assistant"})
    api.answer = "pinned: v3"

    def quicker() -> None:
        api.put("assistant", said(None), model={"registeredModel": "assistant", "pinned": ["7"]})

    api.before_patch = [quicker]
    assert kubectl("pin", "assistant", "--version", "3") == 0
    assert api.resources["default", "assistant"]["spec"]["model"]["pinned"] == ["7", "3"]


def test_pin_names_one_version(api: FakeApi, kubectl: Kubectl, capsys: Capture) -> None:
    api.put("assistant", said(None), model={"registeredModel": "assistant"})
    for arguments in ((), ("--version", "3", "--remove", "2"), ("--version", "0")):
        assert "kubectl understudy" in failed(kubectl, capsys, 2, "pin", "assistant", *arguments)
    assert api.patches == 0
