"""Panels and dashboards as plain values, and the queries that they share. Written by `dashboards/`, drawn by `grafana.py`, read by tests.

Every query selects by the variables `$namespace`, `$service`, `$revision`; `$__rate_interval` is Grafana's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from services.common.telemetry import ROLLOUT_E_VALUE, ROLLOUT_THRESHOLD, MetricSpec

NAMESPACE: Final = 'namespace=~"$namespace"'
SERVICE: Final = f'{NAMESPACE},service=~"$service"'
REVISION: Final = f'{SERVICE},revision=~"$revision"'
LIVE: Final = f'{REVISION},kind="live"'

Kind = Literal["time series", "number", "table", "states"]


@dataclass(frozen=True, slots=True)
class Query:
    """`legend`: with labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit`: Grafana's name of it. `width`: of 24. `link`: uid of the dashboard that a series' service opens."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "time series"
    width: int = 8
    height: int = 8
    top: float | None = None
    """The axis' end, where it is known; it begins at `bottom` then."""
    bottom: float = 0.0
    line: float | None = None
    """Where something counts as too much, or as shown: drawn across."""
    log: bool = False
    """Logarithmic, from a thousandth on."""
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and what stands below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`query`: of label values, e.g. `label_values(up, namespace)`."""

    name: str
    query: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`uid` never changes: links and bookmarks hold it. `marks`: title and query of annotations."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]
    marks: tuple[tuple[str, str], ...] = ()


def graph(
    title: str,
    text: str,
    *queries: Query,
    unit: str = "short",
    width: int = 8,
    top: float | None = None,
    bottom: float = 0.0,
    line: float | None = None,
) -> Panel:
    """A time series."""
    return Panel(title, text, queries, unit, width=width, top=top, bottom=bottom, line=line)


def proof(title: str, text: str, query: Query, width: int = 8) -> Panel:
    """E-values over their thresholds, which run through orders of magnitude; a line where they suffice."""
    return Panel(title, text, (query,), width=width, top=1000.0, line=1.0, log=True)


def number(title: str, text: str, expr: str, unit: str = "short", width: int = 4) -> Panel:
    """One number, now."""
    return Panel(title, text, (Query(expr),), unit, "number", width, height=4)


def rate(spec: MetricSpec | str, where: str, by: str, factor: str = "") -> str:
    """A counter's events per second, added up by labels."""
    return f"sum by ({by}) (rate({spec}{{{where}}}[$__rate_interval])){factor}"


def quantile(q: float, spec: MetricSpec | str, where: str, by: str) -> str:
    """A quantile of a histogram, by labels."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({spec}_bucket{{{where}}}[$__rate_interval])))"


def mean(spec: MetricSpec | str, where: str, by: str) -> str:
    """A histogram's mean, by labels."""
    return f"{rate(f'{spec}_sum', where, by)} / {rate(f'{spec}_count', where, by)}"


def quantiles(spec: MetricSpec | str, where: str, by: str, legend: str, *qs: float) -> tuple[Query, ...]:
    """Several quantiles of one histogram."""
    return tuple(Query(quantile(q, spec, where, by), f"p{q * 100:g} {legend}") for q in qs)


def evidence(where: str, claim: Literal["harm", "promotion"] = "harm") -> str:
    """The controller's e-values over their thresholds: at 1 the claim counts as shown."""
    return f'{ROLLOUT_E_VALUE}{{{where},claim="{claim}"}} / {ROLLOUT_THRESHOLD}{{{where},claim="{claim}"}}'


def share(spec: MetricSpec | str, where: str, part: str, by: str) -> str:
    """The part of a counter's events that has the matcher `part`, by labels; 0 where there was none of that part."""
    whole = rate(spec, where, by)
    return f"({rate(spec, f'{where},{part}', by)} or 0 * {whole}) / {whole}"
