"""Sums a service's usage by hour and deletes its old rows from the store, as its resource says. Run by the controller beside the looks, one
task a service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from services.common import events
from services.common.clock import turn
from services.rollout.resources import LLMService
from services.store import Store, StoreError

log = logging.getLogger(__name__)

PERIOD: Final = 900.0
"""Seconds between two sweeps. The judge's material, which may stay an hour, goes with a sweep."""


async def sweep(service: LLMService, store: Store, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Until cancelled. Services begin at different times of the period."""
    await sleep(turn(service.name, PERIOD))
    while True:
        try:
            deleted = await asyncio.to_thread(prune, service, store)
        except StoreError as error:
            log.warning(events.RETENTION_WAITS, {"service": service.name, "error": error})
        else:
            if deleted:
                log.info(events.ROWS_DELETED, {"service": service.name, "count": deleted})
        await sleep(PERIOD)


def prune(service: LLMService, store: Store) -> int:
    """One sweep; the number of deleted rows. Raises StoreError."""
    store.sum_usage(service.name)  # first: costs are known for longer than rows are kept
    retention, now = service.spec.retention, store.now()
    return store.prune(service.name, now - retention.observations, now - retention.audit)
