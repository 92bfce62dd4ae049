"""The `rollout` part of the `LLMService` resource: how a new version is brought in. See `resources`."""

from __future__ import annotations

import itertools
from typing import Annotated, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from services.rollout.durations import Duration, Lasting
from services.rollout.resources_base import URL, Label, Resource, SecretVariable, cel, keyed
from services.rollout.resources_metrics import METRICS, Goals, GuardedStage, Guardrail, Segment


def _seconds(field: str) -> str:
    """CEL for the whole seconds of a duration field; CEL knows no days, so they are cut off."""
    day = f"{field}.indexOf('d')"
    days = f"({field}.contains('d') ? double({field}.substring(0, {day})) * 86400.0 : 0.0)"
    return f"{days} + double(duration({field}.substring({day} + 1) + '0s').getSeconds())"


_ORDERED: Final = (
    f"{_seconds('self.minDuration')} <= {_seconds('self.maxDuration')}",
    "minDuration is longer than maxDuration",
    "minDuration",
)


class Gate(Resource):
    """Offline evaluation of candidate and champion compared before any engine starts."""

    enabled: bool = Field(default=True, description="Whether a rollout needs evaluations of both versions.")
    margin: float = Field(
        default=0.02, ge=0, lt=1, description="Loss of accuracy (absolute share of items) that is tolerated."
    )
    minimum_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Accuracy below which a candidate fails whatever the champion's is."
    )


class Rehearsal(Resource):
    """Mirrored traffic: the candidate answers copies of real prompts and no user sees it."""

    model_config = cel(_ORDERED)

    share: float = Field(
        default=0.1, gt=0, le=1, description="Share of users (0 to 1) of whom one request is mirrored."
    )
    min_pairs: int = Field(default=200, ge=0, le=10_000_000, description="Mirrored pairs before the rehearsal may end.")
    min_duration: Duration = Field(default=600.0, ge=0, description="Time before the rehearsal may end.")
    max_duration: Lasting = Field(
        default=86_400.0, description="Time after which an unfinished rehearsal is held for a person."
    )
    in_flight: int = Field(
        default=4, ge=1, le=10_000, description="Mirrored pairs under way at once in one gateway; more are dropped."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_duration > self.max_duration:
            raise ValueError("minDuration is longer than maxDuration")
        return self


class CanaryStep(Resource):
    """One step of live traffic; control takes as many users as the candidate."""

    model_config = cel(_ORDERED)

    weight: float = Field(gt=0, le=50, description="Percent of users who get the candidate.")
    min_duration: Duration = Field(default=3600.0, ge=0, description="Time before the step may end.")
    min_units: int = Field(
        default=100,
        ge=0,
        le=100_000_000,
        description="Users per arm, first exposed in this step and closed, before the step may end.",
    )
    max_duration: Lasting = Field(
        default=259_200.0, description="Time after which an undecided step is held for a person."
    )
    approval: bool = Field(default=False, description="Whether a person must approve the end of this step.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_duration > self.max_duration:
            raise ValueError("minDuration is longer than maxDuration")
        return self


def _production_steps() -> tuple[CanaryStep, ...]:
    hour, day = 3600.0, 86_400.0
    return (
        CanaryStep(weight=1, min_duration=hour),
        CanaryStep(weight=5, min_duration=hour),
        CanaryStep(weight=25, min_duration=hour),
        CanaryStep(weight=50, min_duration=day, max_duration=7 * day),
    )


class Canary(Resource):
    """The steps, in order."""

    model_config = cel(
        (
            "self.steps.map(s, s.weight).isSorted() && self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight))",
            "the steps' weights must grow from step to step",
            "steps",
        )
    )

    steps: tuple[CanaryStep, ...] = Field(
        default_factory=_production_steps, min_length=1, max_length=20, description="Steps with growing weights."
    )

    @model_validator(mode="after")
    def _growing(self) -> Self:
        weights = [step.weight for step in self.steps]
        if any(later <= earlier for earlier, later in itertools.pairwise(weights)):
            raise ValueError(f"weights must grow from step to step, not {weights}")
        return self


def _production_guardrails() -> tuple[Guardrail, ...]:
    return (
        Guardrail(metric="errors", margin=0.01, mode="nonInferior"),
        Guardrail(metric="ttft", margin=0.2, mode="nonInferior"),
        Guardrail(metric="feedback", margin=0.05),
    )


Clock = Annotated[str, StringConstraints(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", max_length=5)]
Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_WEEK: Final[tuple[Day, ...]] = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; write one of the IANA database, such as Europe/Berlin") from error
    return name


class FreezeWindow(Resource):
    """A time of the week in which nothing goes forward."""

    model_config = cel(("self.from != self.to", "from and to must differ; a whole day is 00:00 to 24:00", "to"))

    days: tuple[Day, ...] = Field(
        default=_WEEK, min_length=1, max_length=7, description="Days on which it begins; default: every day."
    )
    from_: Clock = Field(alias="from", description="When it begins, e.g. 22:00.")
    to: Clock = Field(description="When it ends; at or before `from`: on the next day.")
    time_zone: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9_+/-]+$", max_length=64), AfterValidator(_zone)
    ] = Field(default="UTC", description="Time zone of `from` and `to`, e.g. Europe/Berlin.")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.from_ == self.to:
            raise ValueError("from and to must differ; a whole day is 00:00 to 24:00")
        return self


Event = Literal[
    "start", "gate", "engine", "rehearsal", "stage", "step", "approval", "hold", "advance", "abort", "error", "watch",
    "pause", "resume", "approve", "serve", "condition", "drift",
]  # fmt: skip
"""Actions of the audit trail that people may want to be told of."""


class Notification(Resource):
    """Somebody to tell."""

    model_config = cel(("has(self.url) != has(self.urlEnv)", "name one of url and urlEnv", "url"))

    name: Label = Field(description="A name for the audit trail.")
    kind: Literal["generic", "slack"] = Field(
        default="generic",
        description="`generic`: the event as JSON. `slack`: a message as Slack's incoming webhooks take it.",
    )
    url: str | None = Field(default=None, pattern=URL, max_length=2048, description="Where events are posted.")
    url_env: SecretVariable | None = Field(
        default=None,
        description="Environment variable of the controller that holds the URL, where the URL is the secret (as Slack's is).",
    )
    secret_env: SecretVariable | None = Field(
        default=None,
        description="Environment variable of the controller that holds a key; the body's HMAC-SHA256 goes along in X-Understudy-Signature.",
    )
    events: tuple[Event, ...] = Field(
        default=("start", "approval", "hold", "advance", "abort", "error", "drift"),
        min_length=1,
        max_length=18,
        description="Of which events; `approval`: a step waits for one.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("name one of url and urlEnv")
        return self


class Judge(Resource):
    """Who scores mirrored answers. Needs `privacy.content: judge`."""

    model_config = cel(
        (
            "self.kind != 'exactMatch' || has(self.references)",
            "exactMatch needs `references`",
            "references",
        ),
        (
            "self.kind == 'exactMatch' || (has(self.endpoint) && has(self.model))",
            "rubric and pairwise need `endpoint` and `model`",
            "endpoint",
        ),
    )

    kind: Literal["exactMatch", "rubric", "pairwise"] = Field(
        description="`exactMatch`: the reference answer occurs as a whole word. `rubric`: a model grades each answer 1 to 5. "
        "`pairwise`: a model compares both, in both orders."
    )
    references: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="For exactMatch: path of a JSON object, prompt to answer, relative to the resource's file.",
    )
    endpoint: str | None = Field(
        default=None,
        pattern=URL,
        max_length=2048,
        description="For rubric and pairwise: base URL of an OpenAI-compatible server, ending in /v1.",
    )
    model: str | None = Field(
        default=None, min_length=1, max_length=256, description="For rubric and pairwise: the judge's model name."
    )
    api_key_env: SecretVariable | None = Field(
        default=None,
        description="Environment variable of the controller that holds the endpoint's key; none: no key is sent.",
    )
    timeout: Lasting = Field(default=30.0, description="Time one judgement may take.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "exactMatch" and self.references is None:
            raise ValueError("exactMatch needs `references`")
        if self.kind != "exactMatch" and (self.endpoint is None or self.model is None):
            raise ValueError(f"{self.kind} needs `endpoint` and `model`")
        return self

    @property
    def grades(self) -> bool:
        """Whether it can grade one answer by itself."""
        return self.kind != "pairwise"


class Rollout(Resource):
    """How a new version is brought in."""

    model_config = cel(
        (
            "!self.guardrails.exists(g, g.metric == 'judge') || has(self.judge)",
            "a judge guardrail needs `judge`",
            "judge",
        ),
        (
            "self.guardrails.exists(g, g.mode == 'nonInferior' && g.metric != 'judge'"
            " && (!has(g.stages) || size(g.stages) == 0 || 'canary' in g.stages))",
            "no guardrail of the canary is nonInferior: nothing could show that a version may be promoted",
            "guardrails",
        ),
    )

    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Probability of aborting a harmless candidate, over the whole rollout; also of passing one guardrail wrongly.",
    )
    horizon: Lasting = Field(
        default=600.0, description="Time from a user's first request in a rollout in which outcomes count (H)."
    )
    settle: Duration = Field(
        default=60.0, ge=0, description="Time after the horizon for running requests to end and feedback to come."
    )
    look: Lasting = Field(
        default=10.0,
        description="Time between the controller's looks while evidence is gathered. While a rollout waits for an engine it looks "
        "twice a second, while there is none every 2 s (with more than 50 services: at this pace too).",
    )
    gate: Gate = Field(default_factory=Gate, description="Offline evaluation.")
    rehearsal: Rehearsal = Field(default_factory=Rehearsal, description="Mirrored traffic.")
    canary: Canary = Field(default_factory=Canary, description="Live traffic in steps.")
    guardrails: tuple[Guardrail, ...] = Field(
        default_factory=_production_guardrails,
        min_length=1,
        max_length=len(METRICS),
        json_schema_extra=keyed("metric"),
        description="What must not become worse; each metric once.",
    )
    goals: Goals | None = Field(
        default=None, description="What must have improved before promotion; none: not to be worse is enough."
    )
    segments: tuple[Segment, ...] = Field(
        default=(),
        max_length=10,
        json_schema_extra=keyed("name"),
        description="Users whom every guardrail protects beside all users together. Each shares the level of false aborts.",
    )
    hold_timeout: Duration = Field(
        default=86_400.0, ge=0, description="Time a held rollout keeps its weight before it falls to 0."
    )
    rollback_window: Duration = Field(
        default=3600.0,
        ge=0,
        description="Time after promotion in which the old revision stays warm and the new one is watched.",
    )
    judge: Judge | None = Field(default=None, description="Who scores mirrored answers; none: nobody.")
    paused: bool = Field(default=False, description="Keeps the rollout where it is; harm still aborts it.")
    freeze_windows: tuple[FreezeWindow, ...] = Field(
        default=(),
        max_length=20,
        description="Times of the week in which no stage advances and nothing is promoted; harm still aborts.",
    )
    notifications: tuple[Notification, ...] = Field(
        default=(),
        max_length=10,
        json_schema_extra=keyed("name"),
        description="Who is told of a rollout's events. Sent at least once; each carries the event's id.",
    )

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        metrics = [guardrail.metric for guardrail in self.guardrails]
        twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
        if twice:
            raise ValueError(f"guardrails name {twice[0]} twice")
        names = [segment.name for segment in self.segments]
        if len(set(names)) < len(names):
            raise ValueError("segments name one twice")
        if "judge" in metrics and self.judge is None:
            raise ValueError("a judge guardrail needs `judge`")
        if not any(guardrail.mode == "nonInferior" for guardrail in self.guarded("canary")):
            raise ValueError(
                "no guardrail of the canary is nonInferior: nothing could show that a version may be promoted"
            )
        return self

    def guarded(self, stage: GuardedStage) -> tuple[Guardrail, ...]:
        """The guardrails of a stage, in the resource's order."""
        return tuple(guardrail for guardrail in self.guardrails if stage in guardrail.stages)
