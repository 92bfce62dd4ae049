"""Which cells `benchmarks.evidence` computes, and how a piece of one is computed. A cell is cut into pieces of some runs, each with its own
seed, so that several processes share the work and an interrupted run goes on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.evidence_rollouts import Cell, run
from benchmarks.evidence_samples import MOST, POINTS, Level, Point, design_alone, levels, mixture, slower, with_past
from benchmarks.evidence_traffic import Traffic

CORRELATIONS = (0.05, 0.1, 0.3)
EFFECTS = (0.5, 1.0, 2.0, 5.0)
METRICS = ("errors", "ttft", "feedback")
ONSETS = (10, 3_000, 10_000)
FEW = (20, 200, 2_000)
SIGMAS = (0.25, 0.5, 0.8)
KINDS = {
    "waves and bursts": (Traffic(), CORRELATIONS),
    "steady": (Traffic(diurnal=False, bursts=False), (0.3,)),
    "warm-up": (Traffic(warm_up=True), (0.3,)),
    "idle candidate": (Traffic(idle=True), (0.3,)),
}
SAME = [(kind, rho) for kind, (_, correlations) in KINDS.items() for rho in correlations]
"""Kinds of traffic and the correlations under which each is run: the strongest, and for the usual traffic all."""
INCIDENTS = {"30 min": 30.0, "3 h": 180.0}


BOUNDARY = 6_000
"""Pairs for which evidence at the margin itself is watched."""
SEED = 5
Compute = Callable[[int, int, np.random.Generator], list[Any]]
"""First run, number of runs, generator (not for rollouts, whose runs have seeds of their own) -> one JSON value a run."""


@dataclass(frozen=True)
class Piece:
    """Some runs of one cell."""

    cell: str
    first: int
    runs: int
    compute: Compute

    @property
    def name(self) -> str:
        """Names the piece in the file of finished ones."""
        return f"{self.cell}#{self.first}+{self.runs}"


def rollouts() -> list[Cell]:
    """Tables 1 to 6."""
    cells = [Cell(f"same/{kind}/{rho}", replace(KINDS[kind][0], correlation=rho), 400) for kind, rho in SAME]
    runs = {0.5: 60, 1.0: 100, 2.0: 120, 5.0: 120}
    kinds = {"feedback": "marks"}
    cells += [
        Cell(f"effect/{m}/{e:g}", Traffic().worse(m, e), runs[e], kinds.get(m, "production"))
        for m in METRICS
        for e in EFFECTS
    ]
    cells += [Cell("effect/ttft-idle/2", Traffic(ttft=2.0, idle=True), 60)]
    cells += [
        Cell(f"incident/{length}/0.3", Traffic(incident=-1.0, incident_minutes=minutes, correlation=0.3), 300)
        for length, minutes in INCIDENTS.items()
    ]
    many = Traffic(users_per_day=30_000.0)
    cells += [Cell(f"late/errors/{n}", replace(many, errors=4.0, onset=n), 60) for n in ONSETS]
    cells += [Cell(f"late/ttft/{n}", replace(many, ttft=2.5, onset=n), 40) for n in ONSETS]
    for users in FEW:
        for label, harm in (("same", 0.0), ("errors", 5.0)):
            few = Traffic(users_per_day=float(users), errors=harm)
            cells += [
                Cell(f"few/{ladder}/{users}/{label}", few, 60, ladder, look=3_600.0)
                for ladder in ("production", "small")
            ]
    return cells


def pieces(share: float) -> list[Piece]:
    """All work, the longest cells first. `share` of the runs of each cell, 1 for the whole."""
    found = []
    for cell in rollouts():
        found += _cut(cell.name, _part(cell.runs, share), 20, _rollouts(cell))
    for name, compute, runs, size in _samples():
        found += _cut(name, _part(runs, share), size, compute)
    return found


def _part(runs: int, share: float) -> int:
    return max(1, round(runs * share))


def _cut(name: str, runs: int, size: int, compute: Compute) -> list[Piece]:
    return [Piece(name, first, min(size, runs - first), compute) for first in range(0, runs, size)]


def _rollouts(cell: Cell) -> Compute:
    return lambda first, runs, _: [
        run(cell, (SEED, zlib.crc32(cell.name.encode()), i)) for i in range(first, first + runs)
    ]


def _samples() -> list[tuple[str, Compute, int, int]]:
    """Tables 7 and 8: name, what to compute, runs, runs a piece."""
    found: list[tuple[str, Compute, int, int]] = []
    for name, point in POINTS.items():
        for rails in (1, 6):
            found += [
                (f"point/{name}/design/{rails}", _design(point, rails, MOST), 8_000 if rails == 1 else 2_000, 1_000),
                (
                    f"point/{name}/mixture/{rails}",
                    _mixture(point, rails, True, MOST),
                    2_000 if rails == 1 else 600,
                    100,
                ),
            ]
        found += [
            (f"point/{name}/adaptive/1", _mixture(point, 1, False, MOST), 1_000, 100),
            (f"point/{name}/no past/1", _with_past(point, False), 300, 25),
            (f"point/{name}/past/1", _with_past(point, True), 300, 25),
            (f"boundary/{name}/design", _design(point, 1, BOUNDARY, point.margin), 4_000, 1_000),
            (f"boundary/{name}/mixture", _mixture(point, 1, True, BOUNDARY, point.margin), 1_000, 100),
        ]
    for level in levels():
        found += [(f"slower/{level.name}/{sigma:g}", _slower(level, sigma), 100, 25) for sigma in SIGMAS]
    return found


def _design(point: Point, rails: int, most: int, worse: float = 0.0) -> Compute:
    return lambda _, runs, rng: design_alone(point, rails, runs, rng, most, worse)


def _mixture(point: Point, rails: int, prior: bool, most: int, worse: float = 0.0) -> Compute:
    return lambda _, runs, rng: mixture(point, rails, prior, runs, rng, most, worse)


def _with_past(point: Point, known: bool) -> Compute:
    return lambda _, runs, rng: with_past(point, known, runs, rng, MOST)


def _slower(level: Level, sigma: float) -> Compute:
    return lambda _, runs, rng: slower(level, sigma, runs, rng, MOST)
