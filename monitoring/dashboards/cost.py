"""Cost: today's spend and budget, the month, answers, and other models on the same traffic. Of services with `spec.cost`."""

from __future__ import annotations

from monitoring.panels import REVISION, SERVICE, Dashboard, Panel, Query, Row, Variable, graph, number, rate
from services.common import telemetry as t

_CURRENCY = f"* on (namespace, service) group_left (currency) {t.COST_INFO}{{{SERVICE}}}"
_TODAY = f"sum by (namespace, service) ({t.COST_TODAY}{{{SERVICE}}})"


def money(title: str, text: str, expr: str, legend: str, width: int = 8) -> Panel:
    """A time series of amounts; the legend names their currency."""
    return graph(title, text, Query(f"{expr} {_CURRENCY}", f"{legend} ({{{{currency}}}})"), width=width)


NOW = Row("Today and this month", (
    number("Spent today", "Since midnight UTC, in the currency of the service's prices; choose one service where currencies differ.",
           f"sum({t.COST_TODAY}{{{SERVICE}}})", width=6),
    number("Share of the budget", "Of what a day may cost: the service nearest to it, or furthest above.",
           f"max({_TODAY} / on (namespace, service) {t.COST_BUDGET}{{{SERVICE}}})", "percentunit", 6),
    number("This month", "Estimate of what the running month will have cost.",
           f'sum({t.COST_MONTH}{{{SERVICE},bound="estimate"}})', width=6),
    number("1,000 answers", "What they cost, over seven days: the dearest service.", f"max({t.COST_PER_THOUSAND}{{{SERVICE}}})", width=6),
))  # fmt: skip

SPENT = Row("Spent", (
    money("Spent today", "Since midnight UTC, by service.", _TODAY, "{{service}}"),
    graph("By revision and arm", "Today's spend; mirrored copies and idle hours by themselves.",
          Query(f"sum by (revision, arm, kind) ({t.COST_TODAY}{{{REVISION}}})", "{{revision}} {{arm}} {{kind}}")),
    graph("Today against the budget", "1: a day's budget is spent.",
          Query(f"{_TODAY} / on (namespace, service) {t.COST_BUDGET}{{{SERVICE}}}", "{{service}}"), unit="percentunit", line=1.0),
    money("The month", "Estimate and bounds of 90 %, made of the last whole weeks; not there before seven whole days.",
          f"sum by (namespace, service, bound) ({t.COST_MONTH}{{{SERVICE}}})", "{{service}} {{bound}}"),
    money("1,000 answers", "Everything that was spent in seven days over the answers.",
          f"sum by (namespace, service) ({t.COST_PER_THOUSAND}{{{SERVICE}}})", "{{service}}"),
    money("1,000 good answers", "Estimate: as if answers that nobody marked were like the marked ones; bounds of 95 %.",
          f"1000 * sum by (namespace, service, bound) ({t.COST_PER_GOOD}{{{SERVICE}}})", "{{service}} {{bound}}"),
))  # fmt: skip

COMPARED = Row("Other models on the same traffic", (
    money("Today's tokens at list prices", "What today's live tokens would cost, beside what was spent.",
          f"sum by (namespace, service, model) ({t.COST_COMPARED}{{{SERVICE}}})", "{{service}} at {{model}}"),
    graph("Ours over theirs", "Today's spend over the list price of the same tokens; below 1 ours is cheaper.",
          Query(f"{_TODAY} / on (namespace, service) group_right () "
                f"(sum by (namespace, service, model) ({t.COST_COMPARED}{{{SERVICE}}}) > 0)", "{{service}} against {{model}}"), line=1.0),
    graph("Requests a day to break even", "From there own replicas, as many as now, cost less; beside it the requests of now, for a day.",
          Query(f"sum by (service, model) ({t.COST_BREAK_EVEN}{{{SERVICE}}})", "{{service}} against {{model}}"),
          Query(rate(t.REQUESTS, f'{SERVICE},kind="live"', "service", " * 86400"), "{{service}} now")),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-cost", "Understudy / Cost", "What services cost, and what the same answers would cost elsewhere.",
    (NOW, SPENT, COMPARED),
    (
        Variable("namespace", f"label_values({t.COST_INFO}, namespace)"),
        Variable("service", f'label_values({t.COST_INFO}{{namespace=~"$namespace"}}, service)'),
        Variable("revision", f"label_values({t.COST_TODAY}{{{SERVICE}}}, revision)"),
    ),
)  # fmt: skip
