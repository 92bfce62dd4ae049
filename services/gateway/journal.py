"""The records of this process on disk, one JSON line each, until the store has them.

A line is handed to the kernel before the client sees its answer's end, so a killed process loses no finished observation (a machine that
loses power may lose the last ones: nothing here waits for the disk). Used by the recorder alone: `append` from the event loop, `read`
from its worker thread.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.common import events
from services.gateway.errors import StateDirectoryInUse
from services.store.records import Record

log = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(Record)


@dataclass(slots=True)
class _Segment:
    path: Path
    last: int = 0
    """Sequence of its last record."""
    size: int = 0


class Journal:
    """The append-only files of one boot.

    Args:
        directory: of all boots of this gateway.
        boot: names the files, `<boot>.<number>.jsonl`.
        segment_bytes: a file's size from which on the next is begun.
        total_bytes: what all of this boot's files may take.
    """

    def __init__(self, directory: Path, boot: str, *, segment_bytes: int, total_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._boot = boot
        self._segment_bytes = segment_bytes
        self._total_bytes = total_bytes
        self._segments: list[_Segment] = []
        self._number = 0
        self._file = -1
        self.size = 0

    def append(self, line: bytes, sequence: int) -> bool:
        """Writes one line (ending in a newline); False when the disk bound is reached or the disk refuses."""
        if self.size + len(line) > self._total_bytes:
            return False
        try:
            if self._file < 0 or self._segments[-1].size >= self._segment_bytes:
                self._begin()
            written = os.write(self._file, line)
        except OSError as error:
            log.error(events.JOURNAL_UNWRITABLE, {"error": error})
            return False
        segment = self._segments[-1]
        segment.size += written
        self.size += written
        if written < len(line):
            self._end()  # a torn line may only be the last one of a file
            return False
        segment.last = sequence
        return True

    def read(self, after: int) -> Iterator[Record]:
        """Records with a greater sequence, oldest first, as far as they are written now."""
        for segment in tuple(self._segments):
            if segment.last > after:
                yield from (record for record in records_in(segment.path) if record.sequence > after)

    def discard_through(self, sequence: int) -> None:
        """Deletes the files all of whose records are stored; the one being written once it is full."""
        while self._segments and self._segments[0].last <= sequence:
            segment = self._segments[0]
            if len(self._segments) == 1:
                if segment.size < self._segment_bytes:
                    return
                self._end()
            self._drop(segment)

    def close(self, stored_through: int) -> None:
        """Ends the journal; its files go where everything in them is stored, and stay for the next start where not."""
        self._end()
        for segment in list(self._segments):
            if segment.last <= stored_through:
                self._drop(segment)

    def _begin(self) -> None:
        self._end()
        self._number += 1
        path = self._directory / f"{self._boot}.{self._number:06d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._segments.append(_Segment(path))

    def _end(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _drop(self, segment: _Segment) -> None:
        self._segments.remove(segment)
        self.size -= segment.size
        segment.path.unlink(missing_ok=True)


def earlier_boots(directory: Path, boot: str) -> dict[str, list[Path]]:
    """Files that earlier boots of this gateway left behind, by boot, oldest first."""
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.glob("*.jsonl")):
        name = path.name.split(".")[0]
        if name != boot:
            found.setdefault(name, []).append(path)
    return found


def records_in(path: Path) -> Iterator[Record]:
    """A file's records. A last line without its end was cut off by the process's death and is passed over."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _decoder.decode(line)
            except msgspec.MsgspecError as error:
                log.error(events.JOURNAL_TORN, {"file": path.name, "line": number, "error": error})


def lock_state_directory(directory: Path) -> None:
    """Takes the folder for this process, until it ends.

    Raises:
        StateDirectoryInUse: another gateway has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StateDirectoryInUse(
            f"{directory} belongs to another running gateway: give each gateway its own UNDERSTUDY_GATEWAY_STATE_DIR"
        ) from None
