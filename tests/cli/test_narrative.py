"""Numbers in words."""

from __future__ import annotations

import pytest

from services.cli import narrative
from tests.fakes.rollout_rows import TTFT, reading


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("errors", 0.1234, "12.3 %"), ("ttft", 0.0612, "61.2 ms"), ("ttft", 1.5, "1,500 ms"), ("tokensPerSecond", 41.24, "41.2 tokens/s"),
        ("judge", 0.9, "0.9"), ("cost", 0.00123, "0.00123"), ("errors", None, "unknown"),
    ],
)  # fmt: skip
def test_values_carry_their_unit(metric: str, value: float | None, text: str) -> None:
    assert narrative.value_text(metric, value) == text


@pytest.mark.parametrize(
    ("metric", "value", "relative", "text"),
    [
        ("errors", -0.021, False, "−2.1 points"), ("ttft", 1.94, True, "+194 %"), ("judge", -0.05, False, "−0.05"),
        ("ttft", None, True, "unknown"),
    ],
)  # fmt: skip
def test_changes_carry_sign_and_unit(metric: str, value: float | None, relative: bool, text: str) -> None:
    assert narrative.change_text(metric, value, relative) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7_500, "2 h 5 min"), (100_800, "1 d 4 h"), (3_600, "1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert narrative.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0042, "0.0042"), (12.34, "12.3"), (1234.5, "1,234"), (3.2e9, "3.2e+09"), (float("inf"), "over a million")],
)
def test_e_values(value: float, text: str) -> None:
    assert narrative.e_text(value) == text


def test_the_margin_points_where_the_metric_gets_worse() -> None:
    assert narrative.margin_text(reading("ttft", **TTFT)) == "+50.0 %"
    assert narrative.margin_text(reading("judge", direction="higher")) == "−0.1"


def test_a_half_open_interval_says_so() -> None:
    assert narrative.interval_text(reading("feedback", lower=None)) == "at most +60.0 points"
    assert narrative.interval_text(reading("feedback", upper=None)) == "at least +11.0 points"


def test_rehearsal_compares_with_stable() -> None:
    text = narrative.compared_text(reading("ttft", **TTFT) | {"stage": "rehearsal"})
    assert "66 mirrored users of the candidate" in text
    assert "70 of stable" in text


def test_shown_safe_and_not_enough_users() -> None:
    safe = reading("errors", mode="nonInferior", harmful=False, e_harm=0.7, e_promote=11.0, non_inferior=True)
    assert "shown not to be worse than that (e-value 11; 10 suffices)" in narrative.judged_text(safe)
    early = reading("ttft", **TTFT) | {"trustworthy": False, "lower": None, "upper": None}
    assert narrative.judged_text(early) == "Too few users for a bound yet; the margin is +50.0 %."


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("paused by command", "Paused by command."),
        ("v6 answers less", "v6 answers less."),
        ("ttft: slow", "ttft: slow."),
        ("Done!", "Done!"),
    ],
)
def test_messages_become_sentences_and_names_stay(said: str, text: str) -> None:
    assert narrative.sentence(said) == text


def test_segments_and_goals_have_the_metrics_words() -> None:
    assert narrative.metric_of("ttft[enterprise]").label == "time to first token in segment enterprise"
    assert narrative.value_text("goal:duration", 12.34) == "12.3 s"
    goal = {**reading("goal:rating"), "mode": "goal", "direction": "higher", "margin": 0.2, "harmful": False}
    goal |= {"e_promote": 30.0, "promote_threshold": 20.0}
    assert narrative.judged_text({**goal, "improved": True}) == (
        "As a goal: better by +0.2 or more is shown (e-value 30; 20 is needed)."
    )
    assert "is not shown yet" in narrative.judged_text(goal)


def test_known_users_are_told_where_they_spared_some() -> None:
    known = reading("ttft", **TTFT) | {"n_control": 400, "n_candidate": 600, "known": 800, "spared": 0.31}
    assert (
        narrative.past_text(known)
        == "800 of 1,000 users were known before, which spares about 31 % of the users needed."
    )
    assert narrative.past_text(known | {"spared": 0.02}) == narrative.past_text(reading("ttft", **TTFT)) == ""


def test_what_people_prefer_names_people() -> None:
    one = {
        **reading("preference", direction="higher"),
        "candidate": 0.38,
        "control": 0.62,
        "effect": -0.24,
        "n_candidate": 40,
    }
    one |= {"lower": None, "upper": -0.1, "relative": False}
    assert narrative.compared_text(one) == (
        "Answers that people preferred: 38.0 % of the candidate, 62.0 % of stable, by 40 people; −24.0 points (at most −10.0 points)."
    )
    del one["control"]
    assert narrative.compared_text(one).endswith("for 40 people.")
