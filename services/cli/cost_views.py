"""Costs as a JSON document, and laid out for people. Used by `costs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from services.cli.tables import WORDS, console, moment, plain_table
from services.rollout.cost_report import Report, day_start
from services.rollout.costing import RolloutCost, Spend, Total, grouped
from services.rollout.forecast import lasting
from services.rollout.resources_cost import Cost
from services.rollout.status import RolloutStatus

if TYPE_CHECKING:
    from services.store import Marks, Usage, UserUsage

_KEYS: Final[Mapping[str, Callable[[Usage], tuple[str, ...]]]] = {
    "day": lambda of: (_day(of.hour),),
    "revision": lambda of: (of.revision, of.arm),
    "key": lambda of: (of.tenant, of.key),
}
_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "day": ("day",), "revision": ("revision", "arm"), "key": ("tenant", "key"), "user": ("user",),
}  # fmt: skip


def unknown(service: str, price: Cost) -> dict[str, Any]:
    """A service of which nothing was seen since costs are kept."""
    return {"service": service, "currency": price.currency, "known": False}


def document(service: str, found: Report, by: str, rows: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """A service: amounts in `currency`, times in seconds since the epoch. `count`: rows that there were before any were left out."""
    budget = found.price.budget
    return {
        "service": service,
        "currency": found.price.currency,
        "known": True,
        "since": found.since,
        "until": found.until,
        "spent": found.total.amount,
        "idle": found.idle,
        "mirrored": found.mirrored,
        "today": found.today,
        "budget_per_day": None if budget is None else budget.per_day,
        "per_day": found.total.amount / found.days if found.days else None,
        "requests": found.total.requests,
        "answered": found.total.answered,
        "tokens_in": found.total.tokens_in,
        "tokens_cached": found.total.tokens_cached,
        "tokens_out": found.total.tokens_out,
        "per_request": found.total.amount / found.total.requests if found.total.requests else None,
        "per_thousand_answers": found.per_thousand_answers,
        "per_million_tokens": found.per_million_tokens,
        "good_answers": None if found.good is None else asdict(found.good),
        "month": None if found.projection is None else asdict(found.projection),
        "requests_per_day": found.total.requests / found.days if found.days else None,
        "compared": [asdict(one) for one in found.compared],
        "by": by,
        "rows": list(rows),
        "rows_left_out": count - len(rows),
    }


def rows(found: Report, marks: Sequence[Marks], by: str) -> list[dict[str, Any]]:
    """Days in their order; the others dearest first."""
    key, heads = _KEYS[by], _HEADS[by]
    said: dict[tuple[str, ...], list[int]] = {}
    for mark in marks:
        place = {"day": (_day(mark.day),), "revision": (mark.revision, mark.arm), "key": (mark.tenant, mark.key)}[by]
        sums = said.setdefault(place, [0, 0])
        sums[0] += mark.rated
        sums[1] += mark.good

    def of(spend: Spend) -> tuple[str, ...]:
        if by == "key" and spend.usage.kind == "idle":
            return ("", "idle")
        return key(spend.usage)

    made = [
        {
            **dict(zip(heads, place, strict=True)),
            **_sums(sums),
            "rated": said.get(place, [0, 0])[0],
            "good": said.get(place, [0, 0])[1],
        }
        for place, sums in grouped(found.spends, of).items()
    ]
    return made if by == "day" else sorted(made, key=lambda one: -one["spent"])


def of_user(one: UserUsage) -> dict[str, Any]:
    """A row."""
    return {
        "user": one.unit,
        "spent": one.cost,
        "requests": one.requests,
        "answered": one.answered,
        "tokens_in": one.tokens_in,
        "tokens_out": one.tokens_out,
    }


def of_rollout(status: RolloutStatus, cost: RolloutCost) -> dict[str, Any]:
    """A row."""
    return {
        "rollout": status.id,
        "revision": status.revision,
        "verdict": status.verdict,
        "started_at": status.started_at,
        "spent": cost.total,
        **asdict(cost),
    }


def _sums(of: Total) -> dict[str, Any]:
    return {
        "spent": of.amount,
        "requests": of.requests,
        "answered": of.answered,
        "tokens_in": of.tokens_in,
        "tokens_out": of.tokens_out,
    }


def show(found: Mapping[str, Any]) -> None:
    """One service: sentences, then its table. Several: a row each."""
    told = found["services"]
    if len(told) == 1:
        _one(told[0])
        return
    table = _right(plain_table("service", "spent", "a day", "today", "budget", "this month", "1,000 answers"), 1)
    for one in told:
        if not one["known"]:
            table.add_row(one["service"], "nothing known yet")
            continue
        month = one["month"]
        table.add_row(
            one["service"], _money(one["spent"], one), _money(one["per_day"], one), _today(one), _money(one["budget_per_day"], one),
            "–" if month is None else _money(month["amount"]["estimate"], one), _money(one["per_thousand_answers"], one),
        )  # fmt: skip
    console().print(table)


def _one(one: Mapping[str, Any]) -> None:
    screen = console()
    if not one["known"]:
        screen.print(
            Text(f"{one['service']}: nothing is known of its costs yet: no replicas were seen, no tokens used")
        )
        return
    screen.print(
        Text(one["service"], style="bold")
        + Text(f": {_money(one['spent'], one)} in {lasting(one['until'] - one['since'])}, since {moment(one['since'])}")
    )
    for sentence in _sentences(one):
        screen.print(Text("• ") + sentence)
    if one["rows"]:
        screen.print()
        screen.print(_rollouts(one) if one["by"] == "rollout" else _table(one))
    else:
        screen.print(Text(f"no {one['by']} in that time", style="dim"))
    if one["rows_left_out"]:
        screen.print(Text(f"and {one['rows_left_out']:,} more: --limit N", style="dim"))


def _sentences(one: Mapping[str, Any]) -> list[Text]:
    said = [Text("today so far ") + _today(one)]
    if one["budget_per_day"] is not None:
        said[0].append(f" of {_money(one['budget_per_day'], one)} a day")
    if one["answered"]:
        thousand, tokens = _money(one["per_thousand_answers"], one), _money(one["per_million_tokens"], one)
        tokens = f", {tokens} a million tokens" if one["per_million_tokens"] is not None else ""
        said.append(
            Text(f"{thousand} per 1,000 answers{tokens}; {one['answered']:,} answers to {one['requests']:,} requests")
        )
    if one["spent"]:
        idle, copies = one["idle"] / one["spent"], one["mirrored"] / one["spent"]
        said.append(Text(f"{idle:.0%} for hours in which nobody asked, {copies:.0%} for mirrored copies"))
    said.append(_good(one))
    for model in one["compared"]:
        said.append(_compared(one, model))
    month = one["month"]
    if month is None:
        said.append(Text("no projection of the month before seven whole days are known", style="dim"))
    else:
        amount = month["amount"]
        said.append(
            Text(
                f"this month about {_money(amount['estimate'], one)}, between {_money(amount['lower'], one)} and "
                f"{_money(amount['upper'], one)} with 90 % (estimate, from {month['days']} days)"
            )
        )
    return said


def _good(one: Mapping[str, Any]) -> Text:
    good = one["good_answers"]
    if good is None:
        return Text("nobody marked an answer: no price of a good one", style="dim")
    marked = f"{good['good']:,} of {good['rated']:,} marked answers were good"
    each = good["per_answer"]
    if each is None:
        return Text(f"{marked}: no price of a good one")
    upper = "no upper bound" if each["upper"] is None else f"at most {_money(each['upper'], one)}"
    return Text(
        f"about {_money(each['estimate'], one)} per good answer, at least {_money(each['lower'], one)}, {upper} with 95 % "
        f"(estimate: {marked}, as if those that nobody marked were like them)"
    )


def _compared(one: Mapping[str, Any], model: Mapping[str, Any]) -> Text:
    said = f"{model['name']}: {_money(model['amount'], one)} for the same tokens"
    if one["spent"] and model["amount"]:
        times = one["spent"] / model["amount"]
        said += f"; ours cost {times:.2f} times that"
    if model["break_even"] is not None:
        said += (
            f"; with as many replicas ours are cheaper from {model['break_even']:,.0f} requests "
            f"({model['break_even_tokens']:,.0f} tokens) a day, there are {one['requests_per_day']:,.0f}"
        )
    return Text(said)


def _today(one: Mapping[str, Any]) -> Text:
    over = one["budget_per_day"] is not None and one["today"] > one["budget_per_day"]
    return Text(_money(one["today"], one), style="red" if over else "default")


def _table(one: Mapping[str, Any]) -> Any:
    heads = _HEADS[one["by"]]
    marked = one["by"] != "user"
    columns = ("spent", "requests", "answered", "tokens in", "tokens out", *(("marked", "good") if marked else ()))
    table = _right(plain_table(*heads, *columns), len(heads))
    for row in one["rows"]:
        numbers = [f"{row[name.replace(' ', '_')]:,}" for name in columns[1:5]]
        said = [f"{row['rated']:,}", f"{row['good']:,}"] if marked else []
        table.add_row(*(row[head] or "–" for head in heads), _money(row["spent"], one), *numbers, *said)
    return table


def _rollouts(one: Mapping[str, Any]) -> Any:
    table = plain_table("started", "revision", "verdict", "cost", "engine", "copies", "kept warm", "rollout")
    for row in one["rows"]:
        parts = (_money(row[name], one) for name in ("spent", "engine", "mirrored", "warm"))
        table.add_row(moment(row["started_at"]), row["revision"], WORDS[row["verdict"]], *parts, row["rollout"])
    return table


def _right(table: Any, start: int) -> Any:
    """Numbers end at one edge."""
    for column in table.columns[start:]:
        column.justify = "right"
    return table


def _money(amount: float | None, one: Mapping[str, Any]) -> str:
    """With two decimals, and small amounts with three digits."""
    if amount is None:
        return "–"
    figures = f"{amount:,.2f}" if amount == 0 or abs(amount) >= 0.1 else f"{amount:.3g}"
    return f"{figures} {one['currency']}"


def _day(at: float) -> str:
    return datetime.fromtimestamp(day_start(at), UTC).strftime("%Y-%m-%d")
