"""Parts of the platform die in the middle of a rollout, with load on: the verdict is right all the same.

One rollout bears all three faults, since each needs one under way: a gateway's process is killed in rehearsal, the controller's in the
first canary step, the database's in the second. The version is another prompt over the champion's weights, so it takes no new engine.
"""

from __future__ import annotations

import pytest

from tests.e2e.installation import Platform, Recorded
from tests.e2e.kube import ready, until

pytestmark = pytest.mark.e2e


def _in(platform: Platform, stage: str, step: int) -> bool:
    """Whether the newest rollout is there. Raises AssertionError where it has ended."""
    status = platform.status()
    assert status["rollout"].get("finishedAt") is None, status["rollout"]
    return (status["stage"], status["step"]) == (stage, step)


def _kill(platform: Platform, component: str) -> None:
    """Without any grace, and until all of the component's pods are ready again."""
    pods = platform.namespace.pods(component)
    victim = pods[0]["metadata"]["name"]
    platform.namespace.kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")

    def replaced() -> bool:
        now = platform.namespace.pods(component)
        names = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in now}
        return names.get(victim) != pods[0]["metadata"]["uid"] and sum(map(ready, now)) == len(pods)

    until(f"{component} is whole again", replaced, 180)


def test_the_verdict_is_right_whatever_dies_meanwhile(serving: Platform, record_property: Recorded) -> None:
    base, number = serving.register("v2", "v5")
    if serving.aliases()["champion"] != base:
        serving.set_alias("champion", base)
        serving.wait_for(f"jsonpath={{.status.stable.version}}={base}", 300)
    with serving.users(arrivalsPerSecond=4, meanRequests=2.5, repeatsFailed=3) as users:
        serving.set_alias("challenger", number)
        serving.wait_for(f"jsonpath={{.status.rollout.version}}={number}", 60)
        until("rehearsal", lambda: _in(serving, "rehearsal", 0), 120)
        _kill(serving, "gateway")
        until("first canary step", lambda: _in(serving, "canary", 1), 300)
        _kill(serving, "controller")
        until("second canary step", lambda: _in(serving, "canary", 2), 300)
        _kill(serving, "postgresql")
        serving.wait_for("condition=RolloutFinished", 600)
        users.answered(20)
        seen = users.stop()
    rollout = serving.rollout()
    assert rollout["verdict"] == "advance", rollout
    assert serving.aliases() == {"champion": number}
    assert seen.failed == 0, seen
    for name in ("requests", "repeated", "failed"):
        record_property(name, getattr(seen, name))
