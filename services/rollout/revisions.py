"""From a registry version to what serves it: names of revision and engine, the routing target. Pure; used by `decide` and `execute`.

Tags of a version that matter here (set by whoever registers it): `understudy.kind` (`weights`, the default, `adapter` or `prompt`),
`understudy.base-version` (an adapter's or a prompt's weights), `understudy.system-prompt`, `understudy.digest` (of the files).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

import msgspec

from services.common.identifiers import canonical_hash, revision_name
from services.common.routing import Hold, Target
from services.rollout.observed import VersionInfo
from services.rollout.resources import Engine, LLMService

KIND: Final = "understudy.kind"
BASE: Final = "understudy.base-version"
SYSTEM_PROMPT: Final = "understudy.system-prompt"
DIGEST: Final = "understudy.digest"
ASLEEP_AFTER: Final = 60.0
"""Seconds, at most, in which Serve sees no request under way before the last replica goes, once it may."""


def kind_of(info: VersionInfo) -> Literal["weights", "adapter", "prompt"] | None:
    """The version's kind; None where it is none that can be served, or lacks its base or a prompt its text."""
    kind = info.tags.get(KIND, "weights")
    if kind == "weights":
        return "weights"
    if kind == "adapter":
        return "adapter" if info.tags.get(BASE) else None
    return "prompt" if kind == "prompt" and info.tags.get(BASE) and info.tags.get(SYSTEM_PROMPT) else None


def weights_of(info: VersionInfo) -> str:
    """The version whose weights serve this one: its own, or its base's."""
    return info.tags.get(BASE, info.version) if kind_of(info) in ("adapter", "prompt") else info.version


class _Same:
    """An engine as a key: the same object, since its fields cannot be hashed and a copy would inherit what it keeps."""

    __slots__ = ("engine",)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __hash__(self) -> int:
        return id(self.engine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.engine is self.engine


@lru_cache(maxsize=4096)
def _digest(of: _Same) -> str:
    unchanging = {"autoscaling", "start_timeout"}
    return canonical_hash(of.engine.model_dump(mode="json", by_alias=True, exclude=unchanging, exclude_defaults=True))


def engine_digest(engine: Engine) -> str:
    """Hash of what of the resource makes a revision: a change here is rolled out. Scaling and patience are not part of it.

    Without defaults, so that a field which a later version of this program adds makes no new revisions. Kept, for each look at each
    service asks several times.
    """
    return _digest(_Same(engine))


def engine_name(service: LLMService, info: VersionInfo) -> str:
    """Name of the engine that serves a version; also the model name under which it serves its weights."""
    return revision_name(service.name, weights_of(info), engine_digest(service.spec.engine))


def revision_of(service: LLMService, info: VersionInfo) -> str:
    """Name of the revision: the engine's for weights, one of its own for an adapter, by its files, and for a prompt."""
    kind = kind_of(info)
    if kind not in ("adapter", "prompt"):
        return engine_name(service, info)
    own = {"adapter": info.tags.get(DIGEST)} if kind == "adapter" else {"systemPrompt": info.tags[SYSTEM_PROMPT]}
    return revision_name(service.name, info.version, canonical_hash({"engine": engine_name(service, info), **own}))


def model_of(service: LLMService, info: VersionInfo) -> str:
    """The model name under which the engine serves a version: an adapter has one of its own."""
    return revision_of(service, info) if kind_of(info) == "adapter" else engine_name(service, info)


def engine_of(target: Target) -> str:
    """Name of the engine behind a target."""
    return target.engine or target.model


def fewest(service: LLMService, quiet: bool) -> int:
    """Replicas of an engine that serves: those of the resource, but one at least while somebody asks.

    Serve's autoscaler samples how many requests are under way, and would take an engine with few short ones for idle.
    """
    wanted = service.spec.engine.autoscaling.min
    return wanted if quiet else max(1, wanted)


def hold_of(service: LLMService) -> Hold | None:
    """What gateways are told of an engine that may end while nobody asks."""
    scaling = service.spec.engine.autoscaling
    if scaling.min > 0:
        return None
    awake = min(ASLEEP_AFTER, scaling.downscale_delay)
    return Hold(requests=scaling.held_requests, seconds=scaling.hold_timeout, awake=awake)


def reached(target: Target, address: str, direct: str | None) -> Target:
    """The target with where its engine answers: its replica directly where that is known, then the proxy stays in reserve."""
    if direct is None:
        return msgspec.structs.replace(target, addresses=(address,), reserve=None)
    return msgspec.structs.replace(target, addresses=(direct,), reserve=address)


def target_of(service: LLMService, info: VersionInfo, address: str, direct: str | None = None) -> Target:
    """The version as gateways reach it."""
    target = Target(
        revision=revision_of(service, info),
        version=info.version,
        addresses=(),
        model=model_of(service, info),
        engine=engine_name(service, info) if kind_of(info) == "adapter" else None,
        system_prompt=info.tags.get(SYSTEM_PROMPT),
    )
    return reached(target, address, direct)
