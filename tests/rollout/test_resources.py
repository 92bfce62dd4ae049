"""The resource: what is refused, and how the mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.rollout.durations import format_duration, parse_duration
from services.rollout.errors import InvalidResource
from services.rollout.loading import load
from services.rollout.plans import plans
from services.rollout.resources import LLMService, Model, split_key

HEAD = """\
apiVersion: understudy.dev/v1alpha1
kind: LLMService
metadata: {name: assistant}
spec:
  model: {registeredModel: assistant}
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("  rollout:\n    alhpa: 0.1\n", ":7: spec.rollout.alhpa: unknown field; did you mean alpha?"),
        ("  rollout:\n    look: 10\n", ":7: spec.rollout.look: 10 is not a duration"),
        ("  rollout:\n    alpha: lots\n", ":7: spec.rollout.alpha: "),
        ("  rollout:\n    guardrails: [{metric: feedback, margin: 0.1}]\n", "nothing could show"),
        ("  rollout:\n    guardrails: [{metric: errors, margin: 2, mode: nonInferior}]\n", "must be below 1"),
        ("  rollout:\n    guardrails: [{metric: feedback, margin: 0.1, stages: [rehearsal]}]\n", "is not measured in stage rehearsal"),
        ("  rollout:\n    guardrails: [{metric: errors, margin: 0.1, quantile: 0.5}]\n", "quantile belongs to ttft"),
        ("  rollout:\n    guardrails: [{metric: rating, margin: 4}]\n", "must be below 4"),
        ("  rollout:\n    goals: {metrics: [{metric: judge}]}\n", "judge is no goal"),
        ("  rollout:\n    guardrails: [{metric: preference, margin: 1}]\n", "must be below 1"),
        ("  rollout:\n    goals: {metrics: [{metric: errors, improvement: 1}]}\n", "must be below 1"),
        ("  rollout:\n    goals: {metrics: [{metric: ttft}, {metric: ttft}]}\n", "goals name a metric twice"),
        ("  rollout:\n    segments: [{name: a, tenants: [x]}, {name: a, tenants: [y]}]\n", "segments name one twice"),
        ("  rollout:\n    canary: {steps: [{weight: 50}, {weight: 5}]}\n", "weights must grow"),
        ("  rollout:\n    canary: {steps: [{weight: 60}]}\n", "spec.rollout.canary.steps[0].weight"),
        ("  rollout:\n    canary: {steps: [{weight: 5, minDuration: 10h, maxDuration: 1h}]}\n", "minDuration is longer"),
        ("  rollout:\n    judge: {kind: exactMatch}\n", "exactMatch needs `references`"),
        ("  rollout:\n    judge: {kind: rubric, model: m}\n", "rubric needs `endpoint` and `model`"),
        ("  engine: {autoscaling: {min: 3, max: 2}}\n", "min (3) is greater than max (2)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_line_and_field(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "assistant.yaml"
    path.write_text(HEAD + lines)
    with pytest.raises(InvalidResource) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


def test_production_defaults_are_slow(tmp_path: Path) -> None:
    path = tmp_path / "assistant.yaml"
    path.write_text(HEAD)
    (service,) = load(path)
    steps = service.spec.rollout.canary.steps
    assert all(step.min_duration >= 3600 for step in steps)
    assert steps[-1].min_duration >= 86_400
    assert LLMService.model_validate(service.model_dump(mode="json", by_alias=True)) == service


@given(st.integers(min_value=0, max_value=10**12))
def test_durations_survive_writing(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("text", ["", "10", "10 s", "s", "-5s", "1h-2m", 10, None, True])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def _service(**rollout: object) -> LLMService:
    return LLMService.model_validate(
        {"metadata": {"name": "a"}, "spec": {"model": {"registeredModel": "a"}, "rollout": rollout}}
    )


def test_the_level_is_shared_out_over_stages_and_metrics() -> None:
    made = plans(_service(alpha=0.1), "canary", {})
    assert {metric: plan.alpha_harm for metric, plan in made.items()} == {
        metric: pytest.approx(0.1 * 0.5 / 3) for metric in ("errors", "ttft", "feedback")
    }
    assert {plan.alpha_promote for plan in made.values()} == {0.1}
    assert made["errors"].steps == 4


def test_a_segment_has_every_guardrail_for_harm_and_its_share_of_the_level() -> None:
    made = plans(_service(alpha=0.1, segments=[{"name": "a", "tenants": ["x"]}]), "canary", {})
    assert set(made) == {"errors", "ttft", "feedback", "errors[a]", "ttft[a]", "feedback[a]"}
    assert [plan.alpha_harm for plan in made.values()] == pytest.approx([0.1 * 0.5 / (3 * 2)] * 6)
    assert (made["errors"].mode, made["errors[a]"].mode) == ("nonInferior", "harmOnly")
    assert [split_key(key) for key in ("errors[a]", "goal:ttft", "ttft")] == [
        ("errors", "a"),
        ("ttft", None),
        ("ttft", None),
    ]


def test_a_goal_is_shown_in_the_canary_alone() -> None:
    service = _service(alpha=0.1, goals={"metrics": [{"metric": "rating", "improvement": 0.2}, {"metric": "ttft"}]})
    assert "goal:ttft" not in plans(service, "rehearsal", {})
    made = plans(service, "canary", {})
    rating = made["goal:rating"]
    assert (rating.mode, rating.margin, rating.bounds, rating.direction) == ("goal", 0.2, (1.0, 5.0), "higher")
    assert made["goal:ttft"].quantile == 0.95
    assert made["errors"].alpha_harm == pytest.approx(0.1 * 0.5 / 3), (
        "a goal takes nothing of the level of false aborts"
    )


def test_history_sets_the_bet_only_where_there_is_enough() -> None:
    little = plans(_service(), "canary", {"units": 20, "failure_rate": 0.0, "bad_feedback_rate": 0.1})
    assert little["errors"].design_prior is None
    enough = plans(_service(), "canary", {"units": 999, "failure_rate": 0.0, "bad_feedback_rate": 0.1})
    assert enough["errors"].design_prior == pytest.approx(0.0005), "no failure yet is no promise that none will come"
    assert enough["feedback"].design_prior == pytest.approx(0.1, abs=0.001)
    assert enough["ttft"].design_prior is None


def test_a_judge_is_off_where_content_may_not_be_kept() -> None:
    judge = {"kind": "rubric", "endpoint": "http://judge/v1", "model": "m"}
    guardrails = [{"metric": "errors", "margin": 0.1, "mode": "nonInferior"}, {"metric": "judge", "margin": 0.1}]
    service = _service(judge=judge, guardrails=guardrails)
    assert set(plans(service, "rehearsal", {})) == {"errors"}
    assert not service.judged


def test_a_version_is_pinned_once() -> None:
    with pytest.raises(ValidationError, match="pinned names a version twice"):
        Model.model_validate({"registeredModel": "assistant", "pinned": ["3", "3"]})


RUBRIC = {"kind": "rubric", "endpoint": "http://judge/v1", "model": "m"}
EMBEDDING = {"endpoint": "http://embeddings/v1", "model": "m"}


@pytest.mark.parametrize(
    ("spec", "refusal"),
    [
        ({"drift": {"sample": 0.1}}, "need privacy.content"),
        ({"drift": {"onAlarm": "evaluate"}, "rollout": {"judge": RUBRIC}}, "need privacy.content"),
        ({"drift": {"sample": 0.1}, "privacy": {"content": "judge"}}, None),
        ({"drift": {"prompts": EMBEDDING}, "privacy": {"content": "judge"}}, "needs privacy.content: topics"),
        ({"drift": {"prompts": EMBEDDING}, "privacy": {"content": "topics"}}, None),
        (
            {"drift": {"prompts": EMBEDDING}, "privacy": {"content": "topics"}, "retention": {"observations": "20d"}},
            "21d or more",
        ),
        ({"drift": {"onAlarm": "evaluate"}, "privacy": {"content": "judge"}}, "needs a judge"),
        (
            {
                "drift": {"onAlarm": "evaluate"},
                "privacy": {"content": "judge"},
                "rollout": {"judge": RUBRIC | {"kind": "pairwise"}},
            },
            "needs a judge",
        ),
        ({"drift": {"onAlarm": "evaluate"}, "privacy": {"content": "topics"}, "rollout": {"judge": RUBRIC}}, None),
        ({"drift": {"onAlarm": "rollBack"}}, None),
    ],
)
def test_what_is_looked_at_between_rollouts_must_be_allowed_and_possible(
    spec: dict[str, Any], refusal: str | None
) -> None:
    document = {"metadata": {"name": "assistant"}, "spec": {"model": {"registeredModel": "assistant"}, **spec}}
    if refusal is None:
        LLMService.model_validate(document)
    else:
        with pytest.raises(ValidationError, match=refusal):
            LLMService.model_validate(document)
