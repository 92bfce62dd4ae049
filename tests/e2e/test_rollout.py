"""The registry's alias starts a rollout and users decide it: a better version is promoted, a worse one rolled back, no request fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.installation import SERVICE, Counts, Platform, Recorded, Users

pytestmark = pytest.mark.e2e
ENOUGH = 2000
"""Requests over both rollouts."""


@pytest.fixture(scope="module")
def crowd(serving: Platform) -> Iterator[Users]:
    """The same users for both rollouts; at the end it is counted what they saw."""
    with serving.users(arrivalsPerSecond=4, meanRequests=2.5) as users:
        yield users


def _rolled_out(platform: Platform, name: str) -> tuple[str, dict[str, object]]:
    """Set `challenger` on a version and wait for the end of its rollout: the version's number, and the rollout."""
    (number,) = platform.register(name)
    platform.set_alias("challenger", number)
    platform.wait_for(f"jsonpath={{.status.rollout.version}}={number}", 60)
    platform.wait_for("condition=RolloutFinished", 600)
    return number, platform.rollout()


def test_a_better_version_is_promoted(serving: Platform, crowd: Users) -> None:
    number, rollout = _rolled_out(serving, "v2")
    assert rollout["verdict"] == "advance", rollout
    assert serving.aliases() == {"champion": number}
    assert serving.status()["stable"]["version"] == number


def test_a_worse_version_is_rolled_back_by_its_users(serving: Platform, crowd: Users) -> None:
    before = serving.aliases()["champion"]
    _, rollout = _rolled_out(serving, "v3")
    assert (rollout["verdict"], rollout["decidedIn"], rollout["metric"]) == ("abort", "canary", "feedback"), rollout
    assert serving.aliases() == {"champion": before}
    assert serving.status()["stable"]["version"] == before


def test_kubectl_explains_the_rollback(serving: Platform, crowd: Users) -> None:
    said = serving.namespace.kubectl("understudy", "explain", SERVICE)
    assert "feedback" in said
    assert "rolled back" in serving.namespace.kubectl("understudy", "rollouts", SERVICE)
    events = serving.namespace.get("events", f"--field-selector=involvedObject.name={SERVICE}")["items"]
    assert len({event["reason"] for event in events}) >= 3, events


def test_no_request_failed(crowd: Users, record_property: Recorded) -> None:
    missing = ENOUGH - crowd.counts().requests
    if missing > 0:
        crowd.answered(missing, 300)
    seen: Counts = crowd.stop()
    assert seen.failed == 0, seen
    assert seen.requests >= ENOUGH
    record_property("requests", seen.requests)
    record_property("failed", seen.failed)
