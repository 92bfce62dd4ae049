"""The command `costs`: what services and their rollouts cost. Registered by `main`; the arithmetic is `services.rollout.cost_report`.

Imports nothing slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.cli.errors import CliError, NotFound, UsageFault
from services.cli.options import Output, ServiceOption, Where, anywhere, show
from services.cli.what_if import read_resource, since_moment

if TYPE_CHECKING:
    from services.rollout.costing import Prices
    from services.rollout.resources_cost import Cost
    from services.store import CostRecords, Store

Since = Annotated[
    str, typer.Option("--since", metavar="AGE|DATE", help="Spent since then: `7d`, `12h`, or `2026-11-02`.")
]
By = Annotated[
    Literal["day", "revision", "key", "user", "rollout"],
    typer.Option("--by", help="What the table of one service has a row for. `user`: dearest first, hashed."),
]
ResourceFile = Annotated[
    Path | None,
    typer.Option(
        "--resource", "-f", metavar="FILE", show_default=False,
        help="YAML with a service's `spec.cost`: its prices for all of the time; default: those that were in force.",
    ),
]  # fmt: skip
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Rows of the table, at most.")]


@anywhere
def costs(
    where: Where,
    service: ServiceOption = None,
    since: Since = "7d",
    by: By = "day",
    resource: ResourceFile = None,
    limit: Limit = 40,
    output: Output = "table",
) -> None:
    """What a service spent, on whom, and what its answers would have cost elsewhere.

    Prices stand in the resource (`spec.cost`); an engine's hours are spread over its requests by the time that each took. Days are UTC.
    Estimates are named so, with their bounds.

    Examples: understudy costs; understudy costs assistant --since 30d --by key; understudy costs assistant --by rollout -o json
    """
    import time

    from services.cli import cost_views
    from services.cli.connection import opened, store_url

    if where.in_cluster:
        raise UsageFault("what was spent stands in the platform's store, not in resources: name it with --store URL")
    began, rules = since_moment(since, time.time()), None if resource is None else read_resource(resource, service)
    if rules is not None and rules.spec.cost is None:
        raise CliError(
            f"{resource}: {rules.name} has no spec.cost: write spec.cost.perReplicaHour or .perMillionTokens"
        )
    name, given = (service, None) if rules is None else (rules.name, rules.spec.cost)
    with opened(store_url(where.store)) as store:
        now = store.now()
        if began >= now:
            raise UsageFault(f"--since {since}: lies in the future")
        names = [name] if name is not None else store.cost_services()
        if name is None and by != "day" and len(names) != 1:
            raise UsageFault(f"--by {by}: name a service" + (f"; there are {', '.join(names)}" if names else ""))
        told = [one for one in (_told(store, each, given, began, now, by, limit, name) for each in names) if one]
    if name is None and not told:
        raise CliError(
            "no service of this store has prices: set spec.cost.perReplicaHour, or .perMillionTokens, in its resource"
        )
    show(output, {"services": told}, cost_views.show)


def _told(
    store: Store, service: str, given: Cost | None, since: float, now: float, by: str, limit: int, named: str | None
) -> dict[str, Any] | None:
    """The document of a service; None: it has no prices, and was not asked for by name.

    Raises:
        NotFound: the store does not know the service.
        CliError: it has no prices.
    """
    from services.cli import cost_views
    from services.rollout.cost_report import reach, report
    from services.rollout.costing import prices_of

    records = store.cost_records([service], reach(since, now))[service]
    if not (records.usage or records.replicas or records.prices or store.route(service) or store.rollouts(service, 1)):
        raise NotFound(f"no service {service!r} in this store; see `understudy status`")
    prices: Prices = prices_of(records.prices) if given is None else [(0.0, given)]
    if not prices:
        if named is None:
            return None
        raise CliError(
            f"{service} has no prices: set spec.cost.perReplicaHour, or .perMillionTokens, in its resource; --resource FILE tries some"
        )
    marks = store.marks(service, since, now)
    found = report(records, prices, marks, since, now)
    if found is None:
        return cost_views.unknown(service, prices[-1][1])
    rows = _rows(store, service, records, prices, found.since, now, by)
    if by in ("day", "revision", "key"):
        rows = cost_views.rows(found, marks, by)
    return cost_views.document(service, found, by, rows[:limit], len(rows))


def _rows(
    store: Store, service: str, records: CostRecords, prices: Prices, since: float, now: float, by: str
) -> Sequence[dict[str, Any]]:
    """Of what is not in the sums."""
    from services.cli import cost_views
    from services.cli.views import parsed
    from services.rollout.costing import rates, rollout_cost, spread
    from services.rollout.status import RolloutStatus

    if by == "user":
        return [
            cost_views.of_user(one)
            for one in store.users_usage(service, since, now, rates(records, prices, since, now))
        ]
    if by != "rollout":
        return []
    shown = [row for row in store.rollouts(service, limit=10_000) if (row.finished_at or now) > since]
    first = min((row.started_at for row in shown), default=since)
    if first < since:  # what is shown of a rollout is all of it
        records = store.cost_records([service], first)[service]
    spends = spread(records, prices, first, now)
    statuses = [parsed(row.id, row.status, RolloutStatus) for row in shown]
    return [cost_views.of_rollout(one, rollout_cost(one, records, prices, spends, now)) for one in statuses]
