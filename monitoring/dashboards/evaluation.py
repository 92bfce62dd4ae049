"""Evaluation: what the gate compared offline, what the judge says of mirrored answers, what people prefer."""

from __future__ import annotations

from monitoring.panels import (
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
)
from services.common import telemetry as t

_GATE = f'{SERVICE},metric="accuracy"'
_GATED = f'{SERVICE},reason=~"Gate.*|Evaluation.*"'
_JUDGE = f'{SERVICE},metric="judge"'
_PEOPLE = f'{SERVICE},metric="preference"'
_COMPARED = f'{SERVICE},kind="preference"'
_BY = "service, arm"
_NAME = "{{service}} {{arm}}"


def _effect(where: str) -> tuple[Query, Query]:
    return (
        Query(f"{t.ROLLOUT_EFFECT}{{{where}}}", "{{service}} {{bound}}"),
        Query(f"{t.ROLLOUT_MARGIN}{{{where}}}", "{{service}} margin"),
    )


GATE = Row("Gate: offline evaluations of the newest rollout", (
    number("Items", "Items of the data set on which both versions were evaluated.", f"max({t.GATE_ITEMS}{{{SERVICE}}})", width=4),
    Panel("Accuracy", "Share of the items answered rightly: candidate, and the champion as control.",
          (Query(f"{t.ROLLOUT_VALUE}{{{_GATE}}}", _NAME),), "percentunit", "number", 8, 4),
    Panel("What the gate said", "Gates passed and not passed since the controller's start.",
          (Query(f"sum by (service, event, reason) ({t.ROLLOUT_EVENTS}{{{_GATED}}})"),), kind="table", width=12, height=4),
    graph("Difference in accuracy", "Candidate against champion on the same items, with its bounds and the margin.",
          *_effect(_GATE), width=12),
    proof("Evidence against the candidate", "E-value over its threshold: at 1 the candidate falls at the gate.",
          Query(evidence(_GATE), "{{service}}"), width=12),
))  # fmt: skip

JUDGE = Row("Judge: mirrored answers of the rehearsal", (
    graph("Score by arm", "Mean score of mirrored answers; both revisions got the same prompts.",
          Query(mean(t.JUDGE_SCORE, SERVICE, _BY), _NAME), top=1.0),
    graph("Scores", "Median, and what nine of ten answers reach.", *quantiles(t.JUDGE_SCORE, SERVICE, _BY, _NAME, 0.5, 0.1), top=1.0),
    graph("Pairs", "Mirrored pairs each second by what came of them: `inconsistent` turned with the order, `unparsable` could not be read.",
          Query(rate(t.JUDGEMENTS, SERVICE, "service, result"), "{{service}} {{result}}")),
    graph("Difference in judged quality", "Candidate against stable, with its bounds and the margin.", *_effect(_JUDGE), width=12),
    proof("Evidence for harm", "E-value over its threshold: at 1 the rollout is aborted.", Query(evidence(_JUDGE), "{{service}}"),
          width=12),
))  # fmt: skip

PEOPLE = Row("People: answers compared side by side", (
    graph("Share of the preferences", "Of stable's and the candidate's answers, over people; a tie is half of one.",
          Query(f"{t.ROLLOUT_VALUE}{{{_PEOPLE}}}", _NAME), unit="percentunit", top=1.0),
    graph("Comparisons", "Answers compared each second, by arm: `good` was preferred, `neutral` was not, or it was a tie.",
          Query(rate(t.FEEDBACK, _COMPARED, "service, arm, mark"), "{{service}} {{arm}} {{mark}}")),
    graph("Difference of the shares", "Candidate against stable, with its bounds and the margin.", *_effect(_PEOPLE)),
    proof("Evidence for harm", "E-value over its threshold: at 1 the rollout is aborted.", Query(evidence(_PEOPLE), "{{service}}"),
          width=12),
    proof("Evidence for promotion", "E-value over its threshold: at 1 the candidate's answers count as no worse liked.",
          Query(evidence(_PEOPLE, "promotion"), "{{service}}"), width=12),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-evaluation", "Understudy / Evaluation",
    "Offline evaluations at the gate, the judge's scores of mirrored answers, what people prefer.",
    (GATE, JUDGE, PEOPLE),
    (
        Variable("namespace", f"label_values({t.LAST_LOOK}, namespace)"),
        Variable("service", f'label_values({t.LAST_LOOK}{{namespace=~"$namespace"}}, service)'),
    ),
)  # fmt: skip
