"""Writes what is made of the code: `docs/reference/` (every field of the resources, with type, default and meaning; every metric, span and
event) and the custom resource definition in the chart.

`make generate` runs it; `make verify` fails when what is committed differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from demo.story import DemoStory
from services.cli.local import LocalPlatform
from services.common.events import EVENTS
from services.common.telemetry import METRICS
from services.common.tracing import SPANS, Attribute
from services.rollout.crd import definition
from services.rollout.durations import format_duration
from services.rollout.resources import LLMService

REFERENCE = Path(__file__).parent / "reference"
FIELD = re.compile(r"%\((\w+)\)[.\d]*[sdf]")
DEFINITION = Path(__file__).parents[1] / "charts/understudy/files/llmservices.yaml"


def fields(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(path, type, default, description) of each field, depth first."""
    required = set(node.get("required", ()))
    for name, raw in node.get("properties", {}).items():
        field = resolved(schema, raw)
        here = f"{path}.{name}" if path else name
        value = raw.get("default", field.get("default"))
        if field.get("type") == "string" and isinstance(value, float):
            value = format_duration(value)
        default = "required" if name in required else shown(value)
        yield here, type_of(schema, field), default, raw.get("description", field.get("description", ""))
        inner = resolved(schema, field.get("items", {})) if field.get("type") == "array" else field
        yield from fields(schema, inner, here + ("[]" if field.get("type") == "array" else ""))


def resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node itself, what it refers to, or the alternative that is not null."""
    if "$ref" in node:
        found: dict[str, Any] = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        return found
    choices = [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]
    return resolved(schema, choices[0]) if len(choices) == 1 else node


def type_of(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """A type in a word or two."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{choice}`" for choice in field["enum"])
    if "anyOf" in field:
        return " or ".join(type_of(schema, resolved(schema, choice)) for choice in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {type_of(schema, resolved(schema, field.get('items', {})))}"
    return str(field.get("format") or field.get("type", "any"))


def shown(default: Any) -> str:
    """A default as one would write it; long ones are left to the fields below."""
    text = json.dumps(default)
    return f"`{text}`" if default is not None and len(text) <= 40 and not isinstance(default, dict) else ""


def page(model: type[BaseModel]) -> str:
    """The reference page of one kind."""
    schema = model.model_json_schema(by_alias=True)
    lines = [
        f"# {model.__name__}",
        "",
        (model.__doc__ or "").strip(),
        "",
        "Generated from the code by `make generate`.",
        "",
    ]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, text in fields(schema, schema):
        lines.append(f"| `{name}` | {kind} | {default} | {text.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """The reference page of the metrics."""
    lines = [
        "# Metrics",
        "",
        "Gateways expose theirs at `/metrics` of the API's port, the controller at `/metrics` of its health port. Engines have their own.",
        "`docs/monitoring.md` says what to watch. Histograms have `_bucket`, `_count` and `_sum`.",
        "",
        "Generated from the code by `make generate`.",
    ]
    for component in ("gateway", "controller"):
        lines += [
            "",
            f"## {component.capitalize()}",
            "",
            "| metric | kind | labels | unit | meaning |",
            "|---|---|---|---|---|",
        ]
        for spec in (spec for spec in METRICS if spec.component == component):
            labels = ", ".join(f"`{label}`" for label in spec.labels)
            lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.unit} | {spec.text} |")
    lines += ["", "## Buckets", ""]
    buckets: dict[tuple[float, ...], list[str]] = {spec.buckets: [] for spec in METRICS if spec.buckets}
    for spec in METRICS:
        if spec.buckets:
            buckets[spec.buckets].append(f"`{spec.name}`")
    for bounds, users in buckets.items():
        lines.append(f"- {', '.join(f'{bound:g}' for bound in bounds)}: {', '.join(users)}")
    return "\n".join(lines) + "\n"


def traces() -> str:
    """The reference page of spans, their attributes and the events of logs."""
    lines = [
        "# Spans, attributes, log events",
        "",
        "`docs/tracing.md` says how to get them. Attributes that do not apply are left out.",
        "",
        "Generated from the code by `make generate`.",
        "",
        "## Spans",
        "",
        "| span | kind | meaning | attributes | events |",
        "|---|---|---|---|---|",
    ]
    for span in SPANS:
        attributes, events = (
            ", ".join(f"`{name}`" for name in names)
            for names in (span.attributes, [event.name for event in span.events])
        )
        lines.append(f"| `{span.name}` | {span.kind} | {span.text} | {attributes} | {events} |")
    lines += ["", "## Events of spans", "", "| event | meaning | attributes |", "|---|---|---|"]
    happenings = {event.name: event for span in SPANS for event in span.events}
    for event in happenings.values():
        lines.append(f"| `{event.name}` | {event.text} | {', '.join(f'`{name}`' for name in event.attributes)} |")
    lines += ["", "## Attributes", "", "| attribute | type | meaning |", "|---|---|---|"]
    known: dict[str, Attribute] = {}
    for span in SPANS:
        known |= {
            name: name for name in (*span.attributes, *(key for event in span.events for key in event.attributes))
        }
    for name in sorted(known):
        lines.append(f"| `{name}` | {known[name].kind} | {known[name].text} |")
    lines += ["", "## Events of logs", "", "| event | words |", "|---|---|"]
    for told in EVENTS:
        words = FIELD.sub(r"`\1`", told).replace("\n", " ")
        lines.append(f"| `{told.name}` | {words} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    (REFERENCE / "metrics.md").write_text(metrics())
    (REFERENCE / "tracing.md").write_text(traces())
    for model in (LLMService, LocalPlatform, DemoStory):
        (REFERENCE / f"{model.__name__.lower()}.md").write_text(page(model))
    DEFINITION.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(definition(), sort_keys=False, width=140, allow_unicode=True)
    DEFINITION.write_text(f"# Generated from services/rollout/resources.py by `make generate`.\n{text}")


if __name__ == "__main__":
    main()
