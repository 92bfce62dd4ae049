"""Which cells `benchmarks.evidence` computes, and how a piece of one is computed. A cell is cut into pieces of some runs, each with its own
seed, so that several processes share the work and an interrupted run goes on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.evidence_rollouts import Cell, run
from benchmarks.evidence_samples import (
    HAS_COVARIATE,
    MOST,
    POINTS,
    design_alone,
    guarded,
    levels,
    slower,
)
from benchmarks.evidence_traffic import Traffic

CORRELATIONS = (0.05, 0.1, 0.3)
EFFECTS = (0.5, 1.0, 2.0, 5.0)
METRICS = ("errors", "ttft", "feedback")
ONSETS = (10, 3_000, 10_000)
FEW = (20, 200, 2_000)
SIGMAS = (0.25, 0.5, 0.8)
KINDS = {
    "steady": Traffic(diurnal=False, bursts=False),
    "waves and bursts": Traffic(),
    "warm-up": Traffic(warm_up=True),
    "idle candidate": Traffic(idle=True),
}
INCIDENTS = {"30 min": 30.0, "3 h": 180.0}


@dataclass(frozen=True)
class Piece:
    """Some runs of one cell. `compute` gives one JSON value a run."""

    cell: str
    first: int
    runs: int
    compute: Callable[[int, int, np.random.Generator], list[Any]]

    @property
    def name(self) -> str:
        """Names the piece in the file of finished ones."""
        return f"{self.cell}#{self.first}+{self.runs}"


def rollouts() -> list[Cell]:
    """Tables 1 to 6."""
    cells = [
        Cell(f"same/{kind}/{rho}", replace(traffic, correlation=rho), 400)
        for kind, traffic in KINDS.items()
        for rho in CORRELATIONS
    ]
    cells += [Cell(f"effect/{m}/{e:g}", replace(Traffic(), **{m: e}), 400) for m in METRICS for e in EFFECTS]
    cells += [Cell("effect/ttft-idle/2", Traffic(ttft=2.0, idle=True), 400)]
    cells += [
        Cell(f"incident/{length}/{rho}", Traffic(incident=-1.0, incident_minutes=minutes, correlation=rho), 400)
        for length, minutes in INCIDENTS.items()
        for rho in (0.1, 0.3)
    ]
    many = Traffic(users_per_day=30_000.0)
    cells += [Cell(f"late/errors/{n}", replace(many, errors=4.0, onset=n), 400) for n in ONSETS]
    cells += [Cell(f"late/ttft/{n}", replace(many, ttft=2.5, onset=n), 200) for n in ONSETS]
    for users in FEW:
        for label, harm in (("same", 0.0), ("errors", 5.0)):
            few = Traffic(users_per_day=float(users), errors=harm)
            cells += [
                Cell(f"few/{ladder}/{users}/{label}", few, 400, ladder, look=3_600.0)
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
    return max(2, round(runs * share))


def _cut(name: str, runs: int, size: int, compute: Callable[[int, int, np.random.Generator], list[Any]]) -> list[Piece]:
    return [Piece(name, first, min(size, runs - first), compute) for first in range(0, runs, size)]


def _rollouts(cell: Cell) -> Callable[[int, int, np.random.Generator], list[Any]]:
    return lambda first, runs, _: [
        run(cell, (SEED, zlib.crc32(cell.name.encode()), i)) for i in range(first, first + runs)
    ]


SEED = 5


def _samples() -> list[tuple[str, Callable[[int, int, np.random.Generator], list[Any]], int, int]]:
    """Tables 7 and 8: name, what to compute, runs, runs a piece."""
    found: list[tuple[str, Callable[[int, int, np.random.Generator], list[Any]], int, int]] = []
    for name, point in POINTS.items():
        for rails in (1, 6):
            found.append((
                f"point/{name}/design/{rails}",
                lambda _, runs, rng, p=point, g=rails, most=MOST[name]: design_alone(p, g, runs, rng, most),
                8_000 if rails == 1 else 2_000,
                1_000,
            ))  # fmt: skip
            kinds = {"mixture": (True, False), "adaptive": (False, False), "covariate": (True, True)}
            for kind, (prior, covariate) in kinds.items():
                if covariate and not HAS_COVARIATE:
                    continue
                found.append((
                    f"point/{name}/{kind}/{rails}",
                    lambda _, runs, rng, p=point, g=rails, prior=prior, c=covariate, most=MOST[name]: guarded(
                        p, g, prior, c, runs, rng, most, 128 if g == 1 else 48
                    ),
                    2_000 if rails == 1 else 400,
                    100,
                ))  # fmt: skip
    for level in levels():
        for sigma in SIGMAS:
            found.append((
                f"slower/{level.name}/{sigma:g}",
                lambda _, runs, rng, level=level, s=sigma: slower(level, s, runs, rng, 12_000),
                400,
                50,
            ))  # fmt: skip
    return found
