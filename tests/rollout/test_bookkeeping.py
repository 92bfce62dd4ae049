"""What the controller keeps and tells of costs: replicas as looks see them, prices as the resource has them, gauges from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.common import telemetry as names
from services.common.clock import HOUR
from services.common.pricing import key_of, price_of
from services.common.routing import Experiment, Group, Route, Target
from services.rollout.bookkeeping import Bookkeeper, claimed, shared
from services.rollout.cost_telling import CostTeller
from services.rollout.metrics import Metrics, Sample
from services.rollout.observed import Identity, Observed
from services.rollout.platforms.base import Phase, RevisionState
from services.rollout.resources import LLMService
from services.store import Store, migrate, open_store
from tests.fakes.records import observation
from tests.fakes.rollout_rows import HandClock

DAY = 86_400.0


def state(phase: Phase, ready: int, bounds: tuple[int, int] | None = (2, 4), base: str | None = None) -> RevisionState:
    return RevisionState("engine", phase, ready, None, "", replicas=bounds, base=base)


@pytest.mark.parametrize(
    ("seen", "count"),
    [
        (state("ready", 3), 3),
        (state("ready", 0, (0, 4)), 0),  # asleep
        (state("starting", 0), 2),
        (state("starting", 0, (0, 4)), 1),
        (state("failed", 0, None), 1),
        (state("draining", 1), 1),
    ],
)
def test_replicas_that_are_paid_for(seen: RevisionState, count: int) -> None:
    assert claimed({"engine": seen}) == {"engine": count}


def test_adapters_have_no_replicas_of_their_own() -> None:
    assert claimed({"a": state("ready", 3, base="engine"), "gone": state("absent", 0)}) == {}


def target(revision: str, **changes: Any) -> Target:
    return Target(**{"revision": revision, "version": "1", "addresses": (), "model": revision, **changes})


def test_who_shares_an_engine() -> None:
    group = Group(name="terse", share=100, target=target("prompt-2", model="engine"))
    route = Route(
        service="assistant", version=1, stable=target("engine"), candidate=target("adapter-3", model="adapter-3", engine="engine"),
        pinned=(target("other"),), experiments=(Experiment(id="e", salt="", groups=(group,), horizon=1.0, settle=1.0),),
    )  # fmt: skip
    adapters = {"adapter-9": state("starting", 0, None, base="engine")}
    assert shared(adapters, route) == {"adapter-9": "engine", "adapter-3": "engine", "prompt-2": "engine"}


class Noted:
    """A store that remembers what it was told."""

    def __init__(self) -> None:
        self.replicas: list[Any] = []
        self.prices: list[Any] = []

    def note_replicas(self, *told: Any) -> None:
        self.replicas.append(told)

    def note_prices(self, *told: Any) -> None:
        self.prices.append(told)


def resource(cost: dict[str, Any] | None) -> LLMService:
    spec = {"model": {"registeredModel": "a"}, **({} if cost is None else {"cost": cost})}
    return LLMService.model_validate({"metadata": {"name": "assistant"}, "spec": spec})


def observed(engines: dict[str, RevisionState] | None) -> Observed:
    return Observed(
        route=None,
        gateways=0,
        acknowledged=False,
        rollout=None,
        aliases=None,
        engines=engines,
        identity=Identity("r", "00"),
    )


async def test_only_changes_are_noted() -> None:
    store, priced = Noted(), resource({"perReplicaHour": 2})
    books = Bookkeeper(store)  # type: ignore[arg-type]
    for at, service, seen in (
        (1.0, resource(None), {"v1": state("ready", 1)}),
        (2.0, resource(None), {"v1": state("ready", 1)}),
        (3.0, priced, None),  # the platform is away
        (4.0, priced, {"v1": state("ready", 2)}),
    ):
        await books.look(service, observed(seen), at)
    assert store.replicas == [("assistant", {"v1": 1}, {}, 1.0), ("assistant", {"v1": 2}, {}, 4.0)]
    price = {"currency": "USD", "perReplicaHour": 2.0, "comparedWith": []}
    assert store.prices == [("assistant", None, 1.0), ("assistant", price, 3.0)]


@pytest.fixture
def clock() -> HandClock:
    return HandClock(1_767_225_600.0 + 3 * DAY)


@pytest.fixture
def store(tmp_path: Path, clock: HandClock) -> Iterator[Store]:
    migrate(f"sqlite:///{tmp_path}/understudy.db")
    opened = open_store(f"sqlite:///{tmp_path}/understudy.db", clock)
    yield opened
    opened.close()


def told(samples: Sequence[Sample]) -> dict[tuple[str, ...], float]:
    return {(spec.name, *labels): value for spec, labels, value in samples}


def test_what_is_told_of_today(store: Store, clock: HandClock) -> None:
    midnight = clock.now
    service = resource(
        {
            "perReplicaHour": 3,
            "budget": {"perDay": 50},
            "comparedWith": [{"name": "closed", "input": 1000, "output": 0}],
        }
    )
    assert service.spec.cost is not None
    store.note_replicas("assistant", {"v1": 1}, {}, midnight - DAY)
    asked: dict[str, Any] = {"revision": "v1", "rollout": None, "tokens_in": 500, "tokens_out": 10}
    store.write([observation(midnight - 60, arm="stable", **asked), observation(midnight + 60, arm="stable", **asked)])
    clock.now = midnight + 7_200
    teller = CostTeller(service, service.spec.cost, store, lambda *_: None)
    found = told(teller.read())
    assert found.pop(("understudy_cost_per_thousand_answers",)) == pytest.approx(1_000 * 78 / 2)
    assert found.pop(("understudy_cost_break_even_requests", "closed")) == pytest.approx(78 / (26 / 24) / 0.5)
    today = {
        ("understudy_cost_info", "USD"): 1.0,
        ("understudy_cost_budget_per_day",): 50.0,
        ("understudy_cost_today", "v1", "stable", "live"): 3.0,
        ("understudy_cost_today", "v1", "idle", "idle"): 3.0,
        ("understudy_cost_compared_today", "closed"): 0.5,
    }
    assert found == pytest.approx(today)
    clock.now = midnight + DAY
    later = told(teller.read())  # a new day; the week is not read again yet
    assert ("understudy_cost_today", "v1", "idle", "idle") not in later
    assert later["understudy_cost_per_thousand_answers",] == pytest.approx(39_000)


def test_gateways_are_told_what_a_second_of_each_engine_cost_in_the_last_day(store: Store, clock: HandClock) -> None:
    start = clock.now // HOUR * HOUR
    service = resource({"currency": "EUR", "perReplicaHour": 3})
    assert service.spec.cost is not None
    store.note_replicas("assistant", {"v1": 2}, {"prompt-v2": "v1"}, start - 2 * DAY)
    asked: dict[str, Any] = {"rollout": None, "arm": "stable"}
    rows = [
        observation(start - DAY - 60, revision="v1", duration=500.0, **asked),  # of before the day
        observation(start + 60, revision="v1", duration=20.0, **asked),
        observation(start + 61, revision="prompt-v2", duration=10.0, **asked),
        observation(
            start + 2 * HOUR + 60, revision="v1", duration=30.0, **asked
        ),  # the hour between cost nobody anything
        observation(start + 3 * HOUR + 60, revision="v1", duration=500.0, **asked),  # of the running hour
    ]
    store.write(rows)
    clock.now = start + 3.5 * HOUR
    CostTeller(service, service.spec.cost, store, lambda *_: None).read()
    price = price_of(store.evidence(key_of("assistant")))
    assert price is not None
    assert (price.at, price.currency, price.estimated) == (pytest.approx(clock.now), "EUR", True)
    assert price.seconds == pytest.approx({"v1": 12 / 60})
    assert price.of("v1", 5.0, None, None, None) == pytest.approx(1.0)
    assert price.of("v3", 5.0, 10, 0, 10) is None  # it has no hour yet


def test_gateways_are_told_the_price_of_tokens_where_that_is_what_is_paid(store: Store) -> None:
    service = resource({"perMillionTokens": {"input": 2.0, "cachedInput": 0.5, "output": 8.0}})
    assert service.spec.cost is not None
    CostTeller(service, service.spec.cost, store, lambda *_: None).read()
    price = price_of(store.evidence(key_of("assistant")))
    assert price is not None
    assert not price.estimated
    assert price.of("any", 1.0, 1_000, 400, 100) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 8) / 1e6)
    assert price.of("any", 1.0, None, None, None) is None


def test_what_was_told_goes_with_the_service() -> None:
    metrics = Metrics()
    metrics.spent("assistant", [(names.COST_BUDGET, (), 5.0)])
    assert metrics.registry.get_sample_value("understudy_cost_budget_per_day", {"service": "assistant"}) == 5.0
    metrics.gone("assistant")
    assert metrics.registry.get_sample_value("understudy_cost_budget_per_day", {"service": "assistant"}) is None
