"""What the demo shows while it runs: a live page in a terminal, plain lines anywhere else.

`demo.story` fills a `Scene` and calls `update`; views only draw. They know nothing of stores or processes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


@dataclass
class ActView:
    """One rollout of the story as the audience sees it."""

    version: str
    title: str
    expected: str
    state: str = "waiting"
    verdict: str = ""
    right: bool | None = None
    seconds: float | None = None


@dataclass
class Scene:
    """Everything that is on stage now."""

    acts: list[ActView]
    now: str = "setting up"
    """What is happening, in one sentence."""
    started: float = field(default_factory=time.monotonic)
    expected_seconds: float = 0.0
    """How long the rest usually takes, from now."""
    readings: Sequence[dict[str, Any]] = ()
    users: dict[str, Any] = field(default_factory=dict)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    addresses: dict[str, str] = field(default_factory=dict)


class View(Protocol):
    """A way of showing the scene."""

    def __enter__(self) -> View: ...
    def __exit__(self, *details: object) -> None: ...
    def say(self, line: str) -> None:
        """Show one line that stays."""
        ...

    def update(self) -> None:
        """Draw the scene as it is now."""
        ...


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class PlainView:
    """Lines with the time since the start; a sign of life every 15 s."""

    def __init__(self, scene: Scene, console: Console) -> None:
        self.scene, self.console = scene, console
        self._said = ""
        self._next = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *details: object) -> None:
        return None

    def say(self, line: str) -> None:
        self._next = time.monotonic() + 15
        self.console.print(
            f"[{clock(time.monotonic() - self.scene.started)}] {line}", highlight=False, markup=False, soft_wrap=True
        )

    def update(self) -> None:
        if time.monotonic() >= self._next:
            users = self.scene.users
            crowd = f"; {users['users']} users have asked {users['requests']} questions" if users else ""
            left = f"; about {clock(self.scene.expected_seconds)} left" if self.scene.expected_seconds > 0 else ""
            self.say(f"{self.scene.now}{crowd}{left}")


class LiveView:
    """One page that is redrawn in place."""

    def __init__(self, scene: Scene, console: Console) -> None:
        self.scene = scene
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._page, transient=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, line: str) -> None:
        self.scene.lines.append(f"[{clock(time.monotonic() - self.scene.started)}] {line}")

    def update(self) -> None:
        return None  # Live asks for the page by itself

    def _page(self) -> Group:
        scene = self.scene
        spent = time.monotonic() - scene.started
        total = spent + max(scene.expected_seconds, 0.0)
        head = Table.grid(padding=(0, 2))
        left = f"about {clock(scene.expected_seconds)} left" if scene.expected_seconds > 0 else ""
        head.add_row(
            Text(scene.now, style="bold"),
            ProgressBar(total=total or 1, completed=spent, width=24),
            Text(f"{clock(spent)}  {left}"),
        )
        parts: list[Any] = [Panel(head, title="Understudy", border_style="cyan"), acts_table(scene.acts)]
        if scene.readings:
            parts.append(evidence_table(scene.readings))
        if scene.users:
            u = scene.users
            parts.append(
                Text(
                    f"users {u['users']}   questions {u['requests']}   right {u['right']}   wrong {u['wrong']}   "
                    f"thumbs +{u['thumbs_up']} -{u['thumbs_down']}   repeats {u['retries']}   escalations {u['escalations']}   "
                    f"left early {u['left']}   failed {u['failed']}",
                    style="dim",
                )
            )
        parts.append(Text("\n".join(scene.lines), style="dim"))
        if scene.addresses:
            parts.append(
                Text("   ".join(f"{name} {address}" for name, address in scene.addresses.items()), style="cyan")
            )
        return Group(*parts)


def acts_table(acts: Sequence[ActView], title: str = "Rollouts") -> Table:
    """The story's rollouts: what each version is, what should come of it, what has."""
    table = Table(title=title, title_justify="left", expand=False)
    for column in ("version", "what it is", "expected", "state", "verdict", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for act in acts:
        style = {True: "green", False: "red", None: ""}[act.right]
        seconds = "" if act.seconds is None else f"{act.seconds:.0f}"
        table.add_row(act.version, act.title, act.expected, act.state, Text(act.verdict, style=style), seconds)
    return table


def evidence_table(readings: Sequence[dict[str, Any]]) -> Table:
    """Each metric's latest reading: both arms, the effect with its interval, how near the harm threshold is."""
    table = Table(title="Evidence now", title_justify="left")
    for column in ("metric", "control", "candidate", "effect", "margin", "users", "harm", "safe"):
        table.add_column(column, justify="left" if column in ("metric", "harm", "safe") else "right")
    for r in readings:
        table.add_row(
            str(r["metric"]),
            number(r["control"]),
            number(r["candidate"]),
            interval(r),
            f"{r['margin'] * 100:.0f} %" if r["relative"] else number(r["margin"]),
            f"{r['n_control']}+{r['n_candidate']}",
            Text("shown", style="red") if r["harmful"] else Text("not shown"),
            Text("shown", style="green") if r["non_inferior"] else Text("not yet"),
        )
    return table


def number(value: float | None) -> str:
    """A figure with three significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def interval(reading: dict[str, Any]) -> str:
    """The effect with its anytime-valid interval, in per cent where the metric is relative."""
    if reading["effect"] is None:
        return "–"
    scale, unit = (100, " %") if reading["relative"] else (1, "")
    low, high = (("…" if reading[k] is None else f"{reading[k] * scale:+.3g}") for k in ("lower", "upper"))
    return f"{reading['effect'] * scale:+.3g}{unit} [{low}, {high}]"
