"""Times as they are written for others to read."""

from __future__ import annotations

import pytest

from services.common.clock import rfc3339


@pytest.mark.parametrize(
    ("seconds", "whole", "fine"),
    [
        (1_772_357_400.0, "2026-03-01T09:30:00Z", "2026-03-01T09:30:00.000Z"),
        (1_772_357_400.9994, "2026-03-01T09:30:00Z", "2026-03-01T09:30:00.999Z"),
        (1_772_357_400.123, "2026-03-01T09:30:00Z", "2026-03-01T09:30:00.123Z"),  # a float a little below it
    ],
)
def test_a_time_is_cut_to_its_precision(seconds: float, whole: str, fine: str) -> None:
    assert (rfc3339(seconds), rfc3339(seconds, "milliseconds")) == (whole, fine)
