"""Draws the shipped dashboards as PNG from what a Prometheus holds: the docs' pictures, and a look for those without Grafana.

    PYTHONPATH=. python -m monitoring.render [--prometheus URL] [--since 1h] [--out FOLDER] [UID ...]

Panels, places, units, legends and lines come from the dashboards' JSON, so that a picture shows what Grafana would. It only reads: the
JSON, and Prometheus' query API. It must know no metric and no dashboard by name.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator
from PIL import Image

from monitoring.generate import SHIPPED

COLUMN, LINE, DPI = 0.5, 0.27, 125
"""Inches of one of the grid's 24 columns and of one of its lines; dots an inch."""
POINTS = 400
"""Of a series, at most."""
COLOURS: Final = (
    "#3f74a8", "#c8553d", "#4f9d69", "#d99a2b", "#7a5ea8", "#3a9fb0", "#b0568f", "#7d6b57", "#8fae3c", "#555555", "#88a9c9", "#e2a08f",
)  # fmt: skip
MUTED, MARK = "#777777", "#8e5bbf"
TICKS: Final = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 604800)
"""Seconds between the marks of a time axis."""
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
HIDDEN: Final = ("__name__", "job", "instance", "namespace", "endpoint", "pod", "container")
"""Labels of where a series was scraped: not in a table."""


Values = np.ndarray[Any, np.dtype[np.float64]]
Entry = tuple[int | None, float, str]
"""Of a legend: number of the series, place, name."""


class RenderError(Exception):
    """Prometheus could not be asked, or refused; the text is for whoever started this."""


@dataclass(frozen=True)
class Series:
    """Values at each step of the range; nan where there was none. Of an instant query: one."""

    labels: dict[str, str]
    values: Values

    @property
    def there(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where there is a value."""
        return ~np.isnan(self.values)


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the range that is looked at: seconds since the epoch."""

    url: str
    start: float
    end: float
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def step(self) -> float:
        return max(math.ceil((self.end - self.start) / POINTS), 1)

    @property
    def times(self) -> Values:
        return np.arange(self.start, self.end, self.step)

    def over_time(self, expr: str) -> list[Series]:
        """A query at every step."""
        asked = {"start": self.start, "end": self.end, "step": self.step}
        found = []
        for one in self._ask("query_range", expr, asked):
            values = np.full(len(self.times), math.nan)
            for at, value in one["values"]:
                values[min(round((at - self.start) / self.step), len(values) - 1)] = float(value)
            found.append(Series(one["metric"], values))
        return found

    def now(self, expr: str) -> list[Series]:
        """A query at the range's end."""
        answers = self._ask("query", expr, {"time": self.end})
        return [Series(one["metric"], np.array([float(one["value"][1])])) for one in answers]

    def _ask(self, what: str, expr: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        expr = re.sub(r"\$(\w+)", lambda found: self.variables.get(found[1], found[0]), expr)
        body = urllib.parse.urlencode({"query": expr, **asked}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{what}", body, timeout=60) as answer:  # noqa: S310
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as error:
            raise RenderError(f"{self.url} refuses {expr}: {error.read().decode(errors='replace')[:300]}") from None
        except (OSError, ValueError, KeyError) as error:
            raise RenderError(f"no Prometheus answers at {self.url}: {error}") from None


def text(value: float, unit: str) -> str:
    """A value in Grafana's unit, with three digits."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if unit == "dateTimeAsIso":
        return datetime.fromtimestamp(value / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value else "0 s"
    if unit in ("percentunit", "percent"):
        return f"{value * (100 if unit == 'percentunit' else 1):.3g} %"
    if abs(value) >= 1e15:
        return f"{value:.0e}"
    base = 1024.0 if unit == "bytes" else 1000.0
    number, prefix = value, ""
    for name in ("k", "M", "G", "T"):
        if abs(number) < base:
            break
        number, prefix = number / base, name
    after = {"reqps": " req/s", "watt": " W", "celsius": " °C", "bytes": " " + (prefix and f"{prefix.upper()}i") + "B"}
    return f"{number:.3g}{'' if unit == 'bytes' else prefix}{after.get(unit, '')}"


def _name(legend: str, labels: dict[str, str]) -> str:
    if legend:
        return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), legend).strip()
    return ", ".join(value for label, value in sorted(labels.items()) if label not in HIDDEN)


class Picture:
    """One dashboard's figure. Lengths are in inches from the upper left corner."""

    def __init__(self, dashboard: dict[str, Any], source: Source) -> None:
        places = [panel["gridPos"] for panel in dashboard["panels"]]
        self.source = source
        self.width, self.head = 24 * COLUMN, 0.5
        self.height = self.head + LINE * max(place["y"] + place["h"] for place in places) + 0.05
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="#f4f5f7")
        FigureCanvasAgg(self.figure)
        self.sheet = self.figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        self.sheet.set_axis_off()
        self.marks = [mark for asked in dashboard["annotations"].get("list", []) for mark in self._marks(asked["expr"])]

    def draw(self, dashboard: dict[str, Any]) -> Figure:
        """Every row and panel, at its place."""
        clock = [datetime.fromtimestamp(at, UTC) for at in (self.source.start, self.source.end)]
        self._text(0.12, 0.27, dashboard["title"], size=14, weight="bold")
        marked = " and ".join(asked["name"].lower() for asked in dashboard["annotations"].get("list", []))
        span = f"{clock[0]:%Y-%m-%d %H:%M} – {clock[1]:%H:%M} UTC" + (f"; dotted: a new {marked}" if marked else "")
        self._text(self.width - 0.12, 0.27, span, size=9, ha="right", color=MUTED)
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            x, y = place["x"] * COLUMN, self.head + place["y"] * LINE
            if panel["type"] == "row":
                self._text(x + 0.12, y + 0.17, panel["title"], size=11, weight="bold")
                continue
            box = (x + 0.04, y + 0.03, place["w"] * COLUMN - 0.08, place["h"] * LINE - 0.06)
            self._panel(panel, box)
        return self.figure

    def _panel(self, panel: dict[str, Any], box: tuple[float, float, float, float]) -> None:
        x, y, w, h = box
        self.sheet.add_patch(Rectangle((x, y), w, h, facecolor="white", edgecolor="#dcdfe4", linewidth=0.8))
        self._text(x + 0.1, y + 0.15, panel["title"], size=9.5, weight="bold")
        instant = panel["type"] in ("stat", "table")
        ask: Callable[[str], list[Series]] = self.source.now if instant else self.source.over_time
        found = [
            (_name(target.get("legendFormat", ""), one.labels), one)
            for target in panel["targets"]
            for one in ask(target["expr"])
            if one.there.any()
        ]
        if not found:
            self._text(x + w / 2, y + h / 2 + 0.08, "no data", size=10, ha="center", color="#999999")
            return
        kinds = {"stat": self._numbers, "table": self._table, "state-timeline": self._states, "timeseries": self._lines}
        kinds[panel["type"]](panel, found, box)

    def _lines(self, panel: dict[str, Any], found: list[tuple[str, Series]], box: tuple[float, ...]) -> None:
        x, y, w, h = box
        told = self._flow([name for name, _ in found], w - 0.2)
        below = 0.3 + 0.17 * len(told)
        axes = self._axes(x + 0.7, y + 0.32, w - 0.85, h - 0.32 - below)
        defaults = panel["fieldConfig"]["defaults"]
        unit, custom = defaults["unit"], defaults.get("custom", {})
        times = self.source.times
        for number, (_, one) in enumerate(found):
            axes.plot(times, one.values, color=_colour(number), linewidth=1.3, zorder=3)
            alone = one.there & ~np.roll(one.there, 1) & ~np.roll(one.there, -1)  # a line would not show them
            axes.plot(times[alone], one.values[alone], ".", color=_colour(number), markersize=3, zorder=3)
        values = np.concatenate([one.values[np.isfinite(one.values)] for _, one in found])
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if custom.get("scaleDistribution", {}).get("type") == "log":
            axes.set_yscale("log")
            axes.set_ylim(defaults["min"], defaults.get("max", max(high, 1) * 2))
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.minorticks_off()
        else:
            room = 0.05 * (high - low) or 1
            axes.set_ylim(defaults.get("min", low - room * (low < 0)), defaults.get("max", high + room))
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            if unit == "bytes" and high > 0:
                axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(high / 4))))
        for step in defaults.get("thresholds", {}).get("steps", []):
            if step.get("value") is not None:
                axes.axhline(step["value"], color="#b3261e", linewidth=1, linestyle=(0, (4, 2)), zorder=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, unit)))
        axes.grid(color="#eceef1", linewidth=0.7)
        self._clock(axes)
        for line, entries in enumerate(told):
            for which, at, name in entries:
                down = y + h - below + 0.36 + 0.17 * line
                if which is not None:
                    self.sheet.plot([x + 0.1 + at, x + 0.22 + at], [down, down], color=_colour(which), linewidth=3)
                self._text(x + 0.27 + at, down, name, size=8)

    def _states(self, panel: dict[str, Any], found: list[tuple[str, Series]], box: tuple[float, ...]) -> None:
        x, y, w, h = box
        found.sort(key=lambda one: int(one[1].there.argmax()))  # the earliest above
        wide = max(self._measure(name, 8) for name, _ in found) + 0.2
        axes = self._axes(x + wide, y + 0.32, w - wide - 0.13, h - 0.32 - 0.3)
        times, width = self.source.times, self.source.step
        for row, (_, one) in enumerate(found):
            spans = [(at, width) for at in times[one.there]]
            axes.broken_barh(spans, (row - 0.38, 0.76), facecolors=_colour(row), zorder=3)
        axes.set_yticks(range(len(found)), [name for name, _ in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        self._clock(axes)

    def _numbers(self, panel: dict[str, Any], found: list[tuple[str, Series]], box: tuple[float, ...]) -> None:
        x, y, w, h = box
        each = w / len(found)
        for number, (name, one) in enumerate(found):
            said = text(one.values[0], panel["fieldConfig"]["defaults"]["unit"])
            size = min(20, 20 * (each - 0.2) / self._measure(said, 20))
            middle = x + (number + 0.5) * each
            self._text(middle, y + h * 0.56, said, size=size, ha="center", color=COLOURS[0])
            if len(found) > 1 or panel["targets"][0].get("legendFormat"):
                self._text(middle, y + h - 0.16, name, size=8, ha="center", color=MUTED)

    def _table(self, panel: dict[str, Any], found: list[tuple[str, Series]], box: tuple[float, ...]) -> None:
        x, y, w, h = box
        labels = sorted({label for _, one in found for label in one.labels} - set(HIDDEN))
        columns = [[label, *(one.labels.get(label, "") for _, one in found)] for label in labels]
        columns.append(["value", *(text(one.values[0], panel["fieldConfig"]["defaults"]["unit"]) for _, one in found)])
        widths = [max(self._measure(cell, 8) for cell in column) + 0.16 for column in columns]
        size = 8 * min(1.0, (w - 0.2) / sum(widths))
        fits = int((h - 0.5) / 0.17)
        shown = fits if len(found) <= fits else fits - 1
        for i, column in enumerate(columns):
            left = x + 0.1 + sum(widths[:i]) * size / 8
            for row, cell in enumerate(column[: shown + 1]):
                self._text(left, y + 0.38 + 0.17 * row, cell, size=size, color="black" if row else MUTED)
        if len(found) > shown:
            more = f"and {len(found) - shown} more"
            self._text(x + 0.1, y + 0.38 + 0.17 * (shown + 1), more, size=8, color=MUTED)

    def _marks(self, expr: str) -> list[float]:
        """When the series of an annotation began."""
        begins = (one.there & ~np.insert(one.there, 0, False)[:-1] for one in self.source.over_time(expr))
        return [float(at) for begin in begins for at in self.source.times[begin]]

    def _clock(self, axes: Axes) -> None:
        """The axis of time, with the dashboard's annotations."""
        for at in self.marks:
            axes.axvline(at, color=MARK, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        start, end = self.source.start, self.source.end
        apart = next((size for size in TICKS if (end - start) / size <= 5), TICKS[-1])
        ticks = [at * apart for at in range(math.ceil(start / apart), int(end / apart) + 1)]
        axes.set_xlim(start, end)
        form = "%H:%M" if apart < 86400 else "%m-%d"
        axes.set_xticks(ticks, [datetime.fromtimestamp(at, UTC).strftime(form) for at in ticks])
        axes.tick_params(labelsize=8, colors="#444444", length=2, pad=2)
        for name, side in axes.spines.items():
            side.set_visible(name in ("left", "bottom"))
            side.set_color("#c4c8ce")

    def _flow(self, names: Sequence[str], wide: float, lines: int = 3) -> list[list[Entry]]:
        """The legend's lines: number of the series, place, name; what does not fit is counted."""
        told: list[list[Entry]] = [[]]
        at = 0.0
        for number, name in enumerate(names):
            width = 0.32 + self._measure(name, 8)
            room = wide - (0.8 if len(told) == lines and number < len(names) - 1 else 0.0)
            if at and at + width > room:
                if len(told) == lines:
                    told[-1].append((None, at - 0.15, f"and {len(names) - number} more"))
                    break
                told.append([])
                at = 0.0
            told[-1].append((number, at, name))
            at += width
        return told

    def _measure(self, said: str, size: float) -> float:
        """Width in inches."""
        trial = self.sheet.text(0, 0, said, size=size, parse_math=False)
        width = trial.get_window_extent().width / DPI
        trial.remove()
        return width

    def _axes(self, x: float, y: float, w: float, h: float) -> Axes:
        return self.figure.add_axes((x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height))

    def _text(self, x: float, y: float, said: str, **style: Any) -> None:
        self.sheet.text(x, y, said, va="center", parse_math=False, **style)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 with a line that says what was wrong."""
    shipped = {path.stem: path for path in sorted((SHIPPED / "dashboards").glob("*.json"))}
    parser = argparse.ArgumentParser(prog="monitoring.render", description="The dashboards as PNG.")
    parser.add_argument("uid", nargs="*", help=f"of {', '.join(shipped)}; none: all")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address (%(default)s)")
    parser.add_argument("--since", default="1h", help="how far back, e.g. 90s, 30m, 2d (%(default)s)")
    parser.add_argument("--until", type=float, default=None, help="seconds since the epoch; none: now")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the pictures (the current one)")
    parser.add_argument("--variable", action="append", default=[], help="e.g. service=assistant; none: all")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"\d+[smhd]", given.since) or not all("=" in one for one in given.variable):
        parser.error("--since is written 90s, 30m, 2d; --variable NAME=VALUE")
    if unknown := set(given.uid) - set(shipped):
        parser.error(f"there is no dashboard {', '.join(sorted(unknown))}")
    end = given.until or time.time()
    variables = {"namespace": ".*", "service": ".*", "revision": ".*", "__rate_interval": "1m"}
    variables |= dict(one.split("=", 1) for one in given.variable)
    start = end - int(given.since[:-1]) * SECONDS[given.since[-1]]
    source = Source(given.prometheus.rstrip("/"), start, end, variables)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        for uid in given.uid or shipped:
            dashboard = json.loads(shipped[uid].read_text())
            path = given.out / f"{uid}.png"
            drawn = io.BytesIO()
            Picture(dashboard, source).draw(dashboard).savefig(drawn)
            Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
            print(path)
    except RenderError as error:
        print(f"monitoring.render: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
