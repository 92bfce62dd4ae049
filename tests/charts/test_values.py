"""The chart's values: what they switch on and off, what a user adds, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.charts.conftest import Chart
from tests.fakes.rendered_chart import HA, has, merged, named


@pytest.mark.parametrize(
    ("values", "kind", "name"),
    [
        ({"gateway": {"autoscaling": {"enabled": True}}}, "HorizontalPodAutoscaler", "demo-gateway"),
        ({"gateway": {"keda": {"enabled": True, "triggers": [{"type": "cpu"}]}}}, "ScaledObject", "demo-gateway"),
        ({"gateway": {"persistence": {"enabled": True}}}, "StatefulSet", "demo-gateway"),
        ({"gateway": {"ingress": {"enabled": True}}}, "Ingress", "demo-gateway"),
        ({"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]}}}, "HTTPRoute", "demo-gateway"),
        ({"controller": {"webhook": {"enabled": True}}}, "Secret", "demo-controller-webhook"),
        ({"controller": {"replicas": 2}}, "PodDisruptionBudget", "demo-controller"),
        ({"controller": {"kuberay": {"enabled": True}}}, "NetworkPolicy", "demo-engines"),
        ({"ray": {"enabled": True}}, "Deployment", "demo-ray-head"),
    ],
)
def test_what_is_off_unless_asked_for(chart: Chart, values: dict[str, Any], kind: str, name: str) -> None:
    assert not has(chart({}), kind, name)
    assert has(chart(values), kind, name)


@pytest.mark.parametrize(
    ("values", "kind", "name"),
    [
        ({"gateway": {"podDisruptionBudget": {"enabled": False}}}, "PodDisruptionBudget", "demo-gateway"),
        ({"gateway": {"serviceAccount": {"create": False}}}, "ServiceAccount", "demo-gateway"),
        ({"networkPolicy": {"enabled": False}}, "NetworkPolicy", "demo-gateway"),
        ({"mlflow": {"enabled": False, "uri": "http://mlflow"}}, "Deployment", "demo-mlflow"),
        ({"postgresql": {"enabled": False}, **HA}, "StatefulSet", "demo-postgresql"),
        ({"migrations": {"enabled": False}}, "Job", "demo-migrate"),
        ({"uninstall": {"enabled": False}}, "Job", "demo-uninstall"),
        ({"crds": {"install": False}}, "CustomResourceDefinition", "llmservices.understudy.dev"),
    ],
)
def test_what_is_on_unless_refused(chart: Chart, values: dict[str, Any], kind: str, name: str) -> None:
    assert has(chart({}), kind, name)
    assert not has(chart(values), kind, name)


def test_an_autoscaler_is_not_overruled(chart: Chart) -> None:
    assert named(chart({}), "Deployment", "demo-gateway")["spec"]["replicas"] == 2
    scaled = chart({"gateway": {"autoscaling": {"enabled": True}, "persistence": {"enabled": True}}})
    assert "replicas" not in named(scaled, "StatefulSet", "demo-gateway")["spec"]
    target = named(scaled, "HorizontalPodAutoscaler", "demo-gateway")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", "demo-gateway")


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (("gateway",), "Deployment", "demo-gateway"),
        (("controller",), "Deployment", "demo-controller"),
        (("mlflow",), "Deployment", "demo-mlflow"),
        (("postgresql",), "StatefulSet", "demo-postgresql"),
        (("ray", "head"), "Deployment", "demo-ray-head"),
        (("ray", "worker"), "Deployment", "demo-ray-worker"),
    ],
)
def test_what_a_user_adds_arrives(chart: Chart, path: tuple[str, ...], kind: str, name: str) -> None:
    added: dict[str, Any] = {
        "podAnnotations": {"example.com/a": "b"},
        "podLabels": {"team": "search"},
        "extraEnv": [{"name": "EXTRA", "value": "1"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podSecurityContext": {"runAsUser": 1000},
    }
    nested = added
    for part in reversed(path):
        nested = {part: nested}
    shared = {
        "extraLabels": {"cost": "42"},
        "extraEnv": [{"name": "SHARED", "value": "2"}],
        "imagePullSecrets": ["login"],
    }
    objects = chart(merged({"ray": {"enabled": True}, "global": shared}, nested))
    owner = named(objects, kind, name)
    pod = owner["spec"]["template"]
    assert owner["metadata"]["labels"]["cost"] == "42"
    assert pod["metadata"]["annotations"]["example.com/a"] == "b"
    assert pod["metadata"]["labels"].items() >= {"team": "search", "cost": "42"}.items()
    spec = pod["spec"]
    for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert spec[key] == added[key]
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (1000, True)
    assert spec["imagePullSecrets"] == [{"name": "login"}]
    assert {"name": "more", "emptyDir": {}} in spec["volumes"]
    container = spec["containers"][0]
    assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
    assert {"EXTRA", "SHARED"} <= {one["name"] for one in container["env"]}


def test_images_by_registry_tag_and_digest(chart: Chart) -> None:
    images = {
        "gateway": {"tag": "1.2"},
        "controller": {"digest": "sha256:" + "a" * 64},
        "mlflow": {"repository": "own/mlflow"},
    }
    objects = chart({"global": {"imageRegistry": "registry.example.com/llm/"}, "images": images})

    def image(name: str) -> str:
        return str(named(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"])

    assert image("demo-gateway") == "registry.example.com/llm/understudy-gateway:1.2"
    assert image("demo-controller") == "registry.example.com/llm/understudy-controller@sha256:" + "a" * 64
    assert image("demo-mlflow") == "registry.example.com/llm/own/mlflow:0.1.0"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"gateway": {"replica": 3}}, "replica"),
        ({"gateway": {"replicas": "three"}}, "replicas"),
        ({"controller": {"replicas": 3}}, "replicas"),
        ({"images": {"gateway": {"digest": "latest"}}}, "digest"),
        ({"global": {"imagePullPolicy": "Sometimes"}}, "imagePullPolicy"),
        ({"gateway": {"apiKeys": {"additional": [{"name": "shop", "sha256": "secret"}]}}}, "sha256"),
        ({"gateway": {"settings": {"poll_seconds": 1}}}, "poll_seconds"),
        ({"mlflow": {"uri": "mlflow:5000"}}, "uri"),
        ({"tracing": {"endpoint": "collector:4317"}}, "endpoint"),
        ({"tracing": {"ratio": 2}}, "ratio"),
        ({"models": {"kind": "nfs"}}, "kind"),
        (
            {"gateway": {"autoscaling": {"enabled": True}, "keda": {"enabled": True, "triggers": [{"type": "cpu"}]}}},
            "choose one",
        ),
        ({"gateway": {"keda": {"enabled": True}}}, "gateway.keda.triggers"),
        ({"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}, "maxReplicas"),
        ({"gateway": {"httpRoute": {"enabled": True}}}, "parentRefs"),
        ({"postgresql": {"enabled": False}}, "store.existingSecret"),
        ({"postgresql": {"enabled": False}, "store": {"existingSecret": "own"}}, "mlflow.backend.kind"),
        ({"mlflow": {"enabled": False}}, "mlflow.uri"),
        ({"mlflow": {"backend": {"kind": "existingSecret"}}}, "mlflow.backend.existingSecret"),
        ({"ray": {"enabled": True, "existing": {"dashboardUrl": "http://ray:8265"}}}, "ray.existing.dashboardUrl"),
        ({"ray": {"existing": {"dashboardUrl": "http://ray:8265"}}}, "ray.existing.proxyUrl"),
        ({"ray": {"enabled": True, "worker": {"gpus": 1}}}, "nvidia.com/gpu"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: Chart, values: dict[str, Any], word: str) -> None:
    with pytest.raises(Exception, match=re.escape(word)):
        chart(values)
