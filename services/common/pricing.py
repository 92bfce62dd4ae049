"""What a request costs by what is known of its engine's price now. The controller keeps one document a service in the store
(`services.rollout.cost_telling`); gateways read it for their traces. Not what is charged: that is `services.rollout.costing`, afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from services.common.clock import HOUR

STALE_SECONDS: Final = HOUR
"""A document of before this is nobody's price any more: the service has none, or no controller."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """A service's: either of what its engines' seconds cost, or its tokens."""

    at: float
    """Store time at which it was written."""
    currency: str
    seconds: dict[str, float] | None = None
    """By engine: what one second of a request's duration cost in the last day; None: engines are billed by the token."""
    tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """One token of a prompt, one that the engine had in its cache, one of an answer."""

    @property
    def estimated(self) -> bool:
        """Whether only the end of the hour will tell what it was."""
        return self.seconds is not None

    def of(
        self, engine: str, duration: float, tokens_in: int | None, tokens_cached: int | None, tokens_out: int | None
    ) -> float | None:
        """What one attempt costs; None: not known, of an engine without a day or of an answer whose tokens nobody counted."""
        if self.seconds is not None:
            second = self.seconds.get(engine)
            return None if second is None else duration * second
        if tokens_in is None or tokens_out is None:
            return None
        each, cached = self.tokens, tokens_cached or 0
        return (tokens_in - cached) * each[0] + cached * each[1] + tokens_out * each[2]


def key_of(service: str) -> str:
    """Where the store has the document: beside the evidence of rollouts, whose names hold no colon."""
    return f"price:{service}"


def document_of(price: Price) -> dict[str, Any]:
    """As it is kept."""
    document: dict[str, Any] = msgspec.to_builtins(price)
    return document


def price_of(document: Mapping[str, Any] | None) -> Price | None:
    """None too for what another version of this program wrote and this one cannot read."""
    try:
        return None if document is None else msgspec.convert(document, Price)
    except msgspec.ValidationError:
        return None
