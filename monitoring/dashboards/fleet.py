"""Fleet: all services at once; where to look first."""

from __future__ import annotations

from monitoring.panels import (
    NAMESPACE,
    SERVICE,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    graph,
    number,
    quantile,
    rate,
    share,
)
from services.common import telemetry as t

_LIVE = f'{SERVICE},kind="live"'
_ERROR = 'outcome="error"'
_OPEN = "understudy-service"


def _linked(panel: Panel) -> Panel:
    return Panel(
        panel.title, panel.text, panel.queries, panel.unit, panel.kind, panel.width, panel.height, panel.top, link=_OPEN
    )


NOW = Row("Now", (
    number("Services", "Services that the controller looks after.", f"count({t.LAST_LOOK}{{{SERVICE}}}) or vector(0)"),
    number("Requests", "Answers asked for each second, over all services.", rate(t.REQUESTS, _LIVE, ""), "reqps"),
    number("Failed", "Share of live attempts that ended in an error.",
           f"{share(t.REQUESTS, _LIVE, _ERROR, '')} or vector(0)", "percentunit"),
    number("Output tokens", "Tokens answered each second.", rate(t.TOKENS, f'{_LIVE},direction="output"', ""), "short"),
    number("Rollouts under way", "In gate, rehearsal, canary or watch.",
           f'count({t.ROLLOUT_STAGE}{{{SERVICE},stage!="finished"}} == 1) or vector(0)'),
    number("Alerts", "Alerts of Understudy that fire.",
           f'count(ALERTS{{alertname=~"Understudy.*",alertstate="firing",{NAMESPACE}}}) or vector(0)'),
))  # fmt: skip

SLO = Row("Objectives", (
    graph("Budget burnt, last hour",
          "Share of bad events over the last hour, as a multiple of what the objective allows: 1 uses the budget up in exactly 30 days, "
          "14.4 is paged.",
          Query(f"understudy:sli_bad:ratio_rate1h{{{SERVICE}}} / on (sli) group_left () (1 - understudy:slo:objective)",
                "{{service}} {{sli}}"), width=12, line=1.0),
    graph("Budget left, three days", "What the last three days leave of their part of the budget; below 0 more was used than was there.",
          Query(f"1 - understudy:sli_bad:ratio_rate3d{{{SERVICE}}} / on (sli) group_left () (1 - understudy:slo:objective)",
                "{{service}} {{sli}}"), unit="percentunit", width=12),
))  # fmt: skip

TRAFFIC = Row("Services", (
    _linked(graph("Requests", "Live attempts each second by service.",
                  Query(rate(t.REQUESTS, _LIVE, "service"), "{{service}}"), unit="reqps")),
    _linked(graph("Failed attempts", "Share of live attempts that ended in an error; a candidate's that stable answered count here.",
                  Query(share(t.REQUESTS, _LIVE, _ERROR, "service"), "{{service}}"), unit="percentunit")),
    _linked(graph("First token, p95", "Time to the first token of streamed answers, 95th percentile.",
                  Query(quantile(0.95, t.TIME_TO_FIRST_TOKEN, _LIVE, "service"), "{{service}}"), unit="s")),
    _linked(graph("Output tokens", "Tokens answered each second by service.",
                  Query(rate(t.TOKENS, f'{_LIVE},direction="output"', "service"), "{{service}}"))),
    _linked(graph("Bad feedback", "Share of the feedback that is bad: thumbs down, ratings of 2 or less, retries, escalations.",
                  Query(share(t.FEEDBACK, SERVICE, 'mark="bad"', "service"), "{{service}}"), unit="percentunit")),
    _linked(graph("Refused requests", "Requests each second that reached no engine; `unknown` named no service.",
                  Query(rate(t.REFUSED, SERVICE, "service"), "{{service}}"), unit="reqps")),
))  # fmt: skip

ROLLOUTS = Row("Rollouts", (
    Panel("Stages", "Stage of each service's newest rollout.",
          (Query(f"{t.ROLLOUT_STAGE}{{{SERVICE}}} == 1", "{{service}}: {{stage}}"),), kind="states", width=12),
    _linked(graph("Weight", "Share of users on the candidate.", Query(f"{t.ROLLOUT_WEIGHT}{{{SERVICE}}}", "{{service}}"),
                  unit="percentunit", width=12, top=1.0)),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-fleet", "Understudy / Fleet", "All services: traffic, objectives, rollouts under way.",
    (NOW, SLO, TRAFFIC, ROLLOUTS),
    (Variable("namespace", f"label_values({t.REQUESTS}, namespace)"), Variable("service", f"label_values({t.LAST_LOOK}, service)")),
)  # fmt: skip
