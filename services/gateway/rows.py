"""The row that one attempt leaves: what was measured, who was assigned, how it ended. Used for live requests and mirrored copies alike."""

from __future__ import annotations

from typing import Final, Literal

from services.common.routing import Route
from services.gateway.recorder import Recorder
from services.gateway.upstream import Attempt
from services.store.records import Observation, Outcome

REFUSAL: Final = "refusal"
"""The error of an answer that the model refused to give."""


def observation(
    attempt: Attempt,
    recorder: Recorder,
    outcome: Outcome,
    *,
    request_id: str,
    kind: Literal["live", "mirror"],
    route: Route,
    rollout: str | None,
    arm: str,
    unit: str,
    started_at: float,
    bucket: int | None = None,
    pair: str | None = None,
    tenant: str,
    key: str,
    client_request_id: str | None = None,
    counted: bool = True,
) -> Observation:
    """The attempt's row, with the next sequence: it must be recorded at once. `started_at` is in the store's time."""
    meter = attempt.meter
    return Observation(
        request_id=request_id,
        attempt=attempt.number,
        kind=kind,
        service=route.service,
        rollout=rollout,
        revision=attempt.target.revision,
        arm=arm,
        unit=unit,
        bucket=bucket,
        step=route.step,
        route_version=route.version,
        started_at=started_at,
        streamed=attempt.streamed,
        ttft=meter.ttft,
        duration=attempt.duration,
        gap_mean=meter.gap_mean,
        gap_max=meter.gap_max,
        tokens_in=meter.tokens_in,
        tokens_out=meter.tokens_out,
        tokens_cached=meter.tokens_cached,
        outcome=outcome,
        status=attempt.status(outcome),
        error=_reason(attempt, outcome),
        pair=pair,
        tenant=tenant,
        key=key,
        client_request_id=client_request_id,
        counted=counted,
        gateway=recorder.gateway,
        boot=recorder.boot,
        sequence=recorder.next_sequence(),
    )


def _reason(attempt: Attempt, outcome: Outcome) -> str | None:
    if outcome == "filtered":
        return (attempt.screen.blocked if attempt.screen is not None else None) or REFUSAL
    return attempt.failure.kind if attempt.failure is not None else None
