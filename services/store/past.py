"""What users did before they were exposed: the covariate of the evidence. Called by `closing` alone, once a page of units.

Deterministic: a request that ended before the exposure was in the store before the unit closed, since the watermark had passed it. So a
replay finds what the look had found, as long as retention has left it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    union_all,
)

from services.store.marks import BAD
from services.store.rows import Past
from services.store.schema import feedback, observations, plain, stored

PAST_SECONDS: Final = 7 * 86_400.0
"""A week: one of each day. It bounds what is read of a user."""

_TOKENS: Final = case((observations.c.outcome == "error", 0), else_=observations.c.tokens_out)


def pasts_of(connection: Connection, page: Select[Any], as_of: float | None) -> dict[str, Past]:
    """Unit -> its past, of the exposures of the page; who has none is not there."""
    units = page.subquery()
    before = (
        select(
            units.c.unit,
            units.c.first_at,
            observations.c.request_id,
            case((observations.c.outcome == "error", 1), else_=0).label("failed"),
            _TOKENS.label("tokens"),
            case((_TOKENS.is_not(None), observations.c.duration)).label("seconds"),
        )
        .select_from(units.join(observations, observations.c.unit == units.c.unit))
        .where(
            observations.c.service.concat("") == units.c.service,  # as it is, SQLite would go by service and time
            observations.c.started_at >= units.c.first_at - PAST_SECONDS,
            observations.c.started_at < units.c.first_at,
            observations.c.started_at + observations.c.duration <= units.c.first_at,
            *plain(observations),
            observations.c.arm.in_(("stable", "control")),
            observations.c.outcome != "client_error",
            *stored(observations, as_of),
        )
        .cte("before")
    )
    zero: ColumnElement[int] = literal_column("0")
    none = cast(null(), Float(53))
    asked = select(
        before.c.unit,
        literal_column("1").label("requests"),
        before.c.failed,
        *(zero.label(name) for name in ("bad", "retries", "escalations")),
        before.c.tokens,
        before.c.seconds,
        none.label("rating"),
    )
    # Of each request once, however many marks it has. A union and no outer join, for which SQLite would make no index.
    said = (
        select(
            before.c.unit,
            zero.label("requests"),
            zero.label("failed"),
            func.max(case((BAD, 1), else_=0)).label("bad"),
            func.max(case((feedback.c.kind == "retry", 1), else_=0)).label("retries"),
            func.max(case((feedback.c.kind == "escalation", 1), else_=0)).label("escalations"),
            none.label("tokens"),
            none.label("seconds"),
            func.avg(case((feedback.c.kind == "rating", feedback.c.value))).label("rating"),
        )
        .select_from(before.join(feedback, feedback.c.request_id == before.c.request_id))
        .where(feedback.c.at <= before.c.first_at, *stored(feedback, as_of))
        .group_by(before.c.unit, before.c.request_id)
    )
    both = union_all(asked, said).subquery()
    counted = (func.sum(both.c[name]) for name in ("requests", "failed", "bad", "retries", "escalations"))
    speed = func.sum(both.c.tokens) / func.nullif(func.sum(both.c.seconds), 0.0)
    query = select(both.c.unit, *counted, speed, func.avg(both.c.rating)).group_by(both.c.unit)
    return {
        unit: Past(
            int(requests), int(failed), int(bad), int(retries), int(escalations), _rounded(speed), _rounded(rating)
        )
        for unit, requests, failed, bad, retries, escalations, speed, rating in connection.execute(query)
    }


def _rounded(mean: float | None) -> float | None:
    """To six digits: a database may add in another order the next time, and a replay must find the same bits."""
    return None if mean is None else float(f"{mean:.6g}")
