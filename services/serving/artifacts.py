"""A cache of model versions' files: each version once, under its digest, and only if the files are what was registered.

Called before a revision's engine starts: by the controller where engines read its disk, by `fetch` in a pod. Several processes may share a
cache, on several machines where its disk is shared. It never leaves half a model where an engine could read it, and never takes one away
that an engine uses. Of each version the cache holds a folder and a file `<digest>.lock`: who fetches holds it exclusively, an engine that
runs holds it shared, and its time is when the version was last asked for.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from services.serving.errors import ArtifactError, ArtifactMismatch, ArtifactMissing, ArtifactUnavailable, NoSpace
from services.serving.sources import download

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FRAGMENT: Final = "#sha256="
_GRACE_SECONDS: Final = 3600.0  # an engine that was promised a version has so long to start and hold it


def reference(source: str, digest: str) -> str:
    """Source and digest as one text, for those who fetch elsewhere."""
    return f"{source}{_FRAGMENT}{digest}"


def dereference(artifact: str) -> tuple[str, str] | None:
    """(source, digest) of what `reference` made; None for anything else."""
    source, _, digest = artifact.rpartition(_FRAGMENT)
    return (source, digest) if source and _DIGEST.fullmatch(digest) else None


def folder_digest(folder: Path) -> str:
    """SHA-256 in hexadecimal over a folder's files: for each, by sorted relative POSIX path: path, zero byte, the file's SHA-256.

    It is a version's identity everywhere on the platform (the registry's tag, the gate's evaluation, this cache), so it may not change.
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
    ArtifactMismatch, ArtifactUnsupported, ArtifactUnavailable and NoSpace; then the cache is as before.
    """
    if not _DIGEST.fullmatch(digest):
        raise ArtifactMismatch(f"{digest!r} is no SHA-256 digest: register the version again with its files' digest")
    target = cache / digest
    with _full_disk_is(NoSpace(f"no room below {cache} for {source}: free disk space, or delete model folders there")):
        cache.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f"{digest}.lock")
        with _locked(lock, fcntl.LOCK_SH):
            lock.touch()  # asked for now: `prune` lets it live
            if target.is_dir():
                return target
        with _locked(lock, fcntl.LOCK_EX):
            if target.is_dir():  # another caller fetched it while we waited
                return target
            _remove_remains(target)
            with TemporaryDirectory(prefix=_prefix(target), dir=cache) as scratch:
                folder = download(source, Path(scratch), registry_uri)
                found = folder_digest(folder)
                if found != digest:
                    raise ArtifactMismatch(
                        f"{source} holds other files than were registered (digest {found[:12]}…, expected {digest[:12]}…): "
                        "register a new version"
                    )
                _open_to_readers(folder)
                folder.rename(target)
    return target


def prune(cache: Path, keep: int) -> list[str]:
    """Removes the versions used least recently, so that `keep` are left, and what broken fetches left behind. Returns their digests.

    A version stays in any case while an engine holds its lock, and for an hour after it was last asked for. Raises ArtifactUnavailable.
    """
    removed = []
    with _full_disk_is(NoSpace(f"no room below {cache}")):
        locks = sorted(cache.glob("*.lock"), key=lambda path: path.stat().st_mtime, reverse=True)
        spared = [lock for lock in locks if lock.with_suffix("").is_dir()][:keep]
        for lock in locks:
            target = lock.with_suffix("")
            with contextlib.suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove_remains(target)
                lately = time.time() - lock.stat().st_mtime < _GRACE_SECONDS
                if target.is_dir() and lock not in spared and not lately:
                    gone = target.with_name(f"{_prefix(target)}gone")
                    target.rename(gone)  # at once: nobody sees half a model
                    shutil.rmtree(gone)
                    removed.append(target.name)
    return removed


def _prefix(target: Path) -> str:
    return f".{target.name}-"


def _remove_remains(target: Path) -> None:
    """What a fetch left that was killed; the caller holds the version's lock."""
    for folder in target.parent.glob(f"{_prefix(target)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """Engines run as other users than who fetched."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Holds a version's lock as `flock` understands it; it ends with its process at the latest."""
    with path.open("a") as file:
        fcntl.flock(file, how)
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
