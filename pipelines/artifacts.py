"""Model folders on disk: how one is put in place so that no reader ever sees half of it.

Called by `demo_models` and `evaluate`. Standard library only. It must not know what the files mean; their digest is
`services.serving.artifacts`' affair.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
