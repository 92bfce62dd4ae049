"""The custom resource definition `llmservices.understudy.dev`, made of the models in `resources` and `resource_status`. Pure.

`docs/generate.py` writes it into the chart. The API server wants a *structural* schema: every node typed, no references, no alternatives;
and it limits what the rules (CEL) may cost, so every list, map and text has a greatest size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from services.rollout.durations import format_duration
from services.rollout.resource_status import ResourceStatus
from services.rollout.resources import LLMService, Metadata, Model, Spec

GROUP: Final = "understudy.dev"
VERSION: Final = "v1alpha1"
PLURAL: Final = "llmservices"

Schema = dict[str, Any]

_TEXT: Final = 1_024
_ITEMS: Final = 64
"""Greatest sizes where a model names none."""

_KEPT: Final = (
    "type", "format", "pattern", "enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
    "maxProperties", "description", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)  # fmt: skip
"""What is taken over as it stands."""

COLUMNS: Final = (
    ("Model", "string", ".spec.model.registeredModel", "The registered model."),
    ("Stable", "string", ".status.stable.version", "The version that serves."),
    ("Candidate", "string", ".status.candidate.version", "The version that is compared with it."),
    ("Stage", "string", ".status.stage", "Stage of the newest rollout."),
    ("Step", "integer", ".status.step", "Canary step, from 1."),
    ("Weight", "number", ".status.weights.candidate", "Percent of users on the candidate."),
    ("Verdict", "string", ".status.verdict", "Verdict of the newest rollout."),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether users are served."),
    ("Age", "date", ".metadata.creationTimestamp", "Age of the resource."),
    ("Reason", "string", ".status.reason", "Why the verdict fell, or what the rollout waits for."),
)
"""What `kubectl get` shows: name, type, path, meaning. The last only with `-o wide`."""


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a JSON object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": "LLMService",
                "listKind": "LLMServiceList",
                "plural": PLURAL,
                "singular": "llmservice",
                "shortNames": ["llms"],
                "categories": ["understudy"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": text}
                        | ({"priority": 1} if name == "Reason" else {})
                        for name, kind, path, text in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def _root() -> Schema:
    name = _structural(Metadata)["properties"]["name"]
    return {
        "type": "object",
        "description": _sentence(LLMService.__doc__),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": "Always LLMService."},
            # Of metadata the API server lets a definition restrict the name alone.
            "metadata": {
                "type": "object",
                "properties": {"name": {k: name[k] for k in ("type", "pattern", "maxLength")}},
            },
            "spec": _structural(Spec, _filled()) | {"description": _sentence(Spec.__doc__)},
            # Without defaults: the API server would write them into a status that the controller has not spoken of.
            "status": _without_defaults(_structural(ResourceStatus))
            | {"description": _sentence(ResourceStatus.__doc__)},
        },
    }


def _filled() -> dict[str, Any]:
    """The spec that the models make of the least that a person must write."""
    return Spec(model=Model(registered_model="any")).model_dump(mode="json", by_alias=True, exclude_none=True)


def _structural(model: type[BaseModel], filled: Any = None) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    return _node(schema, schema.get("$defs", {}), filled)


def _node(raw: Mapping[str, Any], definitions: Mapping[str, Any], filled: Any = None) -> Schema:
    """One node of pydantic's schema, structural. `filled`: what stands here in a resource that names nothing."""
    source = _resolved(raw, definitions)
    made: Schema = {key: source[key] for key in _KEPT if key in source}
    if "const" in source:
        made.update(type="string", enum=[source["const"]])
    kind = made.get("type", "object")
    made["type"] = kind
    if kind == "object":
        _object(made, source, definitions, filled)
    elif kind == "array":
        made.setdefault("maxItems", _ITEMS)
        made["items"] = {key: said for key, said in _node(source["items"], definitions).items() if key != "default"}
    elif kind == "string" and "enum" not in made and "format" not in made:
        made.setdefault("maxLength", _TEXT)
    for bound, side in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in source:  # the API server's JSON schema is of the draft in which this was a flag
            made |= {side: source[bound], bound: True}
    default = _default(source, made, filled)
    if default is not None:
        made["default"] = default
    return made


def _object(made: Schema, source: Mapping[str, Any], definitions: Mapping[str, Any], filled: Any) -> None:
    if "properties" in source:
        inside = filled if isinstance(filled, dict) else {}
        made["properties"] = {
            name: _node(field, definitions, inside.get(name)) for name, field in source["properties"].items()
        }
        if required := source.get("required"):
            made["required"] = sorted(required)
    elif isinstance(source.get("additionalProperties"), dict) and source["additionalProperties"]:
        made["additionalProperties"] = _node(source["additionalProperties"], definitions)
        made.setdefault("maxProperties", _ITEMS)


def _resolved(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """References followed and `or null` taken away (a field that may be absent is not required, that is all). What stands at the field
    (its description, its default) outdoes what stands at the model.
    """
    node = dict(raw)
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            target = definitions[node.pop("$ref").rsplit("/", 1)[1]]
        else:
            (target,) = [choice for choice in node.pop("anyOf") if choice.get("type") != "null"]
        node = {**target, **node}
    return node


def _default(source: Mapping[str, Any], made: Schema, filled: Any) -> Any:
    """The default that the API server fills in, so that `kubectl get -o yaml` shows what is in force. An object that may be left out
    has its fields' defaults: the API server tries the rules on a default as it stands, and they would miss the fields of an empty one.
    """
    if made["type"] == "object":
        inside = {name: field["default"] for name, field in made.get("properties", {}).items() if "default" in field}
        return copy.deepcopy(inside) if inside and "required" not in made and "default" not in source else None
    value = source.get("default", filled if made["type"] == "array" else None)
    if made["type"] == "string" and isinstance(value, float):
        return format_duration(value)
    return None if value in (None, []) else value


def _without_defaults(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: {name: _without_defaults(field) for name, field in value.items()}
            if key == "properties"
            else _without_defaults(value)
            for key, value in node.items()
            if key != "default"
        }
    return [_without_defaults(item) for item in node] if isinstance(node, list) else node


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())
