"""The objects for the Prometheus Operator against its own definitions, which come with its Go module: no field that it does not know,
no value that it refuses. `tests/e2e/test_operator.py` asks a real API server the same.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.conftest import Chart

pytestmark = pytest.mark.integration
MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
KINDS = {"ServiceMonitor": "servicemonitors", "PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """By kind."""
    if shutil.which("go") is None:
        pytest.skip("the operator's definitions come with its Go module, and there is no `go`")
    command = ["go", "mod", "download", "-json", MODULE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    if done.returncode:
        pytest.skip(f"the operator's Go module cannot be fetched: {done.stdout}{done.stderr}")
    folder = Path(json.loads(done.stdout)["Dir"]) / "example/prometheus-operator-crd"
    found = {}
    for kind, name in KINDS.items():
        text = (folder / f"monitoring.coreos.com_{name}.yaml").read_text()
        (version,) = yaml.safe_load(text)["spec"]["versions"]
        found[kind] = version["schema"]["openAPIV3Schema"]
    return found


def faults(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """What an API server would refuse under a structural schema."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{where}: neither a number nor a text"
    elif not isinstance(value, TYPES[schema["type"]]):
        yield f"{where}: not of type {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
        if len(value) < schema.get("minLength", 0):
            yield f"{where}: too short"
    if isinstance(value, list):
        for place, one in enumerate(value):
            yield from faults(one, schema["items"], f"{where}[{place}]")
    if isinstance(value, dict) and (known := schema.get("properties")):
        yield from (f"{where}.{name}: missing" for name in schema.get("required", ()) if name not in value)
        for name, one in value.items():
            if name in known:
                yield from faults(one, known[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}: unknown field"
    elif isinstance(value, dict) and isinstance(more := schema.get("additionalProperties"), dict):
        for name, one in value.items():
            yield from faults(one, more, f"{where}.{name}")


def shipped(chart: Chart) -> dict[str, Any]:
    switches = {
        name: {"enabled": True, "labels": {"release": "stack"}} for name in ("serviceMonitor", "podMonitor", "rules")
    }
    values = {"postgresql": {"enabled": True}, "controller": {"watchAllNamespaces": True}, "monitoring": switches}
    return {one["kind"]: one["spec"] for one in chart(values) if one["kind"] in KINDS}


def test_the_operator_knows_every_field(chart: Chart, schemas: dict[str, Any]) -> None:
    objects = shipped(chart)
    assert objects.keys() == KINDS.keys()
    for kind, spec in objects.items():
        assert list(faults(spec, schemas[kind]["properties"]["spec"], kind)) == []


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [("targetLabels", "x", "unknown field"), ("action", "relabel", "is none of"), ("regex", 1, "not of type string")],
)
def test_a_wrong_field_is_found(chart: Chart, schemas: dict[str, Any], field: str, value: Any, fault: str) -> None:
    spec = copy.deepcopy(shipped(chart)["PodMonitor"])
    spec["podMetricsEndpoints"][0]["metricRelabelings"][0][field] = value
    (found,) = faults(spec, schemas["PodMonitor"]["properties"]["spec"], "spec")
    assert found.startswith(f"spec.podMetricsEndpoints[0].metricRelabelings[0].{field}: ")
    assert fault in found
