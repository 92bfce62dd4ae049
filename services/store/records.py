"""What gateways record and the controller reads: one struct a row.

Every record of a gateway carries (gateway, boot, sequence): the sequence counts all records of one process from 1 without gaps, over all
kinds, so that loss and duplicates are provable. Times called `*_at` are seconds since the epoch in the store's time; durations are
seconds measured monotonically.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["ok", "error", "client_error", "cancelled", "filtered"]
"""ok: answered whole. error: the engine failed or timed out. client_error: the engine refused the request (4xx).
cancelled: the client left. filtered: the engine answered, but the model refused, or a content filter (the service's or the engine's)
withheld the answer or its end."""

FeedbackKind = Literal["thumb", "rating", "comment", "edit", "retry", "copy", "dwell", "escalation"]
"""Explicit: thumb (-1 or 1), rating (1 to 5), comment (no value), edit (share of the answer changed, 0 to 1).
Implicit: retry (1), copy (1), dwell (seconds), escalation (1)."""


class Observation(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="observation"):
    """One attempt to answer one request by one engine. Key: (request_id, attempt, kind)."""

    request_id: str
    attempt: int = 0
    """0: the assigned arm; 1: the fallback to stable after the candidate failed before its first byte."""
    kind: Literal["live", "mirror"] = "live"
    service: str
    rollout: str | None = None
    """Of a unit that takes part in an experiment: the experiment's id."""
    revision: str
    arm: str
    """`stable`, `control` or `candidate` (of a mirrored pair `control` is the copy that stable answered); of an experiment the group."""
    unit: str
    bucket: int | None = None
    step: int = 0
    route_version: int
    started_at: float
    streamed: bool
    ttft: float | None = None
    """Seconds from sending to the engine until the first token, read at the upstream; None: there was none."""
    duration: float
    """Seconds until the last byte, the error or the client's leaving."""
    gap_mean: float | None = None
    """Mean seconds between tokens' arrivals."""
    gap_max: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    """Of `tokens_in`, those that the engine had in its cache; None: it does not tell."""
    outcome: Outcome
    status: int
    error: str | None = None
    """Kind of failure: connect, timeout, reset, status_500, ...; of a filtered answer the content filter's name, or `refusal`; no
    text of prompts or answers."""
    pair: str | None = None
    """For mirrored copies: the pair's id (the live request's id)."""
    tenant: str = ""
    key: str = ""
    """Name of the API key; empty in rows of before it was recorded."""
    client_request_id: str | None = None
    counted: bool = True
    """False for pinned requests and for units with too large a share of the traffic: kept, but outside the statistics."""
    gateway: str
    boot: str
    sequence: int


class Exposure(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="exposure"):
    """A unit's first live request in a rollout on control or candidate, or in an experiment. Key in the store: (rollout, unit); the first
    one stored stays.
    """

    rollout: str
    service: str
    unit: str
    arm: str
    bucket: int
    step: int
    route_version: int
    first_at: float
    horizon_at: float
    """Requests started before this count."""
    closes_at: float
    """The unit's value is final from here on."""
    gateway: str
    boot: str
    sequence: int


class Feedback(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="feedback"):
    """What a user (or the application for them) said of one answer. Key: id."""

    id: str
    request_id: str
    service: str
    kind: FeedbackKind
    value: float | None = None
    comment: str | None = None
    at: float
    gateway: str
    boot: str
    sequence: int


class Preference(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="preference"):
    """Which of two answers, a rollout's candidate's and its stable's, a person preferred. Key: pair; the first one stored stays."""

    pair: str
    """The two answers and the person as a digest, a colon, and which revision's was shown first: `candidate`, `stable`, or `unknown`."""
    rollout: str
    unit: str
    """The person who compared."""
    candidate: float
    """1: the candidate's is preferred; 0: stable's is; 0.5: neither."""
    at: float
    gateway: str
    boot: str
    sequence: int


Record = Observation | Exposure | Feedback | Preference
