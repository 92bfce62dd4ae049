"""The `cost` part of the `LLMService` resource: what the service's engine costs, and what it is compared with. See `resources`.

Prices are a person's: nothing here or elsewhere in the program knows a vendor's.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from services.rollout.resources_base import Resource, cel, keyed

Price = Annotated[float, Field(ge=0, le=1_000_000)]
"""In `currency`."""


class TokenPrices(Resource):
    """Prices of a million tokens."""

    input: Price = Field(description="A million tokens of prompts.")
    cached_input: Price | None = Field(
        default=None, description="A million tokens of prompts that the engine had in its cache; none: as `input`."
    )
    output: Price = Field(description="A million tokens of answers.")

    def of(self, tokens_in: float, tokens_cached: float, tokens_out: float) -> float:
        """What so many tokens cost; `tokens_cached` are among `tokens_in`."""
        cached = self.input if self.cached_input is None else self.cached_input
        return ((tokens_in - tokens_cached) * self.input + tokens_cached * cached + tokens_out * self.output) / 1e6


class ClosedModel(TokenPrices):
    """A model that is sold by the token, by its list price."""

    name: str = Field(min_length=1, max_length=64, description="As it is to be shown.")


class Budget(Resource):
    """What the service may cost."""

    per_day: float = Field(gt=0, le=1_000_000_000, description="In `currency`, from midnight to midnight UTC.")


class Cost(Resource):
    """What the service costs: its engine by the hour, or by the token."""

    model_config = cel(
        (
            "has(self.perReplicaHour) != has(self.perMillionTokens)",
            "give perReplicaHour or perMillionTokens, and not both",
            "",
        )
    )

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = Field(
        default="USD", description="ISO 4217; of all prices here. Nothing is converted."
    )
    per_replica_hour: Price | None = Field(
        default=None, description="What one replica of the engine costs an hour: all of its GPUs, CPUs and machines."
    )
    per_million_tokens: TokenPrices | None = Field(
        default=None, description="For an engine that is billed by the token."
    )
    compared_with: tuple[ClosedModel, ...] = Field(
        default=(),
        max_length=8,
        json_schema_extra=keyed("name"),
        description="Models sold by the token: what the same tokens would have cost there.",
    )
    budget: Budget | None = Field(default=None, description="Above it there is an alert; nothing is stopped.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.per_replica_hour is None) == (self.per_million_tokens is None):
            raise ValueError("give perReplicaHour or perMillionTokens, and not both")
        names = [model.name for model in self.compared_with]
        if len(set(names)) != len(names):
            raise ValueError("comparedWith names a model twice")
        return self
