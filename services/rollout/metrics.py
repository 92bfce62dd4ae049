"""The controller's own metrics and its health, over HTTP: `/metrics`, `/healthz`, `/readyz`. Fed by `loop`, `judging` and
`platforms.measured`; served by `__main__`. Names, labels and buckets are those of `services.common.telemetry`.

What a look saw of a service is kept as one list of samples and replaced by the next look's: what is no more leaves by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

from aiohttp import web
from prometheus_client import Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from services.common import telemetry as names
from services.common.telemetry import MetricSpec
from services.rollout.actions import Emit
from services.rollout.decide import Decision
from services.rollout.health import Health
from services.rollout.status import RolloutStatus, Stage, Verdict
from services.rollout.watch_fold import Watched

_GAUGES: Final = tuple(
    spec
    for spec in names.METRICS
    if spec.component == "controller" and names.SERVICE in spec.labels and spec.kind == "gauge"
)

Sample = tuple[MetricSpec, tuple[str, ...], float]
"""A gauge, the labels after the service, the value."""


class _Gauges(Collector):
    """What the last look saw of each service."""

    def __init__(self) -> None:
        self.of: dict[str, list[Sample]] = {}
        self.costs: dict[str, Sequence[Sample]] = {}
        """These come at their own pace."""

    def collect(self) -> Iterator[Metric]:
        families = {spec.name: GaugeMetricFamily(spec.name, spec.text, labels=spec.labels) for spec in _GAUGES}
        for service, samples in (*self.of.items(), *self.costs.items()):
            for spec, labels, value in samples:
                families[spec.name].add_metric((service, *labels), value)
        yield from families.values()


class _Elsewhere(Collector):
    """One gauge without labels, read when it is asked for; where it cannot be read there is none."""

    def __init__(self, spec: MetricSpec, value: Callable[[], float]) -> None:
        self._spec, self._value = spec, value

    def collect(self) -> Iterator[Metric]:
        with contextlib.suppress(OSError):
            yield GaugeMetricFamily(self._spec.name, self._spec.text, value=self._value())


class Metrics:
    """Labels are service names and closed sets, so their number is bounded by the resources."""

    def __init__(self) -> None:
        self.registry = names.registry()
        self._gauges = _Gauges()
        self._read: dict[str, tuple[str, Sequence[Mapping[str, Any]]]] = {}
        self.registry.register(self._gauges)
        self._looks = names.LOOKS.counter(self.registry)
        self._look_seconds = names.LOOK_DURATION.histogram(self.registry)
        self._events = names.ROLLOUT_EVENTS.counter(self.registry)
        self._calls = names.PLATFORM_CALLS.counter(self.registry)
        self._call_seconds = names.PLATFORM_DURATION.histogram(self.registry)
        self._judgements = names.JUDGEMENTS.counter(self.registry)
        self._scores = names.JUDGE_SCORE.histogram(self.registry)
        self._by_service: tuple[Counter | Histogram, ...] = (self._looks, self._events, self._judgements, self._scores)

    def looked(
        self,
        service: str,
        decision: Decision,
        readings: Sequence[Mapping[str, Any]],
        drift: Sequence[Watched] = (),
        prompts: Sequence[Sample] = (),
        *,
        at: float,
        seconds: float,
        interval: float,
    ) -> None:
        """A look ended at `at` (seconds since the epoch) after `seconds`, the next comes after `interval`; the rest is as in `Look`."""
        self._looks.labels(service, "done").inc()
        self._look_seconds.observe(seconds)
        for action in decision.actions:
            if isinstance(action, Emit) and action.action != "condition":
                self._events.labels(service, action.action, action.reason).inc()
        samples: list[Sample] = [(names.LAST_LOOK, (), at), (names.LOOK_INTERVAL, (), interval)]
        samples += [(names.CONDITION, (one.type, one.reason), float(one.status)) for one in decision.status.conditions]
        rollout = decision.status.rollout
        if rollout is not None:
            samples += _of_rollout(rollout)
            # What a rollout was decided on stays until the next one begins: a scrape in between has to see it.
            if readings or self._read.get(service, ("", ()))[0] != rollout.id:
                self._read[service] = rollout.id, readings
            for reading in self._read[service][1]:
                samples += _of_reading(reading)
        for one in drift:
            samples.append((names.DRIFT_E_VALUE, (one.metric,), one.detector.level))
            samples.append((names.DRIFT_THRESHOLD, (one.metric,), one.detector.arl))
        self._gauges.of[service] = [*samples, *prompts]

    def spent(self, service: str, samples: Sequence[Sample]) -> None:
        """What the service costs, in place of what was told before."""
        self._gauges.costs[service] = samples

    def failed(self, service: str) -> None:
        """A look broke off."""
        self._looks.labels(service, "failed").inc()

    def called(self, call: str, result: str, seconds: float) -> None:
        """A call of the platform ended."""
        self._calls.labels(call, result).inc()
        self._call_seconds.labels(call).observe(seconds)

    def judged(self, service: str, result: str, scores: Mapping[str, float]) -> None:
        """The judge is done with a pair; `scores`: by arm, where it gave any."""
        self._judgements.labels(service, result).inc()
        for arm, score in scores.items():
            self._scores.labels(service, arm).observe(score)

    def read(self, spec: MetricSpec, value: Callable[[], float]) -> None:
        """A gauge kept elsewhere. `value` may raise OSError."""
        self.registry.register(_Elsewhere(spec, value))

    def gone(self, service: str) -> None:
        """The service is no more."""
        self._gauges.of.pop(service, None)
        self._read.pop(service, None)
        self._gauges.costs.pop(service, None)
        for metric in self._by_service:
            metric.remove_by_labels({names.SERVICE: service})


def _of_rollout(rollout: RolloutStatus) -> Iterator[Sample]:
    yield names.ROLLOUT, (rollout.revision, rollout.champion_revision), 1.0
    yield names.ROLLOUT_STEP, (), float(rollout.step)
    yield names.ROLLOUT_WEIGHT, (), rollout.weight / 100
    for stage in get_args(Stage):
        yield names.ROLLOUT_STAGE, (stage,), float(rollout.stage == stage)
    for verdict in get_args(Verdict):
        yield names.ROLLOUT_VERDICT, (verdict,), float(rollout.verdict == verdict)
    if rollout.decided_at is not None:
        yield names.ROLLOUT_DECIDED, (), rollout.decided_at
    if rollout.active:
        for condition in rollout.conditions:
            if condition.type == "Waiting":
                yield names.ROLLOUT_WAITING, (condition.reason,), 1.0
        yield names.ROLLOUT_USERS, ("control",), float(rollout.counts.users_control)
        yield names.ROLLOUT_USERS, ("candidate",), float(rollout.counts.users_candidate)
    if rollout.gate is not None:
        yield names.GATE_ITEMS, (), float(rollout.gate["items"])
        yield from _of_reading(rollout.gate)
    if rollout.ratio is not None:
        yield names.SAMPLE_RATIO, (), float(rollout.ratio["eValue"])
        yield names.SAMPLE_RATIO_THRESHOLD, (), float(rollout.ratio["threshold"])


def _of_reading(reading: Mapping[str, Any]) -> Iterator[Sample]:
    """What is not known yet has no sample."""
    metric = str(reading["metric"])
    # Beside the effect, so with its sign; what a goal asks for lies on the good side.
    falls = (reading["direction"] == "higher") != (reading["mode"] == "goal")
    yield names.ROLLOUT_MARGIN, (metric,), float(-reading["margin"] if falls else reading["margin"])
    known: list[tuple[MetricSpec, str, str]] = [
        (names.ROLLOUT_VALUE, "control", "control"),
        (names.ROLLOUT_VALUE, "candidate", "candidate"),
        (names.ROLLOUT_EFFECT, "estimate", "effect"),
        (names.ROLLOUT_EFFECT, "lower", "lower"),
        (names.ROLLOUT_EFFECT, "upper", "upper"),
        (names.ROLLOUT_E_VALUE, "harm", "e_harm"),
        (names.ROLLOUT_THRESHOLD, "harm", "harm_threshold"),
        (names.ROLLOUT_E_VALUE, "promotion", "e_promote"),
        (names.ROLLOUT_THRESHOLD, "promotion", "promote_threshold"),
    ]
    for spec, label, field in known:
        if reading[field] is not None:
            yield spec, (metric, label), float(reading[field])


def health_app(metrics: Metrics, health: Health) -> web.Application:
    """`/healthz` fails where a loop hangs: a store or registry that is away is no reason to restart the process. `/readyz` fails while
    something is away that the controller cannot do without; one that stands by is ready.
    """

    async def healthz(_: web.Request) -> web.Response:
        stuck = health.stuck()
        return web.Response(status=503, text=f"hang: {', '.join(stuck)}\n") if stuck else web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = await health.missing()
        return web.Response(status=503, text="\n".join([*missing, ""])) if missing else web.Response(text="ok\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return app
