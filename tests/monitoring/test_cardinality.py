"""How many series twenty services with three revisions each make, and that none stays behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.common import telemetry
from services.gateway.metrics import REASONS, Metrics
from services.rollout import metrics as rollout_metrics
from services.rollout.actions import Emit
from services.rollout.decide import Decision
from services.rollout.status import Condition, Counts, RolloutStatus, ServiceStatus
from services.store import Observation

SERVICES, REVISIONS = 20, 3
ARMS = ("stable", "control", "candidate")
OUTCOMES = ("ok", "error", "client_error", "cancelled", "filtered")


def row(service: str, revision: str, arm: str, kind: str, **changes: Any) -> Observation:
    values: dict[str, Any] = {
        "request_id": "r", "service": service, "revision": revision, "arm": arm, "kind": kind, "unit": "u", "route_version": 1,
        "started_at": 0.0, "streamed": True, "ttft": 0.1, "duration": 1.0, "gap_mean": 0.02, "tokens_in": 10, "tokens_out": 30,
        "outcome": "ok", "status": 200, "gateway": "g", "boot": "b", "sequence": 1,
    }  # fmt: skip
    return Observation(**(values | changes))


def names() -> list[tuple[str, list[str]]]:
    return [(f"service-{s}", [f"service-{s}-v{r}-aaaa" for r in range(REVISIONS)]) for s in range(SERVICES)]


def gateway(metrics: Metrics) -> None:
    """All that a gateway can meet: stable, control and mirrored copies on one revision, candidate on another, a third that was pinned."""
    metrics.keep_only({one for _, revisions in names() for one in revisions}, {service for service, _ in names()})
    for service, (first, second, third) in names():
        seen = [(first, "stable"), (first, "control"), (second, "candidate"), (third, "stable")]
        for (revision, arm), kind in [
            *itertools.product(seen, ["live"]),
            ((first, "control"), "mirror"),
            ((second, "candidate"), "mirror"),
        ]:
            for outcome in OUTCOMES:
                metrics.observed(row(service, revision, arm, kind, outcome=outcome), cached=4, queued=0.001)
            for reason in (*REASONS, "status_418"):
                metrics.observed(
                    row(service, revision, arm, kind, outcome="error", error=reason, ttft=None, tokens_out=None)
                )
        for (revision, arm), mark in itertools.product(seen, ("good", "bad", "neutral")):
            metrics.feedback(service, revision, arm, "rating", mark)
        metrics.refused(service, "quota_exceeded")
        metrics.fell_back(service)
        metrics.ejected(service)
        metrics.mirror_dropped(service, "in_flight")
        metrics.filtered(service, "prompt", "phone", "redact")
        metrics.held.labels(service).inc()


def count(text: str) -> int:
    return sum(1 for line in text.splitlines() if line and line[0] != "#")


def test_a_gateway_with_twenty_services_stays_below_its_bound() -> None:
    metrics = Metrics()
    gateway(metrics)
    found = count(metrics.exposition().decode())
    # 120 keys of 5 histograms (20, 16, 20, 20 and 14 buckets, +Inf, count, sum), 3 directions, 5 outcomes, 20 reasons.
    assert found < 18_000
    assert found / (SERVICES * REVISIONS) < 300
    gateway(metrics)
    assert count(metrics.exposition().decode()) == found, "the same traffic makes no new series"


def test_the_text_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.keep_only({"a-v1-aaaa"}, {"a"})
    for duration in (0.0005, 0.1, 0.1, 500.0):
        metrics.observed(
            row("a", "a-v1-aaaa", "stable", "live", duration=duration, error='con"nect\\', outcome="error")
        )
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    specs = {spec.name.removesuffix("_total"): spec for spec in telemetry.METRICS if spec.component == "gateway"}
    for name, family in families.items():
        if not name.startswith("process_"):
            assert family.type == specs[name].kind, name
            assert family.documentation == specs[name].text
    durations = families[telemetry.REQUEST_DURATION.name].samples
    buckets = {float(one.labels["le"]): one.value for one in durations if one.name.endswith("_bucket")}
    assert list(buckets) == [*telemetry.SECONDS, float("inf")]
    assert (buckets[0.001], buckets[0.08], buckets[0.15], buckets[120.0], buckets[float("inf")]) == (1, 1, 3, 3, 4)
    assert {one.name[-6:]: one.value for one in durations if one.name.endswith(("_count", "s_sum"))} == {
        "_count": 4,
        "ds_sum": pytest.approx(500.2005),
    }
    (failures,) = families[telemetry.FAILURES.name.removesuffix("_total")].samples
    assert failures.labels["reason"] == telemetry.OTHER


def test_what_left_the_table_leaves_the_gateway_and_what_ends_late_brings_nothing_back() -> None:
    metrics = Metrics()
    gateway(metrics)
    metrics.keep_only({"service-0-v0-aaaa"}, {"service-0"})
    text = metrics.exposition().decode()
    assert "service-0-v0-aaaa" in text
    assert "service-0-v1-aaaa" not in text
    assert "service-1" not in text
    metrics.observed(row("service-0", "service-0-v1-aaaa", "candidate", "live"))
    metrics.feedback("service-0", "service-0-v1-aaaa", "candidate", "thumb", "bad")
    text = metrics.exposition().decode()
    assert "service-0-v1-aaaa" not in text
    assert (
        f'{telemetry.REQUESTS}{{arm="candidate",kind="live",revision="other",service="service-0",outcome="ok"}} 1.0'
        in text
    )


def rollout(service: str, **changes: Any) -> RolloutStatus:
    values: dict[str, Any] = {
        "id": "r1", "service": service, "model": service, "version": "2", "revision": f"{service}-v2-aaaa", "kind": "weights",
        "trigger": "challenger", "salt": "00", "engine": "e", "weights_version": "2", "champion_version": "1",
        "champion_revision": f"{service}-v1-aaaa", "started_at": 1.0, "stage": "canary", "weight": 5.0,
        "conditions": (Condition(type="Waiting", status=True, reason="AwaitingEvidence", message=""),),
        "counts": Counts(users_control=4, users_candidate=5), "ratio": {"eValue": 0.5, "threshold": 1000.0},
    }  # fmt: skip
    return RolloutStatus(**(values | changes))


def reading(metric: str, **changes: Any) -> dict[str, Any]:
    known = (
        "margin",
        "control",
        "candidate",
        "effect",
        "lower",
        "upper",
        "e_harm",
        "harm_threshold",
        "e_promote",
        "promote_threshold",
    )
    return {"metric": metric, "direction": "lower", "mode": "nonInferior", **dict.fromkeys(known, 0.5), **changes}


def look(
    metrics: rollout_metrics.Metrics, service: str, status: RolloutStatus | None, readings: list[dict[str, Any]]
) -> None:
    conditions = (Condition(type="Registry", status=True, reason="Reachable", message=""),)
    actions = (Emit("advance", "StepPassed", ""), Emit("condition", "Reachable", ""))
    decision = Decision(actions, ServiceStatus(conditions=conditions, rollout=status))
    metrics.looked(service, decision, readings, at=100.0, seconds=0.01, interval=5.0)


def test_a_controller_with_twenty_services_stays_below_its_bound() -> None:
    metrics = rollout_metrics.Metrics()
    guardrails = ("errors", "ttft", "tokensPerSecond", "feedback", "judge")
    for number in range(SERVICES):
        look(metrics, f"service-{number}", rollout(f"service-{number}"), [reading(metric) for metric in guardrails])
        metrics.failed(f"service-{number}")
        metrics.judged(f"service-{number}", "judged", {"candidate": 0.5, "control": 0.5})
    for call, result in itertools.product(
        ("apply", "scale", "remove", "observe"), ("ok", "unavailable", "rejected", "error")
    ):
        metrics.called(call, result, 0.1)
    found = count(generate_latest(metrics.registry).decode())
    assert found < 2_500
    for number in range(SERVICES):
        metrics.gone(f"service-{number}")
    assert "service-" not in generate_latest(metrics.registry).decode()


def test_a_look_says_what_it_saw_and_forgets_what_is_no_more() -> None:
    metrics = rollout_metrics.Metrics()
    value = metrics.registry.get_sample_value
    look(metrics, "a", rollout("a"), [reading("errors", e_harm=3.0, harm_threshold=80.0, lower=None)])
    of = {"service": "a"}
    assert value(telemetry.ROLLOUT_STAGE.name, of | {"stage": "canary"}) == 1
    assert value(telemetry.ROLLOUT_STAGE.name, of | {"stage": "gate"}) == 0
    assert value(telemetry.ROLLOUT_WEIGHT.name, of) == 0.05
    assert value(telemetry.ROLLOUT_WAITING.name, of | {"reason": "AwaitingEvidence"}) == 1
    assert value(telemetry.ROLLOUT_E_VALUE.name, of | {"metric": "errors", "claim": "harm"}) == 3
    assert value(telemetry.ROLLOUT_EFFECT.name, of | {"metric": "errors", "bound": "upper"}) == 0.5
    assert value(telemetry.ROLLOUT_EFFECT.name, of | {"metric": "errors", "bound": "lower"}) is None, (
        "not known is not there"
    )
    assert value(telemetry.ROLLOUT_EVENTS.name, of | {"event": "advance", "reason": "StepPassed"}) == 1
    assert value(telemetry.LAST_LOOK.name, of) == 100
    assert value(telemetry.ROLLOUT_MARGIN.name, of | {"metric": "errors"}) == 0.5
    compared = {**reading("accuracy", control=0.9, candidate=0.2, direction="higher"), "items": 125}
    look(metrics, "a", rollout("a", gate=compared), [])
    assert value(telemetry.GATE_ITEMS.name, of) == 125
    assert value(telemetry.ROLLOUT_VALUE.name, of | {"metric": "accuracy", "arm": "candidate"}) == 0.2
    assert value(telemetry.ROLLOUT_MARGIN.name, of | {"metric": "accuracy"}) == -0.5, "a fall by so much is allowed"
    ended = rollout("a", stage="finished", verdict="abort", decided_at=90.0, finished_at=90.0)
    look(metrics, "a", ended, [])
    assert value(telemetry.ROLLOUT_VERDICT.name, of | {"verdict": "abort"}) == 1
    assert value(telemetry.ROLLOUT_DECIDED.name, of) == 90
    decided_on = of | {"metric": "errors", "claim": "harm"}
    assert value(telemetry.ROLLOUT_E_VALUE.name, decided_on) == 3, "what it was decided on is still to be seen"
    assert value(telemetry.ROLLOUT_WAITING.name, of | {"reason": "AwaitingEvidence"}) is None
    look(metrics, "a", rollout("a", id="r2", stage="gate"), [])
    assert value(telemetry.ROLLOUT_E_VALUE.name, decided_on) is None


def test_labels_are_the_declared_ones() -> None:
    allowed = {
        "service", "revision", "arm", "outcome", "reason", "kind", "direction", "mark", "filter", "text", "action", "result", "stage",
        "verdict", "event", "metric", "bound", "claim", "type", "call", "champion",
            "currency", "model",  # of models, those that a resource compares with
        "trend", "language", "quantile",  # of languages, the ten largest
    }  # fmt: skip
    for spec in telemetry.METRICS:
        assert set(spec.labels) <= allowed, spec.name
        assert (spec.kind == "counter") == spec.name.endswith("_total"), spec.name
        assert (spec.kind == "histogram") == bool(spec.buckets), spec.name
        assert spec.unit, spec.name
    assert (telemetry.SECONDS[0], telemetry.SECONDS[-1]) == (0.001, 120.0)
