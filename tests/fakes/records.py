"""Records as gateways make them, with every field that a test does not care about filled in."""

from __future__ import annotations

from itertools import count
from typing import Any

from services.store import Exposure, Feedback, Observation

_numbers = count(1)


def observation(started_at: float, **changes: Any) -> Observation:
    """A live, answered request of unit `u1` on the candidate of rollout `r1`."""
    number = next(_numbers)
    fields: dict[str, Any] = {
        "request_id": f"request-{number:06}",
        "service": "assistant",
        "rollout": "r1",
        "revision": "assistant-v2-7c1f",
        "arm": "candidate",
        "unit": "u1",
        "bucket": 7,
        "route_version": 1,
        "started_at": started_at,
        "streamed": True,
        "ttft": 0.1,
        "duration": 2.0,
        "tokens_out": 40,
        "outcome": "ok",
        "status": 200,
        "gateway": "g1",
        "boot": "b1",
        "sequence": number,
    }
    return Observation(**{**fields, **changes})


def exposure(first_at: float, **changes: Any) -> Exposure:
    """Unit `u1` exposed to the candidate of `r1`, with a horizon of 10 s, closing after 15 s."""
    fields: dict[str, Any] = {
        "rollout": "r1",
        "service": "assistant",
        "unit": "u1",
        "arm": "candidate",
        "bucket": 7,
        "step": 0,
        "route_version": 1,
        "first_at": first_at,
        "horizon_at": first_at + 10.0,
        "closes_at": first_at + 15.0,
        "gateway": "g1",
        "boot": "b1",
        "sequence": next(_numbers),
    }
    return Exposure(**{**fields, **changes})


def feedback(request_id: str, at: float, **changes: Any) -> Feedback:
    """A thumb down."""
    number = next(_numbers)
    fields: dict[str, Any] = {
        "id": f"feedback-{number:06}",
        "request_id": request_id,
        "service": "assistant",
        "kind": "thumb",
        "value": -1.0,
        "at": at,
        "gateway": "g1",
        "boot": "b1",
        "sequence": number,
    }
    return Feedback(**{**fields, **changes})
