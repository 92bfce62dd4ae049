"""What people order, and what is held for them: pause, resume, approval, promote, abort; each command is answered once."""

from __future__ import annotations

import pytest

from services.rollout import reasons
from services.rollout.observed import EvidenceView
from services.store import Command
from tests.fakes.rollout_world import SHOWN, World, service
from tests.fakes.situations import harm, shows


def test_a_held_rollout_loses_its_weight_in_time_and_can_be_resumed() -> None:
    world = World()
    world.reach("canary", 1)
    world.look(after=101.0)
    assert world.rollout is not None
    assert world.route is not None
    assert (world.rollout.verdict, world.route.weight) == ("hold", 5000)
    world.evidence = EvidenceView(readings=SHOWN, counts={"step_control": 50, "step_candidate": 50})
    world.look(after=20.0)
    assert world.rollout.verdict == "hold", "a held rollout never ships by itself"
    world.look(after=40.0, times=2)
    assert (world.rollout.reason, world.route.weight) == (reasons.HOLD_EXPIRED, 0)
    world.evidence = EvidenceView()
    assert world.order("resume") == "resumed"
    world.look(times=2)
    assert (world.rollout.verdict, world.route.weight) == ("continue", 5000)


def test_harm_ends_a_held_rollout() -> None:
    world = World()
    world.reach("canary", 0)
    world.look(after=101.0)
    harm("errors")(world)
    world.look()
    assert world.rollout is not None
    assert world.rollout.verdict == "abort"


def test_pause_stops_the_clock_but_notharm() -> None:
    world = World()
    world.reach("canary", 0)
    assert world.order("pause") == "paused"
    world.evidence = EvidenceView(counts={"step_control": 50, "step_candidate": 50})
    world.look(after=500.0)
    assert world.rollout is not None
    assert (world.rollout.step, world.rollout.verdict) == (0, "continue")
    assert world.order("resume") == "resumed"
    assert world.rollout.step == 0, "the pause did not count as stage time"
    world.look(after=20.0)
    assert world.rollout.step == 1
    world.order("pause")
    harm("feedback")(world)
    world.look()
    assert world.rollout.verdict == "abort"


def test_paused_in_the_resource() -> None:
    world = World(service(paused=True))
    world.look(times=3)
    world.aliases["challenger"] = "2"
    world.look(times=5)
    assert world.rollout is not None
    assert world.rollout.stage == "gate"
    world.service = service()
    world.look(times=2)
    assert world.rollout.stage == "rehearsal"


def test_approval() -> None:
    steps = [{"weight": 50, "minDuration": "1s", "minUnits": 1, "maxDuration": "100s", "approval": True}]
    world = World(service(canary={"steps": steps}))
    world.reach("canary")
    world.evidence = EvidenceView(readings=SHOWN, counts={"step_control": 50, "step_candidate": 50})
    world.look(after=50.0)
    assert world.rollout is not None
    assert world.rollout.conditions[0].reason == reasons.AWAITING_APPROVAL
    world.look(times=3)
    assert world.reasons.count(reasons.AWAITING_APPROVAL) == 1, "people are told once"
    assert world.order("approve") == "step 1 is approved"
    assert world.rollout.verdict == "advance"


@pytest.mark.parametrize(
    ("stage", "verb", "answer", "verdict"),
    [
        ("canary", "abort", "aborted", "abort"),
        ("canary", "promote", "promoted", "advance"),
        ("rehearsal", "promote", "promoted", "advance"),
        ("rehearsal", "approve", "refused: only canary steps are approved", "continue"),
        ("canary", "resume", "it is neither paused nor held", "continue"),
        ("watch", "abort", "rolled back", "abort"),
        ("watch", "promote", "it is promoted already", "advance"),
        (
            "watch",
            "pause",
            "refused: the candidate is promoted; only abort is possible in the rollback window",
            "advance",
        ),
    ],
)
def test_commands(stage: str, verb: str, answer: str, verdict: str) -> None:
    world = World()
    world.reach(stage)
    assert world.order(verb) == answer
    assert world.rollout is not None
    assert world.rollout.verdict == verdict
    if answer in ("aborted", "promoted", "rolled back"):
        assert next(e for e in world.audit if e.action == verdict and e.actor == "ada")


def test_commands_without_a_rollout_are_refused() -> None:
    world = World()
    world.look(times=3)
    assert world.order("abort") == "refused: the service has had no rollout"
    world.reach("canary")
    assert world.order("abort", rollout="another").startswith("refused: the newest rollout is")
    world.order("abort")
    assert world.order("promote").endswith("has ended with abort")


def test_a_command_is_obeyed_once_though_its_answer_is_lost() -> None:
    world = World()
    world.reach("canary", 0)
    world.order("pause")
    held = dict(world.commands)
    world.order("resume")
    decision_answer = world.rollout.answered if world.rollout else {}
    assert decision_answer
    repeated = next(iter(decision_answer))
    world.commands = {**held, repeated: Command(repeated, "assistant", None, "abort", "ada", "", world.now)}
    world.look()
    assert world.rollout is not None
    assert world.rollout.verdict == "continue", "its id was answered already"


def test_resume_after_an_error_starts_anew_under_another_id() -> None:
    world = World()
    world.reach("canary")
    shows(fault="a clock ran backwards")(world)
    world.look(times=4)
    assert world.rollout is not None
    first = world.rollout.id
    world.evidence = EvidenceView()
    assert world.order("resume") == "v2 starts again under a new rollout"
    world.look(times=2)
    assert world.rollout.id != first
    assert world.rollout.active
