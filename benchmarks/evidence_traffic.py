"""Simulated traffic of one service under a rollout, for `benchmarks.evidence`: users, their requests, and what stable and the
candidate would answer.

Every request carries both potential outcomes, so that any rule may route it as it likes and all rules see the same traffic. What makes
life hard for a rule is here: users with 1 to 200 requests whose outcomes resemble each other, daily waves, bursts, incidents that hit
both arms, an engine that warms up, a candidate that idles while stable is busy, marks that come late and mostly from the angry.
Knows no rule and no statistics. Times are seconds since the canary began.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DAY = 86_400.0
HORIZON, SETTLE = 600.0, 60.0
"""Of the production resource: outcomes within the horizon count, a user's values close after both."""
TAIL, MOST_REQUESTS = 1.1, 200
"""Requests a user: P(n ≥ k) = k^−1.1, at most 200 (mean about 5)."""
GAP = 45.0
"""Mean seconds between two requests of a user."""
FAILING_USERS, MARKING_USERS = 0.01, 0.05
"""Share of stable's users with a failed request, and with a bad mark, within the horizon."""
GOOD_MARKS = 0.03
"""Good marks per answer. With the bad ones about 5 % of the answers are marked, and the dissatisfied mark far more often."""
MARK_DELAY = 120.0
"""Mean seconds from an answer to its mark."""
MEDIAN_TTFT = 0.1
"""Seconds, of a request that does not queue."""
QUEUEING = (0.01, 0.15)
"""Share of requests that queue: at no load, and how much more at the day's peak (with load²). Queueing multiplies TTFT by 1 + Exp(0.8)."""
DIURNAL, STEADY = 0.8, 0.6
"""Amplitude of the day's wave in arrivals; load of traffic without one."""
MARGIN = {"errors": 0.01, "ttft": 0.2, "feedback": 0.05}
"""The production guardrails' margins: absolute per user for errors and feedback, relative for the p95 of TTFT."""


@dataclass(frozen=True)
class Traffic:
    """One kind of traffic, and what is wrong with the candidate. Effects are multiples of the metric's margin."""

    users_per_day: float = 10_000.0
    correlation: float = 0.1
    """Within-user correlation of failures, marks and log TTFT."""
    diurnal: bool = True
    bursts: bool = True
    sigma: float = 0.25
    """Spread of log TTFT before queueing."""
    errors: float = 0.0
    ttft: float = 0.0
    feedback: float = 0.0
    onset: int = 0
    """The candidate is as good as stable until it has had so many users."""
    incident: float | None = None
    """Hours after the start at which half of all requests fail for `incident_minutes` on both arms; −1: at a random moment of the
    first two days."""
    incident_minutes: float = 30.0
    warm_up: bool = False
    """Candidate's TTFT is 2.5 times as long at its start and settles within half an hour."""
    idle: bool = False
    """The candidate's replica is loaded by its own share of the users only: fast until it gets half of them."""

    def worse(self, metric: str, margins: float) -> Traffic:
        """The same with an effect on one metric."""
        return replace(self, **{metric: margins})  # type: ignore[arg-type]


@dataclass
class Requests:
    """Requests of the users of one span of time, sorted by user; `user` indexes `exposed_at`, `bucket`, `name`."""

    exposed_at: Floats
    bucket: Floats
    number: NDArray[np.int64]
    """Running number of each user, for their names."""
    user: NDArray[np.intp]
    at: Floats
    failed: tuple[Bools, Bools]
    """On stable; on the candidate."""
    marked_bad: tuple[Bools, Bools]
    marked_good: Bools
    marked_at: Floats
    speed: Floats
    """TTFT of a request that does not queue, seconds, on stable."""
    queue_draw: Floats
    queue_factor: Floats
    load: Floats
    share: Floats
    """A uniform draw: what rules that split requests, not users, route by."""

    def take(self, chosen: Bools) -> Requests:
        """The chosen requests; users stay as they are."""
        return Requests(
            self.exposed_at,
            self.bucket,
            self.number,
            self.user[chosen],
            self.at[chosen],
            (self.failed[0][chosen], self.failed[1][chosen]),
            (self.marked_bad[0][chosen], self.marked_bad[1][chosen]),
            self.marked_good[chosen],
            self.marked_at[chosen],
            self.speed[chosen],
            self.queue_draw[chosen],
            self.queue_factor[chosen],
            self.load[chosen],
            self.share[chosen],
        )


@dataclass
class Outcomes:
    """What the requests' users saw, once they are routed. `ttft` is infinite where the request failed."""

    failed: Bools
    ttft: Floats
    marked_bad: Bools


class Stream:
    """The traffic of one run, span by span."""

    def __init__(self, traffic: Traffic, rng: np.random.Generator) -> None:
        self.traffic = traffic
        self._rng = rng
        self._hour = rng.uniform(0, 24) if traffic.diurnal else 0.0
        self._users = 0
        at = traffic.incident
        self.incident = None if at is None else (rng.uniform(0, 48) if at < 0 else at) * 3600

    def load(self, at: Floats) -> Floats:
        """Share of the day's peak rate at these times."""
        if not self.traffic.diurnal:
            return np.full_like(at, STEADY)
        wave = 1 + DIURNAL * np.sin(2 * math.pi * (at / DAY + self._hour / 24))
        return np.asarray(wave / (1 + DIURNAL))

    def span(self, start: float, end: float, reach: float) -> Requests:
        """Users first seen in [start, end) with bucket in [0, reach) or [½, ½ + reach), and all their requests."""
        exposed = self._arrivals(start, end)
        bucket = self._rng.random(exposed.size)
        wanted = (bucket < reach) | ((bucket >= 0.5) & (bucket < 0.5 + reach))
        exposed, bucket = exposed[wanted], bucket[wanted]
        number = np.arange(self._users, self._users + exposed.size)
        self._users += exposed.size
        return self._requests(exposed, bucket, number)

    def _arrivals(self, start: float, end: float) -> Floats:
        """A Poisson process with the day's wave; of it, one part in four comes in bursts of about ten within a minute."""
        hours = np.linspace(start, end, max(1, math.ceil((end - start) / 3600)) + 1)
        return np.concatenate([self._hourly(a, b) for a, b in itertools.pairwise(hours.tolist())])

    def _hourly(self, start: float, end: float) -> Floats:
        rng, mean = self._rng, self.traffic.users_per_day * (end - start) / DAY
        expected = (
            mean * self.load(np.array([(start + end) / 2]))[0] / (1 / (1 + DIURNAL) if self.traffic.diurnal else STEADY)
        )
        single = rng.uniform(start, end, rng.poisson(expected * (0.75 if self.traffic.bursts else 1.0)))
        if not self.traffic.bursts:
            return np.sort(single)
        centres = rng.uniform(start, end, rng.poisson(expected * 0.25 / 10))
        sizes = rng.poisson(10, centres.size)
        crowd = np.repeat(centres, sizes) + rng.uniform(0, 60, int(sizes.sum()))
        return np.sort(np.concatenate([single, np.minimum(crowd, end - 1e-3)]))

    def _requests(self, exposed: Floats, bucket: Floats, number: NDArray[np.int64]) -> Requests:
        rng, traffic = self._rng, self.traffic
        counts = request_counts(rng, exposed.size)
        user = np.repeat(np.arange(exposed.size), counts)
        at = exposed[user] + offsets(rng, counts)
        size, rho = at.size, traffic.correlation
        failed = self._events(user, exposed.size, "errors", at)
        marked = self._events(user, exposed.size, "feedback", at)
        noise = math.sqrt(rho) * rng.standard_normal(exposed.size)[user] + math.sqrt(1 - rho) * rng.standard_normal(
            size
        )
        return Requests(
            exposed, bucket, number, user, at, failed, marked,
            rng.random(size) < GOOD_MARKS,
            at + rng.exponential(MARK_DELAY, size),
            MEDIAN_TTFT * np.exp(traffic.sigma * noise),
            rng.random(size), 1 + rng.exponential(0.8, size), self.load(at), rng.random(size),
        )  # fmt: skip

    def _events(self, user: NDArray[np.intp], users: int, metric: str, at: Floats) -> tuple[Bools, Bools]:
        rng, effect = self._rng, getattr(self.traffic, metric)
        arms = []
        for multiple in (0.0, effect) if effect else (0.0,):
            a, b = propensity(metric, multiple, self.traffic.correlation)
            arms.append(rng.random(at.size) < rng.beta(a, b, users)[user])
        stable, candidate = arms[0], arms[-1]
        if metric == "errors" and self.incident is not None:
            during = (at >= self.incident) & (at < self.incident + 60 * self.traffic.incident_minutes)
            struck = during & (rng.random(at.size) < 0.5)
            stable, candidate = stable | struck, candidate | struck
        return stable, candidate

    def outcomes(self, requests: Requests, candidate: Bools, weight: float, onset: float) -> Outcomes:
        """What is seen when these requests go to the candidate (where True) or to stable. `weight`: the candidate's share of the users;
        `onset`: from when the candidate is what it is."""
        traffic = self.traffic
        bad = candidate & (requests.at >= onset)
        failed = np.where(bad, requests.failed[1], requests.failed[0])
        marked = np.where(bad, requests.marked_bad[1], requests.marked_bad[0])
        load = (
            np.where(candidate, requests.load * min(1.0, weight / 0.5), requests.load)
            if traffic.idle
            else requests.load
        )
        ttft = requests.speed * np.where(
            requests.queue_draw < QUEUEING[0] + QUEUEING[1] * load**2, requests.queue_factor, 1.0
        )
        ttft *= np.where(bad, 1 + traffic.ttft * MARGIN["ttft"], 1.0)
        if traffic.warm_up:
            ttft *= np.where(candidate, 1 + 1.5 * np.exp(-requests.at / 600), 1.0)
        return Outcomes(failed, np.where(failed, np.inf, ttft), marked)


def request_counts(rng: np.random.Generator, users: int) -> NDArray[np.intp]:
    """How many requests each user sends: heavy tail, 1 to 200."""
    draws = np.minimum((1 - rng.random(users)) ** (-1 / TAIL), MOST_REQUESTS)
    return draws.astype(np.intp)


def offsets(rng: np.random.Generator, counts: NDArray[np.intp]) -> Floats:
    """Seconds from a user's first request to each of them, in order: 0, then exponential gaps."""
    gaps = rng.exponential(GAP, int(counts.sum()))
    firsts = np.cumsum(counts) - counts
    gaps[firsts] = 0.0
    sums = np.cumsum(gaps)
    return np.asarray(sums - np.repeat(sums[firsts], counts))


@lru_cache(maxsize=2)
def _chances(metric: str) -> tuple[Floats, Floats]:
    """How many requests of a user may bring the event within the horizon: numbers and their shares, by a fixed simulation of 200,000
    users."""
    rng = np.random.default_rng(20)
    counts = request_counts(rng, 200_000)
    offset, user = offsets(rng, counts), np.repeat(np.arange(counts.size), counts)
    in_time = offset < HORIZON
    if metric == "feedback":
        in_time &= offset + rng.exponential(MARK_DELAY, offset.size) < HORIZON + SETTLE
    number, times = np.unique(np.bincount(user[in_time], minlength=counts.size), return_counts=True)
    return number.astype(float), times / counts.size


@lru_cache(maxsize=256)
def propensity(metric: str, multiple: float, correlation: float) -> tuple[float, float]:
    """Parameters of the Beta distribution of a user's event probability per request, such that the share of users with an event within
    the horizon is stable's plus `multiple` margins and the requests of a user correlate as told."""
    numbers, shares = _chances(metric)
    wanted = (FAILING_USERS if metric == "errors" else MARKING_USERS) + multiple * MARGIN[metric]
    scale = 1 / correlation - 1

    def users(rate: float) -> float:
        a, b = rate * scale, (1 - rate) * scale
        none = np.exp(gammaln(b + numbers) - gammaln(b) + gammaln(a + b) - gammaln(a + b + numbers))
        return float(shares @ (1 - none))

    rate = brentq(lambda r: users(r) - wanted, 1e-7, 0.999)
    return rate * scale, (1 - rate) * scale


def request_rate(metric: str, multiple: float, correlation: float) -> float:
    """Events per request that belong to so many margins."""
    a, b = propensity(metric, multiple, correlation)
    return a / (a + b)
