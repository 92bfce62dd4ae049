"""Model folders on disk: one digest everywhere, and never half a folder."""

from pathlib import Path

import pytest

from pipelines import artifacts
from services.serving.artifacts import folder_digest as servings_digest


def folder_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_digest_is_the_one_that_serving_verifies(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", {"config.json": "{}", "tokenizer/vocabulary.txt": "paris", "tokenizer.json": ""})
    assert artifacts.folder_digest(folder) == servings_digest(folder)


def test_the_digest_tells_names_and_contents_apart(tmp_path: Path) -> None:
    contents = [{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "12", "b": ""}, {"a": "1", "c": "2"}]
    digests = {artifacts.folder_digest(folder_of(tmp_path / str(n), files)) for n, files in enumerate(contents)}
    assert len(digests) == len(contents)


def test_a_missing_or_empty_folder_has_no_digest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="missing or empty"):
            artifacts.folder_digest(folder)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = folder_of(tmp_path / "v1", {"old": "old"})
    with pytest.raises(RuntimeError, match="out of memory"), artifacts.replaced_folder(target) as building:  # noqa: PT012
        (building / "new").write_text("half")
        raise RuntimeError("out of memory")
    assert [path.name for path in target.iterdir()] == ["old"]

    with artifacts.replaced_folder(target) as building:
        (building / "new").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
