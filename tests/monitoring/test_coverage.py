"""Dashboards and rules against what is exported: nothing shows a metric that is not there, nothing exported is shown nowhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

from services.common.telemetry import METRICS
from tests.fakes.shipped_monitoring import ROOT, dashboards, exported, metrics_in, panels, queries, rules

DASHBOARDS = dashboards()
each = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)


def test_names_are_read_out_of_expressions() -> None:
    expr = 'histogram_quantile(0.95, sum by (le, arm) (rate(a_b_bucket{x="y {z}"}[5m]))) > on (q) group_left () (1 - c:d) offset 1m'
    assert metrics_in(expr) == {"a_b_bucket", "c:d"}


@each
def test_every_query_reads_what_something_exports(dashboard: dict[str, Any]) -> None:
    known = exported()
    for where, expr in queries(dashboard):
        found = metrics_in(expr)
        assert found, f"{where}: {expr}"
        assert found <= known, f"{where}: nothing exports {found - known}"


def test_every_rule_reads_what_something_exports() -> None:
    known = exported()
    for rule in rules():
        found = metrics_in(rule["expr"])
        assert found <= known, f"{rule.get('alert', rule.get('record'))}: nothing exports {found - known}"


def test_everything_exported_is_shown() -> None:
    shown = {name for dashboard in DASHBOARDS.values() for _, expr in queries(dashboard) for name in metrics_in(expr)}
    assert [spec.name for spec in METRICS if not shown & set(spec.series)] == []


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    text = (ROOT / "docs/runbooks.md").read_text()
    sections = dict(re.findall(r"^## (Understudy\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    alerts = [rule for rule in rules() if "alert" in rule]
    assert sections.keys() == {alert["alert"] for alert in alerts}
    for name, section in sections.items():
        for part in ("**Means.**", "**Check.**", "**Do.**"):
            assert part in section, f"{name} lacks {part}"
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].endswith(f"docs/runbooks.md#{alert['alert'].lower()}")
        assert alert["labels"]["severity"] in ("critical", "warning", "info")


@each
def test_dashboards_name_no_data_source_and_say_what_they_show(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables.keys() >= {"datasource", "namespace", "service"}
    assert variables["datasource"]["type"] == "datasource"
    for panel in panels(dashboard):
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    for query in (variable for variable in variables.values() if variable["type"] == "query"):
        assert query["datasource"]["uid"] == "${datasource}"
        assert query["allValue"] == ".*"
        names = metrics_in(query["query"]["query"].replace("label_values(", "(").rsplit(",", 1)[0])
        assert names <= exported(), query["name"]
    (link,) = dashboard["links"]
    assert link["tags"] == dashboard["tags"] == ["understudy"]
    assert link["keepTime"]


@each
def test_panels_fill_the_grid_without_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_uids_are_stable() -> None:
    names = ("fleet", "service", "rollout", "engine", "gateway", "feedback", "evaluation", "cost")
    assert DASHBOARDS.keys() == {f"understudy-{name}" for name in names}
    assert all(dashboard["uid"] == uid for uid, dashboard in DASHBOARDS.items())
