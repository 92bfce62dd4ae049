"""`spec.gateway`: what is refused, and how it reaches the gateways."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from services.common.routing import Allowance, ContentFilter, Rules, decode_route, encode_route
from services.rollout.errors import InvalidResource
from services.rollout.loading import load
from services.rollout.resources import LLMService
from services.rollout.revisions import revision_of
from tests.fakes.rollout_world import World

HEAD = """\
apiVersion: understudy.dev/v1alpha1
kind: LLMService
metadata: {name: assistant}
spec:
  model: {registeredModel: assistant}
  gateway:
"""
GATEWAY = {
    "quotas": {"perKey": {"requestsPerMinute": 60}, "perUser": {"tokensPerMinute": 5000}},
    "contentFilters": [{"name": "digits", "appliesTo": "answer", "pattern": "[0-9]{4}", "action": "redact"}],
    "prompt": "You work for Acme.",
}
RULES = Rules(
    per_key=Allowance(requests_per_minute=60),
    per_user=Allowance(tokens_per_minute=5000),
    content_filters=(
        ContentFilter(name="digits", applies_to="answer", pattern="[0-9]{4}", action="redact", max_length=100),
    ),
    prompt="You work for Acme.",
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "contentFilters: [{name: a, appliesTo: prompt, pattern: 'a('}]",
            "spec.gateway.contentFilters[0].pattern: pattern 'a(': no regular expression of RE2: missing ): a(",
        ),
        ("contentFilters: [{name: a, appliesTo: prompt, pattern: '(?=a)'}]", "invalid perl operator: (?="),
        ("contentFilters: [{name: a, appliesTo: prompt, pattern: 'a*'}]", "matches the empty text"),
        (
            "contentFilters: [{name: a, appliesTo: prompt, pattern: a}, {name: a, appliesTo: both, pattern: b}]",
            "two filters are named a",
        ),
        ("contentFilters: [{name: a, appliesTo: answers, pattern: a}]", "spec.gateway.contentFilters[0].appliesTo: "),
        ("contentFilters: [{name: a b, appliesTo: both, pattern: a}]", "spec.gateway.contentFilters[0].name: "),
        ("contentFilters: [{name: a, appliesTo: both, pattern: a, maxLength: 1001}]", "contentFilters[0].maxLength"),
        ("quotas: {perKey: {requestsPerMinute: 0}}", "spec.gateway.quotas.perKey.requestsPerMinute"),
        ("quotas: {perUser: {tokensPerHour: 1}}", "unknown field; did you mean tokensPerMinute?"),
        ("prompt: ''", "spec.gateway.prompt"),
    ],
)
def test_a_mistake_is_named_with_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "assistant.yaml"
    path.write_text(f"{HEAD}    {line}\n")
    with pytest.raises(InvalidResource) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)


def test_a_service_that_declares_nothing_publishes_nothing() -> None:
    world = World()
    world.look(times=3)
    assert world.route is not None
    assert world.route.rules is None


def test_a_change_reaches_both_arms_of_a_canary_and_makes_no_revision(tmp_path: Path) -> None:
    path = tmp_path / "assistant.yaml"
    path.write_text(f"{HEAD}    {yaml.safe_dump(GATEWAY, default_flow_style=True, width=1000)}\n")
    (declared,) = load(path)
    world = World()
    world.reach("canary", 1)
    before = world.route
    assert before is not None
    spec = world.service.spec.model_copy(update={"gateway": declared.spec.gateway})
    world.service = world.service.model_copy(update={"spec": spec})
    version = world.versions["2"]
    assert before.candidate is not None
    assert revision_of(world.service, version) == before.candidate.revision
    world.look()
    assert world.route is not None
    assert world.route.rules == RULES
    assert (world.route.stable, world.route.candidate) == (before.stable, before.candidate)
    assert (world.route.weight, world.route.rollout) == (before.weight, before.rollout)
    published = world.route.version
    world.look(times=2)
    assert world.route.version == published, "nothing to publish again"
    assert decode_route(encode_route(world.route)) == world.route


def test_written_and_read_again_it_is_the_same() -> None:
    service = LLMService.model_validate(
        yaml.safe_load(HEAD) | {"spec": {"model": {"registeredModel": "a"}, "gateway": GATEWAY}}
    )
    assert service.spec.gateway.published() == RULES
    assert LLMService.model_validate(service.model_dump(mode="json", by_alias=True)) == service
