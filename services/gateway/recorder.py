"""The way of every record to the store: journal on disk first, then a queue in memory, then batches. The hot path never waits for it.

    record() ── journal line (kernel) ── queue ── batch ── store ── journal file deleted
                       └── queue full: only on disk ── read back in order once the queue is empty

Sequences are stored in order, so one number says how far the store has everything. `record` is called from the event loop; the store and
the journal's reading are used in one worker thread, by one task at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from services.common import events
from services.gateway.journal import Journal, earlier_boots, records_in
from services.gateway.settings import RecorderSettings
from services.store import GatewayLease, SchemaMismatch, Store, StoreCorrupt, StoreError, StoreUnavailable
from services.store.records import Exposure, Observation, Record

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode

RETRY_SECONDS = 2.0
"""Longest pause between two tries while the store is away."""


class Recorder:
    """Records of one gateway process.

    Args:
        gateway, boot: with the sequence, the identity of every record.
        store_time: seconds since the epoch in the store's time.

    Attributes:
        recorded: sequence numbers handed out. spilled: records that waited on disk alone. dropped: records lost to the disk bound, to a
            full disk, or because the store refuses them for good.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        settings: RecorderSettings,
        executor: Executor,
        *,
        gateway: str,
        boot: str,
        store_time: Callable[[], float],
    ) -> None:
        self.gateway = gateway
        self.boot = boot
        self.recorded = 0
        self.spilled = 0
        self.dropped = 0
        self._store = store
        self._directory = directory
        self._journal = Journal(
            directory, boot, segment_bytes=settings.segment_bytes, total_bytes=settings.journal_bytes
        )
        self._settings = settings
        self._executor = executor
        self._store_time = store_time
        self._queue: deque[tuple[float, Record]] = deque()
        self._stored = 0
        self._spilling = False
        self._spilled_since = 0.0
        self._disk_through = 0  # records up to here are read from disk before the queue goes on
        self._disk_since = 0.0
        self._disk: Iterator[Record] | None = None
        self._replayed = False
        self._away = False

    def next_sequence(self) -> int:
        """The sequence of the record that is made now; it must be given to `record` at once."""
        self.recorded += 1
        return self.recorded

    def record(self, record: Record) -> None:
        """Takes over one record, for good: it is in the journal when this returns (or counted as dropped)."""
        journaled = self._journal.append(_encode(record) + b"\n", record.sequence)
        if not self._spilling and len(self._queue) < self._settings.memory_rows:
            self._queue.append((self._store_time(), record))
        elif journaled:
            if not self._spilling:
                self._spilling, self._spilled_since = True, self._store_time()
            self.spilled += 1
        else:
            self.dropped += 1

    @property
    def queued(self) -> int:
        """Records in memory that the store does not have yet."""
        return len(self._queue)

    @property
    def journal_bytes(self) -> int:
        return self._journal.size

    @property
    def lag(self) -> float:
        """Seconds since the oldest record of this boot was made that the store does not have; 0: it has them all."""
        return max(0.0, self._store_time() - self._oldest_of_boot())

    def lease(self, routes: dict[str, int], now: float, *, seconds: float, address: str | None) -> GatewayLease:
        """The lease to renew at store time `now`, with the time up to which the store has everything of this gateway."""
        return GatewayLease(
            gateway=self.gateway,
            boot=self.boot,
            address=address,
            routes=routes,
            complete_through=min(now, self._oldest()),
            lease_until=now + seconds,
            recorded=self.recorded,
            dropped=self.dropped,
            spilled=self.spilled,
        )

    async def run(self) -> None:
        """Replays what earlier boots left, then stores what comes, until cancelled; nothing that fails ends it."""
        pause = self._settings.flush_seconds
        while True:
            stored = await self.flush()
            pause = self._settings.flush_seconds if stored else min(2 * pause, RETRY_SECONDS)
            await asyncio.sleep(pause)

    async def flush(self) -> bool:
        """Stores everything recorded so far; False when the store is away."""
        loop = asyncio.get_running_loop()
        try:
            if not self._replayed:
                await loop.run_in_executor(self._executor, self._replay)
                self._replayed = True
            while await self._store_some(loop):
                pass
        except Exception as error:  # noqa: BLE001  # whatever the store or the disk does, the next try comes
            if not self._away:
                log.warning(events.RECORDS_WAIT, {"error": error})
            self._away = True
            return False
        if self._away:
            log.info(events.RECORDS_FLOW)
        self._away = False
        return True

    async def close(self, seconds: float) -> None:
        """Stores what is left, for at most `seconds`, and ends the lease; what the store does not take waits for the next start."""
        self._disk = None  # a cancelled `run` may have left it in the middle
        try:
            async with asyncio.timeout(seconds):
                if await self.flush():
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._executor, self._store.end_lease, self.gateway, self.boot)
        except (TimeoutError, StoreError) as error:
            log.warning(events.LEASE_LEFT, {"error": error or "the store took too long"})
        self._journal.close(self._stored)

    def _oldest(self) -> float:
        """Store time of the oldest record that the store does not have."""
        if not self._replayed:
            return 0.0  # what an earlier boot left may be of any age
        return self._oldest_of_boot()

    def _oldest_of_boot(self) -> float:
        """The same, of this boot's records; infinite where there is none."""
        if self._stored < self._disk_through:
            return self._disk_since
        if self._queue:
            return self._queue[0][0]
        return self._spilled_since if self._spilling else float("inf")

    async def _store_some(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Stores the next batch; False when nothing is left. Sequences go in order: queue, then what was spilled after it, then queue."""
        if self._stored < self._disk_through:
            await self._store_from_disk(loop)
        elif self._queue:
            batch = [record for _, record in itertools.islice(self._queue, self._settings.batch_rows)]
            await loop.run_in_executor(self._executor, self._write, batch)
            for _ in batch:
                self._queue.popleft()
            self._advance(batch[-1].sequence)
        elif self._spilling:
            # From here on memory takes what comes, behind what is on disk so far.
            self._spilling = False
            self._disk_through, self._disk_since = self.recorded, self._spilled_since
        else:
            return False
        return True

    async def _store_from_disk(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._disk is None:
            self._disk = self._journal.read(self._stored)
        batch = await loop.run_in_executor(self._executor, self._read, self._disk, self._disk_through)
        if not batch:
            self._disk = None
            self._advance(self._disk_through)
            return
        try:
            await loop.run_in_executor(self._executor, self._write, batch)
        except StoreError:
            self._disk = None  # the batch is read again
            raise
        self._advance(batch[-1].sequence)
        self._disk_since = recorded_at(batch[-1])
        if self._stored >= self._disk_through:
            self._disk = None  # it may have read on into what the queue holds

    def _read(self, disk: Iterator[Record], through: int) -> list[Record]:
        batch = itertools.islice(disk, self._settings.batch_rows)
        return [record for record in batch if record.sequence <= through]

    def _advance(self, sequence: int) -> None:
        self._stored = sequence
        self._journal.discard_through(sequence)

    def _write(self, batch: Sequence[Record]) -> None:
        """Stores a batch. A record that the store refuses for good is found by halving, dropped and counted: it holds up no other."""
        try:
            self._store.write(batch)
        except (StoreUnavailable, SchemaMismatch, StoreCorrupt):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the rows beside the bad one must be kept
            if len(batch) == 1:
                self.dropped += 1
                log.error(events.RECORD_REFUSED, {"sequence": batch[0].sequence, "error": error})
                return
            half = len(batch) // 2
            self._write(batch[:half])
            self._write(batch[half:])

    def _replay(self) -> None:
        """Stores what earlier boots left; each boot's lease ends and its files go once all of it is in the store."""
        for boot, paths in earlier_boots(self._directory, self.boot).items():
            records = itertools.chain.from_iterable(records_in(path) for path in paths)
            count = 0
            while batch := list(itertools.islice(records, self._settings.batch_rows)):
                self._write(batch)
                count += len(batch)
            self._store.end_lease(self.gateway, boot)
            for path in paths:
                path.unlink(missing_ok=True)
            log.info(events.RECORDS_REPLAYED, {"count": count, "boot": boot})


def recorded_at(record: Record) -> float:
    """When a record was made, in the store's time."""
    if isinstance(record, Observation):
        return record.started_at + record.duration
    return record.first_at if isinstance(record, Exposure) else record.at
