"""What gateways have recorded, read back from the store row by row; and waiting until something holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import select

from services.store import Exposure, Feedback, Observation, Sample, Store, recording
from services.store.schema import samples as _samples

_Found = TypeVar("_Found")


def observations(store: Store) -> list[Observation]:
    """All observations, in the order they were made."""
    with store._database.read() as connection:
        rows = connection.execute(select(*recording.OBSERVATION_COLUMNS)).all()
    return sorted((recording.observation(row) for row in rows), key=lambda row: (row.boot, row.sequence))


def exposures(store: Store) -> list[Exposure]:
    """All exposures, in the order they were made."""
    with store._database.read() as connection:
        rows = connection.execute(select(*recording.EXPOSURE_COLUMNS)).all()
    return sorted((recording.exposure(row) for row in rows), key=lambda row: (row.boot, row.sequence))


def feedback(store: Store) -> list[Feedback]:
    """All feedback, in the order it came."""
    with store._database.read() as connection:
        rows = connection.execute(select(*recording.FEEDBACK_COLUMNS)).all()
    return sorted((recording.feedback_record(row) for row in rows), key=lambda row: (row.boot, row.sequence))


def samples(store: Store) -> list[Sample]:
    """All samples, in the order of (at, id)."""
    with store._database.read() as connection:
        rows = connection.execute(select(_samples).order_by(_samples.c.at, _samples.c.id))
        return [Sample(**row._mapping) for row in rows]


async def until(found: Callable[[], _Found], seconds: float = 5.0) -> _Found:
    """The first truthy value of `found`, asked again and again while the loop runs on."""
    async with asyncio.timeout(seconds):
        while not (value := found()):  # the store signals nothing
            await asyncio.sleep(0.005)
    return value
