"""`services.common.manifest`: what a person learns from a wrong file."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from services.common.manifest import InvalidManifest, read


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 1


class Box(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: str
    spec: Inner = Inner()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "box.yaml"
    path.write_text(text)
    return path


def test_other_kinds_are_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "kind: Crate\nspec: {unknown: 1}\n---\nkind: Box\nspec: {width: 3}\n")
    assert [box.spec.width for box in read(path, {"Box": Box})] == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Box\nspec:\n  widht: 3\n", "box.yaml:3: spec.widht: unknown field; did you mean width?"),
        ("kind: Box\nspec:\n  width: wide\n", "box.yaml:3: spec.width: Input should be a valid integer"),
        ("kind: Box\nspec: {width: 1}\nspec: {width: 2}\n", "box.yaml:3: spec: the field is given twice"),
        ("kind: [Box\n", "box.yaml:2: not YAML"),
        ("kind: Crate\n", "box.yaml: holds no Box; it holds Crate"),
        ("", "box.yaml: holds no Box"),
        ("kind: Boxx\nspec: {wide: 1}\n", "box.yaml:2: spec.wide: unknown field"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        read(written(tmp_path, text), {"Box": Box})
    assert message in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="cannot be read") as caught:
        read(tmp_path / "none.yaml", {"Box": Box})
    assert "\n" not in str(caught.value)
