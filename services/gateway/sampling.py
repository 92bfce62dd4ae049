"""Answers of stable that are looked at while it serves: of sampled users one an hour, prompt and answer encrypted for the controller.

Called by the hot path, which never waits for it: a sample that finds no place is dropped and counted. Content is written nowhere but into
the store, where it waits an hour at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import Executor
from typing import Final

import msgspec
from cryptography.fernet import Fernet

from services.common.assignment import bucket_of
from services.common.clock import HOUR
from services.gateway.assignment import Placement
from services.gateway.metrics import Metrics
from services.gateway.routes import Entry
from services.store import JudgeMaterial, Store, StoreError, material_of

UNITS: Final = 200_000
"""Units remembered as sampled; one that was forgotten is sampled again, and kept once all the same."""
IN_FLIGHT: Final = 32
"""Samples on their way to the store; more are dropped."""


class Sampled(msgspec.Struct, frozen=True):
    """What the controller reads, as JSON under Fernet."""

    request_id: str
    revision: str
    tenant: str
    prompt: str
    answer: str


class Sampling:
    """The samples of this gateway."""

    def __init__(self, metrics: Metrics, store: Store, executor: Executor, content_key: bytes | None) -> None:
        self._metrics, self._store, self._executor = metrics, store, executor
        self._cipher = Fernet(content_key) if content_key else None
        self._sampled: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def draw(self, entry: Entry, placement: Placement, at: float) -> str | None:
        """The sample's id, if the user of this request is one of this hour's and was not sampled yet; else None."""
        sample = entry.route.sample
        if sample is None or placement.on_trial or not placement.counted:
            return None
        if placement.target.revision != entry.route.stable.revision:
            return None
        hour = f"{at // HOUR:.0f}"
        if bucket_of(entry.sample_salt, hour, placement.unit) >= sample.share:
            return None
        drawn = f"{entry.route.service}:{hour}:{placement.unit}"
        return None if drawn in self._sampled else drawn

    def offer(self, drawn: str, at: float, unit: str, service: str, content: Sampled) -> None:
        """Keeps an answer that was drawn. Once it is on its way the user's next answers of the hour are no samples."""
        if self._cipher is None:
            self._metrics.sampled(service, "no_content_key")
            return
        if len(self._tasks) >= IN_FLIGHT:
            self._metrics.sampled(service, "in_flight")
            return
        self._sampled[drawn] = None
        if len(self._sampled) > UNITS:
            self._sampled.popitem(last=False)
        material = JudgeMaterial(
            pair=drawn,
            rollout=material_of(service),
            unit=unit,
            ciphertext=self._cipher.encrypt(msgspec.json.encode(content)),
            at=at,
        )
        task = asyncio.create_task(self._keep(service, material), name=f"sample {content.request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Waits for what is on its way to the store."""
        await asyncio.gather(*self._tasks)

    async def _keep(self, service: str, material: JudgeMaterial) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._store.put_judge_material, [material])
        except StoreError:
            self._metrics.sampled(service, "store")
        else:
            self._metrics.sampled(service, "kept")
