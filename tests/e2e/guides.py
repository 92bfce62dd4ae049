"""Runs the commands of the guides in docs/operations as a person with one terminal does: block by block, in the repository's folder.

A block marked `sh` is run as it stands. `sh dry-run`: the API server is asked (`--dry-run=server`) whether it would take what the block
makes, since its names are placeholders; only a namespace is really made. Blocks marked `bash` are other programs' and stay with the reader.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from tests.e2e.kube import ENVIRONMENT, ROOT

FOLDER = ROOT / "docs/operations"
SECONDS = 900
"""No block takes longer: the longest waits of its own commands are shorter."""

_DRY = """
helm() {
  case $1 in
    uninstall) command helm "$@" --dry-run ;;
    *) command helm "$@" --dry-run=server ;;
  esac
}
kubectl() { [[ "$1 $2" == "create namespace" ]] && command kubectl "$@" || command kubectl "$@" --dry-run=server; }
"""


class GuideFailed(AssertionError):
    """A block's exit status was not 0; the text begins with its place and holds what was run and what was said."""


@dataclass(frozen=True)
class Block:
    """Commands of a guide. `line`: where they begin. `section`: the heading above."""

    guide: str
    line: int
    section: str
    dry: bool
    text: str

    def __str__(self) -> str:
        return f"docs/operations/{self.guide}:{self.line}"


def blocks(guide: str) -> Iterator[Block]:
    """The blocks of one guide that can be run, in order."""
    lines = (FOLDER / guide).read_text().splitlines()
    section, begun, mark = "", 0, ""
    for number, line in enumerate(lines, start=1):
        if mark and line == "```":
            if mark in ("sh", "sh dry-run"):
                text = "\n".join(lines[begun : number - 1])
                yield Block(guide, begun + 1, section, mark == "sh dry-run", text)
            mark = ""
        elif not mark and (found := re.fullmatch(r"```(.+)", line)):
            begun, mark = number, found[1]
        elif not mark and (found := re.fullmatch(r"#+ (.+)", line)):
            section = found[1]


def every_block() -> list[Block]:
    """Those of all guides."""
    return [block for guide in sorted(FOLDER.glob("*.md")) for block in blocks(guide.name)]


class Reader:
    """Somebody who follows the guides. What blocks leave running (port forwards) runs until `close`."""

    def __init__(self) -> None:
        self.done: set[Block] = set()
        self.failed: str | None = None
        self._groups: list[int] = []

    def read(self, guide: str, section: str) -> str:
        """Run the blocks of a section; what they said. Raises GuideFailed."""
        found = [block for block in blocks(guide) if block.section == section]
        assert found, f"{guide} has nothing to run under {section!r}"
        return "".join(self._run(block) for block in found)

    def close(self) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)

    def _run(self, block: Block) -> str:
        text = (_DRY if block.dry else "") + block.text
        # Into a file: a port forward that runs on would keep a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=ENVIRONMENT,
                start_new_session=True,
            )
            self._groups.append(shell.pid)
            try:
                code: int | str = shell.wait(SECONDS)
            except subprocess.TimeoutExpired:
                code = f"no end after {SECONDS} s"
            output.seek(0)
            said = output.read()
        if code != 0:
            self.failed = str(block)
            raise GuideFailed(f"{block}: {code}\n{block.text}\n--- said\n{said[-6000:]}")
        self.done.add(block)
        return said
