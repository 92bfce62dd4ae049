"""How often a key may call: one token bucket a key, in this process. Called once a request; does no I/O."""

from __future__ import annotations

from services.common.clock import Clock
from services.gateway.auth import Caller
from services.gateway.errors import QuotaExceeded
from services.gateway.settings import QuotaSettings


class Quotas:
    """Buckets of the configured keys; as many as there are keys."""

    def __init__(self, settings: QuotaSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # tokens, at (monotonic)

    def take(self, caller: Caller) -> None:
        """Takes one request from the caller's bucket.

        Raises:
            QuotaExceeded: it is empty.
        """
        per_minute = caller.requests_per_minute or self._settings.requests_per_minute
        if per_minute is None:
            return
        rate = per_minute / 60.0
        size = max(1.0, rate * self._settings.burst_seconds)
        now = self._clock.monotonic()
        tokens, at = self._buckets.get((caller.tenant, caller.name), (size, now))
        tokens = min(size, tokens + (now - at) * rate)
        if tokens < 1.0:
            raise QuotaExceeded((1.0 - tokens) / rate)
        self._buckets[(caller.tenant, caller.name)] = (tokens - 1.0, now)
