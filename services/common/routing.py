"""The routing table: what the controller publishes through the store and every gateway obeys.

Structs of msgspec, because gateways decode them each time the table changes and keep a copy on disk. The table says everything a gateway
must know to serve a service without controller or store.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One revision as a gateway reaches it."""

    revision: str
    version: str
    """The registry's version number, e.g. `4`; `model: assistant@v4` pins it."""
    addresses: tuple[str, ...]
    """Base URLs ending in `/v1`, taken in turn."""
    model: str
    """The model name that the engine expects."""
    engine: str | None = None
    """The engine that serves it, where `model` is not its name: an adapter's."""
    reserve: str | None = None
    """Base URL for when none of `addresses` takes a connection: the platform's proxy, where `addresses` are a replica's own."""
    system_prompt: str | None = None
    """Prepended as a system message (a prompt revision's own, or the version's)."""


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """Rehearsal: which units' requests are copied to candidate and stable, invisibly to users."""

    salt: str
    share: int
    """Sampled units, in buckets of 10,000."""
    in_flight: int
    """Mirrored pairs under way at once in one gateway; more are dropped, never queued."""
    content: bool
    """Whether prompt and answers are kept (encrypted, at most an hour) for the judge."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Which answers of stable are looked at while it serves: of sampled users one an hour, other users each hour."""

    salt: str
    share: int
    """Users, in buckets of 10,000."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What one key, or one user, may take of a service in a minute, over all gateways; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and answer together, as the engine counts them."""


class ContentFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A named check of the texts of prompts, answers or both."""

    name: str
    applies_to: Literal["prompt", "answer", "both"]
    pattern: str
    """A regular expression of RE2; case is ignored."""
    action: Literal["block", "redact"]
    max_length: int
    """Characters of the longest match that is surely found in a stream, which is held back that far."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What gateways enforce for a service, whichever revision answers."""

    per_key: Allowance = Allowance()
    per_user: Allowance = Allowance()
    content_filters: tuple[ContentFilter, ...] = ()
    """In the order in which they see a text."""
    prompt: str | None = None
    """The service's system prompt; a revision's own follows it."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that nobody asks for ends; requests wait in the gateway while it starts again."""

    requests: int
    """Waiting at once in one gateway; more are refused."""
    seconds: float
    """That a request waits at most."""
    awake: float
    """Seconds after an answer for which the engine surely has not ended for want of requests."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The users of one variant of an experiment, or its holdout."""

    name: str
    """The variant's, or `holdout`; rows carry it as their arm."""
    share: int
    """Buckets of 10,000."""
    target: Target | None = None
    """None: whatever stable is."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """Versions compared on live users, with nothing to promote. Its users are left out of rollouts."""

    id: str
    """Rows carry it as their rollout."""
    salt: str
    """Hexadecimal."""
    groups: tuple[Group, ...]
    """They take buckets one after the other from 0; the rest is outside."""
    horizon: float
    """As in `Route`."""
    settle: float


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One service's row of the routing table."""

    service: str
    version: int
    """Grows by one with each change; the store assigns it. Gateways acknowledge it."""
    stable: Target
    candidate: Target | None = None
    rollout: str | None = None
    salt: str = ""
    """The rollout's salt, hexadecimal."""
    stage: Literal["idle", "rehearsal", "canary"] = "idle"
    step: int = 0
    """Number of the canary step, from 0."""
    weight: int = 0
    """The candidate's share in buckets of 10,000, at most 5,000; control takes as many."""
    mirror: Mirror | None = None
    horizon: float = 0.0
    """Seconds from a unit's exposure in which its requests count."""
    settle: float = 0.0
    """Seconds after the horizon until the unit's value closes: time for running requests to end and feedback to come."""
    eject_after: int = 5
    """Failures of the candidate in a row after which a gateway stops sending it requests on its own."""
    rules: Rules | None = None
    """Quotas, content filters and prompt of the service; None: none of them."""
    pinned: tuple[Target, ...] = ()
    """Revisions that only `model: service@vN` reaches."""
    experiments: tuple[Experiment, ...] = ()
    """In the order in which they began: a unit belongs to the first that takes it."""
    hold: Hold | None = None
    """None: some replica always runs."""
    time_to_first_byte: float = 30.0
    """Seconds a gateway waits for an engine's first byte (a candidate's failure before it falls back to stable)."""
    total_time: float = 600.0
    """Seconds one request may take in all."""
    sample: Sample | None = None
    """None: no answer is kept to be looked at."""
    trace_content: bool = False
    """Whether traces may carry prompts and answers."""
    removed: bool = False
    """The service is no more: gateways forget it, and acknowledge this version like any other."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Route)


def encode_route(route: Route) -> bytes:
    """The route as JSON."""
    return _encoder.encode(route)


def decode_route(data: bytes | str) -> Route:
    """The route from JSON.

    Raises:
        msgspec.ValidationError: the document has a wrong or missing field.
    """
    return _decoder.decode(data)
