"""The resource's status: what a person reads at each point of a rollout, and conditions that move only when their status does."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.clock import rfc3339
from services.rollout import reasons
from services.rollout.decide import Decision
from services.rollout.observed import EvidenceView
from services.rollout.planning import Caution
from services.rollout.platforms.base import RevisionState
from services.rollout.resource_status import refused_status, service_status
from services.rollout.resources import LLMService
from services.store import Command, RolloutRow
from tests.fakes.rollout_world import World, reading, service


class Kubectl:
    """A world whose status is written after every look, as the operator does."""

    def __init__(self, resource: LLMService | None = None) -> None:
        self.world = World(resource)
        self.status: dict[str, Any] | None = None

    def look(self, after: float = 1.0, times: int = 1, **more: Any) -> dict[str, Any]:
        for _ in range(times):
            self.status = self.write(self.world.look(after), **more)
        assert self.status is not None
        return self.status

    def write(self, decision: Decision, readings: Any = (), history: Any = (), **more: Any) -> dict[str, Any]:
        world = self.world
        return service_status(decision.status, world.route, readings, history, 3, world.now, self.status, **more)

    def condition(self, name: str) -> dict[str, Any]:
        assert self.status is not None
        return next(condition for condition in self.status["conditions"] if condition["type"] == name)


def test_a_service_without_a_champion_says_what_is_missing() -> None:
    kubectl = Kubectl()
    kubectl.world.aliases.clear()
    status = kubectl.look()
    assert (status["stage"], status["step"], status["observedGeneration"]) == ("idle", 0, 3)
    assert {"weights", "stable", "candidate", "rollout", "verdict"}.isdisjoint(status)
    ready = kubectl.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", reasons.CHAMPION_MISSING)
    assert all(condition["type"] != "RolloutFinished" for condition in status["conditions"]), "absent before the first"


def test_a_canary_in_numbers() -> None:
    kubectl = Kubectl()
    kubectl.world.reach("canary", 1)
    seen = [
        {**reading("errors", e_promote=7.0).to_json(), "stage": "canary"},
        {**reading("feedback", mode="harmOnly", e_harm=2.0, effect=None, n_control=80).to_json(), "stage": "canary"},
    ]
    status = kubectl.look(readings=seen)
    assert (status["stage"], status["step"], status["verdict"]) == ("canary", 2, "continue")
    assert status["weights"] == {"stable": 0.0, "control": 50.0, "candidate": 50.0}
    assert (status["stable"]["version"], status["candidate"]["version"]) == ("1", "2")
    errors, feedback = status["evidence"]
    assert (errors["eValue"], errors["threshold"], errors["harmThreshold"]) == (7.0, 20.0, 100.0)
    assert (feedback["eValue"], feedback["threshold"], feedback["units"]) == (2.0, 100.0, 80)
    assert "estimate" not in feedback, "what is unknown is left out"
    assert status["reason"] == reasons.AWAITING_EVIDENCE
    assert (kubectl.condition("Progressing")["status"], kubectl.condition("RolloutFinished")["status"]) == (
        "True",
        "False",
    )
    assert kubectl.condition("Degraded")["status"] == "False"


def test_times_of_transitions_move_with_the_status_alone() -> None:
    kubectl = Kubectl()
    kubectl.look(times=3)
    before = kubectl.condition("Ready")
    kubectl.world.platform_away = True
    kubectl.look(after=60.0)
    after = kubectl.condition("Ready")
    assert (after["status"], after["reason"]) == ("True", reasons.PLATFORM_UNAVAILABLE)
    assert after["lastTransitionTime"] == before["lastTransitionTime"], "only the reason is another"
    assert kubectl.condition("Degraded")["lastTransitionTime"] == rfc3339(kubectl.world.now)
    assert kubectl.world.route
    kubectl.world.platform_away = False
    name = kubectl.world.route.stable.model
    kubectl.world.engines[name] = RevisionState(name, "starting", 0, None, "loading")
    kubectl.look(after=60.0)
    assert kubectl.condition("Ready")["status"] == "False"
    assert kubectl.condition("Ready")["lastTransitionTime"] == rfc3339(kubectl.world.now)


def test_a_plan_that_asks_too_much_is_told_and_degrades_nothing() -> None:
    kubectl = Kubectl()
    kubectl.world.caution = Caution(reasons.TRAFFIC_TOO_LOW, "the rehearsal comes to 3 of minPairs 200")
    kubectl.look(times=4)
    assert (kubectl.condition("Plan")["status"], kubectl.condition("Plan")["reason"]) == (
        "False",
        reasons.TRAFFIC_TOO_LOW,
    )
    assert kubectl.condition("Degraded")["status"] == "False"


def test_the_end_of_a_rollout_can_be_waited_for() -> None:
    kubectl = Kubectl()
    kubectl.world.reach("canary", 0)
    kubectl.look()
    kubectl.world.evidence = EvidenceView(readings=(reading("ttft", harmful=True, relative=True),))
    kubectl.look()
    finished = kubectl.condition("RolloutFinished")
    assert (finished["status"], finished["reason"]) == ("False", reasons.TTFT_HARMFUL)  # the alias is still there
    status = kubectl.look()
    finished = kubectl.condition("RolloutFinished")
    assert (finished["status"], finished["reason"]) == ("True", reasons.TTFT_HARMFUL)
    assert kubectl.condition("Progressing")["status"] == "False"
    assert kubectl.condition("Ready")["status"] == "True"
    rollout = status["rollout"]
    assert (rollout["verdict"], rollout["decidedIn"], rollout["metric"], rollout["stage"]) == (
        "abort",
        "canary",
        "ttft",
        "finished",
    )
    assert rollout["finishedAt"] == rfc3339(kubectl.world.now)
    assert "candidate" not in status
    assert status["weights"]["candidate"] == 0


def test_a_held_rollout_wants_a_person() -> None:
    kubectl = Kubectl()
    kubectl.world.reach("canary", 0)
    kubectl.world.evidence = EvidenceView(counts={"step_control": 3, "step_candidate": 3})
    kubectl.look(after=101.0)
    kubectl.look()
    for name, status in (("Degraded", "True"), ("Progressing", "False"), ("RolloutFinished", "False")):
        condition = kubectl.condition(name)
        assert (condition["status"], condition["reason"]) == (status, reasons.STEP_INCONCLUSIVE)


def test_a_paused_rollout_does_not_progress() -> None:
    kubectl = Kubectl()
    kubectl.world.reach("canary", 0)
    kubectl.world.order("pause")
    kubectl.look()
    assert (kubectl.condition("Progressing")["status"], kubectl.condition("Progressing")["reason"]) == (
        "False",
        "Paused",
    )
    assert kubectl.condition("Degraded")["status"] == "False"


def test_a_registry_that_is_away_degrades() -> None:
    kubectl = Kubectl()
    kubectl.look(times=3)
    kubectl.world.registry_away = True
    kubectl.look()
    assert (kubectl.condition("Degraded")["status"], kubectl.condition("Degraded")["reason"]) == (
        "True",
        "RegistryUnavailable",
    )
    assert kubectl.condition("Ready")["status"] == "True"


def test_ignored_fields_are_said_and_do_no_harm() -> None:
    spec = service().model_dump(mode="json", by_alias=True)
    spec["spec"]["engine"]["image"] = "engine:1"
    kubectl = Kubectl(LLMService.model_validate(spec))
    kubectl.look(times=3)
    said = kubectl.condition("EngineFields")
    assert (said["status"], said["reason"]) == ("False", reasons.ENGINE_FIELDS_IGNORED)
    assert "image" in said["message"]
    assert kubectl.condition("Degraded")["status"] == "False"


def test_history_and_the_last_command() -> None:
    kubectl = Kubectl()
    rows = [
        RolloutRow(f"r{i}", "assistant", "m", str(i), f"v{i}", "finished", "abort", "TtftHarmful", 100.0 + i, 200.0 + i, {},
                   {"message": "slow", "decidedIn": "rehearsal", "metric": "ttft"})
        for i in range(12)
    ]  # fmt: skip
    command = Command("c1", "assistant", None, "abort", "ada", "", 100.0, 160.0, "aborted")
    status = kubectl.look(history=rows, command=command, address="http://gateway:8080/v1")
    assert [one["id"] for one in status["history"]] == [f"r{i}" for i in range(10)]
    assert (status["history"][0]["decidedIn"], status["history"][0]["startedAt"]) == (
        "rehearsal",
        "1970-01-01T00:01:40Z",
    )
    expected = {"id": "c1", "verb": "abort", "answer": "aborted", "by": "ada", "at": "1970-01-01T00:02:40Z"}
    assert status["lastCommand"] == expected
    assert status["address"] == "http://gateway:8080/v1"
    assert kubectl.look()["lastCommand"] == expected, "it stays until the next one"


@pytest.mark.parametrize("known", [False, True])
def test_a_resource_that_is_not_acted_on(known: bool) -> None:
    kubectl = Kubectl()
    if known:
        kubectl.world.reach("canary", 0)
        kubectl.look()
    kubectl.status = refused_status("NameTaken", "other/assistant has the name", 4, kubectl.world.now, kubectl.status)
    assert kubectl.status["observedGeneration"] == 4
    assert kubectl.status["stage"] == ("canary" if known else "idle")
    for name, status in (("Ready", "False"), ("Progressing", "False"), ("Degraded", "True")):
        assert (kubectl.condition(name)["status"], kubectl.condition(name)["reason"]) == (status, "NameTaken")
    assert len({condition["type"] for condition in kubectl.status["conditions"]}) == len(kubectl.status["conditions"])
