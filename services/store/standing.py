"""Where one service stands: what every look of the controller begins with, in one transaction and with statements made once, since a
thousand services ask for it every few seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from sqlalchemy import String, Text, bindparam, select, type_coerce

from services.store.database import Database
from services.store.routing import decode
from services.store.rows import Command, GatewayLease, RolloutRow, Standing
from services.store.schema import commands, leases, rollouts, routes

_SERVICE: Final = bindparam("service", type_=String)
_ROLLOUT: Final = (
    select(rollouts)
    .where(rollouts.c.service == _SERVICE)
    .order_by(rollouts.c.started_at.desc(), rollouts.c.id.desc())
    .limit(1)
)
_ROUTE: Final = select(routes.c.document).where(routes.c.service == _SERVICE)
_COMMANDS: Final = (
    select(commands)
    .where(commands.c.service == _SERVICE, commands.c.handled_at.is_(None))
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

    def standing(self, service: str) -> Standing:
        """Everything of one moment: what the watermark covers is there, and no gateway comes in between route and leases."""
        mine = {"service": service}
        with self._database.read() as connection:
            now = self._database.now(connection)
            alive = [
                GatewayLease(**{**row._mapping, "routes": _acknowledged(row.routes)})
                for row in connection.execute(_LEASES, {"now": now})
            ]
            rollout = connection.execute(_ROLLOUT, mine).one_or_none()
            document = connection.scalar(_ROUTE, mine)
            open_ones = [Command(**row._mapping) for row in connection.execute(_COMMANDS, mine)]
        route = None if document is None else decode(document)
        return Standing(
            now=now,
            watermark=min([now, *(lease.complete_through for lease in alive)]),
            leases=tuple(alive),
            rollout=None if rollout is None else RolloutRow(**rollout._mapping),
            route=None if route is None or route.removed else route,
            commands=tuple(open_ones),
        )


@lru_cache(maxsize=256)
def _acknowledged(text: str) -> Mapping[str, int]:
    """Of a lease that names a thousand services, each of them asks; it is read once."""
    return MappingProxyType(json.loads(text))
