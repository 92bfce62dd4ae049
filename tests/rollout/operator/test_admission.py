"""The admission webhook: wrong resources are refused with the field's path, commands are stamped with their giver."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from services.rollout.operator.admission import admission_app, mutate, validate
from tests.fakes.kubernetes_api import json_patched
from tests.fakes.operator_world import SPEC

COMMAND, BY = "understudy.dev/command", "understudy.dev/command-by"


def resource(**annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "assistant", "namespace": "default", "annotations": annotations},
        "spec": copy.deepcopy(SPEC),
    }


def review(new: Any, old: Any = None, user: str = "ada") -> dict[str, Any]:
    return {"uid": "u1", "object": new, "oldObject": old, "userInfo": {"username": user}}


def stamped(new: dict[str, Any], old: dict[str, Any] | None = None, user: str = "ada") -> dict[str, Any]:
    """The annotations that are stored."""
    response = mutate(review(new, old, user))
    assert response["allowed"]
    if "patch" in response:
        patched = json_patched(new, json.loads(base64.b64decode(response["patch"])))
        assert patched is not None
        new = patched
    return dict(new["metadata"].get("annotations", {}))


def test_a_wrong_field_is_named() -> None:
    wrong = resource()
    wrong["spec"]["rollout"]["canary"]["steps"][0]["weight"] = 70
    response = validate(review(wrong))
    assert not response["allowed"]
    assert "spec.rollout.canary.steps[0].weight" in response["status"]["message"]
    assert validate(review(resource()))["allowed"]


def test_what_is_being_deleted_may_always_be_stored() -> None:
    wrong = resource()
    wrong["spec"] = {}
    wrong["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert validate(review(wrong))["allowed"]


def test_the_giver_of_a_command_is_stamped() -> None:
    assert stamped(resource(**{COMMAND: "{}"}), resource())[BY] == "ada"
    assert stamped(resource(**{COMMAND: "{}", BY: "root"}), resource())[BY] == "ada", "a forged stamp is overwritten"
    new = resource(**{COMMAND: '{"id": 2}', BY: "ada"})
    assert stamped(new, resource(**{COMMAND: '{"id": 1}', BY: "ada"}), "bob")[BY] == "bob"


def test_without_a_new_command_the_stamp_stays_as_it_was() -> None:
    old = resource(**{COMMAND: "{}", BY: "ada"})
    assert stamped(resource(**{COMMAND: "{}", BY: "ada"}), old, "bob") == {COMMAND: "{}", BY: "ada"}
    assert stamped(resource(**{COMMAND: "{}", BY: "root"}), old, "root")[BY] == "ada"
    assert stamped(resource(**{COMMAND: "{}"}), old, "root")[BY] == "ada"
    assert stamped(resource(**{BY: "root"}), old, "root") == {}
    assert stamped(resource(), None) == {}
    bare = resource()
    del bare["metadata"]["annotations"]
    assert stamped(bare, None) == {}


async def test_over_http() -> None:
    async with TestClient(TestServer(admission_app())) as client:
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": review(resource())}
        async with client.post("/validate", json=body) as answer:
            said = await answer.json()
        assert (said["kind"], said["response"]) == ("AdmissionReview", {"uid": "u1", "allowed": True})
        for wrong in ("{", "[]", "{}", '{"request": {"object": {}}}'):
            async with client.post("/mutate", data=wrong) as answer:
                assert answer.status == 400
