"""`services.common.assignment`: equal arms, no flips, new draw with each salt."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.assignment import BUCKETS, arm_of, bucket_of


@given(st.integers(0, BUCKETS - 1), st.integers(0, 5_000), st.integers(0, 5_000))
def test_a_unit_never_flips_while_the_weight_grows(bucket: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if arm_of(bucket, low) != "stable":
        assert arm_of(bucket, high) == arm_of(bucket, low)


@pytest.mark.parametrize("weight", [0, 1, 499, 5_000])
def test_control_is_as_large_as_candidate(weight: int) -> None:
    arms = Counter(arm_of(bucket, weight) for bucket in range(BUCKETS))
    assert arms["candidate"] == arms["control"] == weight


def test_buckets_are_spread_evenly_and_differ_between_rollouts() -> None:
    units = [f"unit-{n}" for n in range(20_000)]
    first = [bucket_of(b"salt", "r1", unit) for unit in units]
    second = [bucket_of(b"salt", "r2", unit) for unit in units]
    tenths = Counter(bucket * 10 // BUCKETS for bucket in first)
    assert max(tenths.values()) < 2_200
    assert min(tenths.values()) > 1_800
    both = sum(a < 1_000 and b < 1_000 for a, b in zip(first, second, strict=True))
    assert 120 < both < 290  # a tenth of a tenth: independent
    assert first == [bucket_of(b"salt", "r1", unit) for unit in units]
