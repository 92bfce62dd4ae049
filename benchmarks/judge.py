"""What asking a judge in both orders saves: a simulated judge that is biased by position, on pairs of which the better answer is known.

    python -m benchmarks.judge

The judge sees the quality of both answers through noise, adds a bonus to the first one, and calls a tie where the two come out close. Its
words go through the parser of `services.rollout.judge`, one answer in fifty being unparsable. The result goes to
`benchmarks/results/judge.json`.
"""

import asyncio
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from services.evidence import Judged, Preference
from services.rollout.errors import Unparsable
from services.rollout.judge import PairwiseJudge

RESULT = Path(__file__).parent / "results" / "judge.json"
BIASES = {"none": 0.0, "mild": 0.3, "strong": 1.0}
NOISE, CLOSE, GARBLED = 0.5, 0.1, 0.02
PAIRS, RUNS = 600, 7


class BiasedEndpoint:
    """Answers as a judging model would. Qualities stand in the answers' text; each question is judged with noise of its own."""

    def __init__(self, bias: float, rng: np.random.Generator) -> None:
        self._bias, self._rng = bias, rng

    async def ask(self, system: str, user: str) -> str:
        if self._rng.random() < GARBLED:
            return "Both have their merits.\nBETTER: A or B"
        first, second = (float(user.split(f"<ANSWER {side}>\n")[1].split("\n")[0]) for side in "AB")
        seen = first - second + self._bias + NOISE * self._rng.standard_normal()
        return "Compared.\nBETTER: " + ("TIE" if abs(seen) < CLOSE else "A" if seen > 0 else "B")


@dataclass
class Tally:
    """One way to ask: what it said, and whether and when it called the candidate better."""

    preference: Preference = field(default_factory=lambda: Preference(0.05))
    decided: int = 0
    right: int = 0
    found_at: float = math.inf

    def add(self, judged: Judged, truth: str, pair: int) -> None:
        self.preference.update([judged])
        if judged.is_consistent and judged.first != "tie":
            self.decided += 1
            self.right += judged.first == truth
        if pair % 5 == 0 and math.isinf(self.found_at) and self.preference.reading().better:
            self.found_at = pair


async def judge_pairs(bias: float, effect: float, seed: int) -> tuple[dict[str, Tally], int]:
    """`effect`: by how many standard deviations of an answer's quality the candidate is better on average. Also: the unparsable pairs."""
    rng = np.random.default_rng(seed)
    judge = PairwiseJudge(BiasedEndpoint(bias, rng))  # type: ignore[arg-type]
    tallies, unparsable = {"candidateFirst": Tally(), "randomOrder": Tally(), "bothOrders": Tally()}, 0
    for pair in range(1, PAIRS + 1):
        candidate, stable = effect + rng.standard_normal(), rng.standard_normal()
        try:
            first, second = await judge.judge("prompt", f"{candidate:.6f}", f"{stable:.6f}")
        except Unparsable:
            unparsable += 1
            continue
        truth = "candidate" if candidate > stable else "stable"
        tallies["candidateFirst"].add(Judged(first), truth, pair)
        tallies["randomOrder"].add(Judged(first if rng.random() < 0.5 else second), truth, pair)
        tallies["bothOrders"].add(Judged(first, second), truth, pair)
    return tallies, unparsable


async def cell(bias: float, effect: float) -> dict[str, Any]:
    runs = [await judge_pairs(bias, effect, seed) for seed in range(RUNS)]
    found: dict[str, Any] = {"unparsable": round(sum(unparsable for _, unparsable in runs) / RUNS / PAIRS, 3)}
    for way in runs[0][0]:
        tallies = [run[way] for run, _ in runs]
        readings = [tally.preference.reading() for tally in tallies]
        middle = float(np.median([tally.found_at for tally in tallies]))
        found[way] = {
            "agreement": round(sum(t.right for t in tallies) / sum(t.decided for t in tallies), 3),
            "decided": round(sum(t.decided for t in tallies) / sum(r.judged for r in readings), 3),
            "inconsistent": round(sum(r.inconsistent for r in readings) / sum(r.judged for r in readings), 3),
            "share": round(float(np.mean([r.share or math.nan for r in readings])), 3),
            "calledBetter": f"{sum(math.isfinite(t.found_at) for t in tallies)} of {RUNS}",
            "medianPairsUntilBetter": None if math.isinf(middle) else middle,
        }
    return found


def main() -> None:
    result = {
        f"bias {name}, {what}": asyncio.run(cell(bias, effect))
        for name, bias in BIASES.items()
        for what, effect in (("equal", 0.0), ("better by .3", 0.3))
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
