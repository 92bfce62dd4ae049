"""Model folders on disk: their digest, and how one is put in place so that no reader ever sees half of it.

Called by `demo_models`, `evaluate` and `register`. Standard library only. It must not know what the files mean.

The digest is the identity of a version everywhere on the platform: the registry's tag, the gate's evaluation and the engine's
cache all compare it, so its algorithm may not change.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def folder_digest(folder: Path) -> str:
    """SHA-256, in hexadecimal, over all files of a folder: sorted relative POSIX path, a zero byte, the file's own SHA-256.

    Raises `FileNotFoundError` where the folder is missing or holds no file.
    """
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} is missing or empty")
    digest = hashlib.sha256()
    for name, path in files:
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new, empty folder beside `target` that takes its place when the block ends; after an error `target` is as before."""
    building = target.with_name(f".{target.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step: readers see the old one or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
