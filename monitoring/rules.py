"""Recording rules and alerts. `generate.py` writes them as Prometheus' YAML; the tests read them here.

Objectives are recorded series, so that the chart's values (or another rule file) change them without touching an alert. Every alert has a
section of its own name in docs/runbooks.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from services.common import telemetry as t

RUNBOOKS: Final = "docs/runbooks.md"
"""Where people read the runbooks; the chart's `monitoring.rules.runbooks` names the place where they are served."""

FIRST_TOKEN_SECONDS: Final = 2.5
"""A first token within this is in time; a bound of the histogram's buckets."""
SPEED: Final = 10.0
"""Answers with fewer tokens per second are slow; a bound of the buckets too."""

WINDOWS: Final = ("5m", "30m", "1h", "6h", "3d")
BY: Final = "namespace, service"


@dataclass(frozen=True, slots=True)
class Indicator:
    """A service-level indicator: bad events over all events, by service. `{w}` stands for the window."""

    name: str
    objective: float
    """Share of good events that is promised by default."""
    bad: str
    total: str
    alert: str
    summary: str


def _live(spec: t.MetricSpec, matchers: str = "", series: str = "") -> str:
    more = f",{matchers}" if matchers else ""
    return f'sum by ({BY}) (rate({spec}{series}{{kind="live"{more}}}[{{w}}]))'


_FALLBACKS: Final = f"sum by ({BY}) (rate({t.FALLBACKS}[{{w}}]))"
_ALL: Final = _live(t.REQUESTS, 'outcome!="client_error"')
# What stable answered in the candidate's place was no failure to the user, and no request of its own.
_ANSWERS: Final = f"({_ALL} - ({_FALLBACKS} or 0 * {_ALL}))"
_FAILED: Final = _live(t.REQUESTS, 'outcome="error"')
_STREAMS: Final = _live(t.TIME_TO_FIRST_TOKEN, series="_count")
_IN_TIME: Final = _live(t.TIME_TO_FIRST_TOKEN, f'le="{FIRST_TOKEN_SECONDS}"', "_bucket")

INDICATORS: Final = (
    Indicator(
        "availability", 0.995,
        f"clamp_min({_FAILED} - ({_FALLBACKS} or 0 * {_FAILED}), 0) or 0 * {_ALL}", _ANSWERS,
        "UnderstudyAvailabilityBudgetBurns", "of requests fail",
    ),
    Indicator(
        "ttft", 0.95,
        f"{_STREAMS} - {_IN_TIME}", _STREAMS,
        "UnderstudyFirstTokenBudgetBurns", "of streamed answers begin late",
    ),
    Indicator(
        "tokens-per-second", 0.95,
        _live(t.TOKEN_RATE, f'le="{SPEED}"', "_bucket"), _live(t.TOKEN_RATE, series="_count"),
        "UnderstudyTokenRateBudgetBurns", "of answers come too slowly",
    ),
    Indicator(
        "feedback", 0.9,
        f'sum by ({BY}) (rate({t.FEEDBACK}{{mark="bad"}}[{{w}}]))', _live(t.REQUESTS, 'outcome="ok"'),
        "UnderstudyFeedbackBudgetBurns", "of answers are marked bad",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Burn:
    """Both windows above `factor` times the budget: the long one so that it matters, the short one so that it still goes on."""

    long: str
    short: str
    factor: float
    severity: Literal["critical", "warning"]
    hold: str


BURNS: Final = (
    Burn("1h", "5m", 14.4, "critical", "2m"),
    Burn("6h", "30m", 6.0, "critical", "15m"),
    Burn("3d", "6h", 1.0, "warning", "1h"),
)
"""Of a budget for 30 days, these burn 2 % in an hour, 5 % in six, 10 % in three days."""
FEWEST: Final = 50
"""Events in the long window below which nothing is said: one bad answer of ten is no trend."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `summary` and `description` are Prometheus' templates."""

    name: str
    severity: Literal["critical", "warning", "info"]
    expr: str
    hold: str
    summary: str
    description: str
    labels: dict[str, str] = field(default_factory=dict)

    def to_rule(self, runbooks: str = RUNBOOKS) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.hold} if self.hold else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbooks}#{self.name.lower()}",
            },
        }


def objectives() -> Iterator[dict[str, Any]]:
    """One recorded constant an indicator."""
    for one in INDICATORS:
        yield {"record": "understudy:slo:objective", "expr": f"vector({one.objective})", "labels": {"sli": one.name}}


def recordings() -> Iterator[dict[str, Any]]:
    """Share of bad events and rate of all events, an indicator and window each."""
    for one in INDICATORS:
        for window in WINDOWS:
            bad, total = (text.replace("{w}", window) for text in (one.bad, one.total))
            labels = {"sli": one.name}
            yield {
                "record": f"understudy:sli_bad:ratio_rate{window}",
                "expr": f"({bad})\n/\n({total} > 0)",
                "labels": labels,
            }
            yield {"record": f"understudy:sli_total:rate{window}", "expr": total, "labels": labels}


def burn_alerts() -> Iterator[Alert]:
    """Multi-window burn rates (the method of the SRE workbook, chapter 5)."""
    seconds = {"1h": 3600, "6h": 21_600, "3d": 259_200}
    for one in INDICATORS:
        sli = f'{{sli="{one.name}"}}'
        for burn in BURNS:
            budget = f"on (sli) group_left () ({burn.factor:g} * (1 - understudy:slo:objective{sli}))"
            yield Alert(
                one.alert, burn.severity,
                f"understudy:sli_bad:ratio_rate{burn.long}{sli} > {budget}\n"
                f"and\nunderstudy:sli_bad:ratio_rate{burn.short}{sli} > {budget}\n"
                f"and\nunderstudy:sli_total:rate{burn.long}{sli} * {seconds[burn.long]} >= {FEWEST}",
                burn.hold,
                f"{{{{ $labels.service }}}}: {{{{ $value | humanizePercentage }}}} {one.summary}",
                f"Over {burn.long}, {{{{ $value | humanizePercentage }}}} {one.summary}: {burn.factor:g} times what the objective "
                f"allows, and it goes on.",
                {"window": burn.long},
            )  # fmt: skip


_SERVICE: Final = "{{ $labels.service }}"
_POD: Final = "{{ $labels.instance }}"
_DAY: Final = f"on ({BY}) (time() - {t.ROLLOUT_DECIDED} < 86400)"

ROLLOUTS: Final = (
    Alert(
        "UnderstudyRolloutStuck", "warning",
        f'{t.ROLLOUT_WAITING}{{reason=~"AwaitingEngine|AwaitingGateways|AwaitingCapacity|AwaitingRegistry"}} == 1', "1h",
        f"{_SERVICE}: the rollout has waited for an hour ({{{{ $labels.reason }}}})",
        "What it waits for should come within minutes. The stage's clock stands still meanwhile.",
    ),
    Alert(
        "UnderstudyRolloutHeld", "warning", f'{t.ROLLOUT_VERDICT}{{verdict="hold"}} == 1', "",
        f"{_SERVICE}: time is up without enough evidence, a person decides",
        "The candidate keeps its weight until holdTimeout; then it gets no users.",
    ),
    Alert(
        "UnderstudyRolloutAwaitsApproval", "info", f'{t.ROLLOUT_WAITING}{{reason="AwaitingApproval"}} == 1', "15m",
        f"{_SERVICE}: the rollout waits for a person's approval", "The step has passed; it goes on once somebody approves.",
    ),
    Alert(
        "UnderstudyRolloutError", "critical", f'{t.ROLLOUT_VERDICT}{{verdict="error"}} == 1 and {_DAY}', "",
        f"{_SERVICE}: the rollout ended in error, its evidence is void",
        "Something could not be measured or the assignment broke. The candidate gets no users.",
    ),
    Alert(
        "UnderstudySampleRatioMismatch", "critical",
        f"{t.SAMPLE_RATIO} >= {t.SAMPLE_RATIO_THRESHOLD} unless on ({BY}) (time() - {t.ROLLOUT_DECIDED} >= 86400)", "",
        f"{_SERVICE}: control and candidate do not get as many users as they should (e-value {{{{ $value | humanize }}}})",
        "Where users are lost on one arm, no comparison of the rest means anything.",
    ),
    Alert(
        "UnderstudyRolloutAborted", "info", f'{t.ROLLOUT_VERDICT}{{verdict="abort"}} == 1 and {_DAY}', "",
        f"{_SERVICE}: the rollout was aborted", "All users are on the champion. The audit says why.",
    ),
    Alert(
        "UnderstudyCandidateEjected", "warning", f"sum by ({BY}) (increase({t.EJECTIONS}[10m])) > 0", "",
        f"{_SERVICE}: gateways took the candidate out {{{{ $value | humanize }}}} times in ten minutes",
        "It failed several times in a row; users are served by stable meanwhile.",
    ),
)  # fmt: skip

CONTROLLER: Final = (
    Alert(
        "UnderstudyControllerDown", "critical", f"absent({t.LOOK_DURATION}_count)", "5m",
        "No rollout controller is scraped", "Gateways go on; no rollout advances, none is rolled back.",
    ),
    Alert(
        "UnderstudyLookOverdue", "critical",
        f"time() - {t.LAST_LOOK} > 60 + 20 * {t.LOOK_INTERVAL}", "2m",
        f"{_SERVICE}: the last look is {{{{ $value | humanizeDuration }}}} old",
        "The controller runs and does not look at this service: a bad candidate would keep its users.",
    ),
    Alert(
        "UnderstudyLooksFail", "warning",
        f'sum by ({BY}) (rate({t.LOOKS}{{result="failed"}}[5m])) / sum by ({BY}) (rate({t.LOOKS}[5m])) > 0.5', "5m",
        f"{_SERVICE}: {{{{ $value | humanizePercentage }}}} of the looks break off",
        "Mostly the store is away: nothing is decided meanwhile.",
    ),
    Alert(
        "UnderstudyRegistryAway", "warning", f'{t.CONDITION}{{type="Registry"}} == 0', "10m",
        f"{_SERVICE}: the model registry cannot be used ({{{{ $labels.reason }}}})",
        "Its last known aliases stay in force; no rollout begins, no promotion is told.",
    ),
    Alert(
        "UnderstudyPlatformCallsFail", "warning",
        f'sum by (namespace, call) (rate({t.PLATFORM_CALLS}{{result!="ok"}}[10m]))'
        f" / sum by (namespace, call) (rate({t.PLATFORM_CALLS}[10m])) > 0.5", "10m",
        "{{ $value | humanizePercentage }} of the calls `{{ $labels.call }}` to the platform fail",
        "Ray Serve or the cluster's API refuses or does not answer; engines neither come nor go.",
    ),
    Alert(
        "UnderstudyWebhookCertificateEnds", "warning", f"{t.CERTIFICATE_END} - time() < 7 * 86400", "1h",
        "The admission webhook's certificate ends in {{ $value | humanizeDuration }}",
        "After that the API server cannot ask the webhook: resources are refused, or taken unchecked.",
    ),
    Alert(
        "UnderstudyStableDrifted", "warning", f"{t.DRIFT_E_VALUE} >= {t.DRIFT_THRESHOLD}", "",
        f"{_SERVICE}: {{{{ $labels.metric }}}} of stable is worse than it was",
        "Beyond chance, for users of the revision that serves; no rollout is under way. The condition Drift says how much and since when.",
    ),
    Alert(
        "UnderstudyPromptsDrifted", "warning", f"{t.PROMPTS_E_VALUE} >= {t.PROMPTS_THRESHOLD}", "",
        f"{_SERVICE}: users ask something else than they did",
        "Beyond chance, hours and weekends. `understudy drift` shows which topics are new, grow or shrink.",
    ),
    Alert(
        "UnderstudyCostOverBudget", "warning", f"sum by ({BY}) ({t.COST_TODAY}) > on ({BY}) {t.COST_BUDGET}", "10m",
        f"{_SERVICE} has cost {{{{ $value | humanize }}}} today, more than its budget",
        "Nothing is stopped. The day ends at midnight UTC, in the currency of spec.cost.",
    ),
)  # fmt: skip

GATEWAY: Final = (
    Alert(
        "UnderstudyGatewayDown", "critical", f"absent({t.IN_FLIGHT})", "2m",
        "No gateway is scraped", "Applications get no answers, or the scraping is broken.",
    ),
    Alert(
        "UnderstudyGatewayStoreAway", "warning", f"{t.STORE_CONTACT_AGE} > 30", "1m",
        f"Gateway {_POD} has not reached the store for {{{{ $value | humanizeDuration }}}}",
        "It goes on from its last routing table; after the lease (120 s) candidates get no requests from it.",
    ),
    Alert(
        "UnderstudyGatewayLeaseLost", "critical", f"{t.LEASE_VALID} == 0", "1m",
        f"Gateway {_POD} has lost its lease: it sends everyone to stable",
        "Rollouts cannot go on while a gateway is cut off from the store.",
    ),
    Alert(
        "UnderstudyRecorderSpilling", "warning", f"increase({t.RECORDS_SPILLED}[10m]) > 0", "5m",
        f"Gateway {_POD} keeps records on disk alone ({{{{ $value | humanize }}}} in ten minutes)",
        "The store takes them too slowly, or not at all. Nothing is lost yet.",
    ),
    Alert(
        "UnderstudyRecorderLags", "warning", f"{t.RECORDER_LAG} > 60", "5m",
        f"Gateway {_POD}: its oldest record has waited {{{{ $value | humanizeDuration }}}} for the store",
        "Evidence is folded up to the slowest gateway: every rollout waits for it.",
    ),
    Alert(
        "UnderstudyJournalFills", "critical", f"{t.JOURNAL_BYTES} / {t.JOURNAL_LIMIT} > 0.8", "1m",
        f"Gateway {_POD}: its journal is {{{{ $value | humanizePercentage }}}} full",
        "Once it is full, records are lost.",
    ),
    Alert(
        "UnderstudyRecordsLost", "critical", f"increase({t.RECORDS_DROPPED}[15m]) > 0", "",
        f"Gateway {_POD} has lost {{{{ $value | humanize }}}} records in 15 minutes",
        "Their requests count nowhere; a rollout's evidence may be biased.",
    ),
)  # fmt: skip

ENGINE: Final = (
    Alert(
        "UnderstudyEngineSaturated", "warning",
        "max by (namespace, service, revision) (ray_vllm_kv_cache_usage_perc) > 0.95"
        " and sum by (namespace, service, revision) (ray_vllm_num_requests_waiting) > 0", "10m",
        "{{ $labels.revision }}: the KV cache is {{ $value | humanizePercentage }} full and requests wait",
        "Requests queue inside the engine; first tokens come late.",
    ),
    Alert(
        "UnderstudyEngineQueues", "warning",
        "sum by (namespace, service, revision) (ray_vllm_num_requests_waiting)"
        " > 2 * sum by (namespace, service, revision) (ray_vllm_num_requests_running)", "10m",
        "{{ $labels.revision }}: {{ $value | humanize }} requests wait inside the engine",
        "More than twice as many wait as run, for ten minutes.",
    ),
    Alert(
        "UnderstudyReplicaUnhealthy", "warning",
        "sum by (namespace, application) (ray_serve_deployment_replica_healthy == bool 0) > 0", "5m",
        "{{ $labels.application }}: {{ $value | humanize }} replicas of Ray Serve are unhealthy",
        "Ray starts them again; until then the others carry their load.",
    ),
    Alert(
        "UnderstudyGpuFault", "critical", "DCGM_FI_DEV_XID_ERRORS > 0", "",
        "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reports Xid {{ $value }}",
        "The driver has seen a fault of the GPU or of what runs on it.",
    ),
)  # fmt: skip


def alerts() -> tuple[Alert, ...]:
    """Every alert; those of burn rates share a name by indicator."""
    return (*burn_alerts(), *ROLLOUTS, *CONTROLLER, *GATEWAY, *ENGINE)


def groups(runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """A rule file of Prometheus."""
    sets: dict[str, list[dict[str, Any]]] = {
        "understudy-objectives": list(objectives()),
        "understudy-recordings": list(recordings()),
        "understudy-slo": [alert.to_rule(runbooks) for alert in burn_alerts()],
        "understudy-rollouts": [alert.to_rule(runbooks) for alert in ROLLOUTS],
        "understudy-controller": [alert.to_rule(runbooks) for alert in CONTROLLER],
        "understudy-gateway": [alert.to_rule(runbooks) for alert in GATEWAY],
        "understudy-engine": [alert.to_rule(runbooks) for alert in ENGINE],
    }
    return {"groups": [{"name": name, "rules": rules} for name, rules in sets.items()]}
