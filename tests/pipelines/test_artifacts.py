"""Model folders on disk: never half of one."""

from pathlib import Path

import pytest

from pipelines import artifacts


def folder_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


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
