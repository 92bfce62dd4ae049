"""What `charts/generate.py` makes of the values' comments."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHARTS = Path(__file__).parents[2] / "charts"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("charts_generate", CHARTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_what_is_committed_is_what_the_values_say(generate: ModuleType) -> None:
    values = generate.read_values((CHARTS / "understudy/values.yaml").read_text())
    assert (CHARTS / "understudy/values.schema.json").read_text() == generate.schema(values)
    assert generate.table(values) in (CHARTS / "understudy/README.md").read_text()


def test_types_follow_from_defaults_and_comments(generate: ModuleType) -> None:
    text = """
# Parts.
part:
  # How many.
  # @schema {minimum: 1}
  count: 2
  # Any keys.
  labels:
    a: b
  # A ratio
  # of two.
  ratio: 0.5
"""
    (part,) = generate.read_values(text)
    schema = part.schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["count"] == {"description": "How many.", "type": "integer", "default": 2, "minimum": 1}
    assert schema["properties"]["labels"] == {"description": "Any keys.", "type": "object", "default": {"a": "b"}}
    assert schema["properties"]["ratio"]["description"] == "A ratio of two."
    assert "| `part.count` | `2` | How many. |" in generate.table([part])


def test_a_value_without_a_comment_is_refused(generate: ModuleType) -> None:
    with pytest.raises(generate.Undocumented, match=r"values\.yaml:5: part\.lonely"):
        generate.read_values("# Parts.\npart:\n  # One.\n  one: 1\n  lonely: 1\n")
