"""Commands as an annotation of the resource: `kubectl understudy` writes it, the operator takes it, the webhook says who gave it."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from services.store.rows import Verb

COMMAND: Final = "understudy.dev/command"
"""Annotation that holds an order until the operator takes it."""
COMMAND_BY: Final = "understudy.dev/command-by"


class Order(BaseModel):
    """The annotation that holds a command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=100)
    verb: Verb
    rollout: str | None = None
    note: str = Field(default="", max_length=4096)
    by: str = Field(default="", max_length=256)


def pointer(annotation: str) -> str:
    """Where a JSON patch finds the annotation."""
    return f"/metadata/annotations/{annotation.replace('~', '~0').replace('/', '~1')}"
