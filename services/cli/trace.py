"""Follows one rollout until it has ended, and says what changes. Used by `understudy trace`; reads only.

Numbers alone that move in a waiting message (seconds left, users so far) are no news; a metric's numbers are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from services.cli import narrative, views
from services.cli.commands import Waiter
from services.cli.errors import Away, CliError

LOOK_SECONDS: Final = 1.0

Progress = Callable[[str | None], Mapping[str, Any]]
"""A rollout's document by id; of the newest without."""


def follow(progress: Progress, tell: Callable[[str], None], clock: Waiter, timeout: float | None) -> bool:
    """Tells every change until the rollout has finished or is held for a person. True: the candidate was promoted and stayed.

    Raises:
        NotFound: there is nothing to follow.
        Away: the data could not be reached at the beginning; later on that is told and waited out.
        CliError: `timeout` seconds were not enough.
    """
    until = math.inf if timeout is None else clock.monotonic() + timeout
    rollout = progress(None)
    told: dict[str, str] = {}
    away = False
    tell(f"rollout {rollout['id']} of {rollout['service']}: {rollout['revision']}, begun {_ago(rollout, clock)} ago")
    while True:
        for line in news(rollout, told):
            tell(line)
        if rollout["finished_at"] is not None or rollout["verdict"] == "hold":
            return bool(rollout["verdict"] == "advance")
        left = until - clock.monotonic()
        if left <= 0:
            raise CliError(f"{rollout['service']} was not done within {timeout:g} s: {rollout['headline']}")
        clock.sleep(min(LOOK_SECONDS, left))
        try:
            rollout = progress(rollout["id"])
        except Away as error:
            if not away:
                tell(f"{error}; waiting for it")
            away = True
        else:
            away = False


def news(rollout: Mapping[str, Any], told: dict[str, str]) -> Iterator[str]:
    """Lines for what differs from what was told; `told` is brought up to date."""
    for about, line, key in _facts(rollout):
        if told.get(about) != key:
            told[about] = key
            yield line


def _facts(rollout: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what it is about, line, what makes it new)."""
    if rollout["verdict"] == "continue":
        where = (
            f"{views.place(rollout)}, {rollout['weight']:g} % of users" if rollout["weight"] else views.place(rollout)
        )
        stage = f"{where}, paused" if rollout["paused"] else where
        yield "stage", stage, stage
    for reading in rollout["metrics"]:
        line = f"  {reading['compared']} {reading['judged']}"
        yield reading["metric"], line, line
    if rollout["waits_for"]:
        line = f"  waiting: {rollout['waits_for']}"
        yield "waiting", line, re.sub(r"\d[\d.,]*", "#", line)
    if rollout["verdict"] != "continue":
        why = narrative.sentence(f"{rollout['message']} ({rollout['reason']})") if rollout["reason"] else ""
        line = f"{rollout['headline']} {'' if rollout['waits_for'] else why}".rstrip()
        yield "verdict", line, f"{rollout['verdict']} {rollout['stage']}"


def _ago(rollout: Mapping[str, Any], clock: Waiter) -> str:
    return narrative.seconds_text(max(0.0, clock.time() - rollout["started_at"]))
