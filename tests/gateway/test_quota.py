"""Quotas on a clock moved by hand: requests and tokens, of keys and users, shared among gateways."""

from __future__ import annotations

import pytest

from services.common.routing import Allowance, Rules
from services.gateway import quota
from services.gateway.auth import Caller
from services.gateway.errors import QuotaExceeded
from services.gateway.quota import Quotas
from services.gateway.settings import QuotaSettings
from tests.fakes.rollout_rows import HandClock

WEB = Caller("web", "shop", frozenset(), None)
APP = Caller("app", "shop", frozenset(), None)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def refused(quotas: Quotas, rules: Rules, caller: Caller = WEB, unit: str = "ada") -> float | None:
    """Seconds until the request would fit; None where it was let through."""
    try:
        quotas.admit("assistant", rules, caller, unit)
    except QuotaExceeded as error:
        return error.retry_after
    return None


def test_a_minutes_worth_may_come_at_once_and_then_one_at_a_time(clock: HandClock) -> None:
    quotas, rules = Quotas(QuotaSettings(), clock, lambda: 1), Rules(per_key=Allowance(requests_per_minute=30))
    assert [refused(quotas, rules) for _ in range(30)] == [None] * 30
    assert refused(quotas, rules, unit="bob") == pytest.approx(2.0)  # the key's, whoever the user is
    assert refused(quotas, rules, APP) is None
    clock.now += 2.0
    assert refused(quotas, rules) is None
    assert refused(quotas, rules) == pytest.approx(2.0)
    clock.now += 3600.0
    assert [refused(quotas, rules) for _ in range(31)].count(None) == 30


def test_who_is_refused_by_one_quota_takes_nothing_from_the_other(clock: HandClock) -> None:
    rules = Rules(per_key=Allowance(requests_per_minute=3), per_user=Allowance(requests_per_minute=1))
    quotas = Quotas(QuotaSettings(), clock, lambda: 1)
    assert refused(quotas, rules, unit="ada") is None
    assert all(refused(quotas, rules, unit="ada") for _ in range(5))
    assert refused(quotas, rules, unit="bob") is None
    assert refused(quotas, rules, unit="eve") is None
    with pytest.raises(
        QuotaExceeded, match=r"This key's quota for `assistant`: 3 requests a minute; try again in 20.0 s"
    ):
        quotas.admit("assistant", rules, WEB, "joe")


def test_tokens_are_charged_afterwards_and_debt_is_waited_for(clock: HandClock) -> None:
    quotas, rules = Quotas(QuotaSettings(), clock, lambda: 1), Rules(per_user=Allowance(tokens_per_minute=600))
    assert refused(quotas, rules) is None
    quotas.charge("assistant", rules, WEB, "ada", 900)
    assert refused(quotas, rules) == pytest.approx(30.1)  # 300 tokens of debt at 10 a second, and one to go on with
    assert refused(quotas, rules, unit="bob") is None
    clock.now += 30.2
    assert refused(quotas, rules) is None


def test_live_gateways_share_a_quota(clock: HandClock) -> None:
    gateways = 3
    quotas, rules = Quotas(QuotaSettings(), clock, lambda: gateways), Rules(per_key=Allowance(requests_per_minute=30))
    assert [refused(quotas, rules) for _ in range(11)].count(None) == 10
    gateways = 1
    clock.now += 2.0
    assert refused(quotas, rules) is None
    assert refused(quotas, rules) == pytest.approx(2.0)


def test_services_do_not_share_quotas(clock: HandClock) -> None:
    quotas, rules = Quotas(QuotaSettings(), clock, lambda: 1), Rules(per_key=Allowance(requests_per_minute=1))
    quotas.admit("assistant", rules, WEB, "ada")
    quotas.admit("translator", rules, WEB, "ada")
    with pytest.raises(QuotaExceeded):
        quotas.admit("assistant", rules, WEB, "ada")


def test_buckets_are_bounded(clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "BUCKETS", 10)
    quotas, rules = Quotas(QuotaSettings(), clock, lambda: 1), Rules(per_user=Allowance(requests_per_minute=1))
    for number in range(100):
        quotas.admit("assistant", rules, WEB, f"user-{number}")
    assert len(quotas._levels) == 10
    assert refused(quotas, rules, unit="user-99") is not None
