"""A rollout's course in time, as pictures need it: its stages, and each metric's readings as curves. Used by `plot` and by the demo's
report. Reads only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.rollout import reasons
from services.store import Store
from services.store.rows import RolloutRow

DRAWN: Final = (
    "at", "stage", "step", "n_control", "n_candidate", "control", "candidate", "effect", "lower", "upper",
    "e_harm", "harm_threshold", "harmful", "e_promote", "promote_threshold", "non_inferior",
)  # fmt: skip


def stages(store: Store, row: RolloutRow, audit: Sequence[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    """When the rollout was in which stage and step: the gate, the engine's start, then what the routes published for it say."""
    end = row.finished_at or now
    found: list[dict[str, Any]] = [{"stage": "gate", "step": 0, "weight": 0, "from": row.started_at, "to": end}]
    passed = next(
        (entry["at"] for entry in audit if entry["reason"] in (reasons.GATE_PASSED, reasons.GATE_SKIPPED)), None
    )
    if passed is not None:
        found[0]["to"] = passed
        found.append({"stage": "start", "step": 0, "weight": 0, "from": passed, "to": end})
    for at, route in store.route_history(row.service, row.started_at):
        if at > end:
            break
        stage: str = route.stage if route.rollout == row.id else "idle"
        entry: dict[str, Any] = {"stage": stage, "step": route.step, "weight": route.weight, "from": at, "to": end}
        last = found[-1]
        if (stage, route.step, route.weight) == (last["stage"], last["step"], last["weight"]):
            continue
        if stage == "idle":
            if last["stage"] not in ("rehearsal", "canary"):
                continue
            entry["stage"] = "watch" if row.verdict == "advance" else "idle"
        last["to"] = at
        found.append(entry)
    return found


def drawn(readings: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Each metric's readings as pictures draw them; those that repeat the one before are left out, the last of a run kept."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for reading in readings:
        curves.setdefault(reading["metric"], []).append({name: reading[name] for name in DRAWN})
    return {metric: _without_repeats(curve) for metric, curve in curves.items()}


def _without_repeats(curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    def content(reading: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in reading.items() if name != "at"}

    triples = zip(curve, curve[1:], curve[2:], strict=False)
    inner = [one for before, one, after in triples if not content(before) == content(one) == content(after)]
    return [*curve[:1], *inner, *curve[1:][-1:]]
