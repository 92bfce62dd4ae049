"""One experiment as a page: self-contained HTML, no scripts, readable in light and dark. Made of the document of `experiments`; written by
`understudy experiment NAME --html FILE`.

Every comparison has two pictures, drawn here as SVG: where the difference lies now, with its bounds, and how it came to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any, Final

from services.cli import narrative
from services.cli.experiments import CLAIMS

WIDTH: Final = 520
HEIGHT: Final = 150
LEFT: Final = 84
RIGHT: Final = 12
EDGE: Final = 1.15
"""Room around the bounds."""

_BADGES: Final = {"better": "good", "worse": "bad", "equal": "same", "open": "wait"}

_STYLE: Final = """
:root { --paper: #fbfbfc; --panel: #fff; --ink: #1b1e24; --quiet: #596170; --edge: #dfe3e9; --grid: #eceff3; --line: #0072b2;
  --band: rgb(0 114 178 / .16); --good: #00704f; --goodwash: #dff3ec; --bad: #b02318; --badwash: #fbe4e1; --wait: #7a5c00;
  --waitwash: #fbf0cf; --same: #0b5c8f; --samewash: #e0effa; }
@media (prefers-color-scheme: dark) { :root { --paper: #121419; --panel: #1a1d24; --ink: #e7e9ee; --quiet: #a0a8b6; --edge: #2d323d;
  --grid: #252a33; --line: #56b4e9; --band: rgb(86 180 233 / .2); --good: #3ecb9f; --goodwash: #12362b; --bad: #ff8f83;
  --badwash: #421b18; --wait: #e8c45a; --waitwash: #3b3011; --same: #7cc4ee; --samewash: #12303f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: clamp(22px, 3.4vw, 30px); line-height: 1.25; margin: 4px 0 10px; text-wrap: balance; }
h2 { font-size: 19px; margin: 36px 0 10px; }
p { margin: 6px 0; }
.quiet { color: var(--quiet); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 22px 5px 0; border-bottom: 1px solid var(--edge); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; font-size: 13px; }
td.number { text-align: right; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--edge); border-radius: 12px; padding: 14px; min-width: 0; }
figcaption { display: flex; justify-content: space-between; gap: 12px; align-items: baseline; font-weight: 650; }
.badge { font-size: 13px; padding: 2px 10px; border-radius: 20px; white-space: nowrap; }
.good { color: var(--good); background: var(--goodwash); } .bad { color: var(--bad); background: var(--badwash); }
.wait { color: var(--wait); background: var(--waitwash); } .same { color: var(--same); background: var(--samewash); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.zero { stroke: var(--quiet); stroke-width: 1; } .margin { stroke: var(--quiet); stroke-dasharray: 5 4; stroke-width: 1; }
.line { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; } .dot { fill: var(--line); }
.band { fill: var(--band); } .bound { stroke: var(--line); stroke-width: 2; }
"""


def page(document: Mapping[str, Any]) -> str:
    """The whole page. `document`: that of `experiments.experiment`."""
    title = f"{document['name']} · {document['service']}"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in document["sentences"])
    figures = "".join(_figure(document, result) for result in document["results"])
    began, ended = _moment(document["started_at"]), document["ended_at"]
    when = f"began {began}" + (f", ended {_moment(ended)}" if ended is not None else "")
    pace = document["users_per_day"]
    if pace is not None and ended is None:
        when += f"; about {pace:,.0f} users a day in the smallest group"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<p class="quiet">Understudy · experiment {escape(document["id"])}</p><h1>{escape(document["headline"])}</h1>'
        f'{said}<p class="quiet">{when}.</p><h2>Groups</h2>{_groups(document)}'
        f"<h2>Differences from {escape(document['control'])}</h2>"
        f'<div class="figures">{figures or "<p>No user has been measured yet.</p>"}</div>'
        '<p class="quiet">Bands hold at every look at once. Values are of users, not of requests; a group whose engine fails counts '
        "its users as failed.</p></main></body></html>\n"
    )


def _groups(document: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(group['name'])}{' (control)' if group['name'] == document['control'] else ''}</td>"
        f"<td>{escape('v' + group['version'] if group['version'] else 'whatever stable is')}</td>"
        f'<td class="number">{group["percent"]:g} %</td><td class="number">{group["users"]:,}</td>'
        f"<td><progress max='{document['min_units']}' value='{min(group['users'], document['min_units'])}'></progress></td></tr>"
        for group in document["groups"]
    )
    head = f"<th>group</th><th>version</th><th>share</th><th>users measured</th><th>of the {document['min_units']:,} needed</th>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _figure(document: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    course = [
        one for one in document["course"] if (one["variant"], one["metric"]) == (result["variant"], result["metric"])
    ]
    badge = f'<span class="badge {_BADGES[result["claim"]]}">{CLAIMS[result["claim"]]}</span>'
    evidence = (
        f"e-values: better {narrative.e_text(result['e_better'])}, worse {narrative.e_text(result['e_worse'])}; "
        f"{narrative.e_text(result['threshold'])} shows a difference"
    )
    return (
        f"<figure><figcaption><span>{escape(result['variant'])}: {escape(result['label'])}</span>{badge}</figcaption>"
        f'{_plot(document, result, course)}<p>{escape(result["said"])}</p><p class="quiet">{escape(evidence)}</p></figure>'
    )


def _plot(document: Mapping[str, Any], result: Mapping[str, Any], course: Sequence[Mapping[str, Any]]) -> str:
    """The difference and its bounds over time; a side without a bound reaches the picture's edge."""
    drawn = [one for one in course if one["effect"] is not None]
    if not drawn:
        return '<p class="quiet">Too few users for a difference yet.</p>'
    margin: float = result["margin"] or 0.0
    known = [
        abs(one[end])
        for one in drawn[len(drawn) // 4 :]
        for end in ("lower", "upper", "effect")
        if one[end] is not None
    ]
    reach: float = EDGE * max([*known, margin, 1e-6])
    began: float = document["started_at"]
    end: float = max(one["at"] for one in drawn)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - began) / max(end - began, 1e-9)

    def y(value: float | None, missing: float) -> float:
        shown = max(-reach, min(reach, missing if value is None else value))
        return HEIGHT / 2 - shown / reach * (HEIGHT / 2 - 8)

    upper = [f"{x(one['at']):.1f},{y(one['upper'], reach):.1f}" for one in drawn]
    lower = [f"{x(one['at']):.1f},{y(one['lower'], -reach):.1f}" for one in reversed(drawn)]
    line = [f"{x(one['at']):.1f},{y(one['effect'], 0):.1f}" for one in drawn]
    newest = drawn[-1]
    levels = [(reach / EDGE, ""), (0.0, "zero"), (-reach / EDGE, "")]
    if margin:
        levels += [(margin, "margin"), (-margin, "margin")]
    parts = []
    for value, kind in levels:
        if kind:
            parts.append(
                f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value, 0):.1f}" y2="{y(value, 0):.1f}"/>'
            )
        if kind != "margin":
            text = narrative.change_text(result["metric"], value, result["relative"]) if value else "0"
            parts.append(f'<text class="end" x="{LEFT - 6}" y="{y(value, 0) + 4:.1f}">{escape(text)}</text>')
    span = narrative.seconds_text(end - began)
    name = f"difference of {result['variant']} from {document['control']} in {result['label']} over {span}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 16}" role="img" aria-label="{escape(name, quote=True)}">{"".join(parts)}'
        f'<polygon class="band" points="{" ".join(upper + lower)}"/><polyline class="line" points="{" ".join(line)}"/>'
        f'<line class="bound" x1="{x(end):.1f}" x2="{x(end):.1f}" y1="{y(newest["upper"], reach):.1f}" '
        f'y2="{y(newest["lower"], -reach):.1f}"/><circle class="dot" cx="{x(end):.1f}" cy="{y(newest["effect"], 0):.1f}" r="4"/>'
        f'<text x="{LEFT}" y="{HEIGHT + 12}">start</text><text class="end" x="{WIDTH - RIGHT}" y="{HEIGHT + 12}">after {span}</text></svg>'
    )


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M %Z")
