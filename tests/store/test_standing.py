"""Where a service stands, in one answer: the same as its parts, and of this service alone."""

from __future__ import annotations

import dataclasses

from services.common.routing import Route, Target
from services.store import Command, GatewayLease, RolloutRow, Store

STABLE = Target(revision="assistant-v1-7c1f", version="1", addresses=("http://127.0.0.1:1/v1",), model="m")


def rollout(id: str, service: str, started_at: float) -> RolloutRow:
    return RolloutRow(
        id=id, service=service, model="m", version="2", revision="r", stage="canary", verdict=None, reason=None,
        started_at=started_at, finished_at=None, spec={}, status={"id": id},
    )  # fmt: skip


def test_it_is_what_its_parts_say(store: Store, now: float) -> None:
    for service in ("assistant", "other"):
        store.publish_route(Route(service=service, version=0, stable=STABLE))
        store.commit_look(rollout(f"{service}-old", service, now - 20), evidence=None, at=now)
        store.commit_look(rollout(f"{service}-new", service, now - 10), evidence=None, at=now)
        for id in ("a", "b"):
            store.add_command(Command(f"{service}-{id}", service, None, "pause", "ada", "", now))
    store.answer_command("assistant-a", "paused")
    store.renew_lease(GatewayLease("g1", "b1", None, {"assistant": 1}, now - 3, now + 120, 0, 0, 0))
    store.renew_lease(GatewayLease("g2", "b1", None, {}, now - 9, now - 5, 0, 0, 0))
    found = store.standings(["assistant", "other"])["assistant"]
    assert found.route == store.route("assistant")
    assert [found.rollout] == store.rollouts("assistant", limit=1)
    assert list(found.commands) == store.commands("assistant")
    assert [command.id for command in found.commands] == ["assistant-b"]
    assert list(found.leases) == store.leases()
    assert found.watermark == store.watermark() == now - 3
    assert abs(found.now - store.now()) < 60
    lease = found.leases[0]
    store.renew_lease(dataclasses.replace(lease, routes={"assistant": 2}, complete_through=now + 3600))
    again = store.standings(["assistant"])["assistant"]
    assert again.leases[0].routes == {"assistant": 2}
    assert again.watermark == again.now, "never after now"


def test_a_service_that_nobody_knows_stands_nowhere(store: Store) -> None:
    store.publish_route(Route(service="assistant", version=0, stable=STABLE))
    store.remove_route("assistant")
    for service in ("assistant", "none"):
        found = store.standings([service])[service]
        assert (found.route, found.rollout, found.commands, found.leases) == (None, None, (), ())
        assert found.watermark == found.now
