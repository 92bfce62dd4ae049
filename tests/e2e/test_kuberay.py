"""Platform `kuberay`: each revision in a Ray cluster of its own, made by the KubeRay operator that the cluster has.

The same rollouts as in test_rollout, on an installation that has no Ray cluster of the chart. Skipped where no operator answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.installation import SERVICE, Counts, Platform, Recorded, Users, manifest
from tests.e2e.kube import until

pytestmark = pytest.mark.e2e_full
ENOUGH = 2000
"""Requests over both rollouts."""
ENGINES = "--selector=understudy.dev/service"


@pytest.fixture(scope="module")
def on_kuberay(kuberay: Platform) -> Platform:
    """The platform with a service whose champion is a RayService, or is about to be one."""
    (first,) = kuberay.register("v1")
    kuberay.set_alias("champion", first)
    service = manifest()
    service["spec"]["engine"] |= {
        "platform": "kuberay",
        # Three clusters may be there at once: stable, candidate, and the one before, which drains.
        "resources": {"cpu": 0.2, "memory": "4Gi"},
        "startTimeout": "10m",
        "environment": [{"name": "RAY_SERVE_HAPROXY_NBTHREAD", "value": "1"}],
    }
    kuberay.namespace.apply(service)
    return kuberay


@pytest.fixture(scope="module")
def crowd(on_kuberay: Platform) -> Iterator[Users]:
    """The same users for both rollouts; at the end it is counted what they saw."""
    with on_kuberay.users(arrivalsPerSecond=2, meanRequests=2.5) as users:
        yield users


def _ray_services(platform: Platform) -> dict[str, dict[str, Any]]:
    """By revision, those that are not on their way out."""
    found = platform.namespace.get("rayservices", ENGINES)["items"]
    return {
        one["metadata"]["labels"]["understudy.dev/revision"]: one
        for one in found
        if "deletionTimestamp" not in one["metadata"]
    }


def _rolled_out(platform: Platform, name: str) -> tuple[str, dict[str, Any]]:
    """Set `challenger` on a version and wait for the end of its rollout: the version's number, and the rollout."""
    (number,) = platform.register(name)
    platform.set_alias("challenger", number)
    platform.wait_for(f"jsonpath={{.status.rollout.version}}={number}", 60)
    platform.wait_for("condition=RolloutFinished", 900)
    return number, platform.rollout()


def test_the_champion_is_a_ray_service_that_streams(on_kuberay: Platform) -> None:
    on_kuberay.wait_for("condition=Ready", 600)
    (revision,) = _ray_services(on_kuberay)
    assert on_kuberay.status()["stable"]["revision"] == revision
    question = {"role": "user", "content": "what is two plus two?"}
    said = on_kuberay.ask({"model": SERVICE, "stream": True, "max_tokens": 8, "user": "first", "messages": [question]})
    *events, end = [line.removeprefix(b"data: ") for line in said.splitlines() if line.startswith(b"data: ")]
    assert end == b"[DONE]"
    chunks = [choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"]]
    assert len(chunks) > 2, "the answer came in one piece"
    assert "".join(chunks).strip()


def test_a_better_version_is_promoted(on_kuberay: Platform, crowd: Users) -> None:
    number, rollout = _rolled_out(on_kuberay, "v2")
    assert rollout["verdict"] == "advance", rollout
    assert on_kuberay.aliases() == {"champion": number}
    assert on_kuberay.status()["stable"]["version"] == number


def test_a_worse_version_is_rolled_back_by_its_users(on_kuberay: Platform, crowd: Users) -> None:
    before = on_kuberay.aliases()["champion"]
    _, rollout = _rolled_out(on_kuberay, "v3")
    assert (rollout["verdict"], rollout["decidedIn"], rollout["metric"]) == ("abort", "canary", "feedback"), rollout
    assert on_kuberay.aliases() == {"champion": before}
    assert on_kuberay.status()["stable"]["version"] == before


def test_no_request_failed_and_one_engine_is_left(
    on_kuberay: Platform, crowd: Users, record_property: Recorded
) -> None:
    missing = ENOUGH - crowd.counts().requests
    if missing > 0:
        crowd.answered(missing, 600)
    stable = on_kuberay.status()["stable"]["revision"]
    until("the other revisions' clusters are gone", lambda: set(_ray_services(on_kuberay)) == {stable}, 180)
    seen: Counts = crowd.stop()
    assert seen.failed == 0, seen
    assert seen.requests >= ENOUGH
    record_property("requests", seen.requests)
    record_property("failed", seen.failed)


def test_a_deleted_service_leaves_nothing(on_kuberay: Platform) -> None:
    on_kuberay.namespace.kubectl("delete", "llmservice", SERVICE, "--timeout=5m", timeout=330)
    kinds = "rayservices,rayclusters,pods"
    until(
        "its clusters and pods are gone",
        lambda: not on_kuberay.namespace.kubectl("get", kinds, ENGINES, "--output=name").split(),
        240,
    )
