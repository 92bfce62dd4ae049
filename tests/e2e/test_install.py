"""From nothing to a first streamed completion, with the commands of the README."""

from __future__ import annotations

import json

import pytest

from tests.e2e.installation import RELEASE, SERVICE, Platform, manifest
from tests.e2e.kube import CommandFailed, ready

pytestmark = pytest.mark.e2e


def test_every_pod_is_ready(platform: Platform) -> None:
    pods = platform.namespace.get("pods", "--field-selector=status.phase=Running")["items"]
    components = {pod["metadata"]["labels"].get("app.kubernetes.io/component") for pod in pods}
    assert {"gateway", "controller", "mlflow", "postgresql", "ray-head"} <= components
    unready = [pod["metadata"]["name"] for pod in pods if not ready(pod)]
    assert not unready


def test_the_first_completion_streams(serving: Platform) -> None:
    said = serving.ask(
        {
            "model": SERVICE,
            "stream": True,
            "max_tokens": 8,
            "user": "first",
            "messages": [{"role": "user", "content": "what is two plus two?"}],
        }
    )
    events = [line.removeprefix("data: ") for line in said.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(
        choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event)["choices"]
    )
    assert text.strip()


def test_helm_test_passes(serving: Platform) -> None:
    said = serving.namespace.helm("test", RELEASE, "--logs", "--timeout=3m", timeout=200)
    assert "ok    completion" in said


def test_a_wrong_resource_is_refused_with_the_field(serving: Platform) -> None:

    wrong = manifest(canary={"steps": [{"weight": 50}, {"weight": 20}]})
    wrong["metadata"]["name"] = "wrong"
    with pytest.raises(CommandFailed, match=r"spec\.rollout\.canary\.steps"):
        serving.namespace.apply(wrong)


def test_kubectl_shows_and_explains(serving: Platform) -> None:
    assert SERVICE in serving.namespace.kubectl("get", "llms")
    assert SERVICE in serving.namespace.kubectl("understudy", "status")
    assert "canary" in serving.namespace.kubectl("explain", "llmservice.spec.rollout")
