"""What the controller knows of a service and of its newest rollout: the status of the `LLMService` resource and the document in the
store's rollout rows. Written by `decide` alone; read by the command line, the console and the report. Times are the store's, in seconds
since the epoch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Stage = Literal["gate", "rehearsal", "canary", "watch", "finished"]
Verdict = Literal["advance", "abort", "continue", "hold", "error"]


class Document(BaseModel):
    """camelCase in JSON, immutable in Python."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """The JSON object; `model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)


class Condition(Document):
    """One thing that is so or is not, as in Kubernetes."""

    type: str
    status: bool
    reason: str
    message: str


class Debt(Document):
    """What the registry must still be told of a decision; each item is dropped once it is seen there."""

    champion: str | None = Field(default=None, description="Version that the alias champion must get.")
    expected: str | None = Field(
        default=None, description="Version that the alias has until then; any other is a person's decision and stays."
    )
    challenger: bool = Field(default=False, description="The alias challenger must go from the rollout's version.")
    tag: bool = Field(default=False, description="The version must be tagged with verdict, reason and rollout.")

    @property
    def open(self) -> bool:
        """Whether anything is owed."""
        return self.champion is not None or self.challenger or self.tag


class Counts(Document):
    """How much evidence the rollout has seen; users are closed units."""

    users_control: int = 0
    users_candidate: int = 0
    step_control: int = Field(default=0, description="Of these, first exposed in the current step.")
    step_candidate: int = 0
    pairs: int = Field(default=0, description="Mirrored pairs.")
    judgements: int = 0
    unparsable: int = Field(
        default=0, description="Pairs on which the judge's answer could not be read; they are left out."
    )
    inconsistent: int = Field(
        default=0, description="Judgements that turned with the order of the answers; they are ties."
    )
    people: int = Field(
        default=0, description="People who compared answers of both revisions and whose value is final."
    )
    comparisons: int = Field(default=0, description="Pairs of answers that they compared; both orders of one are one.")
    comparison_ties: int = 0
    comparisons_inconsistent: int = Field(
        default=0, description="Of these, those that turned with the order of the answers; they are ties."
    )
    ordered: int = Field(
        default=0, description="Times that somebody compared and it is known which answer was shown first."
    )
    candidate_first: int = Field(default=0, description="Of these, the candidate's.")
    first_preferred: int = Field(default=0, description="Of these, the answer shown first was preferred.")
    feedback_control: int = Field(default=0, description="Users who said anything, good or bad: the response rate.")
    feedback_candidate: int = 0
    late: int = Field(default=0, description="Rows that came after their unit had closed; they change nothing.")


class RolloutStatus(Document):
    """One rollout from its start to its end."""

    id: str
    service: str
    model: str = Field(description="The registered model.")
    version: str
    revision: str
    kind: Literal["weights", "adapter", "prompt"]
    trigger: Literal["challenger", "specification"]
    salt: str = Field(description="Salt of the assignment, hexadecimal; new for every rollout.")
    engine: str = Field(
        description="Name of the engine that serves the candidate; adapters and prompts share stable's."
    )
    weights_version: str = Field(description="Version whose weights the engine serves.")
    system_prompt: str | None = None
    champion_version: str = Field(description="The champion at the start.")
    champion_revision: str
    started_at: float
    stage: Stage = "gate"
    step: int = Field(default=0, description="Canary step, from 0.")
    stage_started_at: float | None = Field(
        default=None,
        description="When the stage's (step's) clock started; null while it waits for engine or gateways, which does not count.",
    )
    admitted: bool = Field(default=False, description="Whether the routing table names the candidate.")
    weight: float = Field(default=0.0, description="Percent of users on the candidate.")
    replicas: int = Field(default=0, description="Fewest replicas that the candidate's engine was asked for.")
    waiting_since: float | None = Field(default=None, description="Since when the candidate's engine is awaited.")
    verdict: Verdict = "continue"
    reason: str = ""
    message: str = ""
    metric: str | None = Field(default=None, description="The guardrail that decided.")
    decided_in: Stage | None = Field(default=None, description="Stage in which the verdict fell.")
    decided_at: float | None = None
    finished_at: float | None = Field(
        default=None,
        description="When its stage was finished and the registry had been told all of it; from then on a new challenger may be set.",
    )
    held_since: float | None = None
    paused_since: float | None = None
    paused_by: Literal["command", "resource"] | None = None
    approved: tuple[int, ...] = Field(default=(), description="Steps whose end a person has approved.")
    conditions: tuple[Condition, ...] = ()
    gate: dict[str, Any] | None = Field(
        default=None, description="What the gate compared: accuracies, items, e-value, threshold."
    )
    baseline: dict[str, Any] = Field(default_factory=dict, description="Stable's history, frozen when the gate passed.")
    counts: Counts = Field(default_factory=Counts)
    ratio: dict[str, Any] | None = Field(default=None, description="Sample ratio: e-value, threshold, counts.")
    taken_back: bool = Field(default=False, description="Whether a drift has set `champion` back, which it does once.")
    debt: Debt = Field(default_factory=Debt)
    previous: dict[str, Any] | None = Field(
        default=None, description="Stable's target before the promotion, warm during the watch."
    )
    answered: dict[str, str] = Field(default_factory=dict, description="Commands obeyed or refused: id and answer.")

    @property
    def active(self) -> bool:
        """Whether the rollout still runs (the watch included)."""
        return self.stage != "finished"

    @property
    def undecided(self) -> bool:
        """Whether candidate and stable are still being compared."""
        return self.stage in ("gate", "rehearsal", "canary")


class ServiceStatus(Document):
    """Status of the `LLMService` resource."""

    conditions: tuple[Condition, ...] = ()
    rollout: RolloutStatus | None = Field(default=None, description="The newest rollout, under way or finished.")
