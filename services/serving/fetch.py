"""`python -m services.serving.fetch`: brings one version's files into a cache, then ends. The init container of an engine's pod runs it.

Its arguments may be read by anyone who sees the pod or the process list, so there is no credential among them: those come from the
environment (`MLFLOW_TRACKING_URI` and its token, `AWS_*`, `GOOGLE_APPLICATION_CREDENTIALS`, `HF_TOKEN`). It says one line at the end,
which the kubelet shows as the container's last words, and ends with a status that tells the platform whether trying again is of use.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.common import events
from services.serving.artifacts import fetch, prune
from services.serving.errors import (
    ArtifactError,
    ArtifactMismatch,
    ArtifactMissing,
    ArtifactUnavailable,
    ArtifactUnsupported,
    NoSpace,
)

STATUS: Final[dict[type[ArtifactError], int]] = {
    ArtifactMissing: 3,
    ArtifactMismatch: 4,
    ArtifactUnsupported: 5,
    NoSpace: 74,
    ArtifactUnavailable: 75,
}
"""Exit statuses; 2 is a wrong command line."""
PERMANENT: Final = frozenset({2, 3, 4, 5})
"""Statuses after which trying again is of no use."""

_LONGEST_LINE: Final = 1000

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.serving.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("--source", required=True, help="where the files are, as the registry says")
    parser.add_argument("--digest", required=True, help="SHA-256 digest of the folder, as registered")
    parser.add_argument("--cache", required=True, type=Path, help="folder that receives the files, below their digest")
    parser.add_argument("--keep", type=_count, help="then remove all but so many versions that nobody uses")
    options = parser.parse_args(arguments)
    try:
        folder = fetch(options.source, options.digest, options.cache)
    except ArtifactError as error:
        log.error(events.VERSION_UNFETCHED, {"error": str(error)[:_LONGEST_LINE]})
        return STATUS[type(error)]
    log.info(events.VERSION_FETCHED, {"folder": folder})
    if options.keep is not None:
        try:
            for digest in prune(options.cache, options.keep):
                log.info(events.VERSION_REMOVED, {"digest": digest})
        except ArtifactError as error:  # the engine can start all the same
            log.warning(events.VERSIONS_KEPT, {"error": str(error)[:_LONGEST_LINE]})
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    sys.exit(main())
