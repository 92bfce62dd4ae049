"""Pictures of the tables that `benchmarks.evidence` has computed. Reads JSON, writes PNG; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.evidence_cells import CORRELATIONS, EFFECTS, KINDS, METRICS, ONSETS, SAME
from benchmarks.evidence_tables import NAMES, RULES, Table

ALPHA_PERCENT = 2.5
"""The canary's part of the rollout's 5 %."""
TINTS = {0.05: "#88a9c9", 0.1: "#3f74a8", 0.3: "#16324f"}
VERDICTS = {"advance": ("promote", "#3f74a8"), "hold": ("hold", "#d9d9d9"), "abort": ("abort", "#c8553d")}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
}


def draw(tables: Table, folder: Path) -> None:
    """All pictures, into a folder."""
    with plt.rc_context(STYLE):
        for name, make in (("false-aborts", _false_aborts), ("verdicts", _verdicts), ("delay", _delay)):
            figure = make(tables["rollouts"])
            figure.savefig(folder / f"evidence-{name}.png", metadata={"Software": None})
            plt.close(figure)


def _false_aborts(rollouts: Table) -> Any:
    figure, panels = plt.subplots(
        1, len(KINDS), figsize=(11, 3.9), sharey=True, sharex=True, gridspec_kw={"wspace": 0.06}
    )
    places = {rule: len(RULES) - i for i, rule in enumerate(RULES)}
    for panel, kind in zip(panels, KINDS, strict=True):
        correlations = [rho for same, rho in SAME if same == kind]
        offsets = (0.22, 0.0, -0.22) if len(correlations) == len(CORRELATIONS) else (0.0,)
        for offset, rho in zip(offsets, correlations, strict=True):
            for rule, place in places.items():
                found = rollouts[f"same/{kind}/{rho}"][rule]["verdicts"]["abort"]
                low, high, at = 100 * found["low"], 100 * found["high"], 100 * found["share"]
                panel.plot([low, high], [place + offset] * 2, color=TINTS[rho], linewidth=1.4, solid_capstyle="butt")
                panel.plot(at, place + offset, "o", color=TINTS[rho], markersize=3.6)
        panel.axvline(ALPHA_PERCENT, color="#c8553d", linewidth=1, linestyle=(0, (4, 2)))
        panel.set_title(kind)
        panel.set_xscale("symlog", linthresh=10, linscale=1.0)
        panel.set_xlim(-0.4, 105)
        panel.set_xticks([0, 2.5, 5, 10, 20, 50, 100], ["0", "2.5", "5", "10", "20", "50", "100"])
        panel.minorticks_off()
        panel.grid(axis="y", color="#eeeeee", linewidth=6)
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(list(places.values()), [RULES[rule] for rule in places])
    figure.supxlabel(
        "harmless candidates that were aborted, % (95 % Clopper–Pearson interval; logarithmic beyond 10)", fontsize=9
    )
    handles: list[Any] = [
        Line2D([], [], color=tint, marker="o", markersize=4, label=f"correlation {rho}") for rho, tint in TINTS.items()
    ]
    handles.append(Line2D([], [], color="#c8553d", linestyle=(0, (4, 2)), label="α of the canary, 2.5 %"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _verdicts(rollouts: Table) -> Any:
    figure, grid = plt.subplots(len(METRICS), len(RULES), figsize=(12.5, 4.9), sharex=True, sharey=True)
    labels = ["0", *("½" if effect == 0.5 else f"{effect:g}" for effect in EFFECTS)]
    for row, metric in zip(grid, METRICS, strict=True):
        cells = ["same/waves and bursts/0.1", *(f"effect/{metric}/{effect:g}" for effect in EFFECTS)]
        for panel, rule in zip(row, RULES, strict=True):
            _stack(panel, [rollouts[cell][rule]["verdicts"] for cell in cells])
            panel.set_xticks(range(len(cells)), labels)
        row[0].set_ylabel(NAMES[metric])
    for panel, rule in zip(grid[0], RULES, strict=True):
        panel.set_title(RULES[rule], fontweight="bold" if rule == "understudy" else "normal")
    figure.supxlabel(
        "true effect, in margins (errors +1 % of users, p95 TTFT +20 %, bad marks +5 % of users)", fontsize=9
    )
    figure.supylabel("share of rollouts, %", fontsize=9)
    handles = [Patch(color=tint, label=label) for label, tint in VERDICTS.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _stack(panel: Axes, cells: Sequence[Table]) -> None:
    below = [0.0] * len(cells)
    for verdict, (_, tint) in VERDICTS.items():
        heights = [100 * cell[verdict]["share"] for cell in cells]
        panel.bar(range(len(cells)), heights, 0.86, below, color=tint)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    panel.set_ylim(0, 100)
    panel.set_yticks([0, 50, 100])
    panel.tick_params(length=2)
    panel.tick_params(axis="x", length=0)


def _delay(rollouts: Table) -> Any:
    columns = [
        ("errors, from the start", [(f"+{e:g} %", f"effect/errors/{e:g}") for e in (2.0, 5.0)]),
        ("p95 TTFT, from the start", [(f"+{20 * e:g} %", f"effect/ttft/{e:g}") for e in (2.0, 5.0)]),
        ("errors +4 %, after healthy users", [(f"{n:,}", f"late/errors/{n}") for n in ONSETS]),
        ("p95 TTFT +50 %, after healthy users", [(f"{n:,}", f"late/ttft/{n}") for n in ONSETS]),
    ]
    figure, panels = plt.subplots(1, len(columns), figsize=(12.5, 4.4), sharey=True)
    places = {rule: len(RULES) - i for i, rule in enumerate(RULES)}
    for panel, (title, cells) in zip(panels, columns, strict=True):
        shades = ["#16324f", "#3f74a8", "#88a9c9"][: len(cells)]
        for i, ((label, cell), tint) in enumerate(zip(cells, shades, strict=True)):
            shift = 0.25 - 0.5 * i / (len(cells) - 1)
            for rule, place in places.items():
                _detected(panel, rollouts[cell][rule], place + shift, tint)
            panel.plot([], [], "o-", color=tint, markersize=4, label=label)
        panel.set_title(title)
        panel.set_xscale("log")
        panel.set_xlim(1, 3e4)
        panel.grid(axis="y", color="#eeeeee", linewidth=6)
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", length=0)
        panel.legend(
            frameon=False, fontsize=7.5, loc="upper left", handlelength=1.2, borderaxespad=0.1, labelspacing=0.2
        )
    panels[0].set_yticks(list(places.values()), [RULES[rule] for rule in places])
    panels[0].set_ylim(0.4, len(RULES) + 1.2)
    figure.supxlabel(
        "users who had the bad candidate until it was aborted: median and 10–90 % of the aborts; at the right the share aborted, %",
        fontsize=9,
    )
    return figure


def _detected(panel: Axes, found: Table, place: float, tint: str) -> None:
    seen = found["late"]["abort"]
    if found["detected_after"]:
        low, middle, high = (max(1.0, q) for q in found["detected_after"])
        panel.plot([low, high], [place] * 2, color=tint, linewidth=1.4, solid_capstyle="butt")
        panel.plot(middle, place, "o", color=tint, markersize=3.6)
    panel.text(
        1.01, place, f"{100 * seen['share']:.0f}", transform=panel.get_yaxis_transform(), fontsize=6.5, color=tint, va="center"
    )  # fmt: skip
