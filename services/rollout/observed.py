"""What one look sees, as plain values: the input of `decide`. Built by `observe`; made by hand in tests.

A part that could not be seen is None or marked stale, never a neutral value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.routing import Route
from services.evidence import Reading
from services.rollout.planning import Caution
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from services.rollout.scaling import FirstTokens
from services.rollout.status import Condition, RolloutStatus
from services.store import Command, ExperimentRow


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a registered model."""

    version: str
    source: str
    tags: Mapping[str, str]
    run_id: str | None


@dataclass(frozen=True, slots=True)
class Aliases:
    """The registry's remote control."""

    champion: VersionInfo | None
    challenger: VersionInfo | None
    fresh: bool = True
    """False: the registry is away and these are the last known."""
    owner: str | None = None
    """Another service or cluster that owns an alias; None: they are ours."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Offline evaluation of one version."""

    dataset: str
    """Digest of the data set."""
    items: Mapping[str, bool]
    """Item id -> answered rightly."""

    @property
    def accuracy(self) -> float:
        """Share of items answered rightly."""
        return sum(self.items.values()) / len(self.items)


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What the gate compares; None: the version has no evaluation."""

    candidate: Evaluation | None
    champion: Evaluation | None
    invalid: str | None = None
    """Why an evaluation that exists cannot be read."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an engine cannot be made: permanent until a person changes something."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Names for a rollout that may begin at this look; drawn outside, so that deciding stays pure."""

    id: str
    salt: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a detector saw: a metric that has become worse than its history, in words and in numbers."""

    metric: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything outside, at one look."""

    route: Route | None
    gateways: int
    """Gateways with a live lease."""
    acknowledged: bool
    """Whether every live gateway, and at least one, obeys `route`."""
    rollout: RolloutStatus | None
    rules: LLMService | None = None
    """The resource as it was when the rollout began: edits count from the next rollout on."""
    conditions: tuple[Condition, ...] = ()
    """The service's, of the last look."""
    aliases: Aliases | None
    """None: never seen since the controller started."""
    tags: Mapping[str, str] | None = None
    """Tags of the rollout's version, looked up while something is owed to it."""
    engines: Mapping[str, RevisionState] | None
    """The service's engines by name; None: the platform is away."""
    quiet: bool = False
    """Nobody has asked for the service for `autoscaling.downscaleDelay`; only looked up where the engine may then end."""
    first_tokens: FirstTokens | None = None
    """Of stable's engine, where the resource has `autoscaling.targetTtft`."""
    users_per_day: float | None = None
    """Different users of the service within a day; None: not measured yet."""
    caution: Caution | None = None
    """Why, with this traffic, the resource asks for too much."""
    drift: Alarm | None = None
    """What of stable is no longer as it was."""
    evaluated: str | None = None
    """What the judge said of answers since `drift`, in words; None: nothing yet."""
    prompts: Alarm | None = None
    """Users ask something else than they did."""
    pinned: Mapping[str, VersionInfo | None] = field(default_factory=dict)
    """The versions of `spec.model.pinned` as the registry has them; None: it has no such version. Missing: it could not be asked."""
    tried: tuple[str, ...] = ()
    """Versions that experiments need beside stable; `pinned` has them too."""
    experiments: tuple[ExperimentRow, ...] = ()
    """The service's, past and present, in the order in which they began."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    evaluations: Evaluations | None = None
    """Looked up in the gate; None: the registry could not be asked."""
    baseline: Mapping[str, Any] | None = None
    """Stable's history, looked up in the gate."""
    commands: tuple[Command, ...] = ()
    identity: Identity


@dataclass(frozen=True, slots=True)
class Ratio:
    """Sample ratio of the exposures."""

    e_value: float
    threshold: float
    rejected: bool
    message: str = ""
    """The numbers in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceView:
    """What the evidence of the current stage says now."""

    readings: tuple[Reading, ...] = ()
    ratio: Ratio | None = None
    fault: str | None = None
    """Why the evidence is void: a unit in two arms, a clock that ran backwards."""
    assignment: bool = False
    """Whether the fault is one of assignment."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Fields of `status.Counts`."""
    alarm: Alarm | None = None
    """Watch: what a detector saw."""
    watched: tuple[str, ...] = ()
    """Watch: the metrics that have a detector."""
