"""Brings a model version's files to this machine, once, and only if they are what was registered.

Called before a revision is applied, by the platform's side of the controller. Sources are MLflow's (`mlflow-artifacts:/`, `runs:/`,
`models:/`), `file:` URLs and plain folders. MLflow's client is imported here alone, and only for its own sources. It must not change
files at the source, and never leaves half a model where an engine could read it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from services.serving.errors import ArtifactError, ArtifactMismatch, ArtifactMissing, ArtifactUnavailable, NoSpace

_NOTHING_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")  # MLflow's error codes
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def folder_digest(folder: Path) -> str:
    """SHA-256 in hexadecimal over a folder's files: for each, by sorted relative POSIX path: path, zero byte, the file's SHA-256.

    Raises ArtifactMissing where the folder is missing or holds no file.
    """
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ArtifactMissing(f"{folder} is missing or holds no file")
    digest = hashlib.sha256()
    for name, path in files:
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def fetch(source: str, digest: str, cache: Path, registry_uri: str | None = None) -> Path:
    """The folder with the source's files, below `cache` and named by their digest. Blocking; safe to call from many processes.

    A folder already there was verified when it was put there, and is used by all revisions with the same files. Raises ArtifactMissing,
    ArtifactMismatch, ArtifactUnavailable and NoSpace; then the cache is as before.
    """
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ArtifactMismatch(f"{digest!r} is no SHA-256 digest: register the version again with its files' digest")
    target = cache / digest
    if target.is_dir():
        return target
    with _full_disk_is(NoSpace(f"no room below {cache} for {source}: free disk space, or delete model folders there")):
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{digest}.lock"), TemporaryDirectory(prefix=".fetching-", dir=cache) as scratch:
            if target.is_dir():  # another caller fetched it while we waited
                return target
            folder = _download(source, Path(scratch), registry_uri)
            found = folder_digest(folder)
            if found != digest:
                raise ArtifactMismatch(
                    f"{source} holds other files than were registered (digest {found[:12]}…, expected {digest[:12]}…): "
                    "register a new version"
                )
            folder.rename(target)
    return target


def _download(source: str, scratch: Path, registry_uri: str | None) -> Path:
    parts = urlsplit(source)
    if parts.scheme in ("", "file"):
        folder = Path(unquote(parts.path)) if parts.scheme else Path(source)
        if not folder.is_dir():
            raise ArtifactMissing(f"{folder} is no folder on this machine")
        return Path(shutil.copytree(folder, scratch / "files"))
    return _download_from_mlflow(source, scratch, registry_uri)


def _download_from_mlflow(source: str, scratch: Path, registry_uri: str | None) -> Path:
    import mlflow.artifacts  # slow to import, and not needed for folders
    from mlflow.exceptions import MlflowException

    try:
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=source, dst_path=str(scratch / "files"), tracking_uri=registry_uri
        )
    except MlflowException as error:
        kind = ArtifactMissing if error.error_code in _NOTHING_THERE else ArtifactUnavailable
        raise kind(f"{source} could not be downloaded: {error}") from error
    return Path(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One fetch of a digest at a time on this machine; the lock ends with its process."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _full_disk_is(error: ArtifactError) -> Iterator[None]:
    """Turns "no space left", from wherever it comes, into `error`; other faults of the disk mean that the files are not to be had."""
    try:
        yield
    except OSError as fault:
        if fault.errno in _NO_SPACE:
            raise error from fault
        raise ArtifactUnavailable(f"files could not be read or written: {fault}") from fault
    except shutil.Error as fault:  # copytree collects the faults of single files as text
        if any(os.strerror(code) in str(fault) for code in _NO_SPACE):
            raise error from fault
        raise ArtifactUnavailable(f"files could not be copied: {fault}") from fault
