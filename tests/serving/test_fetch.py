"""`python -m services.serving.fetch` and the kinds of sources behind it."""

import fcntl
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlflow.artifacts
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from services.serving import sources
from services.serving.artifacts import dereference, fetch, folder_digest, prune, reference
from services.serving.errors import ArtifactError, ArtifactMissing, ArtifactUnavailable, ArtifactUnsupported
from services.serving.fetch import main
from services.serving.sources import claim_of, download

DIGEST = "a" * 64


def model(folder: Path, content: str = "{}") -> tuple[Path, str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    return folder, folder_digest(folder)


def run(source: str, digest: str, cache: Path, *more: str) -> int:
    return main(["--source", source, "--digest", digest, "--cache", str(cache), *more])


def test_a_version_is_fetched_for_engines_of_any_user(tmp_path: Path) -> None:
    folder, digest = model(tmp_path / "model")
    folder.chmod(0o700)
    (folder / "config.json").chmod(0o600)
    assert run(str(folder), digest, tmp_path / "cache") == 0
    found = tmp_path / "cache" / digest
    assert [oct(path.stat().st_mode)[-3:] for path in (found, found / "config.json")] == ["755", "644"]


@pytest.mark.parametrize(
    ("source", "digest", "status", "words"),
    [
        ("/nowhere", DIGEST, 3, "/nowhere is no folder on this machine"),
        ("pvc://models/../secrets", DIGEST, 3, "leads out of its claim"),
        ("s3://bucket/key", DIGEST, 5, "s3:// sources need the Python package boto3"),
        ("gs://bucket/key", DIGEST, 5, "gs:// sources need the Python package google-cloud-storage"),
        ("hf://org/name", DIGEST, 5, "hf:// sources need the Python package huggingface_hub"),
        ("ftp://host/model", DIGEST, 5, "no way to fetch from ftp:"),
        ("/nowhere", "latest", 4, "no SHA-256 digest"),
    ],
)
def test_each_fault_has_a_status_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, digest: str, status: int, words: str
) -> None:
    assert run(source, digest, tmp_path / "cache") == status
    (line,) = caplog.messages
    assert words in line
    assert "\n" not in line


def test_other_files_than_registered(tmp_path: Path) -> None:
    folder, _ = model(tmp_path / "model")
    assert run(str(folder), DIGEST, tmp_path / "cache") == 4


@pytest.mark.parametrize("arguments", [[], ["--source", "x", "--digest", DIGEST, "--cache", "c", "--keep", "0"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_claim_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CLAIMS", str(tmp_path / "claims"))
    _, digest = model(tmp_path / "claims" / "models" / "assistant" / "v 1")
    assert fetch("pvc://models/assistant/v%201", digest, tmp_path / "cache").name == digest
    assert claim_of("pvc://models/assistant/v1") == "models"
    assert claim_of("runs:/1/model") is None


def test_a_model_of_the_hub_comes_without_the_clients_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(repo_id: str, revision: str | None, local_dir: str) -> str:
        asked.append((repo_id, revision))
        model(Path(local_dir))
        model(Path(local_dir) / ".cache" / "huggingface", "1793370000.0")
        return local_dir

    hub: Any = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    _, digest = model(tmp_path / "same")
    fetch("hf://org/name@main", digest, tmp_path / "cache")
    assert asked == [("org/name", "main")]


def _http_error(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} for https://user:token@host/x", response=response)


class _S3Error(Exception):
    response = {"Error": {"Code": "NoSuchKey"}}  # noqa: RUF012  as botocore has it


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MlflowException("no answer"), ArtifactUnavailable),
        (MlflowException("no run", error_code=RESOURCE_DOES_NOT_EXIST), ArtifactMissing),
        (_http_error(404), ArtifactMissing),
        (_http_error(503), ArtifactUnavailable),
        (_S3Error("no key"), ArtifactMissing),
        (RuntimeError("reset\nby peer"), ArtifactUnavailable),
    ],
)
def test_faults_of_the_stores_clients_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[ArtifactError]
) -> None:
    def fail(**_: object) -> str:
        raise error

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fail)
    with pytest.raises(kind) as caught:
        download("runs:/1/model", tmp_path, None)
    assert "token" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["https://user:token@host/model", "https://host/model?X-Amz-Signature=token"])
def test_sources_that_carry_credentials_are_refused_and_not_repeated(tmp_path: Path, source: str) -> None:
    with pytest.raises(ArtifactUnsupported, match="in the environment") as caught:
        download(source, tmp_path, None)
    assert "token" not in str(caught.value)


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Path, list[str]]:
    """Four versions, the oldest first, asked for more than an hour ago."""
    digests = []
    for number in range(4):
        folder, digest = model(tmp_path / f"model{number}", str(number))
        fetch(str(folder), digest, tmp_path / "cache")
        os.utime(tmp_path / "cache" / f"{digest}.lock", (number, number))
        digests.append(digest)
    return tmp_path / "cache", digests


def there(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_what_was_used_least_recently_goes(cache: tuple[Path, list[str]]) -> None:
    folder, digests = cache
    assert set(prune(folder, 2)) == set(digests[:2])
    assert there(folder) == set(digests[2:])
    assert prune(folder, 2) == []


def test_what_an_engine_holds_or_was_just_promised_stays(cache: tuple[Path, list[str]]) -> None:
    folder, digests = cache
    with (folder / f"{digests[0]}.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # as the engine's container does
        fetch("/gone", digests[1], folder)
        assert prune(folder, 1) == [digests[3], digests[2]]
    assert there(folder) == set(digests[:2])


def test_what_a_killed_fetch_left_goes(cache: tuple[Path, list[str]]) -> None:
    folder, digests = cache
    (folder / f".{digests[0]}-killed" / "files").mkdir(parents=True)
    prune(folder, 4)
    assert there(folder) == set(digests)


def test_fetching_prunes_when_told_to(
    cache: tuple[Path, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, digests = cache
    new, digest = model(tmp_path / "new", "new")
    with caplog.at_level(logging.INFO):
        assert run(str(new), digest, folder, "--keep", "2") == 0
    assert there(folder) == {digest, digests[3]}
    assert sum("removed" in line for line in caplog.messages) == 3


def test_a_reference_is_source_and_digest() -> None:
    assert dereference(reference("models:/m#1", DIGEST)) == ("models:/m#1", DIGEST)
    for other in ("runs:/1/model", f"#sha256={DIGEST}", "runs:/1#sha256=abc"):
        assert dereference(other) is None


def test_the_hub_is_asked_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def snapshot_download(repo_id: str, revision: str | None, local_dir: str) -> str:
        asked.append(revision)
        error: Any = RuntimeError("no such model")
        error.response = SimpleNamespace(status_code=404)
        raise error

    hub: Any = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ArtifactMissing, match="no such model"):
        download("hf://org/name", tmp_path, None)
    assert asked == [None]
