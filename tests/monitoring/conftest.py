"""Prometheus' own programs, where they are."""

from __future__ import annotations

import pytest

from tests.fakes.shipped_monitoring import program


@pytest.fixture(scope="session")
def promtool() -> str:
    found = program("promtool")
    if found is None:
        pytest.skip("promtool is neither on PATH nor in the cache of the cluster's tools")
    return found


@pytest.fixture(scope="session")
def prometheus() -> str:
    found = program("prometheus")
    if found is None:
        pytest.skip("prometheus is neither on PATH nor in the cache of the cluster's tools")
    return found
