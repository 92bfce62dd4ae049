"""Error rates and power of the bets, by seeded simulation: many rollouts at once."""

import math

import numpy as np
import pytest

from services.evidence import Guardrail, GuardrailPlan, UnitValue, adaptive_bets, design_bets
from services.evidence.summaries import Arm

LEVEL = math.log(20)


def _first_crossing(
    control: float, candidate: float, margin: float, prior: float | None, runs: int, pairs: int
) -> np.ndarray:
    """Pairs until non-inferiority is first seen in each run, inf where never."""
    rng = np.random.default_rng(20261)
    count, total, squares = 0, np.zeros(runs), np.zeros(runs)
    adaptive, design = np.zeros(runs), np.zeros(runs)
    constant = 0.0 if prior is None else float(design_bets(prior, np.array([margin]))[0])
    stopped = np.full(runs, np.inf)
    for t in range(1, pairs + 1):
        difference = (rng.random(runs) < candidate).astype(float) - (rng.random(runs) < control)
        if t - count - 1 >= count // 16:  # the bets stand for blocks, as in `Bettor`
            count, known = t - 1, (total.copy(), squares.copy())
            bets = adaptive_bets(np.array(margin), count, *known)
        adaptive += np.log1p(bets * (margin - difference))
        design += np.log1p(constant * (margin - difference))
        total += difference
        squares += difference**2
        log_e = adaptive if prior is None else np.logaddexp(adaptive, design) - math.log(2)
        stopped[np.isinf(stopped) & (log_e >= LEVEL)] = t
    return stopped


@pytest.mark.parametrize(("rate", "margin"), [(0.01, 0.01), (0.3, 0.05)])
def test_at_the_margin_non_inferiority_is_rarely_shown(rate: float, margin: float) -> None:
    stopped = _first_crossing(rate, rate + margin, margin, rate, runs=1500, pairs=3000)
    assert np.isfinite(stopped).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize(
    ("rate", "margin", "prior", "median"),
    [(0.01, 0.01, None, 1323), (0.3, 0.05, None, 1403), (0.01, 0.01, 0.01, 1110), (0.3, 0.05, 0.3, 950)],
)
def test_users_to_non_inferiority(rate: float, margin: float, prior: float | None, median: int) -> None:
    """Medians of independent simulations of the same bets; the design prior must be the faster one."""
    stopped = _first_crossing(rate, rate, margin, prior, runs=600, pairs=2500)
    assert np.median(stopped) == pytest.approx(median, rel=0.12)


def test_design_bet_maximises_growth() -> None:
    margin, rate = 0.05, 0.3
    bet = float(design_bets(rate, np.array([margin]))[0])
    grid = np.linspace(0, 0.9 / (1 - margin), 2001)
    growth = sum(
        p * np.log1p(grid * (margin - d))
        for d, p in ((-1, rate * (1 - rate)), (0, 1 - 2 * rate * (1 - rate)), (1, rate * (1 - rate)))
    )
    assert bet == pytest.approx(grid[np.argmax(growth)], abs=1e-3)
    assert list(design_bets(rate, np.array([-0.1, 0.0]))) == [0.0, 0.0]


def _plan(steps: int = 1, window: tuple[int, float] = (10, 3600.0)) -> GuardrailPlan:
    return GuardrailPlan(
        metric="errors", kind="rate", direction="lower", margin=0.01, relative=False, mode="nonInferior", steps=steps,
        alpha_harm=0.05, alpha_promote=0.05, pair_window_units=window[0], pair_window_seconds=window[1],
    )  # fmt: skip


def _aborts_in_bursts(window: tuple[int, float], runs: int, gap: float = 1.0) -> int:
    """Rollouts aborted of `runs`, with users `gap` seconds apart."""
    aborts = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        fails, candidate = rng.random(350) < 0.01, rng.random(350) < 0.5
        fails[200:250] = True
        guardrail = Guardrail(_plan(window=window))
        guardrail.update(
            UnitValue(f"{i:04d}", "candidate" if candidate[i] else "control", gap * i, gap * i + 60, 0, float(fails[i]))
            for i in range(350)
        )
        aborts += guardrail.reading().harmful
    return aborts


def test_a_burst_on_both_arms_alike_does_not_abort() -> None:
    """50 users in a row fail whatever their arm. Without the window such a burst aborts in about 30 % of rollouts."""
    assert _aborts_in_bursts((10, 3600.0), runs=40) <= 2
    assert _aborts_in_bursts((10, 3600.0), runs=40, gap=300.0) <= 2  # an outage of four hours, with 288 users a day
    assert _aborts_in_bursts((1_000_000, 1e9), runs=20) >= 3


def _pairs_to_alarm(healthy: int, steps: int, seed: int) -> float:
    """Pairs after the candidate turned bad (1 % → 5 %) until the alarm; steps start evenly, the last one at the turn."""
    arms: tuple[Arm, Arm] = ("control", "candidate")
    rng = np.random.default_rng(seed)
    guardrail, limit = Guardrail(_plan(steps)), 1500
    fails = rng.random((2, healthy + limit)) < np.where(np.arange(healthy + limit) < healthy, 0.01, [[0.01], [0.05]])
    for start in range(0, healthy + limit, 50):
        halves = [
            [
                UnitValue(f"{i:05d}", arm, i, i + 60, min(i * (steps - 1) // healthy, steps - 1), float(fails[side, i]))
                for i in range(start, start + 50)
            ]
            for side, arm in enumerate(arms)
        ]
        guardrail.update_pairs(zip(*halves, strict=True))
        if guardrail.reading().harmful:
            return start + 50 - healthy
    return math.inf


def test_harm_that_begins_late_is_seen_as_fast_as_early_harm() -> None:
    late = [_pairs_to_alarm(2000, steps=4, seed=seed) for seed in range(3)]
    unaided = _pairs_to_alarm(2000, steps=1, seed=0)
    assert np.median(late) < 1000
    assert unaided > 1.5 * np.median(late)


def test_window_pairs_the_longest_waiting_and_counts_what_expires() -> None:
    guardrail = Guardrail(_plan(window=(3, 30.0)))
    arms: list[Arm] = ["control", "control", "candidate", "control", "control", "control", "candidate"]
    units = [UnitValue(f"{i}", arm, i, i + 60, 0, 0.0) for i, arm in enumerate(arms)]
    guardrail.update(units)  # 2 pairs with 0; 1 waited longer than three arrivals; 6 pairs with 3
    assert (guardrail.reading().pairs, guardrail.reading().expired) == (2, 1)
    guardrail.update([UnitValue("7", "candidate", 40.0, 100.0, 0, 0.0)])  # 4 and 5 were exposed over 30 s before
    assert (guardrail.reading().pairs, guardrail.reading().expired) == (2, 3)


def test_few_users_find_partners_and_nobody_waits_for_the_window_to_end() -> None:
    at_once = Guardrail(_plan())
    at_once.update([UnitValue("0", "control", 0.0, 60.0, 0, 0.0), UnitValue("1", "candidate", 1.0, 61.0, 0, 0.0)])
    assert at_once.reading().pairs == 1
    rng = np.random.default_rng(11)
    came, candidate = np.cumsum(rng.exponential(300.0, 600)), rng.random(600) < 0.5  # 288 users a day in both arms
    guardrail = Guardrail(_plan())
    guardrail.update(
        UnitValue(f"{i:04d}", "candidate" if candidate[i] else "control", came[i], came[i], 0, 0.0) for i in range(600)
    )
    assert guardrail.reading().pairs > 0.8 * 300


def test_interval_agrees_with_the_verdict() -> None:
    rng = np.random.default_rng(5)
    for rate in (0.05, 0.4):
        guardrail = Guardrail(_plan())
        guardrail.update(
            UnitValue(
                f"{i:05d}",
                "candidate" if i % 2 else "control",
                i,
                i + 60,
                0,
                float(rng.random() < (rate if i % 2 else 0.05)),
            )
            for i in range(4000)
        )
        reading = guardrail.reading()
        assert reading.lower is not None
        assert reading.upper is not None
        assert reading.lower < rate - 0.05 < reading.upper or reading.harmful
        assert reading.harmful == (reading.lower >= 0.01)
        assert reading.non_inferior == (reading.upper <= 0.01)
