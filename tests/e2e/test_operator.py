"""What the chart ships for the Prometheus Operator, on an API server that has the operator's own definitions: it must take every object,
strictly. No operator runs, so nothing comes of them.

Where the cluster has no such definitions they come for the time from the operator's Go module; without `go`, or a network, there is
nothing to test.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.installation import CHART, RELEASE
from tests.e2e.kube import CommandFailed, Namespace, run

pytestmark = pytest.mark.e2e
MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
GROUP = "monitoring.coreos.com"
KINDS = {"ServiceMonitor": "servicemonitors", "PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}
VALUES = (
    "postgresql.enabled=true", "controller.watchAllNamespaces=true", "monitoring.serviceMonitor.enabled=true",
    "monitoring.podMonitor.enabled=true", "monitoring.rules.enabled=true", "monitoring.rules.labels.release=stack",
)  # fmt: skip


def _folder() -> Path:
    """Where the operator's definitions lie; skips the test where they cannot be had."""
    if shutil.which("go") is None:
        pytest.skip(f"the cluster has no definitions of {GROUP}, and without `go` they cannot be fetched")
    try:
        found = json.loads(run("go", "mod", "download", "-json", MODULE, timeout=300))
    except CommandFailed as failure:
        pytest.skip(f"the cluster has no definitions of {GROUP}, and their module cannot be fetched: {failure}")
    return Path(found["Dir"]) / "example/prometheus-operator-crd"


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """A new namespace of a cluster that knows the operator's kinds."""
    there = run("kubectl", "get", "customresourcedefinitions", "--output=name")
    files = {kind: name for kind, name in KINDS.items() if f"{name}.{GROUP}" not in there}
    folder = _folder() if files else Path()
    namespace = Namespace(f"understudy-e2e-{secrets.token_hex(3)}")
    try:
        for name in files.values():
            run("kubectl", "create", f"--filename={folder / f'{GROUP}_{name}.yaml'}")
            run("kubectl", "wait", f"crd/{name}.{GROUP}", "--for=condition=Established", "--timeout=60s")
        run("kubectl", "create", "namespace", namespace.name)
        yield namespace
    finally:
        run("kubectl", "delete", "namespace", namespace.name, "--ignore-not-found", "--wait", timeout=180)
        for name in files.values():
            run("kubectl", "delete", "customresourcedefinition", f"{name}.{GROUP}", "--ignore-not-found")


def _shipped() -> dict[str, dict[str, Any]]:
    newest = "--kube-version=1.34.0"  # what a helm that was not released itself takes for the newest is old
    said = run("helm", "template", RELEASE, CHART, newest, *(f"--set={value}" for value in VALUES))
    return {one["kind"]: one for one in yaml.safe_load_all(said) if one and one["kind"] in KINDS}


def test_the_api_server_takes_every_object(namespace: Namespace) -> None:
    shipped = _shipped()
    assert shipped.keys() == KINDS.keys()
    for kind, one in shipped.items():
        namespace.kubectl("create", "--validate=strict", "--filename=-", stdin=json.dumps(one))
        (kept,) = namespace.get(f"{KINDS[kind]}.{GROUP}")["items"]
        assert kept["metadata"]["name"] == one["metadata"]["name"]


def test_the_definitions_are_no_lax_ones(namespace: Namespace) -> None:
    wrong = _shipped()["PodMonitor"]
    wrong["metadata"]["name"] = "wrong"
    wrong["spec"]["podMetricsEndpoints"][0]["metricRelabelings"][0]["targetLabels"] = "revision"
    with pytest.raises(CommandFailed, match="targetLabels"):
        namespace.kubectl("create", "--validate=strict", "--filename=-", stdin=json.dumps(wrong))
