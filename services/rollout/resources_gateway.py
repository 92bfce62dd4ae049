"""`spec.gateway` of the `LLMService` resource: what gateways enforce for a service, whichever revision answers. Part of `resources`.

None of it makes a revision: a change reaches every gateway within seconds and holds for both arms of a running rollout at once.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from services.common import routing
from services.common.patterns import BadPattern, Pattern
from services.rollout.resources_base import Label, Resource, keyed


def _compiles(pattern: str) -> str:
    try:
        Pattern(pattern)
    except BadPattern as error:
        raise ValueError(f"pattern {pattern!r}: {error}") from None
    return pattern


class Allowance(Resource):
    """Greatest amounts a minute. As much as a minute's may come at once."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000, description="Requests; none: no limit.")
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Tokens of prompts and answers, charged when an answer has ended; none: no limit. "
        "What is used beyond the limit must be waited for before the next request.",
    )

    def published(self) -> routing.Allowance:
        """As gateways read it."""
        return routing.Allowance(requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)


class Quotas(Resource):
    """How much of the service one caller may take. Live gateways share each quota out equally among them."""

    per_key: Allowance = Field(default_factory=Allowance, description="Of one API key, all its users together.")
    per_user: Allowance = Field(
        default_factory=Allowance,
        description="Of one user. Requests that name no user count as one user per API key.",
    )


class ContentFilter(Resource):
    """A named check of the texts of prompts, answers or both."""

    name: Label = Field(description="Names the filter in errors and metrics.")
    applies_to: Literal["prompt", "answer", "both"] = Field(description="Which texts are checked.")
    pattern: Annotated[str, AfterValidator(_compiles)] = Field(
        min_length=1,
        max_length=1000,
        description="A regular expression of RE2 (no look-around, no back references). Case is ignored unless it says `(?-i)`.",
    )
    action: Literal["block", "redact"] = Field(
        default="block",
        description="`block`: a prompt is refused with `content_filter`, an answer ends with that finish reason. "
        "`redact`: what matches becomes the filter's name in brackets.",
    )
    max_length: int = Field(
        default=100,
        ge=1,
        le=1000,
        description="Characters of the longest match that must be found in an answer, or redacted. "
        "Streams of the service are held back by a little more than that; a longer match may be found only in part.",
    )

    def published(self) -> routing.ContentFilter:
        """As gateways read it."""
        return routing.ContentFilter(
            name=self.name,
            applies_to=self.applies_to,
            pattern=self.pattern,
            action=self.action,
            max_length=self.max_length,
        )


class Gateway(Resource):
    """What gateways enforce for this service."""

    quotas: Quotas = Field(default_factory=Quotas, description="How much one caller may take.")
    content_filters: tuple[ContentFilter, ...] = Field(
        default=(),
        max_length=20,
        json_schema_extra=keyed("name"),
        description="Checks of prompts and answers. Each filter sees the text as those before it left it.",
    )
    prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=32_768,
        description="System prompt of the service, put before a revision's own. It makes no revision: a change holds for stable and "
        "candidate at once and is not compared. To compare prompts, register a version of kind `prompt`.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [one.name for one in self.content_filters]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"contentFilters: two filters are named {twice[0]}")
        return self

    def published(self) -> routing.Rules | None:
        """As gateways read it; None where nothing is declared."""
        rules = routing.Rules(
            per_key=self.quotas.per_key.published(),
            per_user=self.quotas.per_user.published(),
            content_filters=tuple(one.published() for one in self.content_filters),
            prompt=self.prompt,
        )
        return rules if rules != routing.Rules() else None
