"""What requests cost, by hand: replicas over time, spread over engine seconds; tokens; rollouts; comparison, projection, good answers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.common.clock import DAY
from services.rollout.cost_report import Interval, Projection, project, report, satisfaction
from services.rollout.costing import engine_cost, grouped, prices_of, rates, rollout_cost, spread, total
from services.rollout.resources import LLMService
from services.rollout.resources_cost import Cost
from services.rollout.status import RolloutStatus
from services.store import CostRecords, Marks, Usage
from tests.fakes.rollout_rows import row

HOUR = 3_600.0
T = 1_767_225_600.0  # 2026-01-01 00:00 UTC
OWN = Cost(per_replica_hour=3.0)
BY_TOKEN = Cost.model_validate({"perMillionTokens": {"input": 1.0, "cachedInput": 0.1, "output": 4.0}})


def usage(hour: float, revision: str = "v1", **changes: Any) -> Usage:
    fields: dict[str, Any] = {
        "arm": "stable", "rollout": "", "kind": "live", "tenant": "acme", "key": "web", "requests": 10, "answered": 10,
        "tokens_in": 1_000, "tokens_cached": 0, "tokens_out": 500, "seconds": 60.0,
    }  # fmt: skip
    return Usage(hour=hour, revision=revision, **{**fields, **changes})


def test_replicas_cost_by_the_time_that_they_run_at_the_price_of_that_time() -> None:
    counts = [(T, 1), (T + HOUR, 3), (T + 1.5 * HOUR, 0)]
    assert engine_cost(counts, [(T, OWN)], T - HOUR, T + 9 * HOUR) == pytest.approx(3 + 0.5 * 3 * 3)
    dearer = [(T, OWN), (T + 0.5 * HOUR, Cost(per_replica_hour=6.0))]
    assert engine_cost(counts, dearer, T, T + HOUR) == pytest.approx(1.5 + 3.0)
    assert engine_cost(counts, [(T + 5 * HOUR, OWN)], T, T + HOUR) == pytest.approx(
        3.0
    )  # the first price holds before it
    assert engine_cost([], [(T, OWN)], T, T + HOUR) == 0.0


def test_an_engines_hour_is_spread_by_engine_seconds_and_idle_hours_stay_its_own() -> None:
    records = CostRecords(
        usage=(
            usage(T, seconds=30.0),
            usage(T, "adapter-v2", arm="candidate", seconds=50.0),
            usage(T, arm="control", kind="mirror", rollout="r1", seconds=20.0),
            usage(T, "v3", seconds=1.0),
        ),
        replicas={"v1": [(T, 2), (T + 1.5 * HOUR, 0)], "v3": [(T, 1), (T + HOUR, 0)]},
        engines={"adapter-v2": "v1"},
    )
    spends = spread(records, [(T, OWN)], T, T + 9 * HOUR)
    amounts = {(one.usage.hour, one.usage.revision, one.usage.kind): one.amount for one in spends}
    assert amounts == pytest.approx(
        {
            (T, "v1", "live"): 1.8, (T, "adapter-v2", "live"): 3.0, (T, "v1", "mirror"): 1.2, (T, "v3", "live"): 3.0,
            (T + HOUR, "v1", "idle"): 3.0,
        }
    )  # fmt: skip
    sums = total(spends)
    assert (sums.amount, sums.requests, sums.tokens_out) == (
        pytest.approx(12.0),
        30,
        1_500,
    )  # copies cost, and are no answers
    assert grouped(spends, lambda one: one.engine)["v1"].amount == pytest.approx(9.0)
    by_second = {(one.hour, one.revision): one.second for one in rates(records, [(T, OWN)], T, T + 9 * HOUR)}
    assert by_second == pytest.approx({(T, "v1"): 0.06, (T, "adapter-v2"): 0.06, (T, "v3"): 3.0})


def test_the_running_hour_costs_until_now() -> None:
    records = CostRecords(usage=(usage(T),), replicas={"v1": [(T, 4)]})
    (one,) = spread(records, [(T, OWN)], T, T + 600)
    assert one.amount == pytest.approx(2.0)


def test_failures_that_took_no_time_share_by_number() -> None:
    records = CostRecords(
        usage=(usage(T, seconds=0.0), usage(T, key="app", seconds=0.0, requests=30)), replicas={"v1": [(T, 1)]}
    )
    assert [one.amount for one in spread(records, [(T, OWN)], T, T + HOUR)] == pytest.approx([0.75, 2.25])


def test_tokens_by_their_prices() -> None:
    records = CostRecords(
        usage=(usage(T, tokens_in=1_000_000, tokens_cached=400_000, tokens_out=250_000),), replicas={"v1": [(T, 9)]}
    )
    (one,) = spread(records, [(T, BY_TOKEN)], T, T + HOUR)
    assert one.amount == pytest.approx(0.6 + 0.04 + 1.0)
    (rate,) = rates(records, [(T, BY_TOKEN)], T, T + HOUR)
    assert (rate.second, rate.token_in, rate.token_cached, rate.token_out) == pytest.approx((0.0, 1e-6, 1e-7, 4e-6))
    uncached = Cost.model_validate({"perMillionTokens": {"input": 1.0, "output": 4.0}})
    assert spread(records, [(T, uncached)], T, T + HOUR)[0].amount == pytest.approx(2.0)


def test_prices_of_another_currency_do_not_count_and_none_now_is_none() -> None:
    def document(cost: Cost) -> dict[str, Any]:
        return cost.model_dump(mode="json", by_alias=True)

    euro = Cost(currency="EUR", per_replica_hour=2.0)
    assert prices_of([(1, document(OWN)), (2, None), (3, document(euro))]) == [(3, euro)]
    assert prices_of([(1, document(OWN)), (2, None)]) == []
    assert prices_of([(1, document(OWN)), (2, {"perReplicaHour": "free"})]) == []
    assert prices_of([]) == []


def rollout(**changes: Any) -> RolloutStatus:
    status = RolloutStatus.model_validate(row("r1", "2", started_at=T).status)
    return status.model_copy(update={"engine": "v2", "champion_revision": "v1", **changes})


def test_a_rollout_costs_its_engine_its_copies_and_the_engine_kept_warm() -> None:
    records = CostRecords(
        usage=(
            usage(T, seconds=90.0),
            usage(T, arm="control", kind="mirror", rollout="r1", seconds=10.0),
            usage(T, "v2", arm="candidate", kind="mirror", rollout="r1", seconds=10.0),
            usage(T, arm="control", kind="mirror", rollout="r0", seconds=100.0),
        ),
        replicas={"v1": [(T - DAY, 2), (T + 6 * HOUR, 0)], "v2": [(T + HOUR / 2, 1)]},
    )
    prices = [(T, OWN)]
    spends = spread(records, prices, T, T + 9 * HOUR)
    promoted = rollout(verdict="advance", decided_at=T + 4 * HOUR, finished_at=T + 5 * HOUR)
    cost = rollout_cost(promoted, records, prices, spends, T + 9 * HOUR)
    assert (cost.engine, cost.mirrored, cost.warm) == pytest.approx((3.5 * 3, 6.0 * 10 / 200, 1 * 2 * 3))
    assert cost.total == pytest.approx(16.8)
    fell = rollout(verdict="abort", decided_at=T + 2 * HOUR, finished_at=T + 2 * HOUR)
    assert rollout_cost(fell, records, prices, spends, T + 9 * HOUR).total == pytest.approx(1.5 * 3 + 0.3)
    running = rollout_cost(rollout(), records, prices, spends, T + HOUR)
    assert running.engine == pytest.approx(1.5)


def test_a_rollout_on_stables_engine_costs_its_copies_alone() -> None:
    records = CostRecords(
        usage=(usage(T), usage(T, "prompt-2", arm="candidate", kind="mirror", rollout="r1", seconds=60.0)),
        replicas={"v1": [(T, 1)]},
        engines={"prompt-2": "v1"},
    )
    spends = spread(records, [(T, OWN)], T, T + HOUR)
    cost = rollout_cost(rollout(engine="v1", kind="prompt"), records, [(T, OWN)], spends, T + HOUR)
    assert (cost.engine, cost.mirrored, cost.warm) == pytest.approx((0.0, 1.5, 0.0))


def test_copies_of_an_engine_billed_by_the_token_are_all_the_rollouts() -> None:
    copies = {"kind": "mirror", "rollout": "r1", "tokens_in": 0, "tokens_out": 250_000}
    records = CostRecords(usage=(usage(T, **copies), usage(T, "v2", **copies), usage(T)), replicas={"v2": [(T, 1)]})
    spends = spread(records, [(T, BY_TOKEN)], T, T + HOUR)
    assert rollout_cost(rollout(), records, [(T, BY_TOKEN)], spends, T + HOUR).total == pytest.approx(2.0)


def test_the_report_of_ten_days() -> None:
    """One replica at 3 an hour, 72 a day; 240 answers of 100 + 50 tokens a day."""
    now = T + 10 * DAY + 12 * HOUR
    hours = [T + n * HOUR for n in range(252)]
    price = Cost.model_validate(
        {"perReplicaHour": 3.0, "comparedWith": [{"name": "closed", "input": 1_000, "cachedInput": 0, "output": 4_000}]}
    )
    records = CostRecords(usage=tuple(usage(hour) for hour in hours), replicas={"v1": [(T, 1)]})
    found = report(records, [(T, price)], [Marks(T, "v1", "stable", "", "", 100, 80)], T + 8.5 * DAY, now)
    assert found is not None
    assert found.days == 2.0
    assert (found.total.amount, found.today, found.idle, found.mirrored) == pytest.approx((144.0, 36.0, 0.0, 0.0))
    assert found.total.answered == 480
    assert found.per_thousand_answers == pytest.approx(300.0)
    assert found.per_million_tokens == pytest.approx(144 / 72_000 * 1e6)
    (closed,) = found.compared  # 48,000 in and 24,000 out: 48 + 96
    assert closed.amount == pytest.approx(144.0)
    assert closed.break_even == pytest.approx(240.0)  # 72 a day over 0.3 a request
    assert closed.break_even_tokens == pytest.approx(36_000.0)
    assert found.projection is not None
    assert found.projection.days == 7
    assert found.projection.amount == Interval(*(pytest.approx(31 * 72.0),) * 3)  # every day alike
    assert found.good is not None
    assert found.good.per_answer is not None
    assert found.good.per_answer.estimate == pytest.approx(0.3 / 0.8)
    assert found.good.share.lower is not None
    assert found.good.share.lower < 0.8
    assert found.good.per_answer.upper == pytest.approx(0.3 / found.good.share.lower)


def test_nothing_is_known_before_replicas_were_seen() -> None:
    prices = [(T, OWN)]
    assert report(CostRecords(usage=(usage(T),)), prices, [], T, T + DAY) is None
    late = CostRecords(usage=(usage(T), usage(T + 5 * HOUR)), replicas={"v1": [(T + 5.5 * HOUR, 1)]})
    found = report(late, prices, [], T, T + 6 * HOUR)
    assert found is not None
    assert (found.since, found.total.requests, found.total.amount) == (T + 5.5 * HOUR, 10, pytest.approx(1.5))
    assert found.projection is None  # not one whole day
    tokens = report(CostRecords(usage=(usage(T),)), [(T, BY_TOKEN)], [], T, T + DAY)
    assert tokens is not None
    assert tokens.compared == ()


def test_a_projection_by_students_t() -> None:
    days = [8.0, 12.0, 8.0, 12.0, 8.0, 12.0, 10.0]  # mean 10, variance 4
    found = project([1_000.0, *days], spent=50.0, ahead=3.0)
    half = 1.943180 * (4 * (3 + 9 / 7)) ** 0.5
    assert found == Projection(Interval(80.0, pytest.approx(80 - half), pytest.approx(80 + half)), 7)
    assert project(days[:6], 50.0, 3.0) is None
    low = project([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 700.0], spent=50.0, ahead=1.0)
    assert low is not None
    assert low.amount.lower == 50.0  # what is spent is spent


def test_good_answers_have_no_price_where_nobody_called_one_good() -> None:
    sums = total(spread(CostRecords(usage=(usage(T),), replicas={"v1": [(T, 1)]}), [(T, OWN)], T, T + HOUR))
    assert satisfaction([], sums) is None
    bad = satisfaction([Marks(T, "v1", "stable", "", "", 5, 0)], sums)
    assert bad is not None
    assert (bad.share.estimate, bad.per_answer) == (0.0, None)


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        ({"perReplicaHour": -1}, "greater than or equal to 0"),
        ({}, "perReplicaHour or perMillionTokens"),
        ({"perReplicaHour": 1, "perMillionTokens": {"input": 1, "output": 1}}, "and not both"),
        ({"perMillionTokens": {"input": 1}}, "output"),
        ({"perReplicaHour": 1, "currency": "usd"}, "pattern"),
        ({"perReplicaHour": 1, "budget": {"perDay": 0}}, "greater than 0"),
        ({"perReplicaHour": 1, "comparedWith": [{"name": "a", "input": 1, "output": 2}] * 2}, "twice"),
    ],
)
def test_a_wrong_price_is_refused(cost: dict[str, Any], words: str) -> None:
    resource = {"metadata": {"name": "assistant"}, "spec": {"model": {"registeredModel": "a"}, "cost": cost}}
    with pytest.raises(ValidationError, match=words):
        LLMService.model_validate(resource)
