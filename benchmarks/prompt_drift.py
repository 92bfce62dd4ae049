"""When does it alarm that users ask something else, and how often for nothing? Simulated services under Understudy's test of prompts and
under two customary rules, side by side.

    python -m benchmarks.prompt_drift [--runs 40]

Prompts are `benchmarks.embedded_prompts`' with real embeddings (made once, in the engine's environment). Users have habits: each likes some
topics more than others, some come much more often than others. By night and at weekends other things are asked, but in the cell named
`flat`. A week of history, then four weeks that are watched; what changes, changes ten and a half days after the history's end, in the
middle of a round. Understudy is the product's own pairing, levels and test. The peers look once a day at the last day's samples against the
whole history: the population stability index of ten clusters of the history beyond 0.2, and Kolmogorov and Smirnov's test of ten principal
components at 5 % with Bonferroni's correction. Seeded; a process a core. The result goes to `benchmarks/results/prompt_drift.json`.
"""

import argparse
import math
import multiprocessing
import os
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq
from scipy.stats import ks_2samp

from benchmarks.drift import DAY, HOUR, PSI_LIMIT, START, TEST_LEVEL, WEEK, Runs, conclude
from benchmarks.embedded_prompts import cached
from services.evidence.embeddings import EmbeddingDrift
from services.rollout.prompt_drift import BLOCK, DIMENSIONS, LENGTHS, blocks, fold, level, pairs
from services.store import SampleKey

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/prompt_drift.json"
CHANGE = START + WEEK + 10.5 * DAY
END = START + 5 * WEEK
SAMPLES = (100, 1_000)
POPULATION = 3
"""Users for each sample of a day."""
USUAL = ("orders", "refunds", "passwords", "invoices", "python", "sql", "letters", "summaries", "recipes", "travel")
NIGHT, WEEKEND, NEW, TENANT = ("sleep", "stories"), ("games",), "outage", "kubernetes"
SEED = 23
BINS = 10
Ints = NDArray[np.intp]
Floats = NDArray[np.float64]
Draw = Callable[[Floats, Ints, np.random.Generator], tuple[NDArray[np.bool_], str]]


@dataclass(frozen=True)
class Asked:
    """Samples in the order of time: when, by whom, which prompt."""

    at: Floats
    user: Ints
    prompt: Ints

    def between(self, begin: float, end: float) -> "Asked":
        first, last = np.searchsorted(self.at, (begin, end))
        return Asked(self.at[first:last], self.user[first:last], self.prompt[first:last])


def nothing(at: Floats, user: Ints, rng: np.random.Generator) -> tuple[NDArray[np.bool_], str]:
    return np.zeros(len(at), bool), NEW


def sudden(at: Floats, user: Ints, rng: np.random.Generator) -> tuple[NDArray[np.bool_], str]:
    return (at >= CHANGE) & (rng.random(len(at)) < 0.15), NEW


def slow(at: Floats, user: Ints, rng: np.random.Generator) -> tuple[NDArray[np.bool_], str]:
    """Over two weeks."""
    return rng.random(len(at)) < 0.15 * np.clip((at - CHANGE) / (2 * WEEK), 0, 1), NEW


def tenant(at: Floats, user: Ints, rng: np.random.Generator) -> tuple[NDArray[np.bool_], str]:
    """One user in ten: all they ask."""
    return (at >= CHANGE) & (user % 10 == 0), TENANT


CELLS: dict[str, tuple[Draw, bool]] = {
    "nothing, flat": (nothing, False),
    "nothing but hours and weekends": (nothing, True),
    "sudden: a new topic, 15 % of prompts": (sudden, True),
    "slow: the same within two weeks": (slow, True),
    "one tenant, a tenth of users: only a new topic": (tenant, True),
}


@cache
def pool() -> tuple[dict[str, Ints], NDArray[np.float32]]:
    """Topic -> its prompts; all prompts' vectors."""
    found = cached()
    assert found is not None
    topics = np.array([topic for topic, _ in found[0]])
    return {topic: np.flatnonzero(topics == topic) for topic in dict.fromkeys(topics.tolist())}, found[1]


def samples(a_day: int, change: Draw, seasonal: bool, rng: np.random.Generator) -> Asked:
    """Twice as many by day as by night. Each user's likings are Dirichlet's around the usual mix."""
    at = np.sort(rng.uniform(START, END, rng.poisson(a_day * 1.5 * (END - START) / DAY)))
    at = at[(at % DAY >= 8 * HOUR) | (rng.random(len(at)) < 0.5)]
    night, weekend = at % DAY < 8 * HOUR, (at - START) % WEEK >= 5 * DAY
    users = POPULATION * a_day
    often = rng.lognormal(0, 1, users)
    user = rng.choice(users, len(at), p=often / often.sum())
    likings = rng.dirichlet(np.full(len(USUAL), 1.0), users).cumsum(axis=1)
    topic = np.array(USUAL)[(rng.random(len(at))[:, np.newaxis] > likings[user][:, :-1]).sum(axis=1)].astype("U10")
    if seasonal:
        by_night, at_weekends = night & (rng.random(len(at)) < 0.6), weekend & (rng.random(len(at)) < 0.4)
        topic[at_weekends] = rng.choice(WEEKEND, int(at_weekends.sum()))
        topic[by_night] = rng.choice(NIGHT, int(by_night.sum()))
    changed, name = change(at, user, rng)
    topic[changed] = name
    prompt = np.zeros(len(at), np.intp)
    for one, known in pool()[0].items():
        mine = topic == one
        prompt[mine] = rng.choice(known, int(mine.sum()))
    return Asked(at, user, prompt)


def understudy(asked: Asked) -> float:
    """When the test alarms; infinite: never."""
    vectors = pool()[1]

    def keyed(one: Asked, first: int) -> list[SampleKey]:
        rows = zip(one.user.tolist(), one.at.tolist(), strict=True)
        return [SampleKey(str(first + i), str(user), at) for i, (user, at) in enumerate(rows)]

    first = math.inf
    for length in LENGTHS:
        for number in range(1, 1 + round((END - START - WEEK) / length)):
            begin = START + WEEK + (number - 1) * length
            if begin >= first:
                break
            then = START + (begin - START) % WEEK
            past, today = (
                blocks(keyed(asked.between(at, at + length), int(np.searchsorted(asked.at, at))), at)
                for at in (then, begin)
            )
            test = EmbeddingDrift(DIMENSIONS, level(number))
            for block in sorted(today):
                found = [(int(a), int(b)) for a, b in pairs(past.get(block, ()), today[block], number)]
                if found:
                    sides = ([vectors[asked.prompt[one[side]]].tobytes() for one in found] for side in (0, 1))
                    fold(test, *sides)
                if test.drifted:
                    first = min(first, begin + (block + 1) * BLOCK + HOUR)
                    break
    return first


def daily(asked: Asked, alarms: Callable[[Ints], bool]) -> float:
    for day in np.arange(START + WEEK, END, DAY):
        today = asked.between(day, day + DAY).prompt
        if len(today) > BINS and alarms(today):
            return float(day + DAY)
    return math.inf


def psi(asked: Asked) -> float:
    history, vectors = asked.between(START, START + WEEK).prompt, pool()[1].astype(float)
    centres, _ = kmeans2(vectors[history][:2_000], BINS, minit="++", rng=np.random.default_rng(SEED))
    bins = vq(vectors, centres)[0]

    def shares(prompts: Ints) -> Floats:
        found: Floats = np.bincount(bins[prompts], minlength=BINS) / len(prompts) + 1e-4
        return found

    before = shares(history)
    return daily(asked, lambda now: float(((shares(now) - before) * np.log(shares(now) / before)).sum()) > PSI_LIMIT)


def tested(asked: Asked) -> float:
    history, vectors = asked.between(START, START + WEEK).prompt, pool()[1].astype(float)
    _, _, components = np.linalg.svd(vectors[history][:2_000] - vectors[history].mean(axis=0), full_matrices=False)
    scores = vectors @ components[:BINS].T

    def alarms(now: Ints) -> bool:
        least = min(ks_2samp(scores[history, i], scores[now, i], method="asymp").pvalue for i in range(BINS))
        return bool(least < TEST_LEVEL / BINS)

    return daily(asked, alarms)


def run(job: tuple[str, int, int]) -> tuple[str, int, dict[str, float]]:
    cell, a_day, index = job
    change, seasonal = CELLS[cell]
    rng = np.random.default_rng((SEED, zlib.crc32(cell.encode()), a_day, index))
    asked = samples(a_day, change, seasonal, rng)
    return cell, a_day, {"understudy": understudy(asked), "psi": psi(asked), "test": tested(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="runs of each cell (default: 40)")
    runs = parser.parse_args().runs
    if cached() is None:
        print("embedding the prompts, once", flush=True)
        subprocess.run([ROOT / ".venv-engine/bin/python", "-m", "benchmarks.embedded_prompts"], cwd=ROOT, check=True)
    jobs = [(cell, a_day, index) for a_day in SAMPLES for cell in CELLS for index in range(runs)]
    found: Runs = {}
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the processes share the cores
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as processes:
        for done, (cell, a_day, times) in enumerate(processes.imap(run, jobs), 1):
            found.setdefault((cell, a_day), []).append(times)
            if done % 50 == 0:
                print(f"{done}/{len(jobs)} runs", flush=True)
    since = {cell: math.inf if change is nothing else CHANGE for cell, (change, _) in CELLS.items()}
    conclude(found, since, "samplesPerDay", RESULT)


if __name__ == "__main__":
    main()
