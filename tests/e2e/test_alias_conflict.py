"""Two services on one model and alias: the first one's aliases stay its own, the second says why it does nothing with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow import MlflowClient

from services.rollout.registry import OWNER_TAG
from tests.e2e.installation import SERVICE, Platform, Recorded, manifest
from tests.e2e.kube import until

pytestmark = pytest.mark.e2e
EMPTY = "contested"
"""A registered model without versions: who owns its aliases is settled before anything is served."""


def _owners(platform: Platform, model: str) -> dict[str, str]:
    """Service by alias, of those that are owned."""
    with platform.registry() as url:
        tags = MlflowClient(url, url).get_registered_model(model).tags
    return {key.removeprefix(OWNER_TAG): value.rpartition("/")[2] for key, value in tags.items() if OWNER_TAG in key}


def _conditions(platform: Platform, service: str) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    found = platform.namespace.get("llmservice", service).get("status", {}).get("conditions", [])
    return {one["type"]: (one["status"], one["reason"]) for one in found}


def _service(name: str, model: str = SERVICE) -> dict[str, Any]:
    service = manifest()
    service["metadata"]["name"], service["spec"]["model"]["registeredModel"] = name, model
    return service


def _delete(platform: Platform, name: str) -> None:
    platform.namespace.kubectl("delete", "llmservice", name, "--ignore-not-found", "--timeout=4m", timeout=250)


@contextlib.contextmanager
def _empty_model(platform: Platform) -> Iterator[None]:
    with platform.registry() as url:
        MlflowClient(url, url).create_registered_model(EMPTY)
    yield
    with platform.registry() as url:
        MlflowClient(url, url).delete_registered_model(EMPTY)


def test_a_second_service_does_not_touch_the_first(serving: Platform, record_property: Recorded) -> None:
    before = _owners(serving, SERVICE), serving.aliases(), _conditions(serving, SERVICE)
    assert before[0] == {"champion": SERVICE, "challenger": SERVICE}
    try:
        with serving.users(arrivalsPerSecond=2, meanRequests=2) as users:
            serving.namespace.apply(_service("second"))
            conflict = ("True", "AliasConflict")
            until("the second is told", lambda: _conditions(serving, "second").get("Degraded") == conflict, 60)
            status = serving.namespace.get("llmservice", "second")["status"]
            (message,) = [one["message"] for one in status["conditions"] if one["type"] == "Registry"]
            assert f"/{SERVICE} owns the aliases" in message
            users.answered(20)
            _delete(serving, "second")
            users.answered(20)
            seen = users.stop()
    finally:
        _delete(serving, "second")
    assert (_owners(serving, SERVICE), serving.aliases(), _conditions(serving, SERVICE)) == before
    assert seen.failed == 0, seen
    record_property("requests", seen.requests)
    record_property("failed", seen.failed)


@pytest.mark.parametrize(("first", "second"), [("left", "right"), ("right", "left")])
def test_the_aliases_are_the_first_ones_until_it_is_gone(serving: Platform, first: str, second: str) -> None:
    owned = {name: {"champion": name, "challenger": name} for name in (first, second)}
    with _empty_model(serving):
        try:
            serving.namespace.apply(_service(first, EMPTY))
            until(f"{first} owns the aliases", lambda: _owners(serving, EMPTY) == owned[first], 60)
            serving.namespace.apply(_service(second, EMPTY))
            until(
                f"{second} is told",
                lambda: _conditions(serving, second).get("Registry") == ("False", "AliasConflict"),
                60,
            )
            assert _conditions(serving, first)["Registry"] == ("True", "Reachable")
            assert _owners(serving, EMPTY) == owned[first]
            _delete(serving, first)
            until(f"{second} owns them now", lambda: _owners(serving, EMPTY) == owned[second], 60)
            until(
                f"{second} is content",
                lambda: _conditions(serving, second).get("Registry") == ("True", "Reachable"),
                60,
            )
        finally:
            for name in (first, second):
                _delete(serving, name)
        assert _owners(serving, EMPTY) == {}
