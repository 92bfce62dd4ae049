"""Replays of past rollouts as a JSON document, and laid out for people. Used by `what_if`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from services.cli.tables import STYLES, WORDS, console, moment, plain_table
from services.rollout.forecast import lasting

if TYPE_CHECKING:
    from services.rollout.replay import Replay


def document(replays: Sequence[tuple[Replay, Replay]]) -> dict[str, Any]:
    """Each rollout under its own rules and under the others, newest first. `faithful`: its own rules give what they gave."""
    return {"replays": [_one(own, other) for own, other in replays]}


def _one(own: Replay, other: Replay) -> dict[str, Any]:
    row = other.row
    return {
        "rollout": row.id,
        "service": row.service,
        "revision": row.revision,
        "started_at": row.started_at,
        "recorded": asdict(own.recorded),
        "faithful": own.replayed.same_as(own.recorded),
        "replayed": asdict(other.replayed),
        "same": other.replayed.same_as(own.recorded),
        "limits": list(other.limits),
    }


def show(found: Mapping[str, Any]) -> None:
    """One row for what was and one for what would have been; then what cannot be known."""
    screen = console()
    if not found["replays"]:
        screen.print("no rollout to play: none began in that time")
        return
    table = plain_table("started", "revision", "", "verdict", "in", "after", "users", "reason")
    for one in found["replays"]:
        was, would = one["recorded"], one["replayed"]
        table.add_row(moment(one["started_at"]), one["revision"], "was", *_cells(one, was))
        table.add_row("", "", "would be", *(_cells(one, would) if not one["same"] else [Text("the same", "dim")]))
    screen.print(table)
    for one in found["replays"]:
        for limit in one["limits"]:
            screen.print(Text(f"{one['revision']}: {limit}.", style="dim"))
        if not one["faithful"]:
            screen.print(
                Text(
                    f"{one['revision']}: played with its own rules it does not come out as it did: rows of its users are no longer "
                    "in the store, or it ran under another version of the platform. Do not trust its replay.",
                    style="yellow",
                )
            )


def _cells(one: Mapping[str, Any], outcome: Mapping[str, Any]) -> list[str | Text]:
    verdict = outcome["verdict"]
    word = Text(WORDS.get(verdict, "not known"), style=STYLES.get(verdict, "yellow"))
    where = f"canary step {outcome['step'] + 1}" if outcome["stage"] == "canary" else outcome["stage"]
    after = "–" if outcome["at"] is None else lasting(outcome["at"] - one["started_at"])
    users = (
        f"{outcome['candidate']:,} + {outcome['control']:,}"
        if outcome["candidate"] or outcome["control"]
        else f"{outcome['pairs']:,} mirrored"
    )
    return [word, where, after, users, outcome["reason"] or outcome["message"]]
