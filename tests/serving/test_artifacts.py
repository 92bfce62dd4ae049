"""Fetching model folders into the cache."""

import errno
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from services.serving import artifacts
from services.serving.artifacts import fetch, folder_digest
from services.serving.errors import ArtifactMismatch, ArtifactMissing, ArtifactUnavailable, NoSpace


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model one"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights").write_bytes(b"\x00" * 100)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_digest_is_over_sorted_paths_and_contents(model: Path) -> None:
    expected = hashlib.sha256()
    for name, content in (("config.json", b"{}"), ("sub/weights", b"\x00" * 100)):
        expected.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    assert folder_digest(model) == expected.hexdigest()


@pytest.mark.parametrize("as_source", [str, Path.as_uri])
def test_a_folder_is_copied_under_its_digest(model: Path, cache: Path, as_source: object) -> None:
    digest = folder_digest(model)
    folder = fetch(as_source(model), digest, cache)  # type: ignore[operator]
    assert folder == cache / digest
    assert folder_digest(folder) == digest
    shutil.rmtree(model)
    assert fetch(str(model), digest, cache) == folder  # the source is not asked again


def test_other_files_than_registered_are_refused(model: Path, cache: Path) -> None:
    digest = folder_digest(model)
    (model / "config.json").write_text("{} ")
    with pytest.raises(ArtifactMismatch, match="other files"):
        fetch(str(model), digest, cache)
    assert [path.name for path in cache.iterdir()] == [f"{digest}.lock"]


@pytest.mark.parametrize("digest", ["", "abc", "../" + "a" * 61, "Z" * 64])
def test_a_digest_that_is_none(model: Path, cache: Path, digest: str) -> None:
    with pytest.raises(ArtifactMismatch, match="no SHA-256"):
        fetch(str(model), digest, cache)
    assert not cache.exists()


def test_a_source_that_is_not_there(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no folder"):
        fetch(str(tmp_path / "nothing"), "a" * 64, cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactMissing, match="no file"):
        fetch(str(tmp_path / "empty"), "a" * 64, cache)


def test_a_full_disk_and_a_broken_one(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(code: int) -> object:
        def copytree(*_: object) -> None:
            raise OSError(code, "simulated")

        return copytree

    monkeypatch.setattr(shutil, "copytree", failing(errno.ENOSPC))
    with pytest.raises(NoSpace, match="free disk space"):
        fetch(str(model), folder_digest(model), cache)
    monkeypatch.setattr(shutil, "copytree", failing(errno.EIO))
    with pytest.raises(ArtifactUnavailable):
        fetch(str(model), folder_digest(model), cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_concurrent_callers_copy_once(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    download = artifacts.download

    def counting(source: str, *others: Any) -> Path:
        copies.append(source)
        return download(source, *others)

    monkeypatch.setattr(artifacts, "download", counting)
    digest = folder_digest(model)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: fetch(str(model), digest, cache), range(8)))
    assert set(folders) == {cache / digest}
    assert len(copies) == 1
