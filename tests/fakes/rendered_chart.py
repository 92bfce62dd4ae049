"""Values to render the chart with, and how to find one's way in the objects that come of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Objects = list[dict[str, Any]]

HA = {
    "store": {"existingSecret": "own-store"},
    "mlflow": {"backend": {"kind": "existingSecret", "existingSecret": "own-mlflow"}},
}
EVERYTHING: dict[str, Any] = {
    "gateway": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "hosts": ["llm.example.com"], "tls": [{"secretName": "own-tls"}]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["llm.example.com"]},
    },
    "controller": {
        "replicas": 2,
        "kuberay": {"enabled": True},
        "webhook": {"enabled": True},
        "watchAllNamespaces": True,
    },
    "ray": {"enabled": True},
    "monitoring": {part: {"enabled": True} for part in ("serviceMonitor", "podMonitor", "rules", "dashboards")},
}


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def has(objects: Objects, kind: str, name: str) -> bool:
    return any(one["kind"] == kind and one["metadata"]["name"] == name for one in objects)


def pods(objects: Objects) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(object, pod template) of everything that makes pods."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one, one
        elif one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one, one["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def env(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    pod = named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in pod["env"]}
