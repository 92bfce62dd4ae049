"""Sample ratio, e-detector, and the combination of guardrails."""

import json

import numpy as np
import pytest

from services.evidence import (
    Guardrail,
    GuardrailPlan,
    PlanFault,
    Reading,
    SampleRatio,
    ShiftDetector,
    StateFault,
    UnitValue,
    ValueFault,
    combine,
    harm_level,
    stage_levels,
)
from services.evidence.summaries import Arm, Mode


def _looks_until_rejected(share: float, seed: int, looks: int) -> int | None:
    rng, ratio = np.random.default_rng(seed), SampleRatio({"control": 0.5, "candidate": 0.5})
    for look in range(1, looks + 1):
        candidates = int(rng.binomial(50, share))
        ratio.update({"candidate": candidates, "control": 50 - candidates})
        if ratio.rejected:
            return look
    return None


def test_sample_ratio_finds_a_broken_split_and_leaves_a_sound_one() -> None:
    assert sum(_looks_until_rejected(0.5, seed, 60) is not None for seed in range(300)) <= 2
    found = [_looks_until_rejected(0.6, seed, 60) for seed in range(50)]
    assert None not in found
    assert np.median([look for look in found if look]) * 50 < 700


def test_sample_ratio_continues_exactly_and_keeps_its_rejection() -> None:
    ratio = SampleRatio({"control": 1, "candidate": 2, "other": 3.3})
    ratio.update({"control": 400})
    assert ratio.rejected
    again = SampleRatio.from_json(json.loads(json.dumps(ratio.to_json(), allow_nan=False)))
    for each in (ratio, again):
        each.update({"candidate": 800, "other": 1320})
    assert (again.e_value, again.rejected) == (ratio.e_value, True)
    assert again.e_value < again.threshold


def test_sample_ratio_refuses_bad_input() -> None:
    ratio = SampleRatio({"control": 0.5, "candidate": 0.5})
    for counts in ({"stable": 1}, {"control": -1}):
        with pytest.raises(ValueFault):
            ratio.update(counts)
    assert sum(ratio.counts.values()) == 0
    for expected in ({"control": 1.0}, {"control": 1.0, "candidate": 0.0}):
        with pytest.raises(PlanFault):
            SampleRatio(expected)


def test_detector_run_length_and_delay() -> None:
    calm: list[int] = []
    changed: list[int] = []
    for seed in range(60):
        values = np.random.default_rng(seed).random(8000)
        for rate, counts in ((0.2, calm), (0.3, changed)):
            detector = ShiftDetector(0.2, 1000)
            detector.update((values < rate).astype(float).tolist())
            counts.append(detector.count)
    assert np.mean(calm) >= 1000 - 250  # standard error about 130
    assert np.mean(changed) == pytest.approx(122, rel=0.25)


def test_detector_continues_exactly_and_stops_at_its_alarm() -> None:
    detector = ShiftDetector(0.2, 100)
    detector.update([1.0, 0.0, 1.0])
    again = ShiftDetector.from_json(json.loads(json.dumps(detector.to_json())))
    assert detector.update([1.0] * 50)
    for value in [1.0] * 50:
        again.update([value])
    assert (again.level, again.count, again.alarmed) == (detector.level, detector.count, True)
    assert detector.count < 53
    with pytest.raises(ValueFault):
        detector.update([0.5, float("nan")])
    with pytest.raises(StateFault):
        ShiftDetector.from_json({"version": 1})
    with pytest.raises(PlanFault):
        ShiftDetector(0.0, 1000)


def _reading(metric: str, mode: Mode, gap: int) -> Reading:
    """Of 400 units, every tenth fails on control, and on the candidate those of every tenth minus `gap`."""
    plan = GuardrailPlan(
        metric=metric, kind="rate", direction="lower", margin=0.05, relative=False, mode=mode, steps=1,
        alpha_harm=0.01, alpha_promote=0.05,
    )  # fmt: skip
    guardrail = Guardrail(plan)
    for i in range(1600):
        arm: Arm = "control" if i % 2 else "candidate"
        fails = i // 2 % (10 if i % 2 else 10 - gap) == 0
        guardrail.update([UnitValue(f"{i:04d}", arm, i, i + 60, 0, float(fails))])
    return guardrail.reading()


def test_combination() -> None:
    same, bad = _reading("errors", "nonInferior", 0), _reading("errors", "nonInferior", 8)
    feedback, angry = _reading("feedback", "harmOnly", 0), _reading("feedback", "harmOnly", 8)
    assert combine([same, feedback]).promotable
    assert combine([same, angry]).harmful == ("feedback",)
    assert not combine([same, angry]).promotable
    assert combine([bad, feedback]).unproven == ("errors",)
    assert not combine([feedback]).promotable  # nothing was required, so nothing was shown
    assert not combine([]).promotable


def test_levels_add_up() -> None:
    levels = stage_levels(0.05)
    assert sum(levels.values()) == pytest.approx(0.05)
    assert harm_level(levels["canary"], metrics=3, segments=2) == pytest.approx(0.025 / 6)
    for call in (lambda: stage_levels(0), lambda: harm_level(0.05, 0)):
        with pytest.raises(PlanFault):
            call()
