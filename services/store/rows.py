"""What the store takes and gives beside the gateways' records: one frozen dataclass each.

Times are seconds since the epoch by the store's clock. Nothing here touches the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from services.common.routing import Route
from services.store.records import Exposure, Feedback, Observation

Verb = Literal["abort", "promote", "pause", "resume", "approve", "pin", "unpin"]
Cursor = tuple[float, str]
"""(closes_at, unit or pair) of the last one taken; start with (0.0, "")."""


@dataclass(frozen=True, slots=True)
class GatewayLease:
    """One gateway process: alive until `lease_until`, and what it has acknowledged and delivered."""

    gateway: str
    boot: str
    address: str | None
    routes: Mapping[str, int]
    """Service -> route version that this process obeys."""
    complete_through: float
    """Time up to which every record of this process is in the store."""
    lease_until: float
    recorded: int
    """Sequence numbers handed out so far."""
    dropped: int
    """Records given up for good, because memory and disk were full."""
    spilled: int
    """Records that wait on disk."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a unit did before it was exposed: its answered requests on stable or control within a week, ended before the exposure, and what
    was said of them by then. Requests that were the client's own mistake are left out.
    """

    requests: int
    failed: int
    bad: int
    """Requests with a bad mark; so `retries` and `escalations`."""
    retries: int
    escalations: int
    tokens_per_second: float | None
    """Tokens by seconds, over requests; a failed one has no tokens."""
    rating: float | None
    """Mean over rated requests."""


@dataclass(frozen=True, slots=True)
class ClosedUnit:
    """A unit whose values are final."""

    exposure: Exposure
    observations: tuple[Observation, ...]
    """Live, counted, started in [first_at, horizon_at), of this unit and rollout, by started_at."""
    feedback: tuple[Feedback, ...]
    """On those requests, given at closes_at or before, by time."""
    past: Past | None = None
    """None: the unit was not seen before."""


@dataclass(frozen=True, slots=True)
class History:
    """Visits of a revision's users while it was stable."""

    visits: tuple[ClosedUnit, ...]
    share: Mapping[int, float]
    """Hour (since the epoch) -> how much of it was read; hours without a request are not there."""


@dataclass(frozen=True, slots=True)
class MirroredPair:
    """One request answered by both revisions in rehearsal; a side is None where its row never came."""

    pair: str
    unit: str
    closes_at: float
    """Earliest started_at of its rows, plus settle."""
    candidate: Observation | None
    stable: Observation | None


@dataclass(frozen=True, slots=True)
class JudgeMaterial:
    """Prompt and both answers of one pair, encrypted by the gateway; the store cannot read it and keeps it an hour at most."""

    pair: str
    rollout: str
    unit: str
    ciphertext: bytes
    at: float


PEOPLE: Final = "people"
"""The judge of judgements that people gave; their `pair` is as in `records.Preference`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's scores of one pair, or a person's preference among two answers."""

    pair: str
    rollout: str
    unit: str
    candidate: float
    stable: float
    judge: str
    at: float
    sequence: int
    """Given by the store, growing; what a caller passes in is ignored."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of one sampled answer of stable. None: nobody looked, or could tell."""

    id: str
    """One a service, hour and unit."""
    service: str
    revision: str
    unit: str
    tenant: str
    at: float
    """When its request began."""
    score: float | None = None
    """The judge's, 0 to 1."""
    judge: str | None = None
    model: str | None = None
    """Whose `embedding` it is."""
    embedding: bytes | None = None
    """Of the prompt: 32-bit floats, little-endian, of length 1 together."""
    language: str | None = None
    """ISO 639-1, of the prompt."""
    words: int | None = None
    """Of the prompt."""
    terms: bytes | None = None
    """The prompt's different words, encrypted; the store cannot read them."""


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Of a sample that has an embedding, what choosing among many needs."""

    id: str
    unit: str
    at: float


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One rollout. `status` is the controller's own document; the columns are for listing."""

    id: str
    service: str
    model: str
    version: str
    revision: str
    stage: str
    verdict: str | None
    reason: str | None
    started_at: float
    finished_at: float | None
    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """One A/B experiment. `spec`: its part of the resource as it began; `status`: the controller's own document."""

    id: str
    """`SERVICE:NAME`; its exposures, evidence and readings have it as their rollout."""
    service: str
    name: str
    started_at: float
    ended_at: float | None
    """No more users since then."""
    finished_at: float | None
    """Everything that was measured is in the evidence."""
    spec: Mapping[str, Any]
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, and on which evidence."""

    at: float
    service: str
    rollout: str | None
    actor: str
    action: str
    reason: str
    message: str
    evidence: Mapping[str, Any]
    id: int | None = None
    """Given by the store, growing."""


@dataclass(frozen=True, slots=True)
class Command:
    """A person's order to the controller, and its answer."""

    id: str
    service: str
    rollout: str | None
    verb: Verb
    actor: str
    note: str
    at: float
    handled_at: float | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the store knows of a service at one moment, for a look at it."""

    now: float
    watermark: float
    """Time up to which every record of every live gateway is in the store; now where no gateway lives, and never after now."""
    leases: tuple[GatewayLease, ...]
    """The gateways alive."""
    rollout: RolloutRow | None
    """The newest."""
    route: Route | None
    commands: tuple[Command, ...]
    """Those not answered yet, by time."""
