"""Lays the documents of `views` out for people, with rich. Colour only repeats what the words say; a pipe gets plain text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli import narrative, views

STYLES: Final = {"advance": "green", "abort": "red", "hold": "yellow", "error": "magenta", "continue": "cyan"}
WORDS: Final = {
    "advance": "promoted",
    "abort": "rolled back",
    "hold": "held",
    "error": "error",
    "continue": "under way",
}


def console() -> Console:
    """Standard output as it is now; lines in a pipe are never folded."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=10_000)


def status(document: Mapping[str, Any]) -> None:
    """One row a service."""
    places = any("namespace" in one for one in document["services"])
    columns = ("service", "stable", "candidate", "stage", "weight", "users", "verdict", "what it waits for, or why")
    table = plain_table(*_placed(places, "namespace"), *columns)
    for one in document["services"]:
        rollout = one["rollout"]
        stable = one["stable"]["revision"] if one["stable"] else "none yet"
        place = _placed(places, one.get("namespace"))
        if rollout is None:
            table.add_row(*place, one["service"], stable, "–", "–", "–", "–", "–", f"{_trouble(one)}no rollout yet")
            continue
        table.add_row(
            *place, one["service"], stable, rollout["revision"], _stage(rollout), f"{rollout['weight']:g} %", _users(rollout["users"]),
            _verdict(rollout["verdict"]), _trouble(one) + (rollout["waits_for"] or rollout["message"] or rollout["reason"]),
        )  # fmt: skip
    console().print(table)


def rollouts(document: Mapping[str, Any]) -> None:
    """One row a rollout."""
    if not document["rollouts"]:
        console().print("no rollout yet; set the challenger alias on a version to start one")
        return
    places = any("namespace" in one for one in document["rollouts"])
    table = plain_table(
        *_placed(places, "namespace"),
        "started",
        "service",
        "revision",
        "verdict",
        "in",
        "took",
        "users",
        "reason",
        "rollout",
    )
    for one in document["rollouts"]:
        place, where = _placed(places, one.get("namespace")), one["decided_in"] or _stage(one)
        table.add_row(
            *place, moment(one["started_at"]), one["service"], one["revision"], _verdict(one["verdict"]), where,
            narrative.seconds_text(one["seconds"]), _users(one["users"]), one["reason"], one["id"],
        )  # fmt: skip
    console().print(table)


def explain(document: Mapping[str, Any]) -> None:
    """Sentences, a table of the numbers, the audit trail."""
    screen = console()
    screen.print(Text(document["headline"], style=f"bold {STYLES[document['verdict']]}"))
    for sentence in document["sentences"]:
        screen.print(Text(sentence))
    if document["metrics"]:
        screen.print()
        for reading in document["metrics"]:
            sign = "red" if reading["harmful"] else "green" if reading["non_inferior"] else "default"
            screen.print(Text("• ", style=sign) + Text(f"{reading['compared']} {reading['judged']}"))
    if document.get("budget"):
        screen.print()
        for sentence in views.budget_sentences(document["budget"]):
            screen.print(Text(sentence, style="dim"))
    screen.print()
    screen.print(
        Text(
            f"rollout {document['id']} of {document['service']}, started {moment(document['started_at'])}", style="dim"
        )
    )
    if document["audit"] is None:
        namespace = document["namespace"]
        screen.print(
            Text(f"who did what: kubectl events --for llmservice/{document['service']} -n {namespace}", style="dim")
        )
        return
    table = plain_table("time", "who", "action", "reason", "message")
    for entry in document["audit"]:
        table.add_row(moment(entry["at"]), entry["actor"], entry["action"], entry["reason"], entry["message"])
    screen.print(table)


def doctor(document: Mapping[str, Any]) -> None:
    """One row a check; what is missing with the command that gets it."""
    table = plain_table("check", "", "what was found, and what to do")
    for finding in document["findings"]:
        word = (
            Text("ok", "green")
            if finding["ok"]
            else Text("missing", "red")
            if finding["required"]
            else Text("slow", "yellow")
        )
        table.add_row(finding["check"], word, finding["message"])
    console().print(table)


def plain_table(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _verdict(verdict: str) -> Text:
    return Text(WORDS[verdict], style=STYLES[verdict])


def _stage(rollout: Mapping[str, Any]) -> str:
    paused = ", paused" if rollout["paused"] else ""
    if rollout["stage"] != "canary":
        return f"{rollout['stage']}{paused}"
    steps = f" of {rollout['steps']}" if rollout["steps"] else ""
    number = "" if rollout["step"] is None else f" step {rollout['step'] + 1}{steps}"
    return f"canary{number}{paused}"


def _users(users: Mapping[str, int] | None) -> str:
    if users is None:
        return "–"
    if "per_arm" in users:
        return f"{users['per_arm']:,} an arm"
    if users["candidate"] or users["control"]:
        return f"{users['candidate']:,} candidate, {users['control']:,} control"
    return f"{users['mirrored']:,} mirrored" if users["mirrored"] else "none"


def _placed(places: bool, namespace: str | None) -> tuple[str, ...]:
    """A column that only documents of a cluster have."""
    return (namespace or "–",) if places else ()


def _trouble(service: Mapping[str, Any]) -> str:
    """Said only where it is not as it should be."""
    if service.get("trouble"):
        return f"{service['trouble']}; "
    if service["gateways"] is None:
        return ""
    if service["gateways"] == 0:
        return "no gateway is alive; "
    behind = service["gateways"] - service["gateways_up_to_date"]
    return f"{behind} of {service['gateways']} gateways have not yet taken the newest route; " if behind else ""


def moment(at: float) -> str:
    """A time for people, in the machine's time zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
