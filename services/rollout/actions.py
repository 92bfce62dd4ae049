"""What `decide` may want done. `reconcile` commits the store's part in one transaction and hands the rest to `execute`; each action is
idempotent, and is wanted again at the next look until it is seen to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.routing import Route
from services.store import ExperimentRow


@dataclass(frozen=True, slots=True)
class ApplyRevision:
    """An engine must run, or an adapter must be served by one."""

    name: str
    version: str
    """Registry version whose files it serves."""
    replicas: tuple[int, int]
    base: str | None = None
    """For an adapter: the engine that serves it."""


@dataclass(frozen=True, slots=True)
class ScaleRevision:
    """An engine that is there may have other numbers of replicas."""

    name: str
    replicas: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RemoveRevision:
    """An engine that nobody may reach any more must go."""

    name: str


@dataclass(frozen=True, slots=True)
class PublishRoute:
    """The gateways must obey this route; the store gives it its version."""

    route: Route


@dataclass(frozen=True, slots=True)
class KeepExperiment:
    """An experiment stands like this from now on; stored before a route that names it."""

    row: ExperimentRow


@dataclass(frozen=True, slots=True)
class SetChampion:
    """The alias champion goes to `version` if it is still on `expected`."""

    version: str
    expected: str


@dataclass(frozen=True, slots=True)
class SetChallenger:
    """A person resumes after an error: the alias challenger goes on the version again."""

    version: str


@dataclass(frozen=True, slots=True)
class ClearChallenger:
    """The alias challenger goes away if it is still on `version`."""

    version: str


@dataclass(frozen=True, slots=True)
class TagVersion:
    """The registry learns the verdict."""

    version: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AnswerCommand:
    """A person's command was obeyed or refused."""

    id: str
    answer: str


@dataclass(frozen=True, slots=True)
class Emit:
    """An audit row."""

    action: str
    reason: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    actor: str = "controller"


Action = (
    ApplyRevision
    | ScaleRevision
    | RemoveRevision
    | PublishRoute
    | KeepExperiment
    | SetChampion
    | SetChallenger
    | ClearChallenger
    | TagVersion
    | AnswerCommand
    | Emit
)
