"""The gateway's metrics, exposed at `/metrics`. Names, labels and buckets are those of `services.common.telemetry`.

What is measured of every request is counted and rendered here, not by prometheus_client: an observation costs a fifth of the library's
time, and a scrape of twenty services in a rollout takes milliseconds of the event loop (the library: a quarter of a second, in which no
stream goes on). All else is the library's. Used from the event loop alone.

Labels come from the routing table and from closed sets, never from what a client wrote; children of revisions and services that left the
table are removed, so a gateway that runs for months exposes no more than one that was just started.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final, Literal

from prometheus_client import Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from services.common import telemetry as names
from services.common.telemetry import MetricSpec
from services.store.records import Observation

_STATUSES: Final = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)
REASONS: Final = frozenset(
    {"connect", "timeout", "reset", "truncated", "invalid_answer", "stream_error", *(f"status_{s}" for s in _STATUSES)}
)
"""Kinds of failure that get a series of their own; any other is `other`."""

Key = tuple[str, str, str, str]
"""Service, revision, arm, kind."""


class _Tally:
    """One histogram of one key: a count a bucket, not yet added up."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_heads", "_sum")

    def __init__(self, spec: MetricSpec, labels: str) -> None:
        self._bounds = spec.buckets
        self._counts = [0] * (len(spec.buckets) + 1)
        self._exemplars: dict[int, str] = {}
        self._sum = 0.0
        edges = [*(repr(bound) for bound in spec.buckets), "+Inf"]
        self._heads = [f'{spec.name}_bucket{{{labels},le="{edge}"}} ' for edge in edges]
        self._heads += [f"{spec.name}_count{{{labels}}} ", f"{spec.name}_sum{{{labels}}} "]

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def exemplify(self, value: float, trace_id: str) -> None:
        """The newest example of its bucket."""
        self._exemplars[bisect_left(self._bounds, value)] = f' # {{trace_id="{trace_id}"}} {value!r}'

    def lines(self, *, exemplars: bool) -> Iterator[str]:
        """The text format's lines; cumulative."""
        through, examples = 0, self._exemplars if exemplars else {}
        for bucket, (head, count) in enumerate(zip(self._heads, self._counts, strict=False)):
            through += count
            yield f"{head}{through}.0{examples.get(bucket, '')}"
        yield f"{self._heads[-2]}{through}.0"
        yield f"{self._heads[-1]}{self._sum!r}"


_TALLIES: Final = (
    names.TIME_TO_FIRST_TOKEN,
    names.TIME_PER_OUTPUT_TOKEN,
    names.REQUEST_DURATION,
    names.QUEUE_TIME,
    names.TOKEN_RATE,
)


class _Attempts:
    """What was measured of one key's attempts."""

    __slots__ = ("duration", "failures", "gap", "labels", "outcomes", "queue", "rate", "tokens", "ttft")

    def __init__(self, key: Key) -> None:
        service, revision, arm, kind = key
        self.labels = _labels(arm=arm, kind=kind, revision=revision, service=service)
        self.ttft, self.gap, self.duration, self.queue, self.rate = (_Tally(spec, self.labels) for spec in _TALLIES)
        self.tokens = {"input": 0, "output": 0, "cached": 0}
        self.outcomes: dict[str, int] = {}
        self.failures: dict[str, int] = {}

    @property
    def tallies(self) -> tuple[_Tally, ...]:
        """In the order of `_TALLIES`."""
        return self.ttft, self.gap, self.duration, self.queue, self.rate


class _Elsewhere(Collector):
    """One value of another part of the gateway."""

    def __init__(self, spec: MetricSpec, value: Callable[[], float]) -> None:
        self._spec, self._value = spec, value

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily if self._spec.kind == "counter" else GaugeMetricFamily
        yield family(self._spec.name, self._spec.text, value=self._value())


class Metrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = names.registry()
        self._attempts: dict[Key, _Attempts] = {}
        self._revisions: frozenset[str] = frozenset()
        self._refused = names.REFUSED.counter(self.registry)
        self._filtered = names.FILTERED.counter(self.registry)
        self._fallbacks = names.FALLBACKS.counter(self.registry)
        self._ejections = names.EJECTIONS.counter(self.registry)
        self._mirror_dropped = names.MIRROR_DROPPED.counter(self.registry)
        self._samples = names.SAMPLES.counter(self.registry)
        self._feedback = names.FEEDBACK.counter(self.registry)
        self.held = names.HELD.gauge(self.registry)
        self.in_flight = names.IN_FLIGHT.gauge(self.registry)
        self._by_service: tuple[Counter | Gauge, ...] = (
            self._refused, self._filtered, self._fallbacks, self._ejections, self._mirror_dropped, self._samples,
            self._feedback, self.held,
        )  # fmt: skip

    def observed(self, row: Observation, *, cached: int | None = None, queued: float | None = None) -> None:
        """One attempt ended. `cached`: of its input tokens, those the engine had; `queued`: seconds from the request's arrival."""
        key = (row.service, row.revision, row.arm, row.kind)
        attempts = self._attempts.get(key) or self._new(key)
        outcome = row.outcome
        attempts.outcomes[outcome] = attempts.outcomes.get(outcome, 0) + 1
        attempts.duration.observe(row.duration)
        if row.ttft is not None:
            attempts.ttft.observe(row.ttft)
        if row.gap_mean is not None:
            attempts.gap.observe(row.gap_mean)
        if queued is not None:
            attempts.queue.observe(queued)
        if row.tokens_in:
            attempts.tokens["input"] += row.tokens_in
        if cached:
            attempts.tokens["cached"] += cached
        if row.tokens_out:
            attempts.tokens["output"] += row.tokens_out
            if outcome == "ok" and row.duration > 0:
                attempts.rate.observe(row.tokens_out / row.duration)
        if row.error is not None and outcome != "filtered":
            reason = row.error if row.error in REASONS else names.OTHER
            attempts.failures[reason] = attempts.failures.get(reason, 0) + 1

    def exemplified(self, row: Observation, trace_id: str) -> None:
        """A trace of this attempt is exported: an example of where its times lie. Where tracing is off there are none."""
        attempts = self._attempts.get((row.service, row.revision, row.arm, row.kind))
        if attempts is None:
            return
        attempts.duration.exemplify(row.duration, trace_id)
        if row.ttft is not None:
            attempts.ttft.exemplify(row.ttft, trace_id)

    def refused(self, service: str, code: str) -> None:
        """A request reached no engine. `service`: of the routing table, or `telemetry.UNKNOWN`."""
        self._refused.labels(service, code).inc()

    def filtered(self, service: str, text: Literal["prompt", "answer"], name: str, action: str) -> None:
        """A filter blocked or redacted one prompt or answer."""
        self._filtered.labels(service, name, text, action).inc()

    def fell_back(self, service: str) -> None:
        self._fallbacks.labels(service).inc()

    def ejected(self, service: str) -> None:
        self._ejections.labels(service).inc()

    def mirror_dropped(self, service: str, reason: str) -> None:
        self._mirror_dropped.labels(service, reason).inc()

    def sampled(self, service: str, result: str) -> None:
        self._samples.labels(service, result).inc()

    def feedback(
        self, service: str, revision: str, arm: str, kind: str, mark: Literal["good", "bad", "neutral"]
    ) -> None:
        """Feedback on an answer of that revision."""
        self._feedback.labels(service, self._known(revision), arm, kind, mark).inc()

    def read(self, spec: MetricSpec, value: Callable[[], float]) -> None:
        """A value kept elsewhere, read when the metrics are."""
        self.registry.register(_Elsewhere(spec, value))

    def keep_only(self, revisions: set[str], services: set[str]) -> None:
        """The routing table has changed: removes the children of what left it."""
        self._revisions = frozenset(revisions)
        for key in [key for key in self._attempts if key[1] not in revisions]:
            del self._attempts[key]
        kept = services | {names.UNKNOWN}
        for metric in self._by_service:
            for sample in [sample for family in metric.collect() for sample in family.samples]:
                left = sample.labels[names.SERVICE] not in kept
                if left or (names.REVISION in sample.labels and sample.labels[names.REVISION] not in revisions):
                    metric.remove_by_labels(sample.labels)

    def exposition(self, *, openmetrics: bool = False) -> bytes:
        """Prometheus' text format, or OpenMetrics', which has exemplars."""
        own = "".join(f"{line}\n" for line in self._lines(openmetrics)).encode()
        return own + (generate_openmetrics(self.registry) if openmetrics else generate_latest(self.registry))  # type: ignore[no-untyped-call]

    def _lines(self, openmetrics: bool) -> Iterator[str]:
        for number, spec in enumerate(_TALLIES):
            yield from _head(spec)
            for attempts in self._attempts.values():
                yield from attempts.tallies[number].lines(exemplars=openmetrics)
        yield from _head(names.TOKENS, openmetrics)
        for attempts in self._attempts.values():
            for direction, count in attempts.tokens.items():
                yield f"{names.TOKENS}{{{attempts.labels},{_labels(direction=direction)}}} {count}.0"
        yield from _head(names.REQUESTS, openmetrics)
        for attempts in self._attempts.values():
            for outcome, count in attempts.outcomes.items():
                yield f"{names.REQUESTS}{{{attempts.labels},{_labels(outcome=outcome)}}} {count}.0"
        yield from _head(names.FAILURES, openmetrics)
        for attempts in self._attempts.values():
            for reason, count in attempts.failures.items():
                yield f"{names.FAILURES}{{{attempts.labels},{_labels(reason=reason)}}} {count}.0"

    def _known(self, revision: str) -> str:
        """What ends after its revision left the table is counted under one name, so that nothing comes back."""
        return revision if revision in self._revisions else names.OTHER

    def _new(self, key: Key) -> _Attempts:
        known = (key[0], self._known(key[1]), key[2], key[3])
        attempts = self._attempts.get(known)
        if attempts is None:
            attempts = self._attempts[known] = _Attempts(known)
        return attempts


def _head(spec: MetricSpec, openmetrics: bool = False) -> tuple[str, str]:
    family = spec.name.removesuffix("_total") if openmetrics else spec.name
    return f"# HELP {family} {spec.text}", f"# TYPE {family} {spec.kind}"


def _labels(**labels: str) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
