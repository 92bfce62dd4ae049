"""The seam between the rollout controller and whatever runs engines.

The controller calls a `Platform`; `serve.py` beside this file implements it on Ray Serve's REST API. A platform makes revisions
servable and reports what it sees. It must not decide anything about a rollout, and it knows nothing of arms, stages or traffic.

    PlatformError
    ├── PlatformUnavailable   retryable: the platform did not answer, or another writer was faster
    └── PlatformRejected      permanent: the platform understood the request and refused it
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Phase = Literal["absent", "starting", "ready", "failed", "draining"]


class PlatformError(Exception):
    """A platform could not do what was asked. `str()` says what to do about it."""


class PlatformUnavailable(PlatformError):
    """The platform did not answer or was changed meanwhile; the same call may succeed later."""


class PlatformRejected(PlatformError):
    """The platform refused the request; repeating it unchanged is useless."""


@dataclass(frozen=True, slots=True)
class RevisionSpec:
    """What a platform needs to make a revision servable.

    `resources` are those of one engine worker as Ray counts them (`{"CPU": 0.5}` or `{"GPU": 1}`); `replicas` is (min, max); `engine`
    holds vLLM's engine arguments, parallel sizes included.
    """

    name: str  # for example assistant-v4-7c1f; also the served model's name
    service: str
    artifact: str  # local folder or URI that the engine can read; for pods that fetch for themselves a reference
    engine: Mapping[str, Any]
    resources: Mapping[str, float]
    replicas: tuple[int, int]
    max_ongoing_requests: int
    autoscaling: Mapping[str, float] = field(default_factory=dict)
    """Further settings of Serve's autoscaler, under its own names: target_ongoing_requests, upscale_delay_s, downscale_delay_s."""
    platform: str = "serve"
    """The resource's `engine.platform`."""
    base: str | None = None
    """For an adapter: the engine that serves it. Then `artifact` is a folder on the controller's disk, checked, and of the other fields
    none counts but names, `platform` and `pod`."""
    pod: Mapping[str, Any] = field(default_factory=dict)
    """What the resource's `engine` says of pods, in its own words (camelCase): `resources`, `tensorParallelSize`,
    `pipelineParallelSize`, and where they are set those of `resources_engine.POD`. For platforms that make pods."""


@dataclass(frozen=True, slots=True)
class RevisionState:
    """What a platform sees of one revision now.

    `ready` means that the revision has answered real completions at `address`, and would again: with no replica left (`replicas` from 0)
    the platform starts one for the first request there. `direct` leads past that to replicas, and may lead nowhere at any time.
    `failed` is an observation and no sentence: a platform may bring an engine back, and then says so.
    """

    name: str
    phase: Phase
    ready_replicas: int
    address: str | None  # base URL for the gateway, ending in /v1
    message: str  # the platform's last words (the engine's own error when failed)
    direct: str | None = None  # base URL ending in /v1
    replicas: tuple[int, int] | None = None
    """Fewest and most that the revision may have now; None: unknown."""
    base: str | None = None
    """The engine that serves it, whose replicas it has: an adapter's."""


class Platform(Protocol):
    """Implementations are safe to call from several tasks of one event loop."""

    async def apply(self, revision: RevisionSpec) -> None:
        """Starts or updates a revision; idempotent. Returns as soon as the platform has accepted it."""

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        """Changes the fewest and most replicas of a revision that is there; running ones go on. Idempotent."""

    async def remove(self, name: str) -> None:
        """Drains and removes a revision; idempotent. Must not disturb any other application."""

    async def observe(self, service: str) -> dict[str, RevisionState]:
        """Every revision of `service` that the platform knows, by name."""

    async def close(self) -> None:
        """Ends what this object started on its own account. Revisions go on serving."""
