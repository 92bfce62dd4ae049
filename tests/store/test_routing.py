"""Routes get versions that never skip or repeat; leases say who must obey them, and how far the records have come."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from services.common.routing import Route, Target
from services.store import GatewayLease, Store
from tests.fakes.records import observation

STABLE = Target(revision="assistant-v1-7c1f", version="1", addresses=("http://127.0.0.1:1/v1",), model="m")


def route(service: str = "assistant", **changes: Any) -> Route:
    return Route(**{"service": service, "version": 99, "stable": STABLE, **changes})


def lease(now: float, **changes: Any) -> GatewayLease:
    fields: dict[str, Any] = {
        "gateway": "g1",
        "boot": "b1",
        "address": "http://127.0.0.1:8000",
        "routes": {"assistant": 1},
        "complete_through": now - 2,
        "lease_until": now + 120,
        "recorded": 10,
        "dropped": 0,
        "spilled": 0,
    }
    return GatewayLease(**{**fields, **changes})


def test_the_store_numbers_the_routes(store: Store) -> None:
    first = store.publish_route(route())
    second = store.publish_route(route(weight=500))
    assert (first.version, second.version) == (1, 2)
    assert store.route("assistant") == second
    assert [route for _, route in store.route_history("assistant")] == [first, second]
    assert store.publish_route(route("other")).version == 1
    assert store.route("unknown") is None


def test_an_unchanged_route_keeps_its_version(store: Store) -> None:
    first = store.publish_route(route(version=3))
    assert store.publish_route(route(version=7)) == first
    assert len(store.route_history("assistant")) == 1


def test_routes_are_those_that_differ_from_the_known(store: Store) -> None:
    one, other = store.publish_route(route()), store.publish_route(route("other"))
    assert store.routes() == {"assistant": one, "other": other}
    assert store.routes({"assistant": 1, "other": 1}) == {}
    assert store.routes({"assistant": 1}) == {"other": other}
    assert store.routes({"assistant": 5, "other": 1}) == {"assistant": one}  # a cache from another database


def test_history_since(store: Store) -> None:
    store.publish_route(route())
    [(at, first)] = store.route_history("assistant")
    assert store.route_history("assistant", at) == [(at, first)]
    assert store.route_history("assistant", at + 0.001) == []


def test_versions_of_concurrent_publishers_are_all_different(store: Store) -> None:
    def publish(weight: int) -> int:
        return store.publish_route(route(weight=weight)).version

    with ThreadPoolExecutor(4) as threads:
        versions = list(threads.map(publish, range(1, 25)))
    assert sorted(versions) == list(range(1, 25))
    assert [route.version for _, route in store.route_history("assistant")] == list(range(1, 25))
    newest = store.route("assistant")
    assert newest is not None
    assert newest.version == 24


def test_watermark_is_the_slowest_live_gateway(store: Store, now: float) -> None:
    assert now <= store.watermark() <= store.now()
    store.renew_lease(lease(now))
    store.renew_lease(lease(now, gateway="g2", complete_through=now - 30))
    store.renew_lease(lease(now, gateway="g3", complete_through=now - 500, lease_until=now - 1))
    assert store.watermark() == now - 30
    store.end_lease("g2", "b1")
    assert store.watermark() == now - 2
    store.renew_lease(lease(now, complete_through=now + 1000))
    assert store.watermark() <= store.now()  # a gateway's clock that runs ahead must not close units early


def test_leases_are_replaced_and_run_out(store: Store, now: float) -> None:
    store.renew_lease(lease(now))
    newer = lease(now, routes={"assistant": 2, "other": 1}, recorded=11, spilled=4, address=None)
    store.renew_lease(newer)
    store.renew_lease(lease(now, gateway="g0", lease_until=now - 0.5))
    assert store.leases() == [newer]


def test_an_ended_lease_stays_ended(store: Store, now: float) -> None:
    store.renew_lease(lease(now))
    store.end_lease("g1", "b1")
    store.renew_lease(lease(now))  # a renewal that was under way when the gateway stopped
    store.end_lease("g1", "never seen")
    assert store.leases() == []
    store.renew_lease(lease(now, boot="b2"))
    assert [one.boot for one in store.leases()] == ["b2"]


def test_acknowledged_by_every_live_gateway(store: Store, now: float) -> None:
    assert not store.acknowledged("assistant", 1)  # nobody there is nobody who obeys
    store.renew_lease(lease(now, routes={"assistant": 3}))
    assert store.acknowledged("assistant", 3)
    assert store.acknowledged("assistant", 2)
    assert not store.acknowledged("assistant", 4)
    store.renew_lease(lease(now, gateway="g2", routes={"other": 9}))
    assert not store.acknowledged("assistant", 3)
    store.renew_lease(lease(now, gateway="g2", routes={"other": 9}, lease_until=now - 1))
    assert store.acknowledged("assistant", 3)


def test_gaps_show_what_a_gateway_said_of_itself(store: Store, now: float) -> None:
    store.write([observation(now, sequence=1)])
    assert store.gaps()[0]["recorded"] is None
    store.renew_lease(lease(now, recorded=5, dropped=1, spilled=3))
    [gap] = store.gaps()
    assert (gap["recorded"], gap["dropped"], gap["spilled"], gap["ended"]) == (5, 1, 3, False)
    store.end_lease("g1", "b1")
    assert store.gaps()[0]["ended"]


def test_a_removed_service_has_no_route_but_a_version_to_acknowledge(store: Store) -> None:
    store.publish_route(route(candidate=STABLE, weight=500))
    store.publish_route(route("other"))
    version = store.remove_route("assistant")
    assert version == 2
    assert store.remove_route("assistant") == 2, "repeating it publishes nothing"
    assert store.route("assistant") is None
    assert set(store.routes()) == {"other"}
    told = store.routes({"assistant": 1, "other": 1})
    assert (told["assistant"].version, told["assistant"].removed, told["assistant"].candidate) == (2, True, None)
    assert store.remove_route("never") is None
    assert store.publish_route(route()).version == 3
    assert set(store.routes()) == {"assistant", "other"}
