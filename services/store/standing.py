"""Where services stand: what every look of the controller begins with, in one transaction and with statements made once, since a
thousand services ask for it every few seconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from sqlalchemy import String, Text, bindparam, exists, select, tuple_, type_coerce

from services.store.database import Database
from services.store.routing import decode
from services.store.rows import Command, GatewayLease, RolloutRow, Standing
from services.store.schema import commands, leases, rollouts, routes

_SERVICES: Final = bindparam("services", expanding=True, type_=String)
_newer: Final = rollouts.alias("newer")
_ROLLOUTS: Final = select(rollouts).where(
    rollouts.c.service.in_(_SERVICES),
    ~exists().where(
        _newer.c.service == rollouts.c.service,
        tuple_(_newer.c.started_at, _newer.c.id) > tuple_(rollouts.c.started_at, rollouts.c.id),
    ),
)
_ROUTES: Final = select(routes.c.service, routes.c.document).where(routes.c.service.in_(_SERVICES))
_COMMANDS: Final = (
    select(commands)
    .where(commands.c.service.in_(_SERVICES), commands.c.handled_at.is_(None))
    .order_by(commands.c.at, commands.c.id)
)
_LEASES: Final = (
    select(
        *(c for c in leases.c if c.name not in ("routes", "ended_at")),
        type_coerce(leases.c.routes, Text).label("routes"),
    )
    .where(leases.c.lease_until > bindparam("now"))
    .order_by(leases.c.gateway, leases.c.boot)
)


class Standings:
    """The part of the store that looks begin with."""

    _database: Database

    def standings(self, services: Collection[str]) -> dict[str, Standing]:
        """Of each, everything of one moment: what the watermark covers is there, and no gateway comes in between route and leases."""
        asked = {"services": list(services)}
        with self._database.read() as connection:
            now = self._database.now(connection)
            alive = tuple(
                GatewayLease(**{**row._mapping, "routes": _acknowledged(row.routes)})
                for row in connection.execute(_LEASES, {"now": now})
            )
            newest = {row.service: RolloutRow(**row._mapping) for row in connection.execute(_ROLLOUTS, asked)}
            documents = {row.service: row.document for row in connection.execute(_ROUTES, asked)}
            open_ones = defaultdict(list)
            for row in connection.execute(_COMMANDS, asked):
                open_ones[row.service].append(Command(**row._mapping))
        watermark = min([now, *(lease.complete_through for lease in alive)])
        known = {service: decode(document) for service, document in documents.items()}
        return {
            service: Standing(
                now=now,
                watermark=watermark,
                leases=alive,
                rollout=newest.get(service),
                route=route if (route := known.get(service)) is not None and not route.removed else None,
                commands=tuple(open_ones[service]),
            )
            for service in services
        }


@lru_cache(maxsize=256)
def _acknowledged(text: str) -> Mapping[str, int]:
    """Of a lease that names a thousand services, each of them asks; it is read once."""
    return MappingProxyType(json.loads(text))
