"""The benchmark is sound: what stands beside the peers is the product, shares and bounds are right, an interrupted run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import evidence
from benchmarks.evidence_cells import Piece, pieces
from benchmarks.evidence_samples import (
    ALPHA,
    POINTS,
    Level,
    bet_path,
    bound_rate,
    bound_slower,
    design_alone,
    fixed_sample,
    mixture,
    rate_plan,
    slower,
)
from benchmarks.evidence_tables import interval, summarise, write_document
from benchmarks.evidence_traffic import Traffic
from benchmarks.evidence_understudy import Understudy, Values, resource
from services.evidence import Guardrail, UnitValue
from services.evidence.bets import Bettor, adaptive, by_design


def test_bets_pair_by_pair_are_the_guardrails() -> None:
    point, rng = POINTS["p=.3"], np.random.default_rng(2)
    control, candidate = (rng.random(500) < point.rate for _ in range(2))
    rail = Guardrail(rate_plan(point))
    rail.update_pairs(
        (UnitValue(f"u{i}", "control", i, i, 0, float(a)), UnitValue(f"u{i}", "candidate", i, i, 0, float(b)))
        for i, (a, b) in enumerate(zip(control, candidate, strict=True))
    )
    difference, margin = candidate.astype(float) - control, np.array([point.margin])
    paths = [bet_path(Bettor(margin, 0, rule), difference) for rule in (adaptive, by_design(point.rate, margin))]
    e_value = rail.reading().e_promote
    assert e_value is not None
    assert (np.exp(paths[0][-1]) + np.exp(paths[1][-1])) / 2 == pytest.approx(e_value)


def test_operating_points_are_those_of_the_fixed_sample() -> None:
    for point in POINTS.values():
        assert fixed_sample(point.rate, point.margin) == pytest.approx(point.fixed, abs=1)
        assert bound_rate(point) == pytest.approx(point.fixed, rel=0.1), "one look spares little"
    point = POINTS["p=.3"]
    found = [
        design_alone(point, 1, 200, np.random.default_rng(1), 6_000),
        mixture(point, 1, True, 20, np.random.default_rng(1), 6_000),
    ]
    assert 600 < np.median(found[0]) < 950
    assert 500 < np.median(found[1]) < 1_600


def test_at_the_margin_little_passes() -> None:
    point = POINTS["p=.3"]
    passed = np.isfinite(mixture(point, 1, True, 25, np.random.default_rng(3), 1_000, worse=point.margin))
    assert passed.mean() <= 0.2


def test_slowness_is_found_sooner_where_latency_varies_less() -> None:
    level = Level("one metric", ALPHA, 1)
    found = {sigma: np.median(slower(level, sigma, 3, np.random.default_rng(4), 2_048)) for sigma in (0.25, 0.5)}
    assert bound_slower(ALPHA, 0.25) < found[0.25] < 500
    assert found[0.25] < found[0.5]
    assert bound_slower(ALPHA, 0.25) < bound_slower(ALPHA, 0.5) < bound_slower(ALPHA / 6, 0.5)


def _values(count: int, start: float, end: float, failing: float, rng: np.random.Generator) -> Values:
    at = np.sort(rng.uniform(start, end, count))
    candidate = rng.random(count) < 0.5
    errors = (rng.random(count) < np.where(candidate, failing, 0.01)).astype(float)
    number = np.arange(count) + int(start) * 1_000
    return Values(
        number, at, candidate, {"errors": errors, "ttft": rng.exponential(0.1, count), "feedback": errors * 0}
    )


def _rollout(failing: float, hours: int, users: int) -> tuple[Any, float]:
    rng = np.random.default_rng(8)
    rule = Understudy("small", 600.0, rng)
    assert rule.weight == 0.5
    for hour in range(hours):
        rule.see(_values(users, hour * 3600, (hour + 1) * 3600, failing, rng))
        verdict = rule.look((hour + 1) * 3600.0)
        if verdict is not None:
            return verdict, verdict.at / 3600
    return None, hours


def test_understudy_is_the_product_and_tells_when_harm_was_shown() -> None:
    verdict, hours = _rollout(0.3, 30, 200)
    assert (verdict.verdict, verdict.why) == ("abort", "ErrorsHarmful")
    assert hours < 4, "long before the step's day is over"
    assert verdict.at % 600 == 0, "found at a look between two folds"
    verdict, hours = _rollout(0.01, 40, 400)
    assert (verdict.verdict, verdict.why) == ("advance", "Promoted")
    assert hours >= 24
    verdict, hours = _rollout(0.01, 28 * 24 + 1, 1)
    assert (verdict.verdict, verdict.why) == ("hold", "StepInconclusive")


def test_production_is_what_the_resource_says() -> None:
    steps = resource("production").spec.rollout.canary.steps
    assert [step.weight for step in steps] == [1, 5, 25, 50]
    assert [g.metric for g in resource("small").spec.rollout.guarded("canary")] == ["errors", "ttft", "feedback"]


def test_intervals_are_clopper_and_pearsons() -> None:
    assert interval(0, 400)[0] == 0
    assert interval(0, 400)[1] == pytest.approx(1 - 0.025 ** (1 / 400))
    assert interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def compute(first: int, runs: int, rng: np.random.Generator) -> list[float]:
        done.append(f"{first}+{runs}")
        return rng.random(runs).tolist()

    work = [Piece("cell", first, 2, compute) for first in (0, 2, 4)]
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setattr(evidence, "FINISHED", tmp_path / "finished.jsonl")
    monkeypatch.setattr(evidence, "pieces", lambda _: work)
    whole, _ = evidence.by_cell(evidence.work(1.0, 1))
    rows = (tmp_path / "finished.jsonl").read_text().splitlines()
    assert len(rows) == 3
    cut = rows[0] + "\n" + rows[1][:20]
    (tmp_path / "finished.jsonl").write_text(cut + "\n")
    again, _ = evidence.by_cell(evidence.work(1.0, 1))
    assert sorted(again["cell"]) == sorted(whole["cell"]), "the same runs, whoever computes them and when"
    stale = json.dumps({**json.loads(rows[0]), "key": "another program"})
    (tmp_path / "finished.jsonl").write_text(stale + "\n")
    assert evidence.finished(evidence.digest()) == {}


def test_every_table_has_its_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    runs: dict[str, list[Any]] = {}
    for piece in pieces(0.01):
        if piece.cell.split("/")[0] in ("point", "boundary", "slower"):
            runs.setdefault(piece.cell, []).extend(np.append(rng.uniform(100, 900, piece.runs), math.inf).tolist())
        else:
            one = {"verdict": "abort", "hours": 3.0, "users": 40, "harmed": 30, "why": "errors"}
            rules = (
                "understudy",
                "growthbook",
                "kayenta",
                "repeated-tests",
                "argo",
                "argo-fitted",
                "flagger",
                "flagger-fitted",
            )
            runs.setdefault(piece.cell, []).extend([dict.fromkeys(rules, one)] * piece.runs)
    tables = summarise(runs)
    json.dumps(tables, allow_nan=False)
    document = tmp_path / "proof.md"
    document.write_text(evidence.DOCUMENT.read_text())
    write_document(tables, "python -m benchmarks.evidence", document)
    assert "| Understudy |" in document.read_text()
    filled = document.read_text()
    write_document(tables, "python -m benchmarks.evidence", document)
    assert document.read_text() == filled, "writing twice changes nothing"
    assert Traffic().users_per_day == 10_000
