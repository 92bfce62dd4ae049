"""What services' requests cost now, as far as the controller has told: read from the store each minute, for traces alone. The hot path asks
for what is known and never waits; a gateway that is cut off from the store goes on with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Executor
from typing import Final

from services.common.pricing import STALE_SECONDS, Price, key_of, price_of
from services.gateway.routes import RoutingTable
from services.store import Store, StoreError

PERIOD: Final = 60.0
"""Seconds between two readings."""


class PriceList:
    """The prices of the services in the routing table. Used from the event loop."""

    def __init__(self, store: Store, table: RoutingTable, executor: Executor) -> None:
        self._store, self._table, self._executor = store, table, executor
        self._prices: dict[str, Price] = {}

    def of(self, service: str) -> Price | None:
        """The service's; None: it has none."""
        return self._prices.get(service)

    async def run(self) -> None:
        """Reads until cancelled. Of a store that is away the poller of routes tells."""
        loop = asyncio.get_running_loop()
        while True:
            since = self._table.store_time() - STALE_SECONDS
            with contextlib.suppress(StoreError):
                self._prices = await loop.run_in_executor(self._executor, self._read, self._table.services(), since)
            await asyncio.sleep(PERIOD)

    def _read(self, services: list[str], since: float) -> dict[str, Price]:
        found = {service: price_of(self._store.evidence(key_of(service))) for service in services}
        return {service: price for service, price in found.items() if price is not None and price.at >= since}
