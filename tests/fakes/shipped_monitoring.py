"""The shipped dashboards and rules, what exports metrics, and Prometheus' own programs where they are."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from services.common.telemetry import METRICS

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "charts/understudy/files/monitoring"
SAMPLES = ROOT / "tests/monitoring/samples"
_WORDS = {"and", "or", "unless", "on", "ignoring", "by", "without", "group_left", "group_right", "bool", "offset"}


def dashboards() -> dict[str, dict[str, Any]]:
    """By uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((SHIPPED / "dashboards").glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All but the rows' headings."""
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(where, expression) of panels and annotations."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{dashboard['title']}: {panel['title']}", target["expr"]
    for mark in dashboard.get("annotations", {}).get("list", []):
        yield f"{dashboard['title']}: mark {mark['name']}", mark["expr"]


def rules() -> list[dict[str, Any]]:
    """Every shipped rule."""
    groups = yaml.safe_load((SHIPPED / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_in(expr: str) -> set[str]:
    """The names of series that an expression reads."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\$\w+|\b\d[\w.]*", " ", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*(?!\w|\s*\()", bare) if name not in _WORDS}


def exported() -> set[str]:
    """Names of all series that something exports: ours, recorded samples of others, recording rules, Prometheus itself."""
    names = {name for spec in METRICS for name in spec.series} | {"ALERTS"}
    names |= {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}
    for sample in SAMPLES.glob("*.prom"):
        names |= {re.split(r"[{ ]", line)[0] for line in sample.read_text().splitlines() if line and line[0] != "#"}
    return names | {rule["record"] for rule in rules() if "record" in rule}


def program(name: str) -> str | None:
    """Prometheus' own program, from PATH or from the cache of the cluster's tools."""
    home = Path(os.environ.get("UNDERSTUDY_CLUSTER_HOME", Path.home() / ".cache/understudy-cluster"))
    cached = home / "bin" / name
    return shutil.which(name) or (str(cached) if cached.exists() else None)
