"""Routes and the gateways that obey them. The controller publishes; gateways poll each second and acknowledge by renewing their lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, func, literal, select, update

from services.common.routing import Route, decode_route, encode_route
from services.store.database import Database
from services.store.errors import SchemaMismatch
from services.store.rows import GatewayLease
from services.store.schema import leases, route_history, routes

_LEASE_COLUMNS = [c for c in leases.c if c.name != "ended_at"]


def publish(database: Database, connection: Connection, route: Route) -> Route:
    """Store `route` as its service's newest, inside the caller's transaction; see `Routing.publish_route`."""
    now = database.now(connection)
    start = {"service": route.service, "version": 0, "published_at": now, "document": ""}
    connection.execute(database.insert(routes).values(start).on_conflict_do_nothing())
    # The row's lock makes publishers of one service take turns from here to the end of the transaction.
    mine = routes.c.service == route.service
    last = connection.execute(select(routes.c.version, routes.c.document).where(mine).with_for_update()).one()
    if last.document:
        newest = decode(last.document)
        if msgspec.structs.replace(route, version=newest.version) == newest:
            return newest
    published = msgspec.structs.replace(route, version=last.version + 1)
    row = {"version": published.version, "published_at": now, "document": encode_route(published).decode()}
    connection.execute(update(routes).where(mine).values(row))
    connection.execute(route_history.insert().values(service=route.service, **row))
    return published


class Routing:
    """The part of the store that holds the routing table, its history, and the leases of gateways."""

    _database: Database

    def publish_route(self, route: Route) -> Route:
        """Store the route with the next version of its service (`route.version` is ignored) and return it.

        Where nothing but the version differs from the newest, that one is returned and nothing stored.
        """
        with self._database.write() as connection:
            return publish(self._database, connection, route)

    def remove_route(self, service: str) -> int | None:
        """The service is no more: from now on it has no route. The version that gateways acknowledge; None: it never had a route.

        Repeating it gives the same version. A route that is published later goes on counting from there.
        """
        mine = select(routes.c.document).where(routes.c.service == service)
        with self._database.write() as connection:
            document = connection.scalar(mine.with_for_update())
            if document is None:
                return None
            last = msgspec.structs.replace(decode(document), candidate=None, mirror=None, weight=0, removed=True)
            return publish(self._database, connection, last).version

    def routes(self, known: Mapping[str, int] | None = None) -> dict[str, Route]:
        """The newest route of each service whose version differs from `known` (service -> version), removed ones included: what a
        gateway must hear. Without `known` the routes that there are.
        """
        if known is None:
            return {service: route for service, route in self.routes({}).items() if not route.removed}
        with self._database.read() as connection:
            versions = connection.execute(select(routes.c.service, routes.c.version)).all()
            changed = [row.service for row in versions if known.get(row.service) != row.version]
            if not changed:
                return {}
            query = select(routes.c.service, routes.c.document)
            if len(changed) < len(versions):
                query = query.where(routes.c.service.in_(changed))
            return {row.service: decode(row.document) for row in connection.execute(query)}

    def route(self, service: str) -> Route | None:
        """The service's newest route; None where it has none, or none any more."""
        with self._database.read() as connection:
            document = connection.scalar(select(routes.c.document).where(routes.c.service == service))
        route = None if document is None else decode(document)
        return None if route is None or route.removed else route

    def route_history(self, service: str, since: float = 0.0) -> list[tuple[float, Route]]:
        """(published at, route) from `since` on, oldest first."""
        query = (
            select(route_history.c.published_at, route_history.c.document)
            .where(route_history.c.service == service, route_history.c.published_at >= since)
            .order_by(route_history.c.version)
        )
        with self._database.read() as connection:
            return [(row.published_at, decode(row.document)) for row in connection.execute(query)]

    def renew_lease(self, lease: GatewayLease) -> None:
        """Store the lease of (gateway, boot) in place of its last one. A lease that was ended stays ended."""
        row = {column.name: getattr(lease, column.name) for column in _LEASE_COLUMNS}
        row["routes"] = dict(lease.routes)
        upsert = self._database.insert(leases).values(row)
        upsert = upsert.on_conflict_do_update(
            index_elements=[leases.c.gateway, leases.c.boot], set_=row, where=leases.c.ended_at.is_(None)
        )
        with self._database.write() as connection:
            connection.execute(upsert)

    def end_lease(self, gateway: str, boot: str) -> None:
        """The process has stopped and all its records are in the store; without a lease of that name nothing happens."""
        mine = (leases.c.gateway == gateway) & (leases.c.boot == boot) & leases.c.ended_at.is_(None)
        with self._database.write() as connection:
            now = self._database.now(connection)
            connection.execute(update(leases).where(mine).values(ended_at=now, lease_until=now))

    def leases(self) -> list[GatewayLease]:
        """The gateways alive: lease_until lies ahead."""
        with self._database.read() as connection:
            return self._alive(connection)

    def watermark(self) -> float:
        """Time up to which every record of every live gateway is in the store; now where no gateway lives, and never after now."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            behind = connection.scalar(
                select(func.min(leases.c.complete_through)).where(leases.c.lease_until > literal(now))
            )
        return now if behind is None else min(behind, now)

    def acknowledged(self, service: str, version: int) -> bool:
        """Whether at least one gateway lives and every live one obeys this version of the service's route or a later one."""
        alive = self.leases()
        return bool(alive) and all(lease.routes.get(service, 0) >= version for lease in alive)

    def _alive(self, connection: Connection) -> list[GatewayLease]:
        now = self._database.now(connection)
        query = select(*_LEASE_COLUMNS).where(leases.c.lease_until > now).order_by(leases.c.gateway, leases.c.boot)
        return [GatewayLease(**row._mapping) for row in connection.execute(query)]


def decode(document: Any) -> Route:
    """A route as it is kept. Raises SchemaMismatch."""
    try:
        return decode_route(document)
    except msgspec.ValidationError as error:
        raise SchemaMismatch(
            f"a route in the database was written by another version of Understudy ({error})"
        ) from error
