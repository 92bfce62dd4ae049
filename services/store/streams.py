"""Which sequence numbers of each gateway process have arrived: the proof that no record was lost.

A process counts all its records from 1. `upto` says that every number to there has come, `ranges` lists what came beyond the first hole.
Numbers are noted in the transaction that stores their rows, and also for rows ignored as repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from services.store.database import Database
from services.store.schema import leases, streams

Range = list[int]
"""[first, last], both included."""


def merge(upto: int, ranges: Sequence[Range], received: Iterable[int]) -> tuple[int, list[Range]]:
    """The state after `received`; order and repeats do not matter. Costs O(received log received + holes)."""
    pieces = sorted([*ranges, *([n, n] for n in received if n > upto)])
    merged: list[Range] = []
    for first, last in pieces:
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    if merged and merged[0][0] <= upto + 1:
        upto = max(upto, merged.pop(0)[1])
    return upto, merged


def note(
    database: Database, connection: Connection, received: Mapping[tuple[str, str], Sequence[int]], at: float
) -> None:
    """Add sequence numbers by (gateway, boot), inside the transaction that stores their rows."""
    keys = sorted(received)  # one order for everybody, so that two transactions cannot wait for each other
    new = [{"gateway": g, "boot": b, "upto": 0, "ranges": [], "stored_at": at} for g, b in keys]
    connection.execute(database.insert(streams).on_conflict_do_nothing(), new)
    states = []
    for gateway, boot in keys:
        mine = (streams.c.gateway == gateway) & (streams.c.boot == boot)
        row = connection.execute(select(streams.c.upto, streams.c.ranges).where(mine).with_for_update()).one()
        upto, ranges = merge(row.upto, row.ranges, received[gateway, boot])
        states.append({"of_gateway": gateway, "of_boot": boot, "upto": upto, "ranges": ranges, "stored_at": at})
    one = (streams.c.gateway == bindparam("of_gateway")) & (streams.c.boot == bindparam("of_boot"))
    changed: dict[str, Any] = {name: bindparam(name) for name in ("upto", "ranges", "stored_at")}
    connection.execute(update(streams).where(one).values(changed), states)


class Streams:
    """The part of the store that shows what arrived."""

    _database: Database

    def gaps(self) -> list[Mapping[str, Any]]:
        """Per gateway process: {gateway, boot, rows, highest, missing, recorded, dropped, spilled, ended}.

        `rows`: records that arrived, each counted once, repeats of an exposure and rows erased or pruned since included; `highest`: the
        highest sequence number among them; `missing`: numbers below it that never came (in a live process: not yet). From its last lease,
        None where there was none: `recorded` (numbers handed out by then), `dropped`, `spilled`; `ended`: it said that all is delivered.
        """
        known = (leases.c.gateway == streams.c.gateway) & (leases.c.boot == streams.c.boot)
        query = (
            select(streams, leases.c.recorded, leases.c.dropped, leases.c.spilled, leases.c.ended_at)
            .select_from(streams.outerjoin(leases, known))
            .order_by(streams.c.gateway, streams.c.boot)
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        return [_gap(row) for row in found]


def _gap(row: Any) -> Mapping[str, Any]:
    rows = row.upto + sum(last - first + 1 for first, last in row.ranges)
    highest = row.ranges[-1][1] if row.ranges else row.upto
    return {
        "gateway": row.gateway,
        "boot": row.boot,
        "rows": rows,
        "highest": highest,
        "missing": highest - rows,
        "recorded": row.recorded,
        "dropped": row.dropped,
        "spilled": row.spilled,
        "ended": row.ended_at is not None,
    }
