"""From simulated runs to tables: shares with Clopper-Pearson intervals, medians, and the Markdown of `docs/concepts/evidence-proof.md`.

Called by `benchmarks.evidence`. Computes nothing new about rollouts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from benchmarks.evidence_cells import EFFECTS, FEW, INCIDENTS, METRICS, ONSETS, SAME, SIGMAS
from benchmarks.evidence_samples import POINTS, bound_rate, bound_slower, levels

RULES = {
    "understudy": "Understudy",
    "growthbook": "GrowthBook",
    "kayenta": "Kayenta",
    "repeated-tests": "repeated tests",
    "argo": "Argo",
    "argo-fitted": "Argo, fitted",
    "flagger": "Flagger",
    "flagger-fitted": "Flagger, fitted",
}
NAMES = {"errors": "errors", "ttft": "p95 TTFT", "feedback": "bad marks"}
Table = dict[str, Any]


def interval(hits: int, runs: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, runs - hits + 1))
    high = 1.0 if hits == runs else float(beta.ppf(1 - tail, hits + 1, runs - hits))
    return low, high


def share(hits: int, runs: int) -> Table:
    """Hits, runs, their share and its 95 % interval."""
    low, high = interval(hits, runs)
    return {"hits": hits, "runs": runs, "share": round(hits / runs, 5), "low": round(low, 5), "high": round(high, 5)}


def summarise(runs: Mapping[str, Sequence[Any]]) -> Table:
    """All tables as JSON."""
    rollouts = {cell: _rules(some) for cell, some in runs.items() if isinstance(some[0], dict)}
    samples = {cell: _sample(some) for cell, some in runs.items() if not isinstance(some[0], dict)}
    bounds = {f"point/{name}": round(bound_rate(point), 1) for name, point in POINTS.items()}
    bounds |= {f"slower/{lv.name}/{s:g}": round(bound_slower(lv.alpha, s), 1) for lv in levels() for s in SIGMAS}
    fixed = {name: point.fixed for name, point in POINTS.items()}
    return {"rollouts": rollouts, "samples": samples, "bounds": bounds, "fixed": fixed}


def _rules(runs: Sequence[Mapping[str, Any]]) -> Table:
    return {rule: _rule([run[rule] for run in runs]) for rule in RULES}


def _rule(runs: Sequence[Mapping[str, Any]]) -> Table:
    verdicts = {
        v: share(sum(run["verdict"] == v for run in runs), len(runs)) for v in ("advance", "hold", "abort", "error")
    }
    late = {
        v: share(sum(run["verdict"] == v and run["harmed"] > 0 for run in runs), len(runs))
        for v in ("advance", "abort")
    }
    found: Table = {"verdicts": verdicts, "late": late, "why": {}}
    for run in runs:
        found["why"][run["why"]] = found["why"].get(run["why"], 0) + 1
    for field in ("hours", "users", "harmed"):
        found[field] = [round(float(q), 2) for q in np.quantile([run[field] for run in runs], (0.1, 0.5, 0.9))]
    aborted = [run["harmed"] for run in runs if run["verdict"] == "abort" and run["harmed"] > 0]
    found["detected_after"] = [round(float(q), 1) for q in np.quantile(aborted, (0.1, 0.5, 0.9))] if aborted else None
    return found


def _sample(runs: Sequence[float]) -> Table:
    values = np.sort(np.array(runs))
    quantiles = {f"q{q}": _known(float(values[math.ceil(q / 100 * values.size) - 1])) for q in (10, 20, 50, 80, 90)}
    # Distribution-free 95 % interval of the median, by order statistics.
    half = 0.98 * math.sqrt(values.size)
    ranks = (max(0, math.floor(values.size / 2 - half)), min(values.size - 1, math.ceil(values.size / 2 + half)))
    ends = [_known(float(values[rank])) for rank in ranks]
    mean = _known(round(float(values.mean()), 1))
    return {
        "runs": values.size,
        **quantiles,
        "median_interval": ends,
        "mean": mean,
        "never": int(np.isinf(values).sum()),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_document(tables: Table, command: str, path: Path) -> None:
    """Fills the document's tables, and the command that they come from, between the markers that name them."""
    text = path.read_text()
    for name, lines in {"command": [f"The figures below come from `{command}`."], **_documents(tables)}.items():
        block = f"<!-- begin {name} -->\n\n" + "\n".join(lines) + f"\n\n<!-- end {name} -->"
        place = re.search(rf"<!-- begin {name} -->.*?<!-- end {name} -->", text, re.DOTALL)
        if place is None:
            raise ValueError(f"{path} has no place for the table {name}")
        text = text[: place.start()] + block + text[place.end() :]
    path.write_text(text)


def _documents(tables: Table) -> dict[str, list[str]]:
    rollouts = tables["rollouts"]
    same = [(f"{kind}, {rho}", f"same/{kind}/{rho}") for kind, rho in SAME]
    incidents = [(f"{length}, 0.3", f"incident/{length}/0.3") for length in INCIDENTS]
    effects = [(f"{NAMES[m]}, {_multiple(e)}", f"effect/{m}/{e:g}") for m in METRICS for e in EFFECTS]
    effects = [
        ("none", "same/waves and bursts/0.1"),
        *effects,
        ("p95 TTFT, 2 margins, idle at first", "effect/ttft-idle/2"),
    ]
    late = [(f"{NAMES[m]}, after {n:,}", f"late/{m}/{n}") for m in ("errors", "ttft") for n in ONSETS]
    few = [
        (
            f"{users} a day, {'no difference' if kind == 'same' else 'errors 5 margins'}, {ladder}",
            f"few/{ladder}/{users}/{kind}",
        )
        for ladder in ("production", "small")
        for users in FEW
        for kind in ("same", "errors")
    ]
    return {
        "false-aborts": _shares(rollouts, same, "traffic, correlation", ("abort",)),
        "incidents": _shares(rollouts, incidents, "incident, correlation", ("abort",)),
        "verdicts": _verdicts(rollouts, effects),
        "aborts": _shares(rollouts, effects, "effect", ("abort",)),
        "late": _late(rollouts, late),
        "cost": _cost(rollouts, effects),
        "few": _few(rollouts, few),
        "points": _points(tables),
        "boundary": _boundary(tables),
        "slower": _slower(tables),
    }


def _multiple(effect: float) -> str:
    return "½ margin" if effect == 0.5 else "1 margin" if effect == 1 else f"{effect:g} margins"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    first = list(head)
    return [_line(first), _line(["---"] * len(first)), *(_line(row) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(found: Table) -> str:
    """45 (40–50): the share in percent and its interval."""
    low, high = 100 * found["low"], 100 * found["high"]
    digits = 1 if high < 9.95 else 0
    return f"{100 * found['share']:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _shares(rollouts: Table, rows: Sequence[tuple[str, str]], head: str, verdicts: Sequence[str]) -> list[str]:
    return _table(
        [head, *RULES.values()],
        (
            [label, *(_percent(rollouts[cell][rule]["verdicts"][v]) for rule in RULES for v in verdicts)]
            for label, cell in rows
        ),
    )


def _verdicts(rollouts: Table, rows: Sequence[tuple[str, str]]) -> list[str]:
    def line(label: str, cell: str) -> list[str]:
        ours = rollouts[cell]["understudy"]
        hours, users = ours["hours"], ours["users"]
        shares = [_percent(ours["verdicts"][v]) for v in ("advance", "hold", "abort")]
        return [
            label,
            *shares,
            f"{hours[1]:.0f} ({hours[0]:.0f}–{hours[2]:.0f})",
            f"{users[1]:,.0f} ({users[0]:,.0f}–{users[2]:,.0f})",
        ]

    return _table(
        ["effect", "promote %", "hold %", "abort %", "hours", "candidate's users"], (line(*row) for row in rows)
    )


def _cost(rollouts: Table, rows: Sequence[tuple[str, str]]) -> list[str]:
    def cell(found: Table) -> str:
        hours = found["hours"][1]
        return f"{hours:.1f} h, {found['users'][1]:,.0f}" if hours < 10 else f"{hours:.0f} h, {found['users'][1]:,.0f}"

    return _table(
        ["effect", *RULES.values()], ([label, *(cell(rollouts[c][rule]) for rule in RULES)] for label, c in rows)
    )


def _late(rollouts: Table, rows: Sequence[tuple[str, str]]) -> list[str]:
    def cell(found: Table) -> str:
        missed, early = (
            found["late"]["advance"],
            found["verdicts"]["advance"]["hits"] - found["late"]["advance"]["hits"],
        )
        false = found["verdicts"]["abort"]["hits"] - found["late"]["abort"]["hits"]
        runs = missed["runs"]
        delay = f"{found['detected_after'][1]:,.0f} users" if found["detected_after"] else "never"
        return f"{_percent(missed)}; {delay}; {100 * early / runs:.0f}; {100 * false / runs:.0f}"

    return _table(
        ["bad in, after users", *RULES.values()], ([label, *(cell(rollouts[c][r]) for r in RULES)] for label, c in rows)
    )


def _few(rollouts: Table, rows: Sequence[tuple[str, str]]) -> list[str]:
    def cell(found: Table) -> str:
        shares = "/".join(f"{100 * found['verdicts'][v]['share']:.0f}" for v in ("advance", "hold", "abort"))
        return f"{shares}; {found['hours'][1] / 24:.1f} d; {found['users'][1]:,.0f}"

    return _table(
        ["users, candidate, ladder", *RULES.values()],
        ([label, *(cell(rollouts[c][r]) for r in RULES)] for label, c in rows),
    )


POINT_NAMES = {
    "design": "design prior alone",
    "mixture": "mixture (the product)",
    "adaptive": "adaptive alone (no history)",
    "no past": "mixture, users who differ",
    "past": "the same, their past known",
}


def _points(tables: Table) -> list[str]:
    rows = []
    for point, fixed in tables["fixed"].items():
        rows.append([point, "bound of the mean", "1", f"{tables['bounds'][f'point/{point}']:,.0f}", "", "", ""])
        for rails in (1, 6):
            for kind, label in POINT_NAMES.items():
                found = tables["samples"].get(f"point/{point}/{kind}/{rails}")
                if found is not None:
                    mean = "–" if found["mean"] is None else f"{found['mean']:,.0f}"
                    rows.append([point, label, str(rails), mean, *_relative(found, fixed)])
    head = [
        "operating point",
        "evidence",
        "guardrails",
        "mean",
        "median (95 % interval)",
        "median/fixed",
        "80th percentile/fixed",
    ]
    return _table(head, rows)


def _boundary(tables: Table) -> list[str]:
    rows = []
    for point in tables["fixed"]:
        for kind in ("design", "mixture"):
            found = tables["samples"][f"boundary/{point}/{kind}"]
            rows.append(
                [
                    point,
                    POINT_NAMES[kind],
                    f"{found['runs']:,}",
                    _percent(share(found["runs"] - found["never"], found["runs"])),
                ]
            )
    return _table(["operating point", "evidence", "runs", "passed %"], rows)


def _relative(found: Table, fixed: int) -> list[str]:
    low, high = found["median_interval"]
    median = f"{found['q50']:,.0f} ({low:,.0f}–{high:,.0f})" if found["q50"] and high else "never"
    return [median, *(f"{found[q] / fixed:.2f}" if found[q] else "–" for q in ("q50", "q80"))]


def _slower(tables: Table) -> list[str]:
    rows = []
    for level in levels():
        cells = [level.name]
        for sigma in SIGMAS:
            name = f"slower/{level.name}/{sigma:g}"
            found = tables["samples"][name]
            median = f"{found['q50']:,.0f}" if found["q50"] else "–"
            ninth = f"{found['q90']:,.0f}" if found["q90"] else "–"
            cells.append(f"{median} / {ninth} (bound {tables['bounds'][name]:,.0f})")
        rows.append(cells)
    return _table(["level", *(f"σ = {sigma:g}" for sigma in SIGMAS)], rows)
