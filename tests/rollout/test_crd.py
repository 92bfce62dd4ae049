"""The custom resource definition: the API server's rules of structural schemas, and that it says what the models say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from services.rollout.crd import definition
from services.rollout.platforms.base import RevisionState
from services.rollout.resource_status import service_status
from services.rollout.resources import LLMService
from tests.fakes.rollout_world import World

ROOT: dict[str, Any] = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = ROOT["properties"]["spec"]
LEAST = {
    "apiVersion": "understudy.dev/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "assistant"},
    "spec": {"model": {"registeredModel": "assistant"}},
}


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for inner, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if inner in node:
            yield from nodes(node[inner], path + mark)


def test_every_node_is_structural() -> None:
    known = {
        "type", "format", "pattern", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
        "minItems", "maxItems", "maxProperties", "description", "default", "properties", "required", "items", "additionalProperties",
    }  # fmt: skip
    for path, node in nodes(ROOT):
        assert node["type"] in {"object", "array", "string", "number", "integer", "boolean"}, path
        assert {key for key in node if not key.startswith("x-kubernetes-")} <= known, path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert set(node.get("required", ())) <= set(node.get("properties", {})), path


def test_nothing_is_without_a_greatest_size() -> None:
    """The cost of a rule is reckoned from the greatest sizes; without them it is endless."""
    for path, node in nodes(SPEC):
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "string" and "enum" not in node:
            assert "maxLength" in node or node.get("format") == "date-time", path
        if node["type"] == "object" and "properties" not in node and not path.endswith("[]"):
            assert "maxProperties" in node, path


def test_only_what_belongs_to_others_is_open() -> None:
    opened = {path for path, node in nodes(ROOT) if node.get("x-kubernetes-preserve-unknown-fields")}
    engine = ".spec.engine"
    assert opened == {
        f"{engine}.arguments",
        f"{engine}.affinity",
        f"{engine}.topologySpreadConstraints[]",
        f"{engine}.volumes[]",
    }


def test_explain_teaches_every_field() -> None:
    silent = [path for path, node in nodes(SPEC) if not node.get("description") and not path.endswith(("[]", "{}"))]
    assert silent == []


def test_keys_of_lists_are_fields_that_are_there() -> None:
    for path, node in nodes(ROOT):
        for key in node.get("x-kubernetes-list-map-keys", ()):
            assert key in node["items"]["required"], path


def test_rules_speak_of_fields_that_are_there_and_name_one() -> None:
    rules = [(path, node, rule) for path, node in nodes(ROOT) for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules) >= 20
    for path, node, rule in rules:
        fields = node.get("properties", {})
        named = {match[1] for match in re.finditer(r"\bself\.(\w+)(?![\w(])", rule["rule"])}
        assert named <= set(fields), f"{path}: {rule['rule']}"
        optional = {name for name in named if name not in node.get("required", ()) and "default" not in fields[name]}
        assert all(f"has(self.{name})" in rule["rule"] for name in optional), f"{path}: {rule['rule']}"
        if "fieldPath" in rule:
            assert rule["fieldPath"].removeprefix(".") in fields, path
        if fields:
            assert any(name in rule["message"] for name in fields), f"{path}: {rule['message']} names no field"


def complete(node: dict[str, Any], value: Any) -> Any:
    """What the API server makes of a value: defaults filled in."""
    if node["type"] == "object" and isinstance(value, dict) and "properties" in node:
        filled = {name: field["default"] for name, field in node["properties"].items() if "default" in field} | value
        return {
            name: complete(node["properties"][name], one) if name in node["properties"] else one
            for name, one in filled.items()
        }
    if node["type"] == "array" and isinstance(value, list):
        return [complete(node["items"], item) for item in value]
    return value


def mistakes(node: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """What the API server's schema refuses or would prune, rules aside."""
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool}
    if not isinstance(value, kinds[node["type"]]) or (isinstance(value, bool) and node["type"] != "boolean"):
        yield f"{path}: {value!r} is no {node['type']}"
        return
    if "enum" in node and value not in node["enum"]:
        yield f"{path}: {value!r} is not among {node['enum']}"
    if "pattern" in node and not re.search(node["pattern"], value):
        yield f"{path}: {value!r} does not match"
    if "minimum" in node and (value < node["minimum"] or (node.get("exclusiveMinimum") and value == node["minimum"])):
        yield f"{path}: {value!r} is too small"
    if "maximum" in node and (value > node["maximum"] or (node.get("exclusiveMaximum") and value == node["maximum"])):
        yield f"{path}: {value!r} is too large"
    for least, most in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")):
        if (least in node and len(value) < node[least]) or (most in node and len(value) > node[most]):
            yield f"{path}: {len(value)} is no fit size"
    if node["type"] == "array":
        for index, item in enumerate(value):
            yield from mistakes(node["items"], item, f"{path}[{index}]")
    elif node["type"] == "object":
        yield from (f"{path}.{name}: is missing" for name in node.get("required", ()) if name not in value)
        for name, one in value.items():
            inner = node.get("properties", {}).get(name) or node.get("additionalProperties")
            if inner is not None:
                yield from mistakes(inner, one, f"{path}.{name}")
            elif not node.get("x-kubernetes-preserve-unknown-fields") and path != ".metadata":
                yield f"{path}.{name}: would be pruned"


def _demo() -> dict[str, Any]:
    documents = yaml.safe_load_all(Path("demo/demo.yaml").read_text(encoding="utf-8"))
    return next(document for document in documents if document["kind"] == "LLMService")


WATCHED: dict[str, Any] = {
    **LEAST,
    "spec": {
        **LEAST["spec"],
        "rollout": {
            "guardrails": [
                {"metric": "errors", "margin": 0.1, "mode": "nonInferior"},
                {"metric": "rating", "margin": 0.5},
            ],
            "goals": {"metrics": [{"metric": "duration"}, {"metric": "rating", "improvement": 0.2}]},
            "segments": [{"name": "enterprise", "tenants": ["acme"]}],
        },
    },
}


@pytest.mark.parametrize("resource", [LEAST, _demo(), WATCHED], ids=["least", "demo", "watched"])
def test_what_the_api_server_fills_in_is_what_the_models_fill_in(resource: dict[str, Any]) -> None:
    filled = complete(ROOT, resource)
    assert list(mistakes(ROOT, filled)) == []
    assert LLMService.from_object(filled) == LLMService.model_validate(resource)


EVERYTHING = {
    "image": "registry.example/engine@sha256:0",
    "imagePullSecrets": [{"name": "pull"}],
    "platform": "kuberay",
    "tensorParallelSize": 2,
    "pipelineParallelSize": 2,
    "ranksPerPod": 4,
    "resources": {"cpu": 4, "memory": "16Gi", "gpu": 1},
    "autoscaling": {"min": 1, "max": 4, "targetOngoingRequests": 16, "upscaleDelay": "10s", "downscaleDelay": "1d12h"},
    "nodeSelector": {"gpu": "a100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname"}],
    "environment": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    "runtimeClassName": "nvidia",
    "artifactCache": {"hostPath": "/var/cache/models"},
    "headFaultTolerance": {"redisAddress": "redis.models:6379", "passwordSecret": {"name": "redis"}},
}  # fmt: skip


def test_what_is_open_passes_through_untouched() -> None:
    resource = {**LEAST, "spec": {**LEAST["spec"], "engine": EVERYTHING}}
    filled = complete(ROOT, resource)
    assert list(mistakes(ROOT, filled)) == []
    engine = LLMService.from_object(filled).spec.engine.model_dump(mode="json", by_alias=True, exclude_none=True)
    for field in ("affinity", "topologySpreadConstraints", "volumes", "environment"):
        assert engine[field] == complete(SPEC["properties"]["engine"]["properties"][field], EVERYTHING[field])


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"engine": {"platform": "vm"}}, ".spec.engine.platform"),
        ({"model": {"registeredModel": "a", "pinned": ["v3"]}}, ".spec.model.pinned[0]"),
        ({"model": {"registeredModel": "a", "pinned": ["1", "2", "3", "4", "5", "6"]}}, ".spec.model.pinned"),
        ({"engine": {"autoscaling": {"heldRequests": 0}}}, ".spec.engine.autoscaling.heldRequests"),
        ({"engine": {"resources": {"memory": "a lot"}}}, ".spec.engine.resources.memory"),
        ({"rollout": {"alpha": 0.5}}, ".spec.rollout.alpha"),
        ({"rollout": {"look": 10}}, ".spec.rollout.look"),
        ({"rollout": {"look": "1h1d"}}, ".spec.rollout.look"),
        ({"rollout": {"canary": {"steps": []}}}, ".spec.rollout.canary.steps"),
        ({"rollout": {"canary": {"steps": [{"weight": 0}]}}}, ".spec.rollout.canary.steps[0].weight"),
        ({"rollout": {"judge": {"kind": "exactMatch", "references": "r", "apiKeyEnv": "PATH"}}}, ".spec.rollout.judge.apiKeyEnv"),
        ({"rollout": {"freezeWindows": [{"from": "24:30", "to": "01:00"}]}}, ".spec.rollout.freezeWindows[0].from"),
        ({"rollout": {"notifications": [{"name": "a", "url": "ftp://a"}]}}, ".spec.rollout.notifications[0].url"),
        ({"rollout": {"goals": {"metrics": []}}}, ".spec.rollout.goals.metrics"),
        ({"rollout": {"goals": {"combination": "all", "metrics": [{"metric": "ttft"}]}}}, ".spec.rollout.goals.combination"),
        ({"rollout": {"segments": [{"name": "A", "tenants": ["a"]}]}}, ".spec.rollout.segments[0].name"),
        ({"rollout": {"segments": [{"name": "a", "tenants": []}]}}, ".spec.rollout.segments[0].tenants"),
        ({"retention": {"observations": "36h"}}, ".spec.retention.observations"),
        ({"retention": {"observations": "0d"}}, ".spec.retention.observations"),
    ],
)  # fmt: skip
def test_schema_and_models_refuse_alike(spec: dict[str, Any], path: str) -> None:
    resource = {**LEAST, "spec": {**LEAST["spec"], **spec}}
    assert [mistake.split(": ")[0] for mistake in mistakes(ROOT, complete(ROOT, resource))] == [path]
    with pytest.raises(ValidationError):
        LLMService.model_validate(resource)


@pytest.mark.parametrize("name", ["a" * 41, "A", "a-", "a.b", ""])
def test_names_that_no_engine_could_have(name: str) -> None:
    resource = {**LEAST, "metadata": {"name": name}}
    assert next(mistakes(ROOT, resource)).startswith(".metadata.name")
    with pytest.raises(ValidationError):
        LLMService.model_validate(resource)


def test_a_status_of_the_controller_fits_its_schema() -> None:
    world = World()
    world.reach("canary", 1)
    assert world.rollout
    words = "a traceback " * 10_000  # as long as an engine likes
    world.engines[world.rollout.engine] = RevisionState(world.rollout.engine, "failed", 0, None, words)
    assert world.route
    stable = world.route.stable.model
    world.engines[stable] = RevisionState(stable, "failed", 0, None, words)
    decision = world.look()
    status = service_status(decision.status, world.route, [], [], 3, world.now, None)
    assert status["message"].startswith("the engine failed: a traceback")
    assert list(mistakes(ROOT["properties"]["status"], status)) == []
