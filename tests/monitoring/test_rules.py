"""The shipped rules under promtool: they are right, every alert fires where it should and is silent where it should be."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.shipped_monitoring import SHIPPED, rules

RULES = SHIPPED / "rules.yaml"
HERE = 'namespace="ns1",service="assistant"'
LIVE = f'{HERE},revision="assistant-v4-7c1f",arm="stable",kind="live"'
POD = 'namespace="ns1",instance="gw-1",job="gateway"'
ENGINE = f'{HERE},revision="assistant-v4-7c1f",ReplicaId="r1"'
ROLLOUT = "understudy_rollout"


@dataclass(frozen=True)
class Case:
    """`series`: name -> values in promtool's notation, a sample a minute. `after`: when it is asked. `severities`: what fires then."""

    alert: str
    series: dict[str, str]
    after: str
    severities: tuple[str, ...] = ()


def requests(outcome: str, values: str) -> dict[str, str]:
    return {f'understudy_gateway_requests_total{{{LIVE},outcome="{outcome}"}}': values}


def stream(late: int, in_time: int) -> dict[str, str]:
    name = "gen_ai_server_time_to_first_token_seconds"
    return {
        f'{name}_bucket{{{LIVE},le="2.5"}}': f"0+{in_time}x700",
        f"{name}_count{{{LIVE}}}": f"0+{in_time + late}x700",
    }


def speed(slow: int, fast: int) -> dict[str, str]:
    name = "understudy_gateway_tokens_per_second"
    return {
        f'{name}_bucket{{{LIVE},le="10.0"}}': f"0+{slow}x700",
        f"{name}_count{{{LIVE}}}": f"0+{slow + fast}x700",
    }


def marks(bad: int, answers: int) -> dict[str, str]:
    labels = f'{HERE},revision="assistant-v4-7c1f",arm="stable",kind="thumb",mark="bad"'
    return {f"understudy_gateway_feedback_total{{{labels}}}": f"0+{bad}x700", **requests("ok", f"0+{answers}x700")}


def verdict(name: str, decided: str = "0x300") -> dict[str, str]:
    return {
        f'{ROLLOUT}_verdict{{{HERE},verdict="{name}"}}': "1x3000",
        f"{ROLLOUT}_decided_timestamp_seconds{{{HERE}}}": decided,
    }


def gauge(name: str, labels: str, values: str) -> dict[str, str]:
    return {f"{name}{{{labels}}}": values}


def spent(stable: str, candidate: str) -> dict[str, str]:
    cost = "understudy_cost_today"
    return gauge(cost, LIVE, stable) | gauge(cost, LIVE.replace("v4", "v5").replace("stable", "candidate"), candidate)


def budget(values: str) -> dict[str, str]:
    return gauge("understudy_cost_budget_per_day", HERE, values)


AVAILABILITY = "UnderstudyAvailabilityBudgetBurns"
CASES = (
    Case(AVAILABILITY, requests("ok", "0+90x700") | requests("error", "0+10x700"), "2h", ("critical", "warning")),
    Case(AVAILABILITY, requests("ok", "0+1000x700") | requests("error", "0+2x700"), "10h"),
    Case(AVAILABILITY, requests("ok", "0+1000x700") | requests("error", "0+10x700"), "10h", ("warning",)),
    # Few requests: one that fails is no trend.
    Case(AVAILABILITY, requests("ok", "0 0 1 1 2x60") | requests("error", "0 1x60"), "30m"),
    # It was bad and is good again: the short windows say so.
    Case(AVAILABILITY, requests("ok", "0+90x20 1800+100x60") | requests("error", "0+10x20 200x60"), "55m"),
    # What stable answered in the candidate's place failed nobody.
    Case(
        AVAILABILITY,
        requests("ok", "0+100x700")
        | requests("error", "0+20x700")
        | gauge("understudy_gateway_fallbacks_total", HERE, "0+20x700"),
        "2h",
    ),
    Case("UnderstudyFirstTokenBudgetBurns", stream(80, 20), "2h", ("critical", "warning")),
    Case("UnderstudyFirstTokenBudgetBurns", stream(4, 96), "10h"),
    Case("UnderstudyTokenRateBudgetBurns", speed(80, 20), "2h", ("critical", "warning")),
    Case("UnderstudyTokenRateBudgetBurns", speed(4, 96), "10h"),
    Case("UnderstudyFeedbackBudgetBurns", marks(70, 100), "10h", ("critical", "warning")),
    Case("UnderstudyFeedbackBudgetBurns", marks(5, 100), "10h"),
    Case("UnderstudyRolloutStuck", gauge(f"{ROLLOUT}_waiting", f'{HERE},reason="AwaitingEngine"', "1x90"), "65m", ("warning",)),
    Case("UnderstudyRolloutStuck", gauge(f"{ROLLOUT}_waiting", f'{HERE},reason="AwaitingEngine"', "1x90"), "30m"),
    Case("UnderstudyRolloutStuck", gauge(f"{ROLLOUT}_waiting", f'{HERE},reason="AwaitingEvidence"', "1x90"), "65m"),
    Case("UnderstudyRolloutHeld", verdict("hold"), "5m", ("warning",)),
    Case("UnderstudyRolloutHeld", verdict("continue"), "5m"),
    Case("UnderstudyRolloutAwaitsApproval", gauge(f"{ROLLOUT}_waiting", f'{HERE},reason="AwaitingApproval"', "1x90"), "20m", ("info",)),
    Case("UnderstudyRolloutAwaitsApproval", gauge(f"{ROLLOUT}_waiting", f'{HERE},reason="FrozenWindow"', "1x90"), "20m"),
    Case("UnderstudyRolloutError", verdict("error"), "5m", ("critical",)),
    Case("UnderstudyRolloutError", verdict("error", "0x3000"), "25h"),
    Case("UnderstudyRolloutError", verdict("abort"), "5m"),
    Case("UnderstudyRolloutAborted", verdict("abort"), "5m", ("info",)),
    Case("UnderstudyRolloutAborted", verdict("advance"), "5m"),
    Case(
        "UnderstudySampleRatioMismatch",
        gauge(f"{ROLLOUT}_sample_ratio_e_value", HERE, "5 2000x10") | gauge(f"{ROLLOUT}_sample_ratio_threshold", HERE, "1000x10"),
        "5m", ("critical",),
    ),
    Case(
        "UnderstudySampleRatioMismatch",
        gauge(f"{ROLLOUT}_sample_ratio_e_value", HERE, "900x10") | gauge(f"{ROLLOUT}_sample_ratio_threshold", HERE, "1000x10"),
        "5m",
    ),
    Case("UnderstudyCandidateEjected", gauge("understudy_gateway_ejections_total", HERE, "0 0 1 1 1"), "4m", ("warning",)),
    Case("UnderstudyCandidateEjected", gauge("understudy_gateway_ejections_total", HERE, "3x20"), "15m"),
    Case("UnderstudyControllerDown", {}, "10m", ("critical",)),
    Case("UnderstudyControllerDown", gauge("understudy_controller_look_seconds_count", 'job="c"', "1+1x20"), "10m"),
    Case(
        "UnderstudyLookOverdue",
        gauge("understudy_controller_last_look_timestamp_seconds", HERE, "0x20")
        | gauge("understudy_controller_look_interval_seconds", HERE, "5x20"),
        "10m", ("critical",),
    ),
    Case(
        "UnderstudyLookOverdue",
        gauge("understudy_controller_last_look_timestamp_seconds", HERE, "0+60x20")
        | gauge("understudy_controller_look_interval_seconds", HERE, "5x20"),
        "10m",
    ),
    Case(
        "UnderstudyLooksFail",
        gauge("understudy_controller_looks_total", f'{HERE},result="failed"', "0+6x20")
        | gauge("understudy_controller_looks_total", f'{HERE},result="done"', "0+1x20"),
        "15m", ("warning",),
    ),
    Case(
        "UnderstudyLooksFail",
        gauge("understudy_controller_looks_total", f'{HERE},result="failed"', "0+1x20")
        | gauge("understudy_controller_looks_total", f'{HERE},result="done"', "0+6x20"),
        "15m",
    ),
    Case("UnderstudyRegistryAway", gauge("understudy_service_condition", f'{HERE},type="Registry",reason="RegistryUnavailable"', "0x20"),
         "15m", ("warning",)),
    Case("UnderstudyRegistryAway", gauge("understudy_service_condition", f'{HERE},type="Registry",reason="Reachable"', "1x20"), "15m"),
    Case(
        "UnderstudyPlatformCallsFail",
        gauge("understudy_controller_platform_calls_total", 'namespace="ns1",call="observe",result="unavailable"', "0+6x40")
        | gauge("understudy_controller_platform_calls_total", 'namespace="ns1",call="observe",result="ok"', "5x40"),
        "30m", ("warning",),
    ),
    Case(
        "UnderstudyPlatformCallsFail",
        gauge("understudy_controller_platform_calls_total", 'namespace="ns1",call="observe",result="unavailable"', "0+1x40")
        | gauge("understudy_controller_platform_calls_total", 'namespace="ns1",call="observe",result="ok"', "0+9x40"),
        "30m",
    ),
    Case(
        "UnderstudyWebhookCertificateEnds",
        gauge("understudy_controller_webhook_certificate_end_timestamp_seconds", POD, "500000x90"),
        "70m", ("warning",),
    ),
    Case(
        "UnderstudyWebhookCertificateEnds",
        gauge("understudy_controller_webhook_certificate_end_timestamp_seconds", POD, "5000000x90"),
        "70m",
    ),
    Case(
        "UnderstudyStableDrifted",
        gauge("understudy_drift_e_value", f'{HERE},metric="errors"', "3 2000x5")
        | gauge("understudy_drift_e_value_threshold", f'{HERE},metric="errors"', "1000x6"),
        "3m", ("warning",),
    ),
    Case(
        "UnderstudyStableDrifted",
        gauge("understudy_drift_e_value", f'{HERE},metric="errors"', "900x6")
        | gauge("understudy_drift_e_value_threshold", f'{HERE},metric="errors"', "1000x6")
        | gauge("understudy_drift_e_value_threshold", f'{HERE},metric="ttft"', "500x6"),
        "3m",
    ),
    Case(
        "UnderstudyPromptsDrifted",
        gauge("understudy_prompts_drift_e_value", HERE, "3 250x5") | gauge("understudy_prompts_drift_e_value_threshold", HERE, "200x6"),
        "3m", ("warning",),
    ),
    Case(
        "UnderstudyPromptsDrifted",
        gauge("understudy_prompts_drift_e_value", HERE, "190x6") | gauge("understudy_prompts_drift_e_value_threshold", HERE, "200x6"),
        "3m",
    ),
    Case("UnderstudyCostOverBudget", spent("60x30", "41x30") | budget("100x30"), "20m", ("warning",)),
    Case("UnderstudyCostOverBudget", spent("60x30", "40x30") | budget("100x30"), "20m"),
    Case("UnderstudyCostOverBudget", spent("60x30", "41x30"), "20m"),  # no budget
    Case("UnderstudyCostOverBudget", spent("60x30", "41x5 0x25") | budget("100x30"), "20m"),  # a new day
    Case("UnderstudyGatewayDown", {}, "5m", ("critical",)),
    Case("UnderstudyGatewayDown", gauge("understudy_gateway_requests_in_flight", POD, "0x20"), "5m"),
    Case("UnderstudyGatewayStoreAway", gauge("understudy_gateway_store_contact_age_seconds", POD, "1 45 105 165"), "3m", ("warning",)),
    Case("UnderstudyGatewayStoreAway", gauge("understudy_gateway_store_contact_age_seconds", POD, "1 2 1 3"), "3m"),
    Case("UnderstudyGatewayLeaseLost", gauge("understudy_gateway_lease_valid", POD, "1 0 0 0"), "3m", ("critical",)),
    Case("UnderstudyGatewayLeaseLost", gauge("understudy_gateway_lease_valid", POD, "1 1 1 1"), "3m"),
    Case("UnderstudyRecorderSpilling", gauge("understudy_recorder_spilled_records_total", POD, "0+9x20"), "10m", ("warning",)),
    Case("UnderstudyRecorderSpilling", gauge("understudy_recorder_spilled_records_total", POD, "40x30"), "20m"),
    Case("UnderstudyRecorderLags", gauge("understudy_recorder_lag_seconds", POD, "0 90x20"), "10m", ("warning",)),
    Case("UnderstudyRecorderLags", gauge("understudy_recorder_lag_seconds", POD, "90 1x20"), "10m"),
    Case(
        "UnderstudyJournalFills",
        gauge("understudy_recorder_journal_bytes", POD, "9x9") | gauge("understudy_recorder_journal_limit_bytes", POD, "10x9"),
        "5m", ("critical",),
    ),
    Case(
        "UnderstudyJournalFills",
        gauge("understudy_recorder_journal_bytes", POD, "7x9") | gauge("understudy_recorder_journal_limit_bytes", POD, "10x9"),
        "5m",
    ),
    Case("UnderstudyRecordsLost", gauge("understudy_recorder_dropped_records_total", POD, "0 0 3 3"), "3m", ("critical",)),
    Case("UnderstudyRecordsLost", gauge("understudy_recorder_dropped_records_total", POD, "3x20"), "18m"),
    Case(
        "UnderstudyEngineSaturated",
        gauge("ray_vllm_kv_cache_usage_perc", ENGINE, "0.99x20") | gauge("ray_vllm_num_requests_waiting", ENGINE, "3x20"),
        "15m", ("warning",),
    ),
    Case(
        "UnderstudyEngineSaturated",
        gauge("ray_vllm_kv_cache_usage_perc", ENGINE, "0.99x20") | gauge("ray_vllm_num_requests_waiting", ENGINE, "0x20"),
        "15m",
    ),
    Case(
        "UnderstudyEngineQueues",
        gauge("ray_vllm_num_requests_running", ENGINE, "8x20") | gauge("ray_vllm_num_requests_waiting", ENGINE, "20x20"),
        "15m", ("warning",),
    ),
    Case(
        "UnderstudyEngineQueues",
        gauge("ray_vllm_num_requests_running", ENGINE, "8x20") | gauge("ray_vllm_num_requests_waiting", ENGINE, "9x20"),
        "15m",
    ),
    Case("UnderstudyReplicaUnhealthy", gauge("ray_serve_deployment_replica_healthy", 'namespace="ns1",application="a"', "0x20"), "10m",
         ("warning",)),
    Case("UnderstudyReplicaUnhealthy", gauge("ray_serve_deployment_replica_healthy", 'namespace="ns1",application="a"', "1x20"), "10m"),
    Case("UnderstudyGpuFault", gauge("DCGM_FI_DEV_XID_ERRORS", 'gpu="0",Hostname="n1"', "0 79 79"), "2m", ("critical",)),
    Case("UnderstudyGpuFault", gauge("DCGM_FI_DEV_XID_ERRORS", 'gpu="0",Hostname="n1"', "0 0 0"), "2m"),
)  # fmt: skip


def document(case: Case) -> dict[str, Any]:
    """One test of promtool's."""
    firing = [{"labels": f'{{severity="{severity}"}}', "value": 1} for severity in case.severities]
    return {
        "name": f"{case.alert} {'fires' if case.severities else 'is silent'} at {case.after}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f'max by (severity) (ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                "eval_time": case.after,
                "exp_samples": firing,
            }
        ],
    }


def run(promtool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    names = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {case.alert for case in CASES if case.severities} == names
    assert {case.alert for case in CASES if not case.severities} == names


def test_summaries_carry_what_is_affected() -> None:
    for rule in rules():
        if "alert" in rule and "absent(" not in rule["expr"]:
            assert re.search(r"\$(labels|value)", rule["annotations"]["summary"]), rule["alert"]


def test_rules_are_right(promtool: str) -> None:
    done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_alerts_fire_and_are_silent_as_they_should(promtool: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.yaml"
    tests = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [document(case) for case in CASES]}
    file.write_text(yaml.safe_dump(tests))
    done = run(promtool, "test", "rules", str(file))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_a_summary_is_written_out_with_its_values(promtool: str, tmp_path: Path) -> None:
    name = "UnderstudyJournalFills"
    case = next(case for case in CASES if case.alert == name and case.severities)
    one = document(case)
    told = {
        "summary": "Gateway gw-1: its journal is 90% full",
        "description": "Once it is full, records are lost.",
        "runbook_url": f"docs/runbooks.md#{name.lower()}",
    }
    labels = {"namespace": "ns1", "instance": "gw-1", "job": "gateway", "severity": "critical"}
    firing = [{"exp_labels": labels, "exp_annotations": told}]
    one["alert_rule_test"] = [{"eval_time": case.after, "alertname": name, "exp_alerts": firing}]
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [one]}))
    done = run(promtool, "test", "rules", str(file))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_promtool_finds_a_rule_that_does_not_do_what_a_case_says(promtool: str, tmp_path: Path) -> None:
    wrong = Case(
        "UnderstudyGatewayLeaseLost", gauge("understudy_gateway_lease_valid", POD, "1 1 1 1"), "3m", ("critical",)
    )
    file = tmp_path / "wrong.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [document(wrong)]})
    )
    assert run(promtool, "test", "rules", str(file)).returncode != 0
