"""Which arm a unit belongs to, or which group of an experiment: pure functions of (salt, rollout, unit), the same in the gateway that
assigns and in the controller that checks the assignment. Nothing here may depend on time, load or configuration beyond its arguments.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final, Literal

Arm = Literal["stable", "control", "candidate"]

BUCKETS: Final = 10_000
CONTROL_START: Final = 5_000
"""Control takes the w buckets from here on, so candidate and control are equally many and disjoint for every w <= 5,000."""


def bucket_of(salt: bytes, rollout: str, unit: str) -> int:
    """The unit's bucket in [0, 10,000): HMAC-SHA256 of rollout and unit under the rollout's salt, first 8 bytes, modulo."""
    digest = hmac.digest(salt, f"{rollout}\0{unit}".encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "big") % BUCKETS


def arm_of(bucket: int, weight: int) -> Arm:
    """The arm of a bucket when the candidate's weight is `weight` buckets (0 to 5,000)."""
    if bucket < weight:
        return "candidate"
    if CONTROL_START <= bucket < CONTROL_START + weight:
        return "control"
    return "stable"


def group_of(bucket: int, shares: Sequence[int]) -> int | None:
    """The index of the group that a bucket belongs to, where the groups of an experiment take `shares` buckets each, one after the other
    from 0; None: outside. Shares do not change over an experiment's life, so a unit never changes its group.
    """
    end = 0
    for index, share in enumerate(shares):
        end += share
        if bucket < end:
            return index
    return None
