"""The field's rules, each as its own documentation's examples configure it, for `benchmarks.evidence`.

Two kinds. Argo Rollouts and Flagger split *requests* by weight on a ladder of minutes and compare the candidate with thresholds; they are
run on the first hour. Kayenta, the repeated tests and the sequential test compare candidate and control on the ladder of Understudy's
production resource (`Ladder`), so that they see the same users. Where a rule left a choice open, the kinder one was taken, and its
docstring says so. `fitted` gives a threshold rule what a careful operator would: thresholds from stable's own history plus the margins
that Understudy was given, and minutes without requests do not count as failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from benchmarks.evidence_traffic import DAY, MARGIN, Bools, Floats, Outcomes, Requests, Stream, Traffic, request_rate
from services.evidence import asymptotic_halfwidth
from services.rollout.resources import CanaryStep

MINUTE = 60.0
SURPRISING = {level: float(norm.ppf((1 + level) / 2)) for level in (0.95, 0.98)}
"""Two-sided normal quantiles."""


class Verdict(NamedTuple):
    """What a rule says, and when (seconds since the start)."""

    verdict: str
    at: float
    why: str = ""


@dataclass(frozen=True)
class History:
    """What an operator knows of stable beforehand: quantiles of TTFT (s) over a day, and failures per request at the margin."""

    p95: float
    p99: float
    failing: float


def history(traffic: Traffic, rng: np.random.Generator) -> History:
    """A day of stable alone, of the same traffic without incident."""
    calm = Stream(
        Traffic(traffic.users_per_day, traffic.correlation, traffic.diurnal, traffic.bursts, traffic.sigma), rng
    )
    # At least some thousand requests, however few users a day has.
    requests = calm.span(0.0, DAY * max(1.0, 2_000 / traffic.users_per_day), 0.5)
    ttft = calm.outcomes(requests, np.zeros(requests.at.size, bool), 0.0, 0.0).ttft
    p95, p99 = np.quantile(ttft[np.isfinite(ttft)], (0.95, 0.99))
    return History(float(p95), float(p99), request_rate("errors", 1.0, traffic.correlation))


class Split:
    """Requests of the first hour, split by weight; asked for minute by minute."""

    def __init__(self, stream: Stream, requests: Requests) -> None:
        self._stream, self._requests = stream, requests
        self._minute = (requests.at // MINUTE).astype(int)
        self._taken = np.zeros(requests.at.size, bool)
        self._failed = np.zeros(requests.at.size, bool)
        self._ttft = np.full(requests.at.size, np.inf)
        self._onset = 0.0 if stream.traffic.onset == 0 else np.inf

    def run(self, minute: int, weight: float) -> None:
        """Routes one minute's requests, `weight` of them to the candidate."""
        chosen = (self._minute == minute) & (self._requests.share < weight)
        part = self._requests.take(chosen)
        seen = self._stream.outcomes(part, np.ones(part.at.size, bool), weight, self._onset)
        self._taken |= chosen
        self._failed[chosen], self._ttft[chosen] = seen.failed, seen.ttft
        if self.users() >= self._stream.traffic.onset:
            self._onset = min(self._onset, (minute + 1) * MINUTE)

    def window(self, minutes: range) -> tuple[Bools, Floats]:
        """Failures and TTFT of the candidate's requests in these minutes."""
        inside = self._taken & (self._minute >= minutes.start) & (self._minute < minutes.stop)
        return self._failed[inside], self._ttft[inside]

    def users(self) -> int:
        """Users of whom the candidate has answered a request."""
        return int(np.unique(self._requests.user[self._taken]).size)

    def harmed(self) -> int:
        """Of these, the ones since the candidate is bad."""
        return int(np.unique(self._requests.user[self._taken & (self._requests.at >= self._onset)]).size)


class Argo:
    """Argo Rollouts with background analysis: setWeight 20, 40, 60, 80, a pause of 10 min each, the analysis from the second on; every
    5 min success rate ≥ 0.95 with failureLimit 3, and latency of each of the last five minutes below 1,000 ms with failureLimit 3; an
    analysis errs after more than consecutiveErrorLimit = 4 measurements in a row without a result.

    Source: argoproj/argo-rollouts, docs/features/analysis.md (background analysis; NaN) and docs/analysis/prometheus.md (range
    queries), default of `consecutiveErrorLimit` in analysis_types.go. Kinder than the text: the success rate is that of all requests of
    5 min, where `irate(…[5m])` takes the last two scrapes. A window without requests is NaN, which fails `result >= 0.95` as documented.
    """

    weights, pause, first, interval = (0.2, 0.4, 0.6, 0.8), 10, 10, 5
    failure_limit, error_limit = 3, 4

    def __init__(self, fitted: History | None = None) -> None:
        self.name = "argo-fitted" if fitted else "argo"
        self._fitted = fitted

    def run(self, split: Split) -> Verdict:
        """The whole rollout of 40 minutes."""
        failures, errors, ever = {"success": 0, "latency": 0}, 0, False
        for minute in range(len(self.weights) * self.pause):
            if minute >= self.first and (minute - self.first) % self.interval == 0:
                failed, ttft = split.window(range(minute - self.interval, minute))
                ever = ever or failed.size > 0 or bool(split.users())
                errors = 0 if ever or self._fitted else errors + 1
                for metric, bad in self._measure(failed, ttft, split, minute).items() if ever else ():
                    failures[metric] += bad
                if max(failures.values()) > self.failure_limit:
                    return Verdict("abort", minute * MINUTE, max(failures, key=failures.__getitem__))
                if errors > self.error_limit:
                    return Verdict("abort", minute * MINUTE, "no data")
            split.run(minute, self.weights[minute // self.pause])
        return Verdict("advance", len(self.weights) * self.pause * MINUTE)

    def _measure(self, failed: Bools, ttft: Floats, split: Split, minute: int) -> dict[str, bool]:
        if self._fitted:
            found = ttft[np.isfinite(ttft)]
            slow = found.size > 0 and float(np.quantile(found, 0.95)) > self._fitted.p95 * (1 + MARGIN["ttft"])
            return {"success": failed.size > 0 and failed.mean() > self._fitted.failing, "latency": slow}
        each = [split.window(range(m, m + 1))[1] for m in range(minute - self.interval, minute)]
        means = [float(part[np.isfinite(part)].mean()) for part in each if np.isfinite(part).any()]
        return {"success": failed.size == 0 or failed.mean() > 0.05, "latency": any(mean >= 1.0 for mean in means)}


class Flagger:
    """Flagger: every minute request-success-rate ≥ 99 % and p99 of request-duration ≤ 500 ms over the last minute; a good check raises the
    weight by 5 up to 50 and then promotes, a bad one is counted, ten of them roll back.

    Source: fluxcd/flagger, docs/gitbook/usage/how-it-works.md (interval 1m, threshold 10, maxWeight 50, stepWeight 5, the two built-in
    metrics); pkg/controller/scheduler.go and scheduler_metrics.go (a minute without values fails the check; failed checks add up).
    Kinder than the text: TTFT stands for the request's whole duration, which for a language model lasts seconds. The documentation's
    load test, which keeps requests coming, is left out: its answers would drown the users'; `fitted` skips empty minutes instead.
    """

    step, most, threshold = 0.05, 0.5, 10

    def __init__(self, fitted: History | None = None) -> None:
        self.name = "flagger-fitted" if fitted else "flagger"
        self._fitted = fitted

    def run(self, split: Split) -> Verdict:
        """Minute by minute until promotion or rollback."""
        weight, failed_checks, why = self.step, 0, ""
        for minute in range(59):
            split.run(minute, weight)
            failed, ttft = split.window(range(minute, minute + 1))
            bad = self._check(failed, ttft)
            if bad:
                failed_checks, why = failed_checks + 1, bad
                if failed_checks >= self.threshold:
                    return Verdict("abort", (minute + 1) * MINUTE, why)
            elif weight >= self.most - 1e-9:
                return Verdict("advance", (minute + 1) * MINUTE)
            else:
                weight += self.step
        return Verdict("hold", 3600.0, why)

    def _check(self, failed: Bools, ttft: Floats) -> str:
        if failed.size == 0:
            return "" if self._fitted else "no values"
        most, slowest = (self._fitted.failing, self._fitted.p99 * (1 + MARGIN["ttft"])) if self._fitted else (0.01, 0.5)
        found = ttft[np.isfinite(ttft)]
        if failed.mean() > most:
            return "success"
        return "latency" if found.size and float(np.quantile(found, 0.99)) > slowest else ""


class Ladder:
    """Understudy's production steps climbed by the clock: a step ends after its minimum time with its minimum of users, at the latest
    after its maximum; the last after its minimum time."""

    def __init__(self, steps: Sequence[CanaryStep]) -> None:
        self._steps = steps
        self.step, self._since, self._users = 0, 0.0, 0

    @property
    def weight(self) -> float:
        """Share of the users who get the candidate now."""
        return self._steps[self.step].weight / 100

    def pass_time(self, now: float, users: int) -> bool:
        """Moves on at `now`, with so many new users in the smaller arm; True at the end of the last step."""
        step, elapsed = self._steps[self.step], now - self._since
        self._users += users
        if not (elapsed >= step.min_duration and (self._users >= step.min_units or elapsed >= step.max_duration)):
            return False
        if self.step == len(self._steps) - 1:
            return True
        self.step, self._since, self._users = self.step + 1, now, 0
        return False


REQUESTS, FAILED, SERVED, TTFT, TTFT2, BAD, GOOD = range(7)


class Minutes:
    """What a metrics store has of the two arms: counts and sums by minute, and the raw times of the last hours."""

    def __init__(self) -> None:
        self.sums = np.zeros((2, 4096, 7))
        self._raw: list[tuple[Floats, Bools, Floats]] = []

    def add(self, at: Floats, candidate: Bools, seen: Outcomes, good: Bools) -> None:
        """Requests of the two arms."""
        if at.size == 0:
            return
        minute = (at // MINUTE).astype(int)
        first, last = int(minute.min()), int(minute.max()) + 1
        self.reach(last)
        served = np.isfinite(seen.ttft)
        ttft = np.where(served, seen.ttft, 0.0)
        columns = (np.ones(at.size), seen.failed, served, ttft, ttft**2, seen.marked_bad, good & ~seen.marked_bad)
        flat = candidate * (last - first) + minute - first
        for column, values in enumerate(columns):
            self.sums[:, first:last, column] += np.bincount(flat, values, 2 * (last - first)).reshape(2, -1)
        self._raw.append((at[served], candidate[served], seen.ttft[served]))

    def reach(self, minutes: int) -> None:
        """Makes room for so many minutes."""
        while minutes > self.sums.shape[1]:
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)], axis=1)

    def p95(self, start: int, end: int) -> Floats:
        """p95 of TTFT by arm and minute from `start` to before `end`; NaN where there was no request. Forgets what is older."""
        self._raw = [part for part in self._raw if part[0].size and part[0].max() >= start * MINUTE]
        found = np.full((2, end - start), np.nan)
        if not self._raw:
            return found
        at, candidate, ttft = (np.concatenate([part[i] for part in self._raw]) for i in range(3))
        inside = (at >= start * MINUTE) & (at < end * MINUTE)
        cell = candidate[inside] * (end - start) + (at[inside] // MINUTE).astype(int) - start
        order = np.lexsort((ttft[inside], cell))
        sizes = np.bincount(cell, minlength=2 * (end - start))
        rank = np.cumsum(sizes) - sizes + np.ceil(0.95 * sizes).astype(int) - 1
        filled = sizes > 0
        found.reshape(-1)[filled] = ttft[inside][order][rank[filled]]
        return found


class RepeatedTests:
    """Classical tests on requests, looked at every minute: two-sided at 5 %, z for the share of failures and for the share of bad among all
    marks, Welch's t for the mean TTFT; the first that is significant for the worse aborts, nothing by the end of the ladder promotes.

    Looks begin with 30 requests an arm and five events in all, below which nobody would trust the normal approximation.
    """

    name = "repeated-tests"

    def __init__(self) -> None:
        self._seen = 0
        self._past = np.zeros((2, 7))

    def look(self, minutes: Minutes, now: float) -> Verdict | None:
        """All minutes since the last look."""
        start, end = self._seen, int(now // MINUTE)
        self._seen = end
        total = np.cumsum(minutes.sums[:, start:end], axis=1) + self._past[:, np.newaxis]
        self._past = total[:, -1]
        n = total[:, :, REQUESTS].min(axis=0)
        scores = {
            "errors": _z(total[:, :, FAILED], total[:, :, REQUESTS]),
            "ttft": _welch(total),
            "feedback": _z(total[:, :, BAD], total[:, :, BAD] + total[:, :, GOOD]),
        }
        first = {m: np.flatnonzero((z > SURPRISING[0.95]) & (n >= 30)) for m, z in scores.items()}
        hits = {m: int(found[0]) for m, found in first.items() if found.size}
        if not hits:
            return None
        metric = min(hits, key=hits.__getitem__)
        return Verdict("abort", (start + hits[metric] + 1) * MINUTE, metric)


def _z(events: Floats, trials: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = events.sum(axis=0) / trials.sum(axis=0)
        spread = np.sqrt(pooled * (1 - pooled) * (1 / trials[0] + 1 / trials[1]))
        z = (events[1] / trials[1] - events[0] / trials[0]) / spread
    return np.where((events.sum(axis=0) >= 5) & np.isfinite(z), z, 0.0)


def _welch(total: Floats) -> Floats:
    n, mean = total[:, :, SERVED], total[:, :, TTFT]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = mean / n
        variance = (total[:, :, TTFT2] - n * mean**2) / (n - 1)
        t = (mean[1] - mean[0]) / np.sqrt(variance[0] / n[0] + variance[1] / n[1])
    return np.where((n.min(axis=0) >= 30) & np.isfinite(t), t, 0.0)


class Kayenta:
    """Kayenta's judge NetflixACAJudge on series of one value a minute, three hourly judgements in every step of the ladder: a metric fails
    where the 98 % Mann-Whitney interval of the shift lies beyond a quarter of the Hodges-Lehmann estimate. Three groups of equal weight
    (failures per request, p95 TTFT, bad marks per request); a score below marginal = 75 aborts, the ladder's end with at least pass = 90
    promotes, else it holds. Each judgement takes the minutes since the last and waits for 50 with requests in both arms.

    Source: spinnaker/kayenta, MannWhitneyClassifier.scala and NetflixACAJudge.scala (tolerance 0.25, confLevel 0.98, minutes without data
    removed, equal series pass); spinnaker.io/docs/guides/user/canary/best-practices (lifetime of 3 hours, interval of 1 hour, 50 values); a
    step of 60 s, pass 90 and marginal 75 are the example of argoproj/argo-rollouts, docs/analysis/kayenta.md.
    """

    name = "kayenta"
    interval, runs, fewest, tolerance, level, marginal, passing = 60, 3, 50, 0.25, 0.98, 75.0, 90.0

    def __init__(self) -> None:
        self._hours, self._start, self._step, self._judged, self._score = 0, 0, 0, 0, 100.0

    def look(self, minutes: Minutes, now: float, step: int) -> Verdict | None:
        """Judges at full hours, once there is enough to judge. `step`: of the ladder, for the time up to now."""
        if step > self._step:
            self._step, self._judged, self._start = step, 0, self._hours * self.interval
        while (self._hours + 1) * self.interval * MINUTE <= now:
            self._hours += 1
            start, end = self._start, self._hours * self.interval
            sums = minutes.sums[:, start:end]
            if self._judged == self.runs or (sums[:, :, REQUESTS] > 0).sum(axis=1).min() < self.fewest:
                continue
            self._start, self._judged = end, self._judged + 1
            with np.errstate(divide="ignore", invalid="ignore"):
                failing = sums[:, :, FAILED] / sums[:, :, REQUESTS]
                marked = sums[:, :, BAD] / sums[:, :, REQUESTS]
            series = {"errors": failing, "ttft": minutes.p95(start, end), "feedback": marked}
            bad = [metric for metric, (control, candidate) in series.items() if self.high(control, candidate)]
            self._score = 100.0 * (1 - len(bad) / len(series))
            if self._score < self.marginal:
                return Verdict("abort", end * MINUTE, bad[0])
        return None

    def end(self, now: float) -> Verdict:
        """The ladder's end."""
        return Verdict("advance" if self._score >= self.passing else "hold", now)

    def high(self, control: Floats, candidate: Floats) -> bool:
        """Whether the judge calls the candidate's series high."""
        x, y = candidate[np.isfinite(candidate)], control[np.isfinite(control)]
        if x.size == 0 or y.size == 0 or np.array_equal(np.sort(x), np.sort(y)):
            return False
        if np.unique(np.concatenate([x, y])).size == 1 or x.mean() < y.mean():
            return False
        shift = float(np.median(np.subtract.outer(x, y)))
        return _wilcoxon(x - self.tolerance * abs(shift), y) > SURPRISING[self.level]


def _wilcoxon(x: Floats, y: Floats) -> float:
    """Standardised rank sum with continuity and tie corrections: above the normal quantile where the interval of x − y lies above 0."""
    ranks = rankdata(np.concatenate([x, y]))
    n, m = x.size, y.size
    centred = ranks[:n].sum() - n * (n + 1 + m) / 2
    ties = np.unique(ranks, return_counts=True)[1].astype(float)
    variance = n * m / 12 * (n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    return float((centred - 0.5 * np.sign(centred)) / np.sqrt(variance)) if variance > 0 else 0.0


class GrowthBook:
    """A sequential test as GrowthBook runs it: on users, the asymptotic confidence sequence of the difference of means at 95 %, two-sided,
    tuned for 5,000 users; each metric by itself. Aborts when an interval lies wholly on the worse side of 0; the ladder's end promotes.
    Metrics: users with a failure, users with a bad mark, mean of a user's TTFT.

    Source: docs.growthbook.io/statistics/sequential; growthbook/growthbook, packages/stats/gbstats/frequentist/tests.py
    (sequential_tuning_parameter = 5000, no correction over metrics by default). Looks every 20 min from 100 users an arm.
    """

    name = "growthbook"
    alpha, tuned_for, fewest = 0.05, 5_000, 100

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}

    def see(self, metrics: dict[str, Floats], candidate: Bools) -> None:
        """Closed values of new users."""
        for metric, values in metrics.items():
            sums = self._sums.setdefault(metric, np.zeros((2, 3)))
            for arm in (0, 1):
                part = values[(candidate == bool(arm)) & np.isfinite(values)]
                sums[arm] += part.size, part.sum(), (part**2).sum()

    def look(self, now: float) -> Verdict | None:
        """One look at all metrics."""
        for metric, sums in self._sums.items():
            n, total, squares = sums.T
            if n.min() < self.fewest:
                continue
            mean = total / n
            variance = float(((squares / n - mean**2) / (n - 1)).sum())
            users = int(n.sum())
            half = asymptotic_halfwidth(variance * users, users, self.alpha, 2, self.tuned_for)
            if mean[1] - mean[0] > half > 0:
                return Verdict("abort", now, metric)
        return None
