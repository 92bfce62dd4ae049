"""Every metric of the platform: name, kind, meaning, labels, unit, buckets. The one place where they are written, for the services that
expose them, for the reference page (docs/generate.py), and for dashboards, rules and alerts (monitoring/), whose tests read this module.

Where OpenTelemetry's GenAI conventions name a measurement, its Prometheus form is used (`gen_ai.server.time_to_first_token` becomes
`gen_ai_server_time_to_first_token_seconds`). Those conventions are still in development: a renaming is a change to this module alone.
Labels are bounded by configuration (services, revisions of the routing table, arms) and by closed sets: never a user, a key, or a model
name as a client wrote it; what is not among them is UNKNOWN or OTHER.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

# Labels
SERVICE: Final = "service"
REVISION: Final = "revision"
ARM: Final = "arm"
"""`stable`, `control`, `candidate`."""
OUTCOME: Final = "outcome"
KIND: Final = "kind"
"""`live` or `mirror`, of costs `idle` too; of feedback its kind."""
REASON: Final = "reason"
FILTER: Final = "filter"
ACTION: Final = "action"
"""`block` or `redact`."""
TEXT: Final = "text"
"""`prompt` or `answer`."""
DIRECTION: Final = "direction"
"""`input` or `output`; `cached` is that part of the input that the engine had in its cache."""
MARK: Final = "mark"
"""`good`, `bad` or `neutral`."""
RESULT: Final = "result"
STAGE: Final = "stage"
VERDICT: Final = "verdict"
EVENT: Final = "event"
METRIC: Final = "metric"
"""A guardrail, as the resource names it."""
BOUND: Final = "bound"
"""`estimate`, `lower`, `upper`."""
CLAIM: Final = "claim"
"""`harm` or `promotion`."""
TYPE: Final = "type"
CALL: Final = "call"
CHAMPION: Final = "champion"
CURRENCY: Final = "currency"
MODEL: Final = "model"
TREND: Final = "trend"
LANGUAGE: Final = "language"
QUANTILE: Final = "quantile"
"""A model of `spec.cost.comparedWith`, as the resource names it."""

UNKNOWN: Final = "unknown"
"""Service of a request that names none that there is."""
OTHER: Final = "other"
"""Revision that has left the routing table, and reason that is not among the known ones."""

ATTEMPT: Final = (SERVICE, REVISION, ARM, KIND)
"""Labels of what is measured of one engine's attempt at one request."""

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0,
)  # fmt: skip
"""Buckets, in seconds, of first tokens, whole answers and waits: 1 ms to 120 s."""

GAP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 1.6, 5.0)
"""Buckets, in seconds, of the time between two tokens."""

RATES: Final = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 200.0, 400.0, 800.0)
"""Buckets, in tokens per second, of one answer."""

SCORES: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Buckets of a judge's score."""

Component = Literal["gateway", "controller"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `name`: as Prometheus shows it, a counter's with `_total`. `unit`: of its values, in words."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    component: Component
    text: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.name

    def counter(self, registry: CollectorRegistry) -> Counter:
        """The counter, registered."""
        return Counter(self.name, self.text, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """The gauge, registered."""
        return Gauge(self.name, self.text, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """The histogram, registered."""
        return Histogram(self.name, self.text, self.labels, buckets=self.buckets, registry=registry)

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series."""
        return tuple(f"{self.name}{end}" for end in ("_bucket", "_count", "_sum")) if self.buckets else (self.name,)


def registry() -> CollectorRegistry:
    """A registry for one process, with the process' own CPU, memory and files. No series tells when another was made: they would be a
    third more, and Prometheus does not need them.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    return made


def _counter(component: Component, name: str, text: str, *labels: str, unit: str = "") -> MetricSpec:
    return MetricSpec(name, "counter", component, text, labels, unit)


def _gauge(component: Component, name: str, text: str, *labels: str, unit: str = "") -> MetricSpec:
    return MetricSpec(name, "gauge", component, text, labels, unit)


def _attempt(name: str, text: str, unit: str, buckets: tuple[float, ...]) -> MetricSpec:
    return MetricSpec(name, "histogram", "gateway", text, ATTEMPT, unit, buckets)


# One attempt of one engine at one request
TIME_TO_FIRST_TOKEN: Final = _attempt(
    "gen_ai_server_time_to_first_token_seconds",
    "From sending to the engine until its first token; streamed answers.",
    "seconds", SECONDS,
)  # fmt: skip
TIME_PER_OUTPUT_TOKEN: Final = _attempt(
    "gen_ai_server_time_per_output_token_seconds",
    "Mean time between the tokens of one streamed answer.",
    "seconds", GAP_SECONDS,
)  # fmt: skip
REQUEST_DURATION: Final = _attempt(
    "gen_ai_server_request_duration_seconds",
    "From sending to the engine until the answer's end.",
    "seconds", SECONDS,
)  # fmt: skip
QUEUE_TIME: Final = _attempt(
    "understudy_gateway_queue_seconds",
    "From the request's arrival until it was sent to the engine: body, quotas, filters, an engine that had to start, an attempt before.",
    "seconds", SECONDS,
)  # fmt: skip
TOKEN_RATE: Final = _attempt(
    "understudy_gateway_tokens_per_second",
    "Tokens of one whole answer over its duration.",
    "tokens per second", RATES,
)  # fmt: skip
TOKENS: Final = _counter(
    "gateway", "understudy_gateway_tokens_total",
    "Tokens as the engine counts them; `cached` only where the engine tells (vLLM: `enable_prompt_tokens_details`).",
    *ATTEMPT, DIRECTION, unit="tokens",
)  # fmt: skip
REQUESTS: Final = _counter(
    "gateway", "understudy_gateway_requests_total",
    "Attempts of engines by outcome: `ok`, `error`, `client_error`, `cancelled`, `filtered`.",
    *ATTEMPT, OUTCOME, unit="attempts",
)  # fmt: skip
FAILURES: Final = _counter(
    "gateway", "understudy_gateway_failures_total",
    "Attempts that failed by kind: `connect`, `timeout`, `reset`, `truncated`, `invalid_answer`, `stream_error`, an engine's status.",
    *ATTEMPT, REASON, unit="attempts",
)  # fmt: skip
FEEDBACK: Final = _counter(
    "gateway", "understudy_gateway_feedback_total",
    "Feedback taken, by its kind and whether it is good or bad.",
    SERVICE, REVISION, ARM, KIND, MARK, unit="marks",
)  # fmt: skip

# The gateway itself
REFUSED: Final = _counter(
    "gateway", "understudy_gateway_refused_requests_total",
    f"Requests that reached no engine, by the error's code; service `{UNKNOWN}` where the request names none.",
    SERVICE, REASON, unit="requests",
)  # fmt: skip
IN_FLIGHT: Final = _gauge(
    "gateway", "understudy_gateway_requests_in_flight", "Requests being answered.", unit="requests"
)
HELD: Final = _gauge(
    "gateway", "understudy_gateway_held_requests", "Requests that wait for an engine to start.", SERVICE, unit="requests"
)  # fmt: skip
FILTERED: Final = _counter(
    "gateway", "understudy_gateway_content_filter_effects_total", "Prompts and answers that a content filter changed.",
    SERVICE, FILTER, TEXT, ACTION, unit="texts",
)  # fmt: skip
FALLBACKS: Final = _counter(
    "gateway", "understudy_gateway_fallbacks_total", "Candidate's failures tried on stable.", SERVICE, unit="requests"
)
EJECTIONS: Final = _counter(
    "gateway", "understudy_gateway_ejections_total", "Times a gateway took a failing candidate out by itself.", SERVICE,
    unit="times",
)  # fmt: skip
MIRROR_DROPPED: Final = _counter(
    "gateway", "understudy_gateway_mirror_dropped_total", "Mirrored copies not made.", SERVICE, REASON, unit="copies"
)
SAMPLES: Final = _counter(
    "gateway", "understudy_gateway_samples_total", "Answers of stable drawn to be looked at, by what became of them: kept, or why not.",
    SERVICE, RESULT, unit="answers",
)  # fmt: skip
HEAVY_UNITS: Final = _gauge(
    "gateway", "understudy_gateway_heavy_units", "Users left out of both arms for their share of the traffic.", unit="users"
)  # fmt: skip
STORE_CONTACT_AGE: Final = _gauge(
    "gateway", "understudy_gateway_store_contact_age_seconds", "Since the store was last reached.", unit="seconds"
)
LEASE_VALID: Final = _gauge(
    "gateway", "understudy_gateway_lease_valid", "1 while candidates may get requests, else 0.", unit="yes or no"
)

SPANS_EXPORTED: Final = _counter(
    "gateway", "understudy_gateway_spans_exported_total", "Spans that a collector took.",
    unit="spans",
)  # fmt: skip
SPANS_DROPPED: Final = _counter(
    "gateway", "understudy_gateway_spans_dropped_total",
    "Spans lost: the queue was full, or the collector refused them or was away for half a minute.",
    unit="spans",
)  # fmt: skip

# The recorder
RECORDS: Final = _counter(
    "gateway", "understudy_recorder_records_total", "Sequence numbers handed out.", unit="records"
)
RECORDS_QUEUED: Final = _gauge(
    "gateway", "understudy_recorder_queued_records", "Records in memory that the store does not have.", unit="records"
)
RECORDS_SPILLED: Final = _counter(
    "gateway", "understudy_recorder_spilled_records_total", "Records that waited on disk alone.", unit="records"
)
RECORDS_DROPPED: Final = _counter(
    "gateway", "understudy_recorder_dropped_records_total", "Records lost for good.", unit="records"
)
RECORDER_LAG: Final = _gauge(
    "gateway", "understudy_recorder_lag_seconds", "Age of the oldest record that the store does not have.", unit="seconds"
)  # fmt: skip
JOURNAL_BYTES: Final = _gauge("gateway", "understudy_recorder_journal_bytes", "Size of the journal.", unit="bytes")
JOURNAL_LIMIT: Final = _gauge(
    "gateway", "understudy_recorder_journal_limit_bytes", "Size at which the journal takes no more.", unit="bytes"
)

# The controller's looks
LOOKS: Final = _counter(
    "controller", "understudy_controller_looks_total", "Looks at a service: `done` or `failed`.", SERVICE, RESULT,
    unit="looks",
)  # fmt: skip
LOOK_DURATION: Final = MetricSpec(
    "understudy_controller_look_seconds", "histogram", "controller", "Time that a look took.", (), "seconds", SECONDS
)
LAST_LOOK: Final = _gauge(
    "controller", "understudy_controller_last_look_timestamp_seconds", "When the last whole look ended.", SERVICE,
    unit="seconds since the epoch",
)  # fmt: skip
LOOK_INTERVAL: Final = _gauge(
    "controller", "understudy_controller_look_interval_seconds", "Pause until the next look.",
    SERVICE, unit="seconds",
)  # fmt: skip
PLATFORM_CALLS: Final = _counter(
    "controller", "understudy_controller_platform_calls_total",
    "Calls of the platform that runs engines: `ok`, `unavailable` (tried again), `rejected` (never will), `error`.",
    CALL, RESULT, unit="calls",
)  # fmt: skip
PLATFORM_DURATION: Final = MetricSpec(
    "understudy_controller_platform_call_seconds", "histogram", "controller", "Time that a call of the platform took.",
    (CALL,), "seconds", SECONDS,
)  # fmt: skip
CONDITION: Final = _gauge(
    "controller", "understudy_service_condition", "1 where a condition of the resource holds, 0 where it does not.",
    SERVICE, TYPE, REASON, unit="yes or no",
)  # fmt: skip
CERTIFICATE_END: Final = _gauge(
    "controller",
    "understudy_controller_webhook_certificate_end_timestamp_seconds",
    "When the admission webhook's certificate ends; only where there is a webhook.",
    unit="seconds since the epoch",
)

# The newest rollout of each service
ROLLOUT: Final = _gauge(
    "controller", "understudy_rollout_info", "1; names the revisions of the newest rollout.", SERVICE, REVISION, CHAMPION,
    unit="constant",
)  # fmt: skip
ROLLOUT_STAGE: Final = _gauge(
    "controller", "understudy_rollout_stage", "1 for the stage it is in, else 0.", SERVICE, STAGE, unit="yes or no"
)
ROLLOUT_STEP: Final = _gauge("controller", "understudy_rollout_step", "Canary step, from 0.", SERVICE, unit="step")
ROLLOUT_WEIGHT: Final = _gauge(
    "controller", "understudy_rollout_weight_ratio", "Share of users on the candidate.", SERVICE, unit="0 to 1"
)
ROLLOUT_VERDICT: Final = _gauge(
    "controller", "understudy_rollout_verdict", "1 for the verdict that holds, else 0.", SERVICE, VERDICT, unit="yes or no"
)  # fmt: skip
ROLLOUT_DECIDED: Final = _gauge(
    "controller", "understudy_rollout_decided_timestamp_seconds", "When it was decided; not there before.", SERVICE,
    unit="seconds since the epoch",
)  # fmt: skip
ROLLOUT_WAITING: Final = _gauge(
    "controller", "understudy_rollout_waiting", "1 for what it waits for.", SERVICE, REASON, unit="constant"
)
ROLLOUT_EVENTS: Final = _counter(
    "controller", "understudy_rollout_events_total", "Transitions and verdicts, by reason (docs/concepts/verdicts.md).",
    SERVICE, EVENT, REASON, unit="events",
)  # fmt: skip
ROLLOUT_USERS: Final = _gauge(
    "controller", "understudy_rollout_users", "Users whose values are final, by arm.", SERVICE, ARM, unit="users"
)
ROLLOUT_VALUE: Final = _gauge(
    "controller", "understudy_rollout_value", "Estimate of a guardrail's metric in one arm.", SERVICE, METRIC, ARM,
    unit="the metric's",
)  # fmt: skip
ROLLOUT_EFFECT: Final = _gauge(
    "controller", "understudy_rollout_effect",
    "Candidate against control: estimate, and bounds that hold at every look at once; a difference, or relative where the margin is.",
    SERVICE, METRIC, BOUND, unit="the margin's",
)  # fmt: skip
ROLLOUT_MARGIN: Final = _gauge(
    "controller", "understudy_rollout_margin",
    "The effect beyond which the candidate is worse than allowed (of a goal: good enough); negative where that is a fall.",
    SERVICE, METRIC, unit="the margin's",
)  # fmt: skip
ROLLOUT_E_VALUE: Final = _gauge(
    "controller", "understudy_rollout_e_value", "Evidence for harm, and for promotion; grows where the claim is true.",
    SERVICE, METRIC, CLAIM, unit="e-value",
)  # fmt: skip
ROLLOUT_THRESHOLD: Final = _gauge(
    "controller", "understudy_rollout_e_value_threshold", "E-value from which the claim counts as shown.",
    SERVICE, METRIC, CLAIM, unit="e-value",
)  # fmt: skip
GATE_ITEMS: Final = _gauge(
    "controller", "understudy_gate_items", "Items on which candidate and champion were compared offline, where the gate compared any.",
    SERVICE, unit="items",
)  # fmt: skip
SAMPLE_RATIO: Final = _gauge(
    "controller", "understudy_rollout_sample_ratio_e_value", "Evidence that the arms do not get the users they should.",
    SERVICE, unit="e-value",
)  # fmt: skip
SAMPLE_RATIO_THRESHOLD: Final = _gauge(
    "controller", "understudy_rollout_sample_ratio_threshold", "E-value from which the assignment counts as broken.",
    SERVICE, unit="e-value",
)  # fmt: skip
DRIFT_E_VALUE: Final = _gauge(
    "controller", "understudy_drift_e_value", "Evidence that stable has become worse than it was when its history was frozen.",
    SERVICE, METRIC, unit="e-value",
)  # fmt: skip
DRIFT_THRESHOLD: Final = _gauge(
    "controller", "understudy_drift_e_value_threshold", "E-value from which stable counts as drifted.", SERVICE, METRIC,
    unit="e-value",
)  # fmt: skip
PROMPTS_E_VALUE: Final = _gauge(
    "controller", "understudy_prompts_drift_e_value",
    "Evidence that users ask something else than in the week of reference; of services with `drift.prompts`.", SERVICE, unit="e-value",
)  # fmt: skip
PROMPTS_THRESHOLD: Final = _gauge(
    "controller", "understudy_prompts_drift_e_value_threshold", "E-value from which what users ask counts as changed.", SERVICE,
    unit="e-value",
)  # fmt: skip
PROMPTS_TOPICS: Final = _gauge(
    "controller", "understudy_prompts_topics_ratio",
    "Share of the last week's users whose prompt's topic is `new` since the week of reference, `grows`, `shrinks` or is `steady`.",
    SERVICE, TREND, unit="0 to 1",
)  # fmt: skip
PROMPTS_LANGUAGES: Final = _gauge(
    "controller", "understudy_prompts_languages_ratio",
    "Share of the last week's users by the language of their prompt: the ten largest, `unknown` where it cannot be told, `other`.",
    SERVICE, LANGUAGE, unit="0 to 1",
)  # fmt: skip
PROMPTS_WORDS: Final = _gauge(
    "controller", "understudy_prompts_words", "Words of the last week's prompts: their 10th, 50th and 90th percentile.", SERVICE, QUANTILE,
    unit="words",
)  # fmt: skip
JUDGE_SCORE: Final = MetricSpec(
    "understudy_judge_score", "histogram", "controller", "The judge's scores of mirrored pairs, by arm.",
    (SERVICE, ARM), "0 to 1", SCORES,
)  # fmt: skip
JUDGEMENTS: Final = _counter(
    "controller", "understudy_judge_pairs_total",
    "Mirrored pairs by what came of them: `judged`, of these `inconsistent` (turned with the order), `without_reference`, `unparsable`, "
    "`undecipherable`.",
    SERVICE, RESULT, unit="pairs",
)  # fmt: skip

# Costs, of services with `spec.cost`. Gauges, since an hour's cost is spread anew while the hour runs; read every five minutes, those
# of a week and of the month every hour
COST_TODAY: Final = _gauge(
    "controller", "understudy_cost_today",
    "Spent since midnight UTC; arm and kind `idle`: an engine in hours in which nobody asked.",
    SERVICE, REVISION, ARM, KIND, unit="the currency",
)  # fmt: skip
COST_COMPARED: Final = _gauge(
    "controller", "understudy_cost_compared_today", "What today's live tokens would cost at another model's list price.",
    SERVICE, MODEL, unit="the currency",
)  # fmt: skip
COST_BUDGET: Final = _gauge(
    "controller", "understudy_cost_budget_per_day", "What a day may cost; only where the resource has a budget.", SERVICE,
    unit="the currency",
)  # fmt: skip
COST_INFO: Final = _gauge(
    "controller", "understudy_cost_info", "1; names the currency of the service's prices.", SERVICE, CURRENCY,
    unit="constant",
)  # fmt: skip
COST_MONTH: Final = _gauge(
    "controller", "understudy_cost_month",
    "What the running month will have cost, UTC; bounds of 90 %; not there before a week of whole days.",
    SERVICE, BOUND, unit="the currency",
)  # fmt: skip
COST_PER_THOUSAND: Final = _gauge(
    "controller", "understudy_cost_per_thousand_answers", "What a thousand answers cost, over seven days.", SERVICE,
    unit="the currency",
)  # fmt: skip
COST_PER_GOOD: Final = _gauge(
    "controller", "understudy_cost_per_good_answer",
    "What an answer costs that users call good, over seven days, if unmarked answers are as good as marked ones; bounds of 95 %.",
    SERVICE, BOUND, unit="the currency",
)  # fmt: skip
COST_BREAK_EVEN: Final = _gauge(
    "controller", "understudy_cost_break_even_requests",
    "Requests a day from which the own replicas, as many as in the last seven days, cost less than another model.",
    SERVICE, MODEL, unit="requests a day",
)  # fmt: skip

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, MetricSpec))
"""All of them, in the order in which they stand above."""
