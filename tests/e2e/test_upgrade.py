"""Changed values and restarts under load cost nobody a request."""

from __future__ import annotations

import pytest

from tests.e2e.installation import RELEASE, Platform, Recorded
from tests.e2e.kube import ready, until

pytestmark = pytest.mark.e2e


def test_an_upgrade_with_changed_values_loses_no_request(serving: Platform, record_property: Recorded) -> None:
    before = {pod["metadata"]["name"] for pod in serving.namespace.pods("gateway")}
    ray = {pod["metadata"]["name"] for pod in serving.namespace.pods("ray-head")}
    keys = serving.namespace.secret(f"{RELEASE}-api-keys", "api_key")
    with serving.users(arrivalsPerSecond=4, meanRequests=2) as users:
        serving.upgrade("gateway.settings.LIMITS__BODY_BYTES=1048576", "controller.settings.REGISTRY_TIMEOUT=20")
        users.answered(50)
        seen = users.stop()
    assert seen.failed == 0, seen
    assert not before & {pod["metadata"]["name"] for pod in serving.namespace.pods("gateway")}
    assert ray == {pod["metadata"]["name"] for pod in serving.namespace.pods("ray-head")}, (
        "the engines had to start again"
    )
    assert serving.namespace.secret(f"{RELEASE}-api-keys", "api_key") == keys
    record_property("requests", seen.requests)
    record_property("failed", seen.failed)


def test_a_restart_of_the_gateways_loses_no_request(serving: Platform, record_property: Recorded) -> None:
    with serving.users(arrivalsPerSecond=4, meanRequests=2) as users:
        serving.namespace.kubectl("rollout", "restart", f"deployment/{RELEASE}-gateway")
        serving.namespace.kubectl("rollout", "status", f"deployment/{RELEASE}-gateway", "--timeout=4m", timeout=250)
        users.answered(50)
        seen = users.stop()
    assert seen.failed == 0, seen
    record_property("requests", seen.requests)
    record_property("failed", seen.failed)


def test_gateways_come_and_go_with_the_load(serving: Platform, record_property: Recorded) -> None:
    def gateways() -> int:
        pods = serving.namespace.pods("gateway")
        return len(pods) if all(map(ready, pods)) else 0

    scaling = "gateway.autoscaling"
    serving.upgrade(
        f"{scaling}.enabled=true", f"{scaling}.minReplicas=1", f"{scaling}.maxReplicas=2", f"{scaling}.targetCPUUtilizationPercentage=40",
        f"{scaling}.behavior.scaleDown.stabilizationWindowSeconds=15",
    )  # fmt: skip
    try:
        until("a quiet service has one gateway", lambda: gateways() == 1, 120)
        with serving.users(arrivalsPerSecond=0.5, meanRequests=2) as few:
            with serving.users(arrivalsPerSecond=6, meanRequests=2.5) as many:
                until("a busy one has two", lambda: gateways() == 2, 240)
                many.answered(50)
                busy = many.stop()
            until("a quiet one has one again", lambda: gateways() == 1, 300)
            few.answered(5)
            quiet = few.stop()
    finally:
        serving.upgrade(f"{scaling}.enabled=false")
    assert (busy.failed, quiet.failed) == (0, 0), (busy, quiet)
    record_property("requests", busy.requests + quiet.requests)
    record_property("failed", busy.failed + quiet.failed)
