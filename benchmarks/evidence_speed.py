"""How fast evidence is folded: a million units into one metric of each kind, on one core, and what a look costs after few and after many.

    python -m benchmarks.evidence_speed [--units 1000000]

Seconds are of processor time, so that other work on the machine disturbs little; building the units is not counted. The result goes to
`benchmarks/results/evidence-speed.json`. A look here is what the controller does for one metric: 20 new units, the reading, the state as
JSON.
"""

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from services.evidence import Guardrail, GuardrailPlan, UnitValue

RESULT = Path(__file__).parent / "results" / "evidence-speed.json"
BATCH = 20_000
LOOK = 20
PLANS = {
    "rate": GuardrailPlan("errors", "rate", "lower", 0.01, False, "nonInferior", 4, 0.01, 0.05, design_prior=0.05),
    "mean": GuardrailPlan("cost", "mean", "lower", 0.1, True, "nonInferior", 4, 0.01, 0.05),
    "ratio": GuardrailPlan("tokensPerSecond", "ratio", "higher", 0.1, True, "nonInferior", 4, 0.01, 0.05),
    "quantile": GuardrailPlan("ttft", "quantile", "lower", 0.2, True, "nonInferior", 4, 0.01, 0.05, quantile=0.95),
}


def units(kind: str, start: int, count: int, total: int, rng: np.random.Generator) -> list[UnitValue]:
    values = rng.random(count) < 0.05 if kind == "rate" else rng.lognormal(3.0, 0.4, count)
    weights = rng.geometric(0.3, count) if kind == "ratio" else np.ones(count)
    columns = (rng.random(count) < 0.5, values * weights, weights)
    made = zip(range(start, start + count), *(column.tolist() for column in columns), strict=True)
    return [
        UnitValue(
            f"{i:016x}", "candidate" if arm else "control", i * 0.01, i * 0.01 + 600, min(3, i * 4 // total),
            float(value), None, float(weight),
        )
        for i, arm, value, weight in made
    ]  # fmt: skip


def look(guardrail: Guardrail, kind: str, start: int, total: int, rng: np.random.Generator) -> float:
    """Milliseconds of one look, the median of 15."""
    times = []
    for i in range(15):
        new = units(kind, start + i * LOOK, LOOK, total, rng)
        begun = time.process_time()
        guardrail.update(new)
        guardrail.reading()
        json.dumps(guardrail.to_json())
        times.append(time.process_time() - begun)
    return 1e3 * float(np.median(times))


def measure(kind: str, total: int) -> dict[str, Any]:
    rng, guardrail, seconds, few = np.random.default_rng(1), Guardrail(PLANS[kind]), 0.0, 0.0
    folded = 0
    for count in [1_000, *[BATCH] * (total // BATCH)]:
        new = units(kind, folded, count, total, rng)
        gc.collect()
        begun = time.process_time()
        guardrail.update(new)
        seconds += time.process_time() - begun
        folded += count
        if folded == 1_000:
            few = look(guardrail, kind, folded, total, rng)
            folded += 15 * LOOK
    reading = guardrail.reading()
    assert not reading.harmful, "nothing differs"
    many = look(guardrail, kind, folded, total, rng)
    return {
        "units": reading.n_control + reading.n_candidate,
        "seconds": round(seconds, 3),
        "lookAfterThousandMs": round(few, 2),
        "lookAfterAllMs": round(many, 2),
        "stateKilobytes": round(len(json.dumps(guardrail.to_json())) / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1_000_000, help="units folded into each metric")
    total = parser.parse_args().units
    result = {"unit": "seconds of one core", "batch": BATCH, "kinds": {kind: measure(kind, total) for kind in PLANS}}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
