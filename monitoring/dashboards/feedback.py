"""Feedback and drift: what users say, by kind, arm and revision; whether stable still does as it did."""

from __future__ import annotations

from monitoring.panels import (
    LIVE,
    REVISION,
    SERVICE,
    Dashboard,
    Query,
    Row,
    Variable,
    evidence,
    graph,
    mean,
    number,
    proof,
    rate,
    share,
)
from services.common import telemetry as t

_BAD = 'mark="bad"'
_ANSWERS = f'{LIVE},outcome="ok"'

USERS = Row("Users", (
    number("Bad", "Share of the feedback that is bad: thumbs down, ratings of 2 or less, retries, escalations.",
           share(t.FEEDBACK, REVISION, _BAD, ""), "percentunit", 6),
    number("Said anything", "Marks for each whole answer.",
           f"{rate(t.FEEDBACK, REVISION, '')} / {rate(t.REQUESTS, _ANSWERS, '')}", "percentunit", 6),
    number("Marks", "Marks each second.", rate(t.FEEDBACK, REVISION, ""), "short", 6),
    number("Bad marks for each answer", "What the objective counts, over an hour.",
           f'max(understudy:sli_bad:ratio_rate1h{{{SERVICE},sli="feedback"}})', "percentunit", 6),
))  # fmt: skip

SHARES = Row("Shares", (
    graph("Bad feedback by revision", "Share of the marks that are bad.",
          Query(share(t.FEEDBACK, REVISION, _BAD, "service, revision"), "{{revision}}"), unit="percentunit", width=12),
    graph("Bad feedback by arm", "The same by arm; only control and candidate can be compared, their users were drawn by lot.",
          Query(share(t.FEEDBACK, REVISION, _BAD, "service, arm"), "{{service}} {{arm}}"), unit="percentunit", width=12),
    graph("By kind", "Marks each second by kind.",
          Query(rate(t.FEEDBACK, REVISION, "kind"), "{{kind}}")),
    graph("By kind and mark", "Good, bad, neutral.", Query(rate(t.FEEDBACK, REVISION, "kind, mark"), "{{kind}} {{mark}}")),
    proof("Guardrail", "The controller's evidence on feedback: e-value over threshold; 1 aborts.",
          Query(evidence(f'{SERVICE},metric=~"feedback|judge|errors"'), "{{service}} {{metric}}")),
))  # fmt: skip

DRIFT = Row("Drift of stable", (
    graph("Evidence", "Between rollouts, stable against a day to a week of its own: e-value over threshold; 1 alarms.",
          Query(f"{t.DRIFT_E_VALUE}{{{SERVICE}}} / {t.DRIFT_THRESHOLD}{{{SERVICE}}}", "{{service}} {{metric}}"), width=12, top=1.0),
    graph("Drifted", "1 where stable has drifted: `understudy drift` says how much and since when.",
          Query(f"{t.DRIFT_E_VALUE}{{{SERVICE}}} >= bool {t.DRIFT_THRESHOLD}{{{SERVICE}}}", "{{service}} {{metric}}"), width=12, top=1.0),
    graph("Samples", "Answers of stable that are looked at (`spec.drift.sample`): kept for the judge, or why not.",
          Query(rate(t.SAMPLES, SERVICE, "service, result"), "{{service}} {{result}}"), width=12),
    graph("Judged quality of stable", "Mean score of what was judged of stable's own answers.",
          Query(mean(t.JUDGE_SCORE, f'{SERVICE},arm="stable"', "service"), "{{service}}"), unit="percentunit", width=12, top=1.0),
))  # fmt: skip

PROMPTS = Row("Prompts of stable", (
    graph("Evidence of prompts", "Prompts against a week of the service's own (`drift.prompts`): e-value over threshold; 1 alarms.",
          Query(f"{t.PROMPTS_E_VALUE}{{{SERVICE}}} / {t.PROMPTS_THRESHOLD}{{{SERVICE}}}", "{{service}}"), width=6, top=1.0),
    graph("Topics", "Users of the last week by what their topic does; `understudy drift` names the topics.",
          Query(f"{t.PROMPTS_TOPICS}{{{SERVICE}}}", "{{service}} {{trend}}"), unit="percentunit", width=6, top=1.0),
    graph("Languages", "Users of the last week by their prompt's language; short prompts are often `unknown`.",
          Query(f"{t.PROMPTS_LANGUAGES}{{{SERVICE}}}", "{{service}} {{language}}"), unit="percentunit", width=6, top=1.0),
    graph("Lengths", "Words of the last week's prompts.",
          Query(f"{t.PROMPTS_WORDS}{{{SERVICE}}}", "{{service}} {{quantile}}"), width=6),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-feedback", "Understudy / Feedback and drift",
    "What users say of answers, and whether stable still does as it did.",
    (USERS, SHARES, DRIFT, PROMPTS),
    (
        Variable("namespace", f"label_values({t.REQUESTS}, namespace)"),
        Variable("service", f'label_values({t.REQUESTS}{{namespace=~"$namespace"}}, service)'),
        Variable("revision", f"label_values({t.REQUESTS}{{{SERVICE}}}, revision)"),
    ),
)  # fmt: skip
