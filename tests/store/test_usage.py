"""How a service is used: different users in time, and how far apart their values lie."""

from __future__ import annotations

import math
import random

import pytest

from services.store import Store
from tests.fakes.records import observation


def test_users_who_never_come_again(store: Store, now: float) -> None:
    store.write([observation(now - 4_000 + 10 * n, unit=f"u{n}", rollout=None, arm="stable") for n in range(400)])
    found = store.usage("assistant", now - 5_000)
    assert found is not None
    assert (found["users"], found["requests"]) == (400, 400)
    assert found["growth"] == pytest.approx(1.0)
    assert found["users_per_day"] == pytest.approx(400 / 4_000 * 86_400, rel=0.01)
    assert found["busiest_share"] == pytest.approx(1 / 400)


def test_the_same_users_again_and_again(store: Store, now: float) -> None:
    store.write([observation(now - 4_000 + 10 * n, unit=f"u{n % 10}", rollout=None, arm="stable") for n in range(400)])
    found = store.usage("assistant", now - 5_000)
    assert found is not None
    assert (found["users"], found["growth"]) == (10, 0.0)
    assert found["users_per_day"] == 10


def test_how_far_users_lie_apart(store: Store, now: float) -> None:
    draw, rows = random.Random(2), []
    for n in range(600):
        ttft = draw.lognormvariate(math.log(0.2), 0.5)
        same = {"unit": f"u{n}", "rollout": None, "arm": "stable"}
        rows.append(
            observation(
                now - 900 + n,
                ttft=None if n % 50 == 0 else ttft,
                duration=1.0,
                tokens_out=round(draw.gauss(100, 20)),
                **same,
            )
        )
        rows.append(
            observation(now - 899 + n, ttft=100.0, outcome="error", **same)
        )  # only a user's first answer counts
    rows.append(observation(now - 1, kind="mirror", pair="p", unit="mirrored", ttft=50.0))
    store.write(rows)
    found = store.usage("assistant", now - 1_000)
    assert found is not None
    assert found["ttft_spread"] == pytest.approx(0.5, rel=0.12)
    assert found["ttft_missing"] == pytest.approx(0.02)
    assert found["tokens_per_second_spread"] == pytest.approx(0.2, rel=0.1)
    assert found["busiest_share"] == pytest.approx(2 / 1200)


def test_nobody_and_few(store: Store, now: float) -> None:
    assert store.usage("assistant", now - 1_000) is None
    store.write([observation(now - 10, rollout=None, arm="stable", streamed=False, ttft=None)])
    found = store.usage("assistant", now - 1_000)
    assert found is not None
    assert (found["ttft_spread"], found["ttft_missing"], found["tokens_per_second_spread"]) == (None, None, None)
    assert found["busiest_share"] == 1.0, "of one request that says nothing"
