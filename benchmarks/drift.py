"""When does a drift of what is stable alarm, and how often does nothing? Simulated services under Understudy's detectors and under two
customary rules, side by side.

    python -m benchmarks.drift [--runs 100]

A week of history, then four weeks that are watched. Users come with the hour of the day and the day of the week; so do bad marks and the
time to the first token, but in the cells named `flat`. What changes, changes a week after the history's end. Understudy is the product's
own `begin_drift`; the peers look once a day at the last day's users against the whole history: the population stability index beyond 0.2
(ten bins of the history's TTFT; marks as two bins), and a test of both metrics at 5 % (two proportions; Mann-Whitney). Seeded; a process a
core. The result goes to `benchmarks/results/drift.json`.
"""

import argparse
import json
import math
import multiprocessing
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm

from services.rollout.resources import LLMService
from services.rollout.watch_fold import begin_drift
from services.store import ClosedUnit, Exposure, Feedback, Observation

RESULT = Path(__file__).parent / "results" / "drift.json"
HOUR, DAY, WEEK = 3_600.0, 86_400.0, 604_800.0
START = 4 * DAY  # a Monday
CHANGE = START + 2 * WEEK
END = START + 5 * WEEK
TRAFFIC = (200, 2_000)
TOKENS = 80
BAD, TTFT, SPREAD = 0.06, 0.3, 0.4
PSI_LIMIT, TEST_LEVEL = 0.2, 0.05
SEED = 20
Floats = NDArray[np.float64]
Runs = dict[tuple[str, int], list[dict[str, float]]]
"""Cell and its number a day -> of each run, when each rule alarmed."""


@dataclass(frozen=True)
class Users:
    """Visits in the order of time: when, whether a bad mark was given, seconds to the first token."""

    at: Floats
    bad: Floats
    ttft: Floats

    def between(self, begin: float, end: float) -> "Users":
        first, last = np.searchsorted(self.at, (begin, end))
        return Users(self.at[first:last], self.bad[first:last], self.ttft[first:last])


def wave(at: Floats) -> Floats:
    """−1 to 1 over the day, at its height at three in the afternoon; half a unit more at weekends."""
    weekend = (at - START) % WEEK >= 5 * DAY
    return np.cos(2 * math.pi * (at % DAY - 15 * HOUR) / DAY) + 0.5 * weekend


def nothing(at: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    return np.zeros(len(at)), np.ones(len(at))


def sudden_marks(at: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    return 0.10 * (at >= CHANGE), np.ones(len(at))


def slow_marks(at: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Over two weeks."""
    return 0.10 * np.clip((at - CHANGE) / (2 * WEEK), 0, 1), np.ones(len(at))


def segment_marks(at: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """One user in ten."""
    return 0.60 * ((at >= CHANGE) & (rng.random(len(at)) < 0.1)), np.ones(len(at))


def sudden_ttft(at: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    return np.zeros(len(at)), np.where(at >= CHANGE, 1.6, 1.0)


Change = Callable[[Floats, np.random.Generator], tuple[Floats, Floats]]
CELLS: dict[str, tuple[Change, bool]] = {
    "nothing, flat": (nothing, False),
    "nothing but hours and weekends": (nothing, True),
    "sudden: bad marks 6 to 16 %": (sudden_marks, True),
    "slow: bad marks 6 to 16 % in two weeks": (slow_marks, True),
    "one user in ten: bad marks 6 to 66 %": (segment_marks, True),
    "sudden: first tokens 60 % later": (sudden_ttft, True),
}


def visits(users_per_day: int, change: Change, seasonal: bool, rng: np.random.Generator) -> Users:
    most = users_per_day * 1.9
    at = np.sort(rng.uniform(START, END, rng.poisson(most * (END - START) / DAY)))
    at = at[rng.random(len(at)) < (1 + 0.6 * wave(at)) / 1.9]
    height = wave(at) if seasonal else np.zeros(len(at))
    more, factor = change(at, rng)
    bad = rng.random(len(at)) < BAD * (1 + 0.5 * height) + more
    ttft = TTFT * factor * (1 + 0.2 * height) * np.exp(SPREAD * rng.standard_normal(len(at)))
    return Users(at, bad.astype(float), ttft)


def resource() -> LLMService:
    guardrails = [
        {"metric": "ttft", "margin": 0.2, "quantile": 0.5},
        {"metric": "feedback", "margin": 0.03, "mode": "nonInferior"},
    ]
    spec = {"model": {"registeredModel": "assistant"}, "rollout": {"guardrails": guardrails}}
    kind = {"apiVersion": "understudy.dev/v1alpha1", "kind": "LLMService", "metadata": {"name": "assistant"}}
    return LLMService.model_validate({**kind, "spec": spec})


def closed(index: int, at: float, bad: float, ttft: float) -> ClosedUnit:
    """A visit as the store tells it."""
    origin = {"gateway": "g", "boot": "b", "sequence": index}
    common = {"service": "assistant", "arm": "stable", "unit": f"u{index}", "route_version": 1, **origin}
    asked = Observation(
        request_id=f"r{index}", revision="assistant-v1-0000", started_at=at, streamed=True, ttft=ttft, duration=ttft + 2.0,
        tokens_out=TOKENS, outcome="ok", status=200, **common,
    )  # fmt: skip
    exposure = Exposure(
        rollout="", bucket=0, step=0, first_at=at, horizon_at=at + 600, closes_at=at + 900, **common
    )  # fmt: skip
    marks = () if not bad else (
        Feedback(id=f"f{index}", request_id=f"r{index}", service="assistant", kind="thumb", value=-1.0, at=at + 60, **origin),
    )  # fmt: skip
    return ClosedUnit(exposure, (asked,), marks)


def understudy(history: Users, after: Users) -> float:
    """When the detectors alarm; infinite: never."""
    rows = zip(history.at.tolist(), history.bad.tolist(), history.ttft.tolist(), strict=True)
    watch = begin_drift(resource(), [closed(i, *row) for i, row in enumerate(rows)], (), b"drift", WEEK)
    nothing = np.zeros(len(after.at))
    columns = {"errors": nothing, "ttft": after.ttft, "feedback": after.bad}
    columns |= {"longAnswers": nothing + TOKENS, "shortAnswers": nothing + 1 / TOKENS}
    first = math.inf
    for one in watch.watched:
        for at, value in zip(after.at.tolist(), columns[one.metric].tolist(), strict=True):
            if at >= first:
                break
            one.add(value, at)
            if one.detector.alarmed:
                first = at
    return first


def daily(history: Users, after: Users, alarms: Callable[[Users, Users], bool]) -> float:
    """When a rule that looks at each day alarms."""
    for day in np.arange(START + WEEK, END, DAY):
        today = after.between(day, day + DAY)
        if len(today.at) and alarms(history, today):
            return float(day + DAY)
    return math.inf


def psi(history: Users, today: Users) -> bool:
    edges = np.quantile(history.ttft, np.linspace(0.1, 0.9, 9))
    binned = (
        (np.searchsorted(edges, history.ttft), np.searchsorted(edges, today.ttft), 10),
        (history.bad, today.bad, 2),
    )
    for before, now, bins in binned:
        shares = [np.bincount(x.astype(int), minlength=bins) / len(x) + 1e-4 for x in (before, now)]
        if float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()) > PSI_LIMIT:
            return True
    return False


def tested(history: Users, today: Users) -> bool:
    n, m = len(history.bad), len(today.bad)
    pooled = (history.bad.sum() + today.bad.sum()) / (n + m)
    spread = math.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / n + 1 / m))
    worse = norm.sf((today.bad.mean() - history.bad.mean()) / spread)
    slower = mannwhitneyu(today.ttft, history.ttft, alternative="greater").pvalue
    return bool(min(worse, slower) < TEST_LEVEL)


def run(job: tuple[str, int, int]) -> tuple[str, int, dict[str, float]]:
    cell, users_per_day, index = job
    change, seasonal = CELLS[cell]
    users = visits(
        users_per_day, change, seasonal, np.random.default_rng((SEED, zlib.crc32(cell.encode()), users_per_day, index))
    )
    history, after = users.between(START, START + WEEK), users.between(START + WEEK, END)
    found = {
        "understudy": understudy(history, after),
        "psi": daily(history, after, psi),
        "test": daily(history, after, tested),
    }
    return cell, users_per_day, found


def summary(times: list[float], since: float) -> dict[str, Any]:
    """An alarm before the change is a false one; the delay is from the change on. `since`: infinite where nothing changes."""
    delays = sorted((at - since) / HOUR for at in times if since <= at < math.inf)
    return {
        "false": sum(at < since for at in times),
        "alarmed": len(delays),
        "medianHours": round(delays[len(delays) // 2], 1) if delays else None,
        "runs": len(times),
    }


def conclude(found: Runs, since: Mapping[str, float], per_day: str, result: Path) -> None:
    """Writes the table and prints it. `since`: when what changes in a cell does; `per_day`: what the cells' numbers count."""
    table = [
        {"cell": cell, per_day: number, **{rule: summary([one[rule] for one in mine], since[cell]) for rule in mine[0]}}
        for (cell, number), mine in found.items()
    ]
    runs = len(next(iter(found.values())))
    result.write_text(json.dumps({"runs": runs, "weeksWatched": 4, "cells": table}, indent=1) + "\n")
    rules = ("understudy", "psi", "test")
    print(f"{'':46} {per_day:>13}  " + "  ".join(f"{rule:>28}" for rule in rules))
    for row in table:
        cells = [row[rule] for rule in rules]
        words = [f"{c['false']} false, {c['alarmed']} after {c['medianHours']} h" for c in cells]
        print(f"{row['cell']:46} {row[per_day]:>13}  " + "  ".join(f"{text:>28}" for text in words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs of each cell (default: 100)")
    runs = parser.parse_args().runs
    jobs = [(cell, users, index) for users in TRAFFIC for cell in CELLS for index in range(runs)]
    found: Runs = {}
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for done, (cell, users, times) in enumerate(pool.imap(run, jobs), 1):
            found.setdefault((cell, users), []).append(times)
            if done % 100 == 0:
                print(f"{done}/{len(jobs)} runs", flush=True)
    since = {cell: math.inf if change is nothing else CHANGE for cell, (change, _) in CELLS.items()}
    conclude(found, since, "usersPerDay", RESULT)


if __name__ == "__main__":
    main()
