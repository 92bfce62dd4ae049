"""Service: one service's answers, by revision."""

from __future__ import annotations

from monitoring.panels import (
    LIVE,
    REVISION,
    SERVICE,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    graph,
    quantiles,
    rate,
    share,
)
from services.common import telemetry as t

_BY = "service, revision"
_NAME = "{{revision}}"

LATENCY = Row("Latency", (
    graph("First token", "From sending to the engine until its first token; streamed answers.",
          *quantiles(t.TIME_TO_FIRST_TOKEN, LIVE, _BY, _NAME, 0.5, 0.95, 0.99), unit="s"),
    graph("Time between tokens", "Mean gap between the tokens of one answer, over answers.",
          *quantiles(t.TIME_PER_OUTPUT_TOKEN, LIVE, _BY, _NAME, 0.5, 0.95, 0.99), unit="s"),
    graph("Whole answer", "From sending to the engine until the answer's end.",
          *quantiles(t.REQUEST_DURATION, LIVE, _BY, _NAME, 0.5, 0.95, 0.99), unit="s"),
    graph("Before the engine", "From the request's arrival until it was sent: body, quotas, filters, an engine that had to start, an "
          "attempt before.", *quantiles(t.QUEUE_TIME, LIVE, _BY, _NAME, 0.5, 0.99), unit="s"),
    graph("Tokens per second of one answer", "Median, and the speed that nineteen of twenty answers reach.",
          *quantiles(t.TOKEN_RATE, LIVE, _BY, _NAME, 0.5, 0.05)),
    graph("Requests that wait for an engine", "Held while an engine that had ended starts again.",
          Query(f"sum by (service) ({t.HELD}{{{SERVICE}}})", "{{service}}")),
))  # fmt: skip

TRAFFIC = Row("Traffic", (
    graph("Attempts", "Live attempts each second by outcome.",
          Query(rate(t.REQUESTS, LIVE, "outcome, revision"), "{{revision}} {{outcome}}"), unit="reqps"),
    graph("Tokens", "Tokens each second: input, of it cached, and output.",
          Query(rate(t.TOKENS, LIVE, "direction, revision"), "{{revision}} {{direction}}")),
    graph("Mirrored copies", "Copies answered each second in rehearsal, and those not made.",
          Query(rate(t.REQUESTS, f'{REVISION},kind="mirror"', "revision"), "{{revision}}"),
          Query(rate(t.MIRROR_DROPPED, SERVICE, "service, reason"), "{{service}} not made: {{reason}}"), unit="reqps"),
))  # fmt: skip

FAULTS = Row("Errors", (
    graph("Failed attempts", "Share of live attempts that ended in an error.",
          Query(share(t.REQUESTS, LIVE, 'outcome="error"', _BY), _NAME), unit="percentunit"),
    graph("Failures by kind", "Live attempts that failed each second: no connection, no answer in time, the engine's status.",
          Query(rate(t.FAILURES, LIVE, "reason, revision"), "{{revision}} {{reason}}"), unit="reqps"),
    graph("Refused requests", "Requests that reached no engine, by the error's code.",
          Query(rate(t.REFUSED, SERVICE, "service, reason"), "{{service}} {{reason}}"), unit="reqps"),
    graph("Candidate's failures", "Failures of the candidate that stable answered, and times a gateway took it out by itself.",
          Query(rate(t.FALLBACKS, SERVICE, "service"), "{{service}} on stable"),
          Query(rate(t.EJECTIONS, SERVICE, "service"), "{{service}} taken out")),
    graph("Content filters", "Prompts and answers that a filter blocked or redacted.",
          Query(rate(t.FILTERED, SERVICE, "filter, text, action"), "{{filter}}: {{text}} {{action}}")),
    Panel("Conditions", "What holds of the resource; 0 is a fault that its reason names.",
          (Query(f"max by (service, type, reason) ({t.CONDITION}{{{SERVICE}}})"),), kind="table"),
))  # fmt: skip

FEEDBACK = Row("Feedback and objectives", (
    graph("Feedback", "Marks each second by what they say.",
          Query(rate(t.FEEDBACK, REVISION, "mark, revision"), "{{revision}} {{mark}}"), width=12),
    graph("Bad events", "Share of bad events over an hour by indicator; the objective says how many are allowed.",
          Query(f"understudy:sli_bad:ratio_rate1h{{{SERVICE}}}", "{{service}} {{sli}}"),
          Query("1 - understudy:slo:objective", "allowed {{sli}}"), unit="percentunit", width=12),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-service", "Understudy / Service", "One service by revision: latency, traffic, errors, feedback.",
    (LATENCY, TRAFFIC, FAULTS, FEEDBACK),
    (
        Variable("namespace", f"label_values({t.REQUESTS}, namespace)"),
        Variable("service", f'label_values({t.REQUESTS}{{namespace=~"$namespace"}}, service)'),
        Variable("revision", f"label_values({t.REQUESTS}{{{SERVICE}}}, revision)"),
    ),
    (("Stage", f"{t.ROLLOUT_STAGE}{{{SERVICE}}} == 1 unless ({t.ROLLOUT_STAGE}{{{SERVICE}}} offset 1m) == 1"),),
)  # fmt: skip
