"""What one closed unit, or one mirrored pair, is worth in each metric. Pure; called by `evidence_fold`.

A missing outcome has a declared value, the same in both arms: failure 1, tokens per second 0, time to the first token infinite (also for
a client that left before it). Only the first attempt counts: a fallback's answer is stable's. What the engine refused as the client's own
mistake is left out; the gateway has seen to it that stable refused it too. An answer that a content filter withheld is no failure of its
engine: it counts with the times and tokens that were measured.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence

from services.store import ClosedUnit, MirroredPair, Observation, is_bad_mark


def unit_values(unit: ClosedUnit, salt: bytes) -> dict[str, float]:
    """Metric -> value, over the unit's horizon. A metric that the unit cannot have (it never streamed) is not there."""
    attempts = [row for row in unit.observations if row.attempt == 0 and row.outcome != "client_error"]
    values = {"errors": float(any(row.outcome == "error" for row in attempts) or not unit.observations)}
    values["feedback"] = float(_marked_bad(unit))
    if not unit.observations:
        return {**values, "ttft": math.inf, "tokensPerSecond": 0.0}
    streamed = [row for row in attempts if row.streamed]
    if streamed:
        # One request a unit, by a keyed hash: no user's many requests count more, and nobody can choose which one counts.
        chosen = min(streamed, key=lambda row: hmac.digest(salt, row.request_id.encode(), hashlib.sha256))
        values["ttft"] = _ttft(chosen)
    speeds = [speed for row in attempts if (speed := _speed(row)) is not None]
    if speeds:
        values["tokensPerSecond"] = math.fsum(speeds) / len(speeds)
    return values


def spoke(unit: ClosedUnit) -> bool:
    """Whether the user gave any feedback, good or bad, on answers of their arm."""
    return bool(_own_feedback(unit))


def pair_values(pair: MirroredPair) -> dict[str, tuple[float, float]]:
    """Metric -> (stable's value, candidate's value). A prompt that both refused is worth nothing."""
    sides = (pair.stable, pair.candidate)
    if all(side is not None and side.outcome == "client_error" for side in sides):
        return {}
    values = {
        "errors": (_failed(pair.stable), _failed(pair.candidate)),
        "ttft": (_ttft(pair.stable), _ttft(pair.candidate)),
    }
    speeds = [0.0 if side is None else _speed(side) for side in sides]
    if speeds[0] is not None and speeds[1] is not None:
        values["tokensPerSecond"] = (speeds[0], speeds[1])
    return values


def _failed(row: Observation | None) -> float:
    return float(row is None or row.outcome in ("error", "client_error"))


def _ttft(row: Observation | None) -> float:
    return math.inf if row is None or row.ttft is None else row.ttft


def _speed(row: Observation) -> float | None:
    """Tokens per second of one answer; None where the client left, or a content filter stopped it, in mid-answer and the tokens were not
    counted.
    """
    if row.outcome in ("cancelled", "filtered") and row.tokens_out is None and row.ttft is not None:
        return None
    if row.outcome in ("error", "client_error") or row.tokens_out is None or row.duration <= 0:
        return 0.0
    return row.tokens_out / row.duration


def _own_feedback(unit: ClosedUnit) -> Sequence[tuple[str, float | None]]:
    fallen_back = {row.request_id for row in unit.observations if row.attempt > 0}
    return [(mark.kind, mark.value) for mark in unit.feedback if mark.request_id not in fallen_back]


def _marked_bad(unit: ClosedUnit) -> bool:
    return any(is_bad_mark(kind, value) for kind, value in _own_feedback(unit))
