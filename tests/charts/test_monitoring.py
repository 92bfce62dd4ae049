"""What the chart ships for the Prometheus operator and Grafana's sidecar: off by default, each by its own switch, as in the files."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from services.cli.prometheus import ENGINE_LABELS
from tests.charts.conftest import Chart, Refused
from tests.fakes.shipped_monitoring import SHIPPED, dashboards

KINDS = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}
TRIAL: dict[str, Any] = {"postgresql": {"enabled": True}}


def made(chart: Chart, **monitoring: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for one in chart({**TRIAL, "monitoring": monitoring}):
        if one["kind"] in KINDS and one["metadata"]["labels"]["app.kubernetes.io/component"] == "monitoring":
            found[one["kind"]].append(one)
    return found


def test_nothing_is_made_by_default(chart: Chart) -> None:
    assert not any(made(chart).values())


@pytest.mark.parametrize(
    ("switch", "kind"),
    [("serviceMonitor", "ServiceMonitor"), ("podMonitor", "PodMonitor"), ("rules", "PrometheusRule")],
)
def test_each_by_its_own_switch_with_the_labels_that_prometheus_looks_for(chart: Chart, switch: str, kind: str) -> None:
    found = made(chart, **{switch: {"enabled": True, "labels": {"release": "stack"}}})
    assert {name for name, objects in found.items() if objects} == {kind}
    (one,) = found[kind]
    assert one["metadata"]["labels"]["release"] == "stack"


def test_monitors_find_what_exposes_metrics(chart: Chart) -> None:
    values = {**TRIAL, "ray": {"enabled": True}, "monitoring": {"serviceMonitor": {"enabled": True}}}
    objects = chart(values)
    (monitor,) = [one for one in objects if one["kind"] == "ServiceMonitor"]
    (wanted,) = monitor["spec"]["selector"]["matchExpressions"]
    services = [one for one in objects if one["kind"] == "Service"]
    found = [one for one in services if one["metadata"]["labels"]["app.kubernetes.io/component"] in wanted["values"]]
    assert {one["metadata"]["name"] for one in found} == {"demo-gateway", "demo-controller"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert all(endpoint["port"] in {port["name"] for port in one["spec"]["ports"]} for one in found)
    assert {"action": "labeldrop", "regex": "service"} in endpoint["relabelings"]


def test_engines_are_labelled_as_on_a_laptop(chart: Chart) -> None:
    (monitor,) = made(chart, podMonitor={"enabled": True})["PodMonitor"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    words = {"sourceLabels": "source_labels", "targetLabel": "target_label", "regex": "regex"}
    found = [{words[key]: value for key, value in one.items()} for one in endpoint["metricRelabelings"]]
    assert found == list(ENGINE_LABELS)


def test_rules_are_the_shipped_ones_with_the_values_objectives(chart: Chart) -> None:
    shipped = yaml.safe_load((SHIPPED / "rules.yaml").read_text())["groups"]
    (rule,) = made(chart, rules={"enabled": True})["PrometheusRule"]
    assert rule["spec"]["groups"] == shipped
    objectives = {"firstTokenSeconds": "1.0", "availability": 0.999}
    told = {"enabled": True, "runbooks": "https://wiki/runbooks"}
    (rule,) = made(chart, rules=told, objectives=objectives)["PrometheusRule"]
    text = json.dumps(rule)
    assert "vector(0.999)" in text
    assert 'le=\\"1.0\\"' in text
    assert 'le=\\"2.5\\"' not in text
    links = re.findall(r'"runbook_url": "([^"#]+)', text)
    assert set(links) == {"https://wiki/runbooks"}


def test_a_bound_that_no_bucket_has_is_refused(chart: Chart) -> None:
    with pytest.raises(Refused):
        made(chart, rules={"enabled": True}, objectives={"firstTokenSeconds": "3"})


def test_dashboards_are_the_shipped_ones_for_the_sidecar(chart: Chart) -> None:
    found = made(chart, dashboards={"enabled": True, "annotations": {"grafana_folder": "Understudy"}})["ConfigMap"]
    told = {}
    for one in found:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["annotations"] == {"grafana_folder": "Understudy"}
        ((file, text),) = one["data"].items()
        told[file.removesuffix(".json")] = json.loads(text)
    assert told == dashboards()
