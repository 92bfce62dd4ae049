"""The `drift` part of the `LLMService` resource: what is looked at of a stable that serves, and what happens when it has changed. See
`resources`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.rollout.durations import Lasting
from services.rollout.resources_base import URL, Resource, SecretVariable


class Embedding(Resource):
    """A model that turns prompts into vectors."""

    endpoint: str = Field(
        pattern=URL,
        max_length=2048,
        description="Base URL of an OpenAI-compatible server of embeddings, ending in /v1.",
    )
    model: str = Field(min_length=1, max_length=256, description="The embedding model's name.")
    api_key_env: SecretVariable | None = Field(
        default=None,
        description="Environment variable of the controller that holds the endpoint's key; none: no key is sent.",
    )
    timeout: Lasting = Field(default=30.0, description="Time one question to it may take.")


class Evaluation(Resource):
    """A judge's evaluation of stable's present answers, started by an alarm."""

    share: float = Field(
        default=0.2, gt=0, le=1, description="Share of users (0 to 1) of whom one answer an hour is judged."
    )
    users: int = Field(default=200, ge=20, le=100_000, description="Users judged before the result is told.")


class Drift(Resource):
    """How a service's stable is looked after between rollouts. Detectors of the guardrails' metrics always run."""

    sample: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of users (0 to 1) of whom one answer of stable an hour is looked at: judged, where there is a judge, and its "
        "prompt placed among topics, where there is an embedding. 0: none.",
    )
    prompts: Embedding | None = Field(
        default=None, description="The model that places prompts among topics; none: prompts are not looked at."
    )
    on_alarm: Literal["alert", "evaluate", "rollBack"] = Field(
        default="alert",
        description="What an alarm of a metric does beside the condition `Drift`, its event and the alert. `evaluate`: stable's present "
        "answers are judged. `rollBack`: `champion` is set back to the version before, once, where the last rollout was a promotion.",
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="For `onAlarm: evaluate`.")
