"""How many replicas the target of `autoscaling.targetTtft` calls for. The observer measures, `engines.replicas` decides by it at each look;
pure. Serve's own autoscaler, which counts requests under way, goes on above what is asked for here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FEWEST_REQUESTS: Final = 20
"""Streamed requests below which a 95th percentile says too little to start a replica for it."""
QUANTILE: Final = 0.95
SPARE: Final = 0.5
"""Share of the target below which a replica less would do."""


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """Seconds to the first token at stable's engine, 95th percentiles since its replicas were last as many as now.

    `recent`: over `upscaleDelay`; None: too few requests. `longer`: over `downscaleDelay`; None: none, or not so long yet.
    `idle`: nobody asked in all of `downscaleDelay`.
    """

    recent: float | None
    longer: float | None
    idle: bool = False


def first_tokens(
    requests: Sequence[tuple[float, float]], now: float, unchanged_since: float, upscale: float, downscale: float
) -> FirstTokens:
    """From (start, seconds to the first token) of requests, in any order."""
    recent = [ttft for at, ttft in requests if at >= max(now - upscale, unchanged_since)]
    settled = now - downscale >= unchanged_since
    longer = [ttft for at, ttft in requests if at >= now - downscale] if settled else []
    return FirstTokens(
        recent=_percentile(recent) if len(recent) >= FEWEST_REQUESTS else None,
        longer=_percentile(longer) if longer else None,
        idle=settled and not longer,
    )


def called_for(present: int, ready: int, target: float, seen: FirstTokens) -> int:
    """Fewest replicas that the target calls for, one step from `present`, the fewest that the engine has now.

    Without all of those `ready` the last step is still under way, and nothing that is measured tells of the next.
    """
    if ready < present:
        return present
    if seen.recent is not None and seen.recent > target:
        return max(present, ready) + 1
    if seen.idle or (seen.longer is not None and seen.longer < SPARE * target):
        return present - 1
    return present


def _percentile(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(QUANTILE * len(values)) - 1]
