"""The evidence of a watch: users of the promoted revision against what its predecessor's had met. Called by `reconcile`; `watch` decides.

There is no control arm any more, so each metric has an e-detector against frozen history: values of users, each once, with the
bound of their own hour of the week. All detectors of a watch share one average run length, so that a good version is rolled back
with a probability of at most `alpha` in the whole window. The same detectors look after a stable that nobody rolls out over: see `drift`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from services.common.clock import HOUR
from services.evidence import Hour, ShiftDetector, fleet_arl, history_bounds, is_late, quantile_ranks
from services.evidence.detectors import HOURS, Shift
from services.rollout.observed import Alarm
from services.rollout.plans import segments_by_tenant
from services.rollout.resources import METRICS, LLMService, key_of, split_key
from services.rollout.resources_metrics import LENGTHS, Measured
from services.rollout.unit_values import plain_values, tenant_of
from services.store import ClosedUnit, Cursor, History, Sample

PROMPT: Final = ("errors", "refusals", "ttft", "interTokenGap", "duration")
"""Metrics of the first request that ended, known at once."""
SAID: Final = ("feedback", "escalations", "retries", "rating")
"""Metrics that users need the horizon for."""
ERRORS_MARGIN: Final = 0.01
"""Failures are watched whether or not the resource guards them."""
JUDGE_MARGIN: Final = 0.05
"""So are the judge's scores of what serves, where there are any."""
LENGTH_MARGIN: Final = 0.2
LENGTH_QUANTILE: Final = 0.95
"""And lengths: answers that are longer, or shorter, than all but 5 % were, and a fifth beyond that."""
DRIFT_WEEKS: Final = 52.0
"""A service's stable alarms for nothing once in so many weeks at most, on average; a fleet of s services s times as often."""
_MONDAY: Final = 4 * 24  # hours from the epoch, a Thursday, to the first Monday
_START: Final[Cursor] = (0.0, "")


class Asked(NamedTuple):
    """What of a metric counts as no change. `quantile`: of one that is a quantile."""

    margin: float
    quantile: float | None = None


class Values(NamedTuple):
    """One user's values of metrics, of a visit that began at `at`."""

    at: float
    tenant: str | None
    values: Mapping[str, float]


@dataclass(slots=True)
class Watched:
    """One metric, or one of a segment's users (`resources_metrics.key_of`). `bounds`: m₀ by hour of the week, where the window has it;
    `late`: the value beyond which a user counts as late; `before`: the mean in the history; `since`: when the newest run of bad values
    began."""

    metric: str
    detector: ShiftDetector
    bounds: dict[int, float]
    late: float | None
    before: float
    since: float | None = None
    excluded: int = 0
    """Values that cannot be."""

    def measured(self, share: float) -> float:
        """A mean on the detector's scale, 0 to 1, in the metric's own: shares of users (of late ones for a quantile), ratings 1 to 5."""
        low, high = measured_of(self.metric).bounds
        return low + share * (high - low)

    def add(self, measured: float, at: float) -> None:
        """One user's measurement, of a visit that began at `at`."""
        value, m0 = _coin(self.metric, measured, self.late), self.bounds.get(hour_of_week(at))
        if value is None:
            self.excluded += 1
        elif not self.detector.alarmed:
            self.detector.update([value], None if m0 is None else [m0])
            run, _ = self.detector.run
            self.since = None if not run else at if run == 1 else self.since


class Watch:
    """All metrics of one watch. The alarm depends on the users and their order alone, not on how looks or restarts cut them."""

    def __init__(
        self,
        watched: Sequence[Watched],
        arl: float | None,
        segments: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """`segments`: tenant -> names of the segments that it belongs to."""
        self.watched = list(watched)
        self._segments = segments
        self._by_key = {one.metric: one for one in watched}
        self.arl = arl
        """Watches until the first false alarm of any metric, on average, or more; None: nothing is watched."""
        self.prompt: Cursor = _START
        self.said: Cursor = _START

    @property
    def metrics(self) -> list[str]:
        """What is watched."""
        return [one.metric for one in self.watched]

    def fold_prompt(self, visits: Sequence[ClosedUnit], salt: bytes) -> None:
        """Adds first requests that ended since the last look; of longer visits the first request alone."""
        self.prompt = self._fold(visits, _first_values(visits, salt), self.prompt)

    def fold_said(self, visits: Sequence[ClosedUnit], salt: bytes) -> None:
        """Adds visits whose horizon ended since the last look."""
        self.said = self._fold(visits, _said_values(visits, salt), self.said)

    def fold_scores(self, samples: Iterable[Sample]) -> None:
        """Adds the judge's scores of what serves."""
        self._add(_scores(samples))

    def _fold(self, visits: Sequence[ClosedUnit], found: Iterable[Values], cursor: Cursor) -> Cursor:
        self._add(found)
        return (visits[-1].exposure.closes_at, visits[-1].exposure.unit) if visits else cursor

    def _add(self, found: Iterable[Values]) -> None:
        for user in found:
            for metric, value in user.values.items():
                for key in _keys(metric, user.tenant, self._segments):
                    if key in self._by_key:
                        self._by_key[key].add(value, user.at)

    def alarm(self, until: float) -> Alarm | None:
        """What has risen, by how much and since when; `until`: the watermark that was folded up to."""
        alarmed = [one for one in self.watched if one.detector.alarmed]
        if not alarmed:
            return None
        one = min(alarmed, key=lambda one: split_key(one.metric)[0] in LENGTHS)  # a length is no harm, and hides none
        run, mean = one.detector.run
        told = {"metric": one.metric, "users": one.detector.count, "since": one.since, "run": run, "mean": mean}
        level = {"before": one.before, "level": one.detector.level, "threshold": one.detector.arl, "until": until}
        return Alarm(one.metric, _told(one), {**told, **level})

    def to_json(self) -> dict[str, Any]:
        """The whole state; `from_json` goes on from it exactly."""
        watched = [
            {
                "metric": one.metric,
                "detector": one.detector.to_json(),
                "bounds": {str(hour): bound for hour, bound in one.bounds.items()},
                "late": one.late,
                "before": one.before,
                "since": one.since,
                "excluded": one.excluded,
            }
            for one in self.watched
        ]
        return {"watched": watched, "arl": self.arl, "prompt": list(self.prompt), "said": list(self.said)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], segments: Mapping[str, Sequence[str]]) -> Watch:
        """Raises StateFault for state that this version cannot continue."""
        watched = [
            Watched(
                metric=saved["metric"],
                detector=ShiftDetector.from_json(saved["detector"]),
                bounds={int(hour): bound for hour, bound in saved["bounds"].items()},
                late=saved["late"],
                before=saved["before"],
                since=saved["since"],
                excluded=saved["excluded"],
            )
            for saved in data["watched"]
        ]
        watch = cls(watched, data["arl"], segments)
        watch.prompt, watch.said = (data["prompt"][0], data["prompt"][1]), (data["said"][0], data["said"][1])
        return watch


def begin_watch(rules: LLMService, history: History, salt: bytes, promoted: float) -> Watch:
    """The detectors of a watch, frozen at the promotion. A metric whose history says too little for a bound is not watched.

    One half of `alpha` is for the history's bounds, one half (the level) for false alarms. Run lengths are counted in watches: with k
    detectors of k/level watches each, the first false alarm of any comes no sooner than after 1/level watches on average.
    """
    rollout = rules.spec.rollout
    in_time = rollout.horizon + rollout.settle < rollout.rollback_window
    level = rollout.alpha / 2
    hours = max(1.0, rollout.rollback_window / HOUR)
    ahead = {hour_of_week(promoted + HOUR * i) for i in range(math.ceil(hours) + 1)}
    read = {hour_of_week(hour * HOUR): share for hour, share in history.share.items()}
    asked = _guarded(rules, (*PROMPT, *(SAID if in_time else ())))
    # History is a week at most, so an hour of the week is one hour of it; the busiest one bounds what a watch will see.
    return _frozen(
        asked, rules, _of_visits(history.visits, salt), ahead, level, 1 / level,
        lambda by_hour: hours * max(len(values) / (read.get(hour) or 1.0) for hour, values in by_hour.items()),
    )  # fmt: skip


def begin_drift(
    rules: LLMService, history: Sequence[ClosedUnit], samples: Sequence[Sample], salt: bytes, seconds: float
) -> Watch:
    """The detectors of a stable that serves on, frozen with a history that took so many seconds. Run lengths are counted in weeks: the
    first false alarm of any detector comes no sooner than after `DRIFT_WEEKS` on average.
    """
    asked = _guarded(rules, (*PROMPT, *SAID, "judge"))
    asked |= dict.fromkeys(LENGTHS, Asked(LENGTH_MARGIN, LENGTH_QUANTILE))
    asked.setdefault("judge", Asked(JUDGE_MARGIN))
    found = itertools.chain(_of_visits(history, salt), _scores(samples))
    return _frozen(
        asked, rules, found, set(range(HOURS)), rules.spec.rollout.alpha / 2, DRIFT_WEEKS,
        lambda by_hour: sum(len(values) for values in by_hour.values()) * HOURS * HOUR / seconds,
    )  # fmt: skip


def _guarded(rules: LLMService, metrics: Sequence[str]) -> dict[str, Asked]:
    asked = {g.metric: Asked(g.margin, g.quantile) for g in rules.spec.rollout.guardrails}
    asked.setdefault("errors", Asked(ERRORS_MARGIN))
    return {metric: asked[metric] for metric in metrics if metric in asked}


def _frozen(
    asked: Mapping[str, Asked],
    rules: LLMService,
    history: Iterable[Values],
    ahead: set[int],
    level: float,
    periods: float,
    values_in_one: Callable[[Mapping[int, Sequence[float]]], float],
) -> Watch:
    """`level`: of all bounds together. `periods`: the run length of all detectors together, in periods of which one brings `values_in_one`
    of a metric's values."""
    segments = segments_by_tenant(rules)
    known = _by_hour(history, asked, segments)
    if not known:
        return Watch([], None)
    each = len(known) * periods
    made = [
        _watched(
            key, asked[split_key(key)[0]], by_hour, ahead, level / len(known), each * max(1.0, values_in_one(by_hour))
        )
        for key, by_hour in known.items()
    ]
    return Watch([one for one in made if one is not None], fleet_arl(each, len(known)), segments)


def hour_of_week(at: float) -> int:
    """0: Monday, midnight to one o'clock UTC."""
    return int(at // HOUR - _MONDAY) % HOURS


def measured_of(key: str) -> Measured:
    """What the metric of a key is."""
    metric, _ = split_key(key)
    return LENGTHS[metric] if metric in LENGTHS else METRICS[metric]


def _by_hour(
    history: Iterable[Values], metrics: Iterable[str], segments: Mapping[str, Sequence[str]]
) -> dict[str, dict[int, list[float]]]:
    """Key -> hour of the week -> values; in the order of `metrics`, all users before segments."""
    found: dict[str, dict[int, list[float]]] = {metric: defaultdict(list) for metric in metrics}
    for user in history:
        hour = hour_of_week(user.at)
        for metric, value in user.values.items():
            if metric in metrics and _coin(metric, value, None) is not None:
                for key in _keys(metric, user.tenant, segments):
                    found.setdefault(key, defaultdict(list))[hour].append(value)
    return {key: by_hour for key, by_hour in found.items() if by_hour}


def _keys(metric: str, tenant: str | None, segments: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield metric
    for segment in segments.get(tenant, ()) if tenant is not None else ():
        yield key_of(metric, segment)


def _of_visits(visits: Sequence[ClosedUnit], salt: bytes) -> Iterator[Values]:
    return itertools.chain(_first_values(visits, salt), _said_values(visits, salt))


def _first_values(visits: Iterable[ClosedUnit], salt: bytes) -> Iterator[Values]:
    for visit in visits:
        tokens = next((row.tokens_out for row in visit.observations[:1] if row.outcome == "ok"), None)
        lengths = {"longAnswers": float(tokens), "shortAnswers": 1 / tokens} if tokens else {}
        told = {metric: value for metric, value in plain_values(_first(visit), salt).items() if metric in PROMPT}
        yield Values(visit.exposure.first_at, tenant_of(visit.observations), told | lengths)


def _said_values(visits: Iterable[ClosedUnit], salt: bytes) -> Iterator[Values]:
    for visit in visits:
        told = {metric: value for metric, value in plain_values(visit, salt).items() if metric in SAID}
        yield Values(visit.exposure.first_at, tenant_of(visit.observations), told)


def _scores(samples: Iterable[Sample]) -> Iterator[Values]:
    for one in samples:
        if one.score is not None:
            yield Values(one.at, one.tenant, {"judge": one.score})


def _first(visit: ClosedUnit) -> ClosedUnit:
    return ClosedUnit(visit.exposure, visit.observations[:1], ())


def _watched(
    key: str, asked: Asked, by_hour: Mapping[int, Sequence[float]], ahead: set[int], level: float, arl: float
) -> Watched | None:
    measured, late, slack = measured_of(key), None, 0.0
    shift: Shift = "downward" if measured.higher else "upward"
    if measured.kind == "quantile":
        quantile = asked.quantile or 0.5
        late = _late(by_hour, ahead, quantile, level)
        if late is None:
            return None
        late *= 1 + asked.margin
        bounds = dict.fromkeys(ahead, 1 - quantile)
    else:
        coins = {hour: _coins(key, values, None) for hour, values in by_hour.items()}
        # Fewer bounds at once are closer ones: those of the window's own hours suffice where all of them are known.
        hours = ahead if ahead <= coins.keys() else coins.keys()
        past = {hour: Hour(math.fsum(coins[hour]), len(coins[hour])) for hour in hours}
        margin = asked.margin / (measured.bounds[1] - measured.bounds[0])
        frozen = history_bounds(past, level, shift, margin)
        bounds, slack = {hour: frozen.by_hour[hour] for hour in ahead}, frozen.slack
    widest = min(bounds.values()) if measured.higher else max(bounds.values())
    before = fmean(_coins(key, itertools.chain.from_iterable(by_hour.values()), late))
    return Watched(key, ShiftDetector(widest, arl, shift, slack), bounds, late, before)


def _late(by_hour: Mapping[int, Sequence[float]], ahead: set[int], quantile: float, level: float) -> float | None:
    """An upper bound of the history's quantile: in the window's hours, or where these are too few, in all; None: there is none."""
    for hours in (ahead, by_hour.keys()):
        values = sorted(x for hour in hours for x in by_hour.get(hour, ()))
        _, rank = quantile_ranks(len(values), quantile, level) if values else (0, 1)
        if rank <= len(values) and values[rank - 1] < math.inf:
            return values[rank - 1]
    return None


def _coin(metric: str, value: float, late: float | None) -> float | None:
    """A measurement on the detector's scale, 0 to 1; None for one that cannot be. Of a quantile's metric: whether it is late."""
    measured = measured_of(metric)
    if measured.kind == "quantile":
        return is_late(value, late if late is not None else math.inf) if value >= 0 else None
    low, high = measured.bounds
    return (value - low) / (high - low) if low <= value <= high else None


def _coins(metric: str, values: Iterable[float], late: float | None) -> list[float]:
    return [coin for value in values if (coin := _coin(metric, value, late)) is not None]


def _told(one: Watched) -> str:
    """`errors: 31.0 % of 87 users since 2026-11-21 14:05 UTC, 1.2 % before`, and what it was held against."""
    run, mean = one.detector.run
    higher = measured_of(one.metric).higher

    def size(share: float) -> str:
        return f"{one.measured(share):.2f}" if higher else f"{share:.1%}"

    later = "" if one.late is None else f" {beyond(one.metric, one.late)}"
    since = "" if one.since is None else f" since {datetime.fromtimestamp(one.since, UTC):%Y-%m-%d %H:%M:%S} UTC"
    limit = f"{'at least' if higher else 'at most'} {size(one.detector.m0)} counts as no change"
    now = size(mean if mean is not None else one.before)
    evidence = f"e-detector {one.detector.level:.3g} of {one.detector.arl:.3g}"
    metric, segment = split_key(one.metric)
    named = f"{metric} of segment {segment}" if segment else metric
    return f"{named}: {now} of {run} users{later}{since}, {size(one.before)} before ({limit}; {evidence})"


def beyond(key: str, late: float) -> str:
    """What is counted of a quantile's metric: `later than 1.2 s`, `with more than 96 tokens`."""
    metric, _ = split_key(key)
    if metric == "longAnswers":
        return f"with more than {late:.3g} tokens"
    return f"with fewer than {1 / late:.3g} tokens" if metric == "shortAnswers" else f"later than {late:.3g} s"
