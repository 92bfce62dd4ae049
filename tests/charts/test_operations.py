"""The operations guides: their commands are shell, their values exist, their resources are valid."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.rollout.resources import LLMService

ROOT = Path(__file__).parents[2]
GUIDES = [*sorted((ROOT / "docs/operations").glob("*.md")), ROOT / "charts/understudy/README.md"]
EXAMPLES = sorted((ROOT / "docs/operations").glob("*.yaml"))
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "charts/understudy/values.yaml").read_text())


def blocks(guide: Path) -> list[str]:
    return re.findall(r"^```(?:sh|sh dry-run|bash)\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_command_is_shell(guide: Path) -> None:
    assert blocks(guide)
    for block in blocks(guide):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_values_and_files_that_are_named_exist(guide: Path) -> None:
    text = guide.read_text()
    for path in re.findall(r"--set(?:-string)? ([a-zA-Z.]+?)(?:\.\"|=)", text):
        here: Any = VALUES
        for key in path.split("."):
            assert key in here, f"{path}: no {key}"
            here = here[key]
    for name in re.findall(r"(?:--values|--filename|-f) ((?:charts|docs)/\S+)", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_examples_are_valid_resources(example: Path) -> None:
    LLMService.model_validate(yaml.safe_load(example.read_text()))
