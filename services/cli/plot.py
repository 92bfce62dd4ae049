"""The evidence of a rollout as a picture. Used by `understudy explain --plot`; needs matplotlib, which is no part of the platform and is
imported only here.

One row a metric: on the left the candidate's effect with its bounds against the margin, on the right its e-values, on a logarithmic axis,
against what they must reach. A metric that is judged by its bounds alone has the whole row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from services.cli import narrative
from services.cli.errors import CliError, UsageFault
from services.cli.series import drawn, stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from services.store import RolloutRow, Store

FORMATS: Final = (".png", ".svg", ".pdf")
BLUE, RED, GREEN, GREY = "#1f5fa8", "#c0392b", "#2e8b57", "#8a8f98"
SHADES: Final = {"rehearsal": "#f3ecd9", "canary": "#e6eef8", "watch": "#e8f3ea"}
STEP_SHADES: Final = ("#eaf1fa", "#d9e6f5")
VERDICTS: Final = {"advance": GREEN, "abort": RED, "hold": "#b8860b", "error": "#7d3c98"}
SIZES: Final = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def draw(store: Store, row: RolloutRow, told: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of one rollout; `told`: its document of `views.explain`.

    Raises:
        UsageFault: the file's ending names no format.
        CliError: matplotlib is missing, nothing was read yet, or the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageFault(f"--plot {path}: end the name in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    readings = store.readings(row.id)
    if not readings:
        raise CliError(f"rollout {row.id} has no evidence to draw: no user's value was compared")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CliError("--plot needs matplotlib, which is not installed: pip install matplotlib") from error
    curves = drawn(readings)
    details = {reading["metric"]: reading for reading in readings}
    places = [p for p in stages(store, row, told["audit"] or (), store.now()) if p["stage"] in SHADES]
    begin: float = min(curve[0]["at"] for curve in curves.values())
    end = max(row.finished_at or 0.0, *(curve[-1]["at"] for curve in curves.values()))
    size, unit = next((one for one in SIZES if end - begin >= 2 * one[0]), SIZES[-1])

    def hours(at: float) -> float:
        return (at - begin) / size

    figure = Figure(figsize=(12, 1.6 + 2.5 * len(curves)), layout="constrained")
    figure.suptitle(f"{told['headline']}\n{_subtitle(row)}", fontsize=12, x=0.01, ha="left")
    grid = figure.add_gridspec(len(curves), 2, width_ratios=(3, 2))
    for number, (metric, curve) in enumerate(curves.items()):
        with_e = any(reading["e_harm"] is not None for reading in curve)
        left = figure.add_subplot(grid[number, 0] if with_e else grid[number, :])
        panels = [left]
        _effects(left, curve, details[metric], hours)
        if with_e:
            panels.append(figure.add_subplot(grid[number, 1]))
            _e_values(panels[1], curve, details[metric], hours)
        for panel in panels:
            _frame(panel, places, told, hours, (hours(begin), hours(end)), named=number == 0)
            if number == len(curves) - 1:
                panel.set_xlabel(f"{unit} since the first comparison")
    lines = {str(line.get_label()): line for panel in figure.axes for line in panel.get_lines()}
    named = [label for label in lines if not label.startswith("_")]
    figure.legend(
        [lines[label] for label in named], named, loc="outside lower left", ncols=4, fontsize=8.5, frameon=False
    )
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror or error}") from error


def _subtitle(row: RolloutRow) -> str:
    began = datetime.fromtimestamp(row.started_at).astimezone().strftime("%Y-%m-%d %H:%M")
    return f"rollout {row.id} of {row.service}, begun {began}"


def _broken(
    curve: Sequence[Mapping[str, Any]],
    name: str,
    key: Callable[[Mapping[str, Any]], Any],
    x: Callable[[float], float],
    by: float = 1.0,
) -> tuple[list[float], list[float]]:
    """A curve that is broken where its test starts anew."""
    xs, ys = [], []
    for before, reading in zip([None, *curve], curve, strict=False):
        if before is not None and key(before) != key(reading):
            xs.append(x(reading["at"]))
            ys.append(math.nan)
        value = reading[name]
        xs.append(x(reading["at"]))
        ys.append(math.nan if value is None else value * by)
    return xs, ys


def _stage(reading: Mapping[str, Any]) -> Any:
    return reading["stage"]


def _step(reading: Mapping[str, Any]) -> Any:
    return reading["stage"], reading["step"]


def _effects(
    panel: Axes, curve: Sequence[Mapping[str, Any]], detail: Mapping[str, Any], x: Callable[[float], float]
) -> None:
    """Estimate and bounds. The bound on the harmful side goes on through the steps; the other starts anew with each."""
    metric, relative, lower_is_better = detail["metric"], detail["relative"], detail["direction"] == "lower"
    percent = relative or narrative.metric_of(metric).unit == "share"
    by = 100.0 if percent else 1.0
    margin = (1 if lower_is_better else -1) * detail["margin"] * by
    harm, good = ("lower", "upper") if lower_is_better else ("upper", "lower")
    panel.plot(
        *_broken(curve, harm, _stage, x, by),
        color=RED,
        lw=1.2,
        drawstyle="steps-post",
        label="surely beyond (red must pass the margin for an abort)",
    )
    panel.plot(
        *_broken(curve, good, _step, x, by),
        color=GREEN,
        lw=1.2,
        drawstyle="steps-post",
        label="surely within (green must come inside it for a promotion)",
    )
    panel.plot(*_broken(curve, "effect", _stage, x, by), color=BLUE, lw=1.8, label="effect seen")
    panel.axhline(0, color=GREY, lw=0.8)
    panel.axhline(margin, color=RED, lw=1.2, ls="--", label="margin: beyond it is harm")
    values = [reading["effect"] * by for reading in curve if reading["effect"] is not None]
    reach = 1.7 * max([abs(margin), *(abs(v) for v in values[-max(1, len(values) // 2) :])])
    panel.set_ylim(-reach, reach)  # early bounds are far away and say little
    unit = "%" if relative else "points" if percent else ""
    worse = "↑ worse" if lower_is_better else "↓ worse"
    panel.set_ylabel(f"change{f', {unit}' if unit else ''}   {worse}")
    label = narrative.metric_of(metric).label
    panel.set_title(f"{label[:1].upper()}{label[1:]} ({metric})", loc="left", fontsize=10.5, pad=16)


def _e_values(
    panel: Axes, curve: Sequence[Mapping[str, Any]], detail: Mapping[str, Any], x: Callable[[float], float]
) -> None:
    panel.set_yscale("log")
    panel.plot(*_broken(curve, "e_harm", _stage, x), color=RED, lw=1.6, label="e-value of harm")
    panel.plot(*_threshold(curve, "harm_threshold", x), color=RED, lw=1.1, ls="--", label="e-value that shows harm")
    if detail["mode"] == "nonInferior":
        panel.plot(*_broken(curve, "e_promote", _step, x), color=GREEN, lw=1.6, label='e-value of "not worse"')
        panel.plot(
            *_threshold(curve, "promote_threshold", x), color=GREEN, lw=1.1, ls="--", label="e-value that shows it"
        )
    values = [r[name] for r in curve for name in ("e_harm", "e_promote") if r[name]]
    highest = max(r["harm_threshold"] for r in curve)
    panel.set_ylim(max(0.01, min([0.3, *values]) / 2), highest * (30 if max(values, default=0) > highest else 4))
    panel.set_ylabel("e-value")


def _threshold(
    curve: Sequence[Mapping[str, Any]], name: str, x: Callable[[float], float]
) -> tuple[list[float], list[float]]:
    return _broken(curve, name, _stage, x)


def _frame(
    panel: Axes,
    places: Sequence[Mapping[str, Any]],
    told: Mapping[str, Any],
    x: Callable[[float], float],
    ends: tuple[float, float],
    *,
    named: bool,
) -> None:
    """Stages as shades with their names above the first row, the verdict as a line."""
    width = max(ends[1] - ends[0], 1e-9)
    panel.set_xlim(ends[0] - 0.01 * width, ends[1] + 0.02 * width)
    for place in places:
        start, stop = max(x(place["from"]), ends[0]), min(x(place["to"]), ends[1])
        if stop <= start:
            continue
        canary = place["stage"] == "canary"
        panel.axvspan(
            start, stop, color=STEP_SHADES[place["step"] % 2] if canary else SHADES[place["stage"]], zorder=0, lw=0
        )
        if named and (stop - start) > 0.06 * width:
            name = f"{place['weight'] / 100:g} %" if canary else place["stage"]
            panel.text(
                (start + stop) / 2,
                1.015,
                name,
                transform=panel.get_xaxis_transform(),
                ha="center",
                fontsize=8,
                color="#444",
            )
    if told["decided_at"] is not None and told["verdict"] in VERDICTS:
        panel.axvline(x(told["decided_at"]), color=VERDICTS[told["verdict"]], lw=2.2)
        if named:
            word = {"advance": "promoted", "abort": "rolled back", "hold": "held", "error": "error"}[told["verdict"]]
            panel.annotate(
                word, (x(told["decided_at"]), 0.97), xycoords=panel.get_xaxis_transform(), xytext=(-4, 0), textcoords="offset points",
                ha="right", va="top", fontsize=8.5, color=VERDICTS[told["verdict"]], weight="bold",
            )  # fmt: skip
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="y", color="#ffffff", lw=0.8)
    panel.tick_params(labelsize=8)
