"""What one closed unit, or one mirrored pair, is worth in each metric. Pure; called by `evidence_fold`.

A missing outcome has a declared value, the same in both arms: failure 1, no tokens in the seconds that it took, times infinite (also for
a client that left before them). What was answered but not measured (tokens that nobody counted) has none; `evidence_fold` sees to it that
both arms lack it equally often. Only the unit's own arm counts, and of it the first attempt: a fallback's answer is stable's. What the
engine refused as the client's own mistake is left out; the gateway has seen to it that stable refused it too. An answer that a content
filter withheld is no failure of its engine: it counts with the times and tokens that were measured.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from services.store import ClosedUnit, MirroredPair, Observation, Past, is_bad_mark

MAY_LACK: Final = frozenset({"ttft", "interTokenGap", "duration", "tokensPerSecond"})
"""Metrics of which a unit may have no value though it was answered. That no rating was given is the user's choice, and no fault."""
_TIMES: Final = ("ttft", "interTokenGap", "duration")


class Speed(NamedTuple):
    """A part of tokens per second, which is a ratio of sums: an arm's tokens by the seconds that they took."""

    tokens: float
    seconds: float


Value = float | Speed


def unit_values(unit: ClosedUnit, salt: bytes) -> dict[str, Value]:
    """Metric -> value, over the unit's horizon. A metric that the unit cannot have (it never streamed, gave no rating) is not there."""
    rows = _own(unit)
    attempts = [row for row in rows if row.outcome != "client_error"]
    values: dict[str, Value] = {
        "errors": float(any(row.outcome == "error" for row in attempts) or not rows),
        "refusals": float(any(map(_refused, attempts))),
        **_said(unit),
    }
    if not rows:
        return {**values, **dict.fromkeys(_TIMES, math.inf), "tokensPerSecond": Speed(0.0, 0.0)}
    # One request a unit, by a keyed hash: no user's many requests count more, and nobody can choose which one counts.
    drawn = sorted(attempts, key=lambda row: _draw(salt, row)) if len(attempts) > 1 else attempts
    if drawn:
        values["duration"] = _duration(drawn[0])
    streamed = next((row for row in drawn if row.streamed), None)
    if streamed is not None:
        _put(values, "ttft", _ttft(streamed))
        _put(values, "interTokenGap", _gap(streamed))
    speeds = [speed for row in attempts if (speed := _speed(row)) is not None]
    if speeds:
        values["tokensPerSecond"] = Speed(*(math.fsum(column) for column in zip(*speeds, strict=True)))
    return values


def plain_values(unit: ClosedUnit, salt: bytes) -> dict[str, float]:
    """Those of `unit_values` that are one number."""
    return {metric: value for metric, value in unit_values(unit, salt).items() if not isinstance(value, Speed)}


def parts(value: Value) -> tuple[float, float]:
    """Value and weight for the evidence."""
    return value if isinstance(value, Speed) else (value, 1.0)


def past_values(past: Past | None) -> dict[str, float]:
    """Metric -> mean, or ratio, over the unit's requests before its exposure. Quantiles have none: no covariate sharpens them."""
    if past is None:
        return {}
    marked = {"errors": past.failed, "feedback": past.bad, "escalations": past.escalations, "retries": past.retries}
    means = {"tokensPerSecond": past.tokens_per_second, "rating": past.rating}
    values = {metric: count / past.requests for metric, count in marked.items()}
    return values | {metric: mean for metric, mean in means.items() if mean is not None}


def tenant_of(rows: Iterable[Observation | None]) -> str | None:
    """The tenant of a unit's or a pair's rows; None: there are none."""
    return next((row.tenant for row in rows if row is not None), None)


def spoke(unit: ClosedUnit) -> bool:
    """Whether the user gave any feedback, good or bad, on answers of their arm."""
    return bool(_own_feedback(unit))


def pair_values(pair: MirroredPair) -> dict[str, tuple[Value | None, Value | None]]:
    """Metric -> (stable's value, candidate's value), None where one was not measured. A prompt that both refused is worth nothing."""
    sides = (pair.stable, pair.candidate)
    if all(side is not None and side.outcome == "client_error" for side in sides):
        return {}
    return {
        "errors": (_failed(pair.stable), _failed(pair.candidate)),
        "refusals": (float(_refused(pair.stable)), float(_refused(pair.candidate))),
        "ttft": (_ttft(pair.stable), _ttft(pair.candidate)),
        "interTokenGap": (_gap(pair.stable), _gap(pair.candidate)),
        "duration": (_duration(pair.stable), _duration(pair.candidate)),
        "tokensPerSecond": (_speed(pair.stable), _speed(pair.candidate)),
    }


def _own(unit: ClosedUnit) -> list[Observation]:
    """First attempts of the unit's arm. Others there are where the weight fell while the unit was open: stable answered them."""
    return [row for row in unit.observations if row.attempt == 0 and row.arm == unit.exposure.arm]


def _draw(salt: bytes, row: Observation) -> bytes:
    return hmac.digest(salt, row.request_id.encode(), hashlib.sha256)


def _put(values: dict[str, Value], metric: str, value: float | None) -> None:
    if value is not None:
        values[metric] = value


def _failed(row: Observation | None) -> float:
    return float(row is None or row.outcome in ("error", "client_error"))


def _refused(row: Observation | None) -> bool:
    return row is not None and row.outcome == "filtered"


def _ttft(row: Observation | None) -> float | None:
    """Seconds; infinite where no token came; None where tokens came and the first was not seen."""
    if row is None or row.ttft is None:
        return None if row is not None and row.outcome == "ok" and row.tokens_out else math.inf
    return row.ttft


def _gap(row: Observation | None) -> float | None:
    """Mean seconds between tokens; 0 where all of them came at once; infinite where none came."""
    if row is None or row.outcome in ("error", "client_error"):
        return math.inf
    if row.gap_mean is not None:
        return row.gap_mean
    seen = _ttft(row)
    return 0.0 if seen is not None and seen < math.inf else seen


def _duration(row: Observation | None) -> float:
    """Seconds to the end of a whole answer; infinite where it had none: an error, or a client that left before."""
    return math.inf if row is None or row.outcome in ("error", "client_error", "cancelled") else row.duration


def _speed(row: Observation | None) -> Speed | None:
    """Of one answer; None where nobody counted the tokens of an answer, or of the part that came."""
    if row is None:
        return Speed(0.0, 0.0)
    if row.outcome in ("error", "client_error"):
        return Speed(0.0, row.duration)
    if row.tokens_out is None:
        return Speed(0.0, row.duration) if row.outcome == "cancelled" and row.ttft is None else None
    return Speed(row.tokens_out, row.duration)


def _own_feedback(unit: ClosedUnit) -> Sequence[tuple[str, float | None]]:
    arm = unit.exposure.arm
    foreign = {row.request_id for row in unit.observations if row.attempt > 0 or row.arm != arm}
    return [(mark.kind, mark.value) for mark in unit.feedback if mark.request_id not in foreign]


def _said(unit: ClosedUnit) -> dict[str, float]:
    marks = _own_feedback(unit)
    kinds = {kind for kind, _ in marks}
    said = {
        "feedback": float(any(is_bad_mark(kind, value) for kind, value in marks)),
        "escalations": float("escalation" in kinds),
        "retries": float("retry" in kinds),
    }
    ratings = [value for kind, value in marks if kind == "rating" and value is not None]
    if ratings:
        said["rating"] = math.fsum(ratings) / len(ratings)
    return said
