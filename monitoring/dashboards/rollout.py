"""Rollout: the arms side by side, with the controller's own evidence and its thresholds."""

from __future__ import annotations

from monitoring.panels import (
    LIVE,
    SERVICE,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    evidence,
    graph,
    mean,
    number,
    proof,
    quantiles,
    rate,
    share,
)
from services.common import telemetry as t

_ARMS = f'{LIVE},arm=~"control|candidate"'
_COPIES = f'{SERVICE},kind="mirror"'
_BY = "service, arm"
_NAME = "{{service}} {{arm}}"

STATE = Row("State", (
    Panel("Stage", "The stage of the newest rollout.", (Query(f"{t.ROLLOUT_STAGE}{{{SERVICE}}} == 1", "{{service}}: {{stage}}"),),
          kind="states", width=10, height=6),
    Panel("Verdict", "What holds now. `hold`: a person decides. `error`: the evidence is void.",
          (Query(f"{t.ROLLOUT_VERDICT}{{{SERVICE}}} == 1", "{{service}}: {{verdict}}"),), kind="states", width=7, height=6),
    Panel("Waits for", "Empty where it waits for nothing but time and evidence.",
          (Query(f"{t.ROLLOUT_WAITING}{{{SERVICE}}}", "{{service}}: {{reason}}"),), kind="states", width=7, height=6),
))  # fmt: skip

PROGRESS = Row("Progress", (
    number("Step", "Canary step, from 0.", f"max({t.ROLLOUT_STEP}{{{SERVICE}}})", width=3),
    Panel("Decided", "When the newest rollout was decided.", (Query(f"{t.ROLLOUT_DECIDED}{{{SERVICE}}} * 1000", "{{service}}"),),
          "dateTimeAsIso", "number", 7, 4),
    Panel("Revisions", "Candidate and champion.", (Query(f"max by (service, revision, champion) ({t.ROLLOUT}{{{SERVICE}}})"),),
          kind="table", width=14, height=4),
    graph("Weight", "Share of users on the candidate.", Query(f"{t.ROLLOUT_WEIGHT}{{{SERVICE}}}", "{{service}}"),
          unit="percentunit", width=5, top=0.5),
    graph("Users", "Users whose values are final, by arm; both arms should grow alike.",
          Query(f"{t.ROLLOUT_USERS}{{{SERVICE}}}", _NAME), width=6),
    graph("Sample ratio", "Evidence that the arms do not get the users they should, over its threshold: at 1 the assignment is broken.",
          Query(f"{t.SAMPLE_RATIO}{{{SERVICE}}} / {t.SAMPLE_RATIO_THRESHOLD}{{{SERVICE}}}", "{{service}}"), width=5, top=1.0),
    Panel("Events", "Transitions and verdicts since the controller's start.",
          (Query(f"sum by (service, event, reason) ({t.ROLLOUT_EVENTS}{{{SERVICE}}})"),), kind="table"),
))  # fmt: skip

EVIDENCE = Row("The controller's evidence", (
    proof("Evidence for harm", "E-value over its threshold: at 1 the metric counts as harmed and the rollout is aborted.",
          Query(evidence(SERVICE), "{{service}} {{metric}}")),
    proof("Evidence for promotion", "E-value over its threshold: at 1 the metric counts as not worse. Of the last step's users.",
          Query(evidence(SERVICE, "promotion"), "{{service}} {{metric}}")),
    graph("Effect over the margin", "Candidate against control as estimated, over what is allowed: above 1 it is worse than that, below 0 "
          "better than control. Of a goal: from 1 on it is good enough.",
          Query(f'{t.ROLLOUT_EFFECT}{{{SERVICE},bound="estimate"}} / on (namespace, service, metric) group_left () '
                f"({t.ROLLOUT_MARGIN}{{{SERVICE}}} != 0)", "{{service}} {{metric}}"), top=3.0, bottom=-3.0, line=1.0),
    Panel("Estimates by arm", "Each guardrail's metric in each arm, over users: shares, seconds, tokens per second.",
          (Query(f"{t.ROLLOUT_VALUE}{{{SERVICE}}}", "{{service}} {{metric}} {{arm}}"),), width=24, log=True),
    graph("Effect and its bounds", "Candidate against control, relative for times and speeds; the bounds hold at every look at once. "
          "Harm is an effect beyond the margin, which is negative where more is better. The axis ends at 1 either way.",
          Query(f"{t.ROLLOUT_EFFECT}{{{SERVICE}}}", "{{service}} {{metric}} {{bound}}"),
          Query(f"{t.ROLLOUT_MARGIN}{{{SERVICE}}}", "{{service}} {{metric}} margin"), width=24, top=1.0, bottom=-1.0),
    graph("Judge's score", "Mean score of the mirrored answers, by arm.",
          Query(mean(t.JUDGE_SCORE, SERVICE, _BY), _NAME), width=12, top=1.0),
    graph("Judged pairs", "Mirrored pairs each second by what came of them.",
          Query(rate(t.JUDGEMENTS, SERVICE, "service, result"), "{{service}} {{result}}"), width=12),
))  # fmt: skip

ARMS = Row("The arms as the gateways measure them", (
    graph("First token", "Streamed answers.", *quantiles(t.TIME_TO_FIRST_TOKEN, _ARMS, _BY, _NAME, 0.5, 0.95), unit="s"),
    graph("Time between tokens", "Mean gap of one answer, over answers.",
          *quantiles(t.TIME_PER_OUTPUT_TOKEN, _ARMS, _BY, _NAME, 0.5, 0.95), unit="s"),
    graph("Tokens per second of one answer", "Median, and what nineteen of twenty answers reach.",
          *quantiles(t.TOKEN_RATE, _ARMS, _BY, _NAME, 0.5, 0.05)),
    graph("Failed attempts", "Share of live attempts that ended in an error.",
          Query(share(t.REQUESTS, _ARMS, 'outcome="error"', _BY), _NAME), unit="percentunit"),
    graph("Bad feedback", "Share of the feedback that is bad.",
          Query(share(t.FEEDBACK, f'{SERVICE},arm=~"control|candidate"', 'mark="bad"', _BY), _NAME), unit="percentunit"),
    graph("Traffic", "Live attempts each second.", Query(rate(t.REQUESTS, _ARMS, _BY), _NAME), unit="reqps"),
    graph("Rehearsal: first token", "Mirrored copies; both revisions get the same prompts.",
          *quantiles(t.TIME_TO_FIRST_TOKEN, _COPIES, _BY, _NAME, 0.5, 0.95), unit="s"),
    graph("Rehearsal: failed copies", "Share of mirrored copies that ended in an error.",
          Query(share(t.REQUESTS, _COPIES, 'outcome="error"', _BY), _NAME), unit="percentunit"),
    graph("Gateways' own measures", "Candidate's failures answered by stable, times it was taken out, copies not made.",
          Query(rate(t.FALLBACKS, SERVICE, "service"), "{{service}} on stable"),
          Query(rate(t.EJECTIONS, SERVICE, "service"), "{{service}} taken out"),
          Query(rate(t.MIRROR_DROPPED, SERVICE, "service, reason"), "{{service}} copy not made: {{reason}}")),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-rollout", "Understudy / Rollout", "One service's newest rollout: the arms side by side, the evidence, its thresholds.",
    (STATE, PROGRESS, EVIDENCE, ARMS),
    (
        Variable("namespace", f"label_values({t.ROLLOUT}, namespace)"),
        Variable("service", f'label_values({t.ROLLOUT}{{namespace=~"$namespace"}}, service)'),
        Variable("revision", f"label_values({t.REQUESTS}{{{SERVICE}}}, revision)"),
    ),
    (
        ("Stage", f"{t.ROLLOUT_STAGE}{{{SERVICE}}} == 1 unless ({t.ROLLOUT_STAGE}{{{SERVICE}}} offset 1m) == 1"),
        ("Verdict", f'{t.ROLLOUT_VERDICT}{{{SERVICE},verdict!="continue"}} == 1 unless ({t.ROLLOUT_VERDICT}{{{SERVICE}}} offset 1m) == 1'),
    ),
)  # fmt: skip
