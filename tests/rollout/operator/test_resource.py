"""A resource's turns: from spec to status, commands, wrong resources, deletion; an API server that is away."""

from __future__ import annotations

import asyncio
import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from services.rollout import reasons
from services.rollout.operator import api, telling
from services.rollout.operator.orders import COMMAND
from services.rollout.operator.resource import FINALIZER
from services.store import GatewayLease
from tests.fakes.kubernetes_api import SERVICES, hanging, throttled
from tests.fakes.operator_world import SPEC
from tests.rollout.operator.conftest import Make


def order(verb: str, id: str = "order-1", **fields: Any) -> str:
    return json.dumps({"id": id, "verb": verb, "rollout": None, "note": "", "by": "ada", **fields})


def wrong() -> dict[str, Any]:
    spec = copy.deepcopy(SPEC)
    spec["rollout"]["alpha"] = 7
    return spec


async def test_from_resource_to_promotion(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    assert FINALIZER in world.server.resource("assistant")["metadata"]["finalizers"]
    assert world.owner["uid"] == world.server.resource("assistant")["metadata"]["uid"]
    assert (world.status["stage"], world.status["stable"]["version"]) == ("idle", "1")
    await world.until(lambda: world.condition("Ready")["status"] == "True")
    assert world.status["address"] == "http://gateway"
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("canary"))
    await world.turn()
    assert world.status["weights"] == {"stable": 0.0, "control": 50.0, "candidate": 50.0}
    assert world.condition("RolloutFinished")["status"] == "False"
    assert [reading["metric"] for reading in world.status["evidence"]] == ["errors"]
    await world.until(lambda: world.status["stage"] == "finished")
    assert (world.status["verdict"], world.status["stable"]["version"]) == ("advance", "2")
    assert world.condition("RolloutFinished")["reason"] == reasons.PROMOTED
    assert [one["version"] for one in world.status["history"]] == ["2"]
    for reason in (reasons.SERVING, reasons.ROLLOUT_STARTED, reasons.REHEARSAL_PASSED, reasons.PROMOTED):
        assert reason in world.events()


async def test_an_unchanged_status_is_not_written(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    for _ in range(2):
        await world.turn()
    before = len(world.server.calls)
    for _ in range(5):
        await world.turn()
    assert len(world.server.calls) == before


async def test_edits_count_from_the_next_look(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    spec = copy.deepcopy(SPEC)
    spec["model"]["champion"] = "production"
    world.server.put("assistant", spec)
    await world.turn()
    assert world.status["observedGeneration"] == 2
    assert world.resource._loop is not None
    assert world.resource._loop.service.spec.model.champion == "production"


async def test_a_wrong_resource_says_which_field(make: Make) -> None:
    world = await make(spec=wrong())
    await world.turn()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", reasons.INVALID_RESOURCE)
    assert "spec.rollout.alpha" in ready["message"]
    assert "finalizers" not in world.server.resource("assistant")["metadata"], "nothing was made that would have to go"
    world.server.put("assistant", SPEC)
    await world.until(lambda: world.condition("Ready")["status"] == "True")


async def test_the_last_valid_version_stays_in_force(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("canary"))
    world.server.put("assistant", wrong())
    await world.turn()
    first = world.condition("Ready")
    await world.until(lambda: world.status["stage"] == "finished")
    assert world.registry.aliases == {"champion": "2"}
    assert world.condition("Ready")["reason"] == reasons.INVALID_RESOURCE
    assert world.condition("Ready")["lastTransitionTime"] == first["lastTransitionTime"]
    world.server.put("assistant", SPEC)
    await world.turn()
    assert world.condition("Ready")["status"] == "True"


async def test_the_younger_of_one_name_waits(make: Make) -> None:
    world = await make()
    other = {"metadata": {"uid": "other", "namespace": "elsewhere", "name": "assistant"}}
    await world.turn(holder=other)
    assert world.condition("Ready")["reason"] == reasons.NAME_TAKEN
    assert "elsewhere" in world.condition("Ready")["message"]
    world.server.delete("assistant")
    world.resource.gone = True
    assert not await world.turn(holder=other)
    assert world.registry.owner is None


async def test_a_command_is_obeyed_once_and_answered(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("canary"))
    world.server.annotate("assistant", command=order("pause", command_by="root"), command_by="root")
    world.server.annotate("assistant", command=order("pause"))
    await world.until(lambda: world.status.get("lastCommand"), turns=3)
    assert COMMAND not in world.server.resource("assistant")["metadata"]["annotations"]
    last = world.status["lastCommand"]
    assert (last["id"], last["answer"], last["by"]) == ("order-1", "paused", "claimed:ada"), "no webhook, so a claim"
    assert reasons.PAUSED in world.events()
    world.begin()
    await world.turn()
    assert world.status["lastCommand"] == last, "the next process knows it too"
    assert len(world.store.commands("assistant", pending=False)) == 1


async def test_a_stamped_command_names_the_user(make: Make) -> None:
    world = await make(stamped=True)
    await world.until(lambda: world.status.get("stable"))
    world.server.annotate("assistant", command=order("abort"), command_by="system:serviceaccount:ops:bot")
    await world.until(lambda: world.status.get("lastCommand"), turns=3)
    assert world.status["lastCommand"]["by"] == "system:serviceaccount:ops:bot"
    assert world.status["lastCommand"]["answer"].startswith("refused")
    assert "understudy.dev/command-by" not in world.server.resource("assistant")["metadata"]["annotations"]


async def test_a_command_that_changes_nothing_is_answered_too(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    for id in ("order-1", "order-2", "order-3"):
        world.server.annotate("assistant", command=order("abort", id))
        await world.until(lambda id=id: world.status.get("lastCommand", {}).get("id") == id, turns=3)  # type: ignore[misc]
        assert world.status["lastCommand"]["answer"].startswith("refused")


@pytest.mark.parametrize("text", ["no JSON", '{"id": "1", "verb": "sing"}', "[]"])
async def test_an_annotation_that_is_no_command_is_taken_off(make: Make, text: str) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.server.annotate("assistant", command=text)
    await world.turn()
    assert COMMAND not in world.server.resource("assistant")["metadata"]["annotations"]
    assert reasons.COMMAND_REFUSED in world.events()


async def test_deleting_drains_everything(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("canary"))
    assert len(world.platform.engines) == 2
    world.server.delete("assistant")
    await world.turn()
    assert world.condition("Ready")["reason"] == reasons.SERVICE_DELETED
    while await world.turn():
        pass
    rollout = world.rollout()
    assert rollout is not None
    assert (rollout.verdict, rollout.reason, rollout.stage) == ("abort", reasons.SERVICE_DELETED, "finished")
    assert world.store.route("assistant") is None
    assert world.platform.engines == {}
    assert world.registry.aliases == {"champion": "1"}
    assert world.registry.owner is None
    assert ("default", "assistant") not in world.server.objects[SERVICES]
    assert reasons.SERVICE_DELETED in world.events()


async def test_engines_go_only_when_every_gateway_has_forgotten_the_service(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.server.delete("assistant")
    now = world.clock.now
    for _ in range(3):
        world.store.renew_lease(
            GatewayLease("slow", "b", None, {"assistant": 1}, world.clock.now, world.clock.now + 120, 0, 0, 0)
        )
        assert await world.turn()
        assert len(world.platform.engines) == 1
        assert "gateways" in world.condition("Ready")["message"]
    world.clock.now = now + 300  # the slow gateway's lease has ended
    while await world.turn():
        pass
    assert world.platform.engines == {}


async def test_deletion_does_not_wait_for_a_registry_that_is_away_for_good(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("canary"))
    world.registry.away = True
    world.server.delete("assistant")
    for _ in range(60):
        if not await world.turn():
            break
    assert ("default", "assistant") not in world.server.objects[SERVICES]
    assert reasons.LEFT_BEHIND in world.events()
    assert world.platform.engines == {}


async def test_a_resource_whose_finalizer_was_taken_off_is_cleaned_up_all_the_same(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.server.delete("assistant", force=True)
    while await world.turn():
        pass
    assert world.platform.engines == {}
    assert world.store.route("assistant") is None


async def test_a_wrong_resource_that_never_was_valid_here_is_still_drained(make: Make) -> None:
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.server.put("assistant", {"model": "none", "nonsense": 1})
    world.begin()
    await world.turn()
    assert len(world.platform.engines) == 1
    world.server.delete("assistant")
    while await world.turn():
        pass
    assert world.platform.engines == {}


async def test_looks_go_on_while_the_api_server_is_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(api, "REST_SECONDS", 0.0)
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("rehearsal"))
    world.server.fault = lambda _: web.Response(status=503)
    await world.until(lambda: world.reached("watch"))
    assert reasons.PROMOTED not in world.events()
    world.server.fault = None
    await world.turn()
    assert world.status["verdict"] == "advance"
    assert reasons.PROMOTED in world.events(), "what happened meanwhile is told"


async def test_a_throttling_api_server_is_told_everything(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAUSE_SECONDS", 0.001)
    world = await make()
    world.server.fault = throttled(10_000, every=3)
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.status["stage"] == "finished")
    assert world.status["verdict"] == "advance"
    for reason in (reasons.SERVING, reasons.ROLLOUT_STARTED, reasons.REHEARSAL_PASSED, reasons.PROMOTED):
        assert world.events().count(reason) == 1


async def test_no_look_waits_for_an_api_server_that_hangs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "REST_SECONDS", 0.0)
    world = await make()
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("rehearsal"))
    back = asyncio.Event()
    world.server.fault = hanging(back)
    async with asyncio.timeout(telling.TELL_SECONDS / 2):
        await world.until(lambda: world.reached("watch"), heard=False)
    assert world.status["stage"] == "rehearsal"
    world.server.fault = None
    back.set()
    await world.turn()
    await world.turn()
    assert world.status["verdict"] == "advance"
    assert reasons.PROMOTED in world.events()


async def test_numbers_alone_are_told_now_and_then(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "NUMBERS_SECONDS", 5.0)  # a turn takes two
    spec = copy.deepcopy(SPEC)
    spec["rollout"]["canary"]["steps"][0]["minDuration"] = "100s"
    world = await make(spec=spec)
    await world.until(lambda: world.status.get("stable"))
    world.registry.aliases["challenger"] = "2"
    await world.until(lambda: world.reached("canary"))
    await world.until(lambda: world.status["stage"] == "canary")
    units = []
    for _ in range(6):
        await world.turn(users=4)
        assert world.reached("canary")
        units.append(world.status["evidence"][0]["units"])
    changes = sum(before != after for before, after in pairwise(units))
    assert changes in (1, 2), f"numbers that move at every look are written at every third: {units}"
