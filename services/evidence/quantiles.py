"""Quantiles, such as the median or 95th percentile of the time to first token: confidence sequences, and the two-sample test of a ratio.

Used by `Guardrail` for the kind `quantile`. Source: Howard & Ramdas, "Sequential estimation of quantiles with
applications to A/B testing and best-arm identification", Bernoulli 2022 (beta-binomial mixture). No
assumption on the distribution; values of +inf (no first token) are ordinary.
"""

import base64
import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from services.evidence.batch import Batch, Flags, Integers
from services.evidence.errors import PlanFault
from services.evidence.mixtures import TUNED_FOR_UNITS, log_coin_martingale, log_coin_martingales
from services.evidence.schedule import Checks
from services.evidence.state import Floats, pack, unpack
from services.evidence.summaries import Conclusion, GuardrailPlan

FINEST = 0.002
"""Width of a bin at most: values within 0.2 % of each other are one."""
TUNED_VARIANCE = 30
"""Units · p(1 − p) at which the test of a ratio is most powerful: 120 units for a median, 630 for a p95, 3,030 for a p99."""
LARGEST = 1e6
"""Values above it are one with +inf, values below its inverse one with 0: a microsecond and eleven days."""


@lru_cache(maxsize=8192)
def quantile_ranks(n: int, quantile: float, alpha: float) -> tuple[int, int]:
    """Ranks (from 1) of the order statistics that bound the quantile at all n at once; 0 and n + 1 where there is no
    bound yet.

    The number of values below the quantile is a sum of coins of that probability, which leaves the mixture's range with
    probability alpha.
    """
    threshold = -math.log(alpha)

    def surprise(count: int) -> float:
        return log_coin_martingale(count, n, quantile, alpha)

    above = range(math.ceil(n * quantile), n + 1)
    below = range(math.floor(n * quantile), -1, -1)
    too_many = bisect_left(above, threshold, key=surprise)
    too_few = bisect_left(below, threshold, key=surprise)
    upper = above[too_many] if too_many < len(above) else n + 1
    lower = below[too_few] + 1 if too_few < len(below) else 0
    return lower, upper


def quantile_interval(ordered: Sequence[float], quantile: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence of a quantile of non-negative values: 0 and +inf where there is no bound yet."""
    lower, upper = quantile_ranks(len(ordered), quantile, alpha)
    return ordered[lower - 1] if lower else 0.0, ordered[upper - 1] if upper <= len(ordered) else math.inf


def quantile_ab_pvalue(
    first: Sequence[float],
    second: Sequence[float],
    quantile: float,
    alpha: float = 0.05,
    tuned_for: int = TUNED_FOR_UNITS,
) -> float:
    """Anytime-valid p-value of "both samples have the same quantile": the least evidence over every value that both
    could share."""
    samples = (sorted(first), sorted(second))

    def evidence(x: float) -> float:
        total = 0.0
        for ordered in samples:
            # Ties leave the count of values below x open between these two: take the one that speaks least against x.
            n, fewest, most = len(ordered), bisect_left(ordered, x), bisect_right(ordered, x)
            count = min(max(n * quantile, fewest), most)
            total += log_coin_martingale(count, n, quantile, alpha, tuned_for)
        return total

    return min(1.0, math.exp(-min(evidence(x) for x in {*first, *second})))


class Bins:
    """Logarithmic bins around 1 in which the plan's relative tolerance is a whole number of bins: binning blurs values, by half a bin, but
    never the margin."""

    def __init__(self, ratio: float) -> None:
        """`ratio`: candidate's quantile over control's at the tolerance."""
        self.shift = round(math.copysign(math.ceil(abs(math.log(ratio)) / FINEST), math.log(ratio)))
        self.width = math.log(ratio) / self.shift if self.shift else FINEST
        self._half = math.ceil(math.log(LARGEST) / self.width)
        self.count = 2 * self._half + 1

    def places(self, values: Floats) -> Integers:
        with np.errstate(divide="ignore"):
            places = np.rint(np.log(values) / self.width)
        return (np.clip(places, -self._half, self._half) + self._half).astype(np.int64)

    def centre(self, place: int) -> float:
        """The value that stands for a bin: 0 for the first, +inf for the last."""
        if place in (0, self.count - 1):
            return math.inf if place else 0.0
        return math.exp((place - self._half) * self.width)

    def ratio(self, shift: float) -> float:
        return math.exp(shift * self.width)


class Sample:
    """One arm's counts in bins, with the place of its quantile. The first and the last bin stand for everything beyond."""

    def __init__(self, counts: Integers, quantile: float, alpha: float) -> None:
        self._below = np.empty(len(counts) + 1, np.int64)  # values below each bin
        self._below[0] = 0
        np.cumsum(counts, out=self._below[1:])
        self.n, self.last = int(self._below[-1]), len(counts) - 1
        self._quantile, self._alpha = quantile, alpha
        self._tuned_for = round(TUNED_VARIANCE / (quantile * (1 - quantile)))
        self.place = int(self._below.searchsorted(self.n * quantile)) - 1 if self.n else 0

    def evidence(self, start: int, end: int) -> Floats:
        """Log evidence against "the quantile lies in this bin", for the bins from `start` to before `end`.

        Values in the bin leave the count of values below the quantile open: the count that speaks least against the bin is taken, which
        makes ties and binning harmless.
        """
        fewest, most = self._below[start:end], self._below[start + 1 : end + 1]
        counts = np.minimum(np.maximum(self.n * self._quantile, fewest), most)
        return log_coin_martingales(counts, self.n, self._quantile, self._alpha, self._tuned_for)

    @property
    def least_evidence(self) -> float:
        """That against the sample's own place."""
        return log_coin_martingale(self.n * self._quantile, self.n, self._quantile, self._alpha, self._tuned_for)


Samples = tuple[Sample, Sample]


def log_ratio_evidence(control: Sample, candidate: Sample, shift: int) -> float:
    """Log e-value against "the candidate's quantile lies at most `shift` bins above the control's".

    The two arms' martingales multiply, being of different units; the null leaves the control's quantile open, so the least product over
    all its places counts. Evidence grows away from a sample's own quantile, so only the places between the two have to be looked at.
    """
    if not control.n or not candidate.n:
        return 0.0
    first, end = control.place, candidate.place - shift
    if end <= first:  # the samples agree with the null
        return control.least_evidence + candidate.least_evidence
    mine = control.evidence(first, min(end, control.last) + 1)
    places = np.arange(first + shift, first + shift + len(mine)).clip(0, candidate.place)
    theirs = candidate.evidence(int(places[0]), int(places[-1]) + 1)[places - places[0]]
    if end >= control.last:  # the control's quantile may lie anywhere above
        theirs[-1] = candidate.least_evidence
    return float((mine + theirs).min())


class QuantileEvidence:
    """Harm and non-inferiority of one quantile. Harm is the average of the e-processes that start at each step, checked on the schedule of
    `Checks`. State and looks do not grow with the units."""

    def __init__(self, plan: GuardrailPlan) -> None:
        if plan.quantile is None:
            raise PlanFault(f"guardrail {plan.metric!r} names no quantile")
        self._plan, self._quantile = plan, plan.quantile
        self._bins = Bins(1 + plan.sign * plan.tolerance)
        self._shift = int(plan.sign) * self._bins.shift  # the tolerance, in bins of badness
        self._counts: Integers = np.zeros((plan.steps, 2, self._bins.count), np.int64)  # by restart and arm
        self._window = self._bins.count, 0  # the bins that are looked at: start, end
        self._checks = Checks(plan.steps)
        self._step, self._pairs = 0, 0
        self._log_harm = 0.0  # at the last check
        self._alarm: float | None = None  # the bound when harm was found

    def add(self, batch: Batch) -> None:
        self._insert(batch.step, [(batch.candidate, batch.value)])

    def add_pairs(self, control: Batch, candidate: Batch) -> None:
        steps = np.minimum(control.step, candidate.step)
        self._insert(steps, [(control.candidate, control.value), (candidate.candidate, candidate.value)])
        self._pairs += len(steps)

    def _insert(self, steps: Integers, columns: Sequence[tuple[Flags, Floats]]) -> None:
        placed = [(candidate.astype(np.int64), self._bins.places(values)) for candidate, values in columns]
        for start, end, due in self._checks.pieces(steps):
            self._widen([places[start:end] for _, places in placed])
            for j in range(int(steps[start:end].max()) + 1):
                rows = np.flatnonzero(steps[start:end] >= j) + start
                for arm, places in placed:
                    np.add.at(self._counts[j], (arm[rows], places[rows]), 1)
            self._step = max(self._step, int(steps[start:end].max()))
            if due and self._alarm is None and self._plan.guards:
                self._check()

    def _widen(self, columns: Sequence[Integers]) -> None:
        """The window has room for all values and one empty bin on either side."""
        lowest = min(int(places.min()) for places in columns) - 1
        highest = max(int(places.max()) for places in columns) + 2
        start, end = self._window
        self._window = max(0, min(start, lowest)), min(self._bins.count, max(end, highest))

    def _check(self) -> None:
        samples = self._restarts()
        self._log_harm = self._evidence(samples, self._shift)
        if self._log_harm >= -math.log(self._plan.alpha_harm):
            self._alarm = self._bound(samples)

    def _samples(self, restart: int, sign: float, alpha: float) -> Samples:
        """Both arms' counts, oriented so that large values are bad (sign 1) or good (sign −1)."""
        start, end = self._window
        counts = self._counts[restart, :, start:end]
        if sign > 0:
            return Sample(counts[0], self._quantile, alpha), Sample(counts[1], self._quantile, alpha)
        quantile = 1 - self._quantile
        return Sample(counts[0, ::-1], quantile, alpha), Sample(counts[1, ::-1], quantile, alpha)

    def _restarts(self) -> list[Samples]:
        plan = self._plan
        return [self._samples(j, plan.sign, plan.alpha_harm / plan.steps) for j in range(self._step + 1)]

    def _evidence(self, restarts: Sequence[Samples], shift: int) -> float:
        """Log of the average of the processes started at each step; one that has not started has wealth 1."""
        logs = [log_ratio_evidence(*samples, shift) for samples in restarts]
        not_started = [0.0] * (self._plan.steps - len(logs))
        return float(np.logaddexp.reduce(logs + not_started)) - math.log(self._plan.steps)

    def _bound(self, restarts: Sequence[Samples]) -> float:
        """The largest badness that is rejected, −inf where none is."""
        nearest = max(candidate.place - control.place for control, candidate in restarts)
        threshold = -math.log(self._plan.alpha_harm)
        found = self._last_rejected(nearest, lambda shift: self._evidence(restarts, shift) >= threshold)
        if found is None:
            return -math.inf
        if found == nearest - 1 and self._at_an_end(restarts):
            return math.inf
        return self._badness(found)

    def _better_bound(self, turned: Samples) -> float:
        """The smallest badness that is rejected as too large, +inf where none is."""
        threshold, nearest = -math.log(self._plan.alpha_promote), turned[1].place - turned[0].place
        found = self._last_rejected(nearest, lambda shift: log_ratio_evidence(*turned, shift) >= threshold)
        return math.inf if found is None else self._badness(-found)

    def _last_rejected(self, nearest: int, rejected: Callable[[int], bool]) -> int | None:
        """The largest shift below `nearest` (the estimate) that is rejected, going away from it in growing steps and halving the last."""
        near, step = nearest, 1
        while not rejected(near - step):
            near, step = near - step, 2 * step
            if nearest - near > self._bins.count:
                return None
        return near - step - 1 + bisect_left(range(near - step, near), True, key=lambda shift: not rejected(shift))

    def _badness(self, bins: int) -> float:
        return self._plan.sign * (self._bins.ratio(self._plan.sign * bins) - 1)

    def _at_an_end(self, restarts: Sequence[Samples]) -> bool:
        """Whether a quantile is 0 or +inf, as far as the bins know."""
        ends = {-self._window[0], self._bins.count - 1 - self._window[0]}
        if self._plan.sign < 0:
            ends = {self._window[1] - self._window[0] - 1 - end for end in ends}
        return any(sample.place in ends for samples in restarts for sample in samples)

    def conclude(self) -> Conclusion:
        plan, turned = self._plan, self._samples(self._step, -self._plan.sign, self._plan.alpha_promote)
        better, log_promote = math.inf, 0.0
        if turned[0].n and turned[1].n:
            better = self._better_bound(turned)
            log_promote = log_ratio_evidence(*turned, -self._shift)
        worse = self._alarm if self._alarm is not None else -math.inf
        whole, start = self._samples(0, 1.0, plan.alpha_harm), self._window[0]
        control, candidate = (self._bins.centre(start + sample.place) if sample.n else None for sample in whole)
        if self._alarm is None and plan.guards and control is not None and candidate is not None:
            worse = min(self._bound(self._restarts()), plan.tolerance)  # the next check decides
        comparable = control is not None and candidate is not None and 0 < control < math.inf
        return Conclusion(
            control=control,
            candidate=candidate,
            effect=candidate / control - 1 if comparable and candidate is not None and control else None,
            worse=worse,
            better=better,
            log_harm=self._log_harm if plan.guards else None,
            log_promote=log_promote,
            harmful=self._alarm is not None,
            step=self._step,
            shown=log_promote >= -math.log(plan.alpha_promote),
            pairs=self._pairs,
        )

    def to_json(self) -> dict[str, Any]:
        start, end = self._window
        by_step = np.diff(self._counts[::-1, :, start : max(start, end)], axis=0, prepend=0)[::-1]
        return {
            "window": self._window,
            "counts": base64.b64encode(zlib.compress(by_step.astype("<i8").tobytes(), 1)).decode(),
            "checks": self._checks.to_json(),
            "step": self._step,
            "pairs": self._pairs,
            "harm": pack([self._log_harm]),
            "alarm": None if self._alarm is None else pack([self._alarm]),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        start, end = self._window = data["window"][0], data["window"][1]
        if start < end:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(data["counts"])), "<i8")
            by_step = packed.reshape(self._plan.steps, 2, end - start)
            self._counts[:, :, start:end] = np.cumsum(by_step[::-1], axis=0)[::-1]
        self._checks.restore(data["checks"])
        self._step, self._pairs = data["step"], data["pairs"]
        self._log_harm = float(unpack(data["harm"])[0])
        self._alarm = None if data["alarm"] is None else float(unpack(data["alarm"])[0])
