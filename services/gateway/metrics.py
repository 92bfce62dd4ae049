"""The gateway's metrics, exposed at `/metrics`. Names, labels and buckets are those of `services.common.telemetry`.

Labels come from the routing table and from closed sets, never from what a client wrote; children of revisions that left the table are
removed, so a gateway that runs for months exposes no more than one that was just started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common import telemetry as names
from services.store.records import Observation

_ATTEMPT_LABELS = (names.SERVICE, names.REVISION, names.ARM, names.KIND)


@dataclass(slots=True)
class _Children:
    """The labelled children of one (service, revision, arm, kind): looked up once, kept."""

    ttft: Histogram
    gap: Histogram
    duration: Histogram
    tokens_in: Counter
    tokens_out: Counter
    outcomes: dict[str, Counter]


class _Elsewhere(Collector):
    """One value of another part of the gateway."""

    def __init__(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._name, self._text, self._value = name, text, value

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily if self._name.endswith("_total") else GaugeMetricFamily
        yield family(self._name, self._text, value=self._value())


class Metrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, str, str, str], _Children] = {}
        self._ttft = Histogram(
            names.TIME_TO_FIRST_TOKEN,
            "Seconds from sending to the engine until its first token, streamed answers",
            _ATTEMPT_LABELS, buckets=names.SECONDS, registry=self.registry,
        )  # fmt: skip
        self._gap = Histogram(
            names.TIME_PER_OUTPUT_TOKEN,
            "Mean seconds between tokens of one streamed answer",
            _ATTEMPT_LABELS, buckets=names.GAP_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._duration = Histogram(
            names.REQUEST_DURATION,
            "Seconds from sending to the engine until the answer's end",
            _ATTEMPT_LABELS, buckets=names.SECONDS, registry=self.registry,
        )  # fmt: skip
        self._tokens = Counter(
            names.TOKENS,
            "Tokens as the engine counts them",
            (*_ATTEMPT_LABELS, names.DIRECTION),
            registry=self.registry,
        )
        self._requests = Counter(
            names.REQUESTS, "Attempts of engines, by outcome", (*_ATTEMPT_LABELS, names.OUTCOME), registry=self.registry
        )
        self._refused = self._counter(names.REFUSED, "Requests that reached no engine", names.REASON)
        self._filtered = self._counter(
            names.FILTERED,
            "Prompts and answers that a content filter changed",
            names.SERVICE,
            names.FILTER,
            names.TEXT,
            names.ACTION,
        )
        self._fallbacks = self._counter(names.FALLBACKS, "Candidate's failures tried on stable", names.SERVICE)
        self._ejections = self._counter(names.EJECTIONS, "Times a candidate was ejected", names.SERVICE)
        self._mirror_dropped = self._counter(
            names.MIRROR_DROPPED, "Mirrored copies not made", names.SERVICE, names.REASON
        )
        self._feedback = self._counter(names.FEEDBACK, "Feedback taken", names.SERVICE, names.KIND)
        self.held = Gauge(
            names.HELD, "Requests that wait for an engine to start", (names.SERVICE,), registry=self.registry
        )
        self.in_flight = Gauge(names.IN_FLIGHT, "Requests being answered", registry=self.registry)

    def observed(self, row: Observation) -> None:
        """One attempt ended."""
        children = self._of(row)
        outcome = children.outcomes.get(row.outcome)
        if outcome is None:
            outcome = self._requests.labels(row.service, row.revision, row.arm, row.kind, row.outcome)
            children.outcomes[row.outcome] = outcome
        outcome.inc()
        children.duration.observe(row.duration)
        if row.ttft is not None:
            children.ttft.observe(row.ttft)
        if row.gap_mean is not None:
            children.gap.observe(row.gap_mean)
        if row.tokens_in:
            children.tokens_in.inc(row.tokens_in)
        if row.tokens_out:
            children.tokens_out.inc(row.tokens_out)

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def filtered(self, service: str, text: Literal["prompt", "answer"], name: str, action: str) -> None:
        """A filter blocked or redacted one prompt or answer."""
        self._filtered.labels(service, name, text, action).inc()

    def fell_back(self, service: str) -> None:
        self._fallbacks.labels(service).inc()

    def ejected(self, service: str) -> None:
        self._ejections.labels(service).inc()

    def mirror_dropped(self, service: str, reason: str) -> None:
        self._mirror_dropped.labels(service, reason).inc()

    def feedback(self, service: str, kind: str) -> None:
        self._feedback.labels(service, kind).inc()

    def read(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A value kept elsewhere, read when the metrics are; a name in `_total` makes it a counter."""
        self.registry.register(_Elsewhere(name, text, value))

    def keep_only(self, revisions: set[str]) -> None:
        """Removes the children of revisions that left the routing table."""
        for key in [key for key in self._children if key[1] not in revisions]:
            children = self._children.pop(key)
            for metric in (self._ttft, self._gap, self._duration):
                metric.remove(*key)
            for direction in ("input", "output"):
                self._tokens.remove(*key, direction)
            for outcome in children.outcomes:
                self._requests.remove(*key, outcome)

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _of(self, row: Observation) -> _Children:
        key = (row.service, row.revision, row.arm, row.kind)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = _Children(
                ttft=self._ttft.labels(*key),
                gap=self._gap.labels(*key),
                duration=self._duration.labels(*key),
                tokens_in=self._tokens.labels(*key, "input"),
                tokens_out=self._tokens.labels(*key, "output"),
                outcomes={},
            )
        return children
