"""What `understudy experiment` shows of A/B experiments: a JSON document of one or of all, and its table for people.

Reads the store only. `experiment_page` makes a page of the same document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from services.cli import narrative, tables
from services.cli.errors import CliError, NotFound
from services.common.clock import DAY
from services.rollout.experiment import ExperimentStatus, rules_of, status_of
from services.rollout.experiment_results import Result
from services.rollout.resources_experiment import HOLDOUT, Experiment
from services.store.rows import ExperimentRow

if TYPE_CHECKING:
    from services.store import Store

YEAR: Final = 365 * DAY
CLAIMS: Final = {"better": "better", "worse": "worse", "equal": "no difference", "open": "nothing shown yet"}
STYLES: Final = {"better": "green", "worse": "red", "equal": "cyan", "open": "default"}


def experiments(store: Store) -> dict[str, Any]:
    """All experiments, newest first, without their course."""
    now = store.now()
    return {"experiments": [_document(row, now, ()) for row in reversed(store.experiments())]}


def experiment(store: Store, name: str) -> dict[str, Any]:
    """One, by `SERVICE:NAME` or by its name where no other service has one of that name; with its course over time.

    Raises:
        NotFound: there is none, or more than one.
    """
    rows = store.experiments()
    found = [row for row in rows if name in (row.id, row.name)]
    if len(found) != 1:
        known = ", ".join(row.id for row in (found or rows)) or "none"
        raise NotFound(f"{'more than one' if found else 'no'} experiment {name!r}; experiments: {known}")
    row = found[0]
    return _document(row, store.now(), store.readings(row.id))


def _document(row: ExperimentRow, now: float, course: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    try:
        rules, status = rules_of(row), status_of(row)
    except ValueError as error:
        raise CliError(f"experiment {row.id} was written by another version of the platform") from error
    versions = {variant.name: variant.version for variant in rules.variants}
    pace = _pace(row, rules, status, course, now)
    results = [_told(result, rules, status, None if row.ended_at is not None else pace) for result in status.results]
    document: dict[str, Any] = {
        "id": row.id,
        "service": row.service,
        "name": row.name,
        "state": "void" if status.fault is not None else status.state,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "finished_at": row.finished_at,
        "seconds": (row.ended_at or now) - row.started_at,
        "alpha": rules.alpha,
        "min_units": rules.min_units,
        "users_per_day": None if pace is None else pace * DAY,
        "groups": [
            {"name": name, "percent": share / 100, "version": versions.get(name), "users": status.users.get(name, 0)}
            for name, share in rules.groups()
        ],
        "control": rules.variants[0].name,
        "results": results,
        "course": [dict(one) for one in course],
    }
    return {**document, "headline": _headline(document), "sentences": _sentences(document, rules, status)}


def _pace(
    row: ExperimentRow, rules: Experiment, status: ExperimentStatus, course: Sequence[Mapping[str, Any]], now: float
) -> float | None:
    """Closed users of the smallest group in a second: over the last day, where there are results of a day ago; else since the start."""
    looked, least = status.looked_at or now, min(status.users.values(), default=0)
    began, before = row.started_at + rules.horizon + rules.settle, 0
    old = [one for one in course if one["at"] <= looked - DAY]
    if old:
        began = old[-1]["at"]
        before = min(min(one["users"], one["usersControl"]) for one in old if one["at"] == began)
    return (least - before) / (looked - began) if least > before and looked > began else None


def _told(result: Result, rules: Experiment, status: ExperimentStatus, pace: float | None) -> dict[str, Any]:
    """A result with its sentence, and about how long it takes to a claim."""
    least = min(status.users.values(), default=0)
    missing = max(0.0, rules.min_units - least)
    if result.users_factor is not None:
        missing = max(missing, least * (result.users_factor - 1))
    decides = None
    if result.claim == "open" and pace and (result.users_factor is not None or missing):
        decides = missing / pace
    document = {
        **result.model_dump(mode="json"),
        "decides_in": decides,
        "label": narrative.metric_of(result.metric).label,
    }
    return {**document, "said": _said(document, rules.variants[0].name)}


def _said(result: Mapping[str, Any], control: str) -> str:
    metric, relative = result["metric"], result["relative"]
    values = narrative.value_text(metric, result["value"]), narrative.value_text(metric, result["control"])
    quantile = "" if result["quantile"] is None else f" (p{100 * result['quantile']:g})"
    text = f"{result['label']}{quantile}: {values[0]} for {result['variant']}, {values[1]} for {control}"
    if result["effect"] is not None:
        text += f"; {narrative.change_text(metric, result['effect'], relative)}"
        if result["lower"] is not None or result["upper"] is not None:
            text += f" ({narrative.interval_text(result)})"
    match result["claim"]:
        case "better" | "worse":
            text += f". {result['variant']} is shown {result['claim']}"
        case "equal":
            margin = narrative.change_text(metric, result["margin"], relative).lstrip("+")
            text += f". No difference as large as {margin} is left"
        case _:
            text += ". No difference is shown yet"
            if result["decides_in"] is not None and result["decides_in"] < YEAR:
                text += f"; about {narrative.seconds_text(result['decides_in'])} more at today's traffic if the estimate holds"
            elif result["decides_in"] is not None or result["effect"] is not None:
                text += "; no time can be named at today's traffic"
    return narrative.sentence(text)


def _headline(document: Mapping[str, Any]) -> str:
    shown = [one for one in document["results"] if one["claim"] != "open"]
    state = {
        "running": "runs", "paused": "is paused", "closing": "has ended; its last users are still measured", "finished": "has ended",
        "void": "is void",
    }[document["state"]]  # fmt: skip
    spent = narrative.seconds_text(document["seconds"])
    counted = (
        f"{len(shown)} of {len(document['results'])} comparisons decided" if document["results"] else "no users yet"
    )
    return f"Experiment {document['name']} of {document['service']} {state} ({spent}): {counted}."


def _sentences(document: Mapping[str, Any], rules: Experiment, status: ExperimentStatus) -> list[str]:
    said = []
    if status.fault is not None:
        said.append(narrative.sentence(f"Its numbers mean nothing: {status.fault} ({status.fault_reason})"))
    elif status.message:
        said.append(narrative.sentence(f"It ended because {status.message} ({status.reason})"))
    least = min((group["users"] for group in document["groups"]), default=0)
    if least < rules.min_units and document["ended_at"] is None:
        said.append(
            f"Nothing is concluded before {rules.min_units:,} users of every group are measured; {least:,} are."
        )
    said.append(
        f"All claims together are wrong with a probability of at most {rules.alpha:g}, however often one looks. Nothing is promoted: "
        "to bring a variant in, set the alias challenger on its version."
    )
    if any(group["name"] == HOLDOUT for group in document["groups"]):
        said.append("The holdout gets whatever stable is.")
    return said


def listing(document: Mapping[str, Any]) -> None:
    """One row an experiment."""
    table = tables.plain_table("started", "experiment", "state", "took", "users", "shown")
    for one in document["experiments"]:
        shown = [
            f"{r['variant']} {CLAIMS[r['claim']]} in {r['metric']}" for r in one["results"] if r["claim"] != "open"
        ]
        users = ", ".join(f"{group['users']:,} {group['name']}" for group in one["groups"])
        span = narrative.seconds_text(one["seconds"])
        table.add_row(tables.moment(one["started_at"]), one["id"], one["state"], span, users, "; ".join(shown) or "–")
    tables.console().print(table)


def result(document: Mapping[str, Any]) -> None:
    """Sentences, the groups, and a line for each comparison."""
    screen = tables.console()
    screen.print(Text(document["headline"], style="bold"))
    for sentence in document["sentences"]:
        screen.print(Text(sentence))
    table = tables.plain_table("group", "version", "share", "users measured")
    for group in document["groups"]:
        table.add_row(group["name"], group["version"] or "stable", f"{group['percent']:g} %", f"{group['users']:,}")
    screen.print(table)
    for one in document["results"]:
        screen.print(Text("• ", style=STYLES[one["claim"]]) + Text(one["said"]))
