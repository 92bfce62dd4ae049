"""How much a caller may take: token buckets in this process, of keys over all services, and of keys and users for each service that
declares quotas. Called before and after a request; does no I/O.

A bucket of tokens may go below zero: an answer's tokens are known once it has ended. Its owner then waits until it is above zero again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.common.clock import Clock
from services.common.routing import Allowance, Rules
from services.gateway.auth import Caller
from services.gateway.errors import QuotaExceeded
from services.gateway.settings import QuotaSettings

BUCKETS: Final = 200_000
"""Buckets kept; beyond it the one unused for longest goes, and would be full again in all likelihood."""
MINUTE: Final = 60.0
"""Seconds' worth of a service's quota that may come at once."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """One bucket that a request draws from. `owner`, `per_minute` and `unit` tell the client which it is."""

    key: tuple[str, ...]
    owner: str
    unit: str
    per_minute: float
    """Of all gateways together."""
    rate: float
    """This gateway's share, per second."""
    size: float

    def exceeded(self, seconds: float) -> QuotaExceeded:
        return QuotaExceeded(f"{self.owner}: {self.per_minute:g} {self.unit} a minute", seconds)


class Quotas:
    """The buckets. `gateways`: says how many live gateways share a service's quotas."""

    def __init__(self, settings: QuotaSettings, clock: Clock, gateways: Callable[[], int]) -> None:
        self._settings = settings
        self._clock = clock
        self._gateways = gateways
        self._levels: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()  # level, at (monotonic)

    def take(self, caller: Caller) -> None:
        """Takes one request from the caller's bucket in this gateway.

        Raises:
            QuotaExceeded: it is empty.
        """
        per_minute = caller.requests_per_minute or self._settings.requests_per_minute
        if per_minute is None:
            return
        rate = per_minute / 60.0
        key = ("", caller.tenant, caller.name)
        size = max(1.0, rate * self._settings.burst_seconds)
        self._draw([_Limit(key, "This key's quota", "requests", per_minute, rate, size)], 1.0)

    def admit(self, service: str, rules: Rules, caller: Caller, unit: str) -> None:
        """Takes one request from the key's and the user's buckets for a service: from all of them or from none.

        Raises:
            QuotaExceeded: one is empty, or its tokens are used up.
        """
        requests = self._limits(service, rules, caller, unit, "requests")
        for limit in self._limits(service, rules, caller, unit, "tokens"):
            self._refuse_below(limit, 1.0)
        self._draw(requests, 1.0)

    def charge(self, service: str, rules: Rules, caller: Caller, unit: str, tokens: int) -> None:
        """Takes an answer's tokens, prompt included."""
        for limit in self._limits(service, rules, caller, unit, "tokens"):
            self._keep(limit.key, self._level(limit) - tokens)

    def _limits(self, service: str, rules: Rules, caller: Caller, unit: str, kind: str) -> list[_Limit]:
        found = []
        owners: tuple[tuple[str, Allowance, tuple[str, ...]], ...] = (
            ("This key's quota", rules.per_key, (service, kind, caller.tenant, caller.name)),
            ("This user's quota", rules.per_user, (service, kind, unit)),
        )
        for owner, allowance, key in owners:
            limit = allowance.requests_per_minute if kind == "requests" else allowance.tokens_per_minute
            if limit is not None:
                rate = limit / 60.0 / self._gateways()
                found.append(_Limit(key, f"{owner} for `{service}`", kind, limit, rate, max(1.0, rate * MINUTE)))
        return found

    def _draw(self, limits: list[_Limit], amount: float) -> None:
        for limit in limits:
            self._refuse_below(limit, amount)
        for limit in limits:
            self._keep(limit.key, self._level(limit) - amount)

    def _refuse_below(self, limit: _Limit, amount: float) -> None:
        level = self._level(limit)
        if level < amount:
            raise limit.exceeded((amount - level) / limit.rate)

    def _level(self, limit: _Limit) -> float:
        now = self._clock.monotonic()
        level, at = self._levels.get(limit.key, (limit.size, now))
        return min(limit.size, level + (now - at) * limit.rate)

    def _keep(self, key: tuple[str, ...], level: float) -> None:
        self._levels[key] = (level, self._clock.monotonic())
        self._levels.move_to_end(key)
        if len(self._levels) > BUCKETS:
            self._levels.popitem(last=False)
