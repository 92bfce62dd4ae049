"""What a rollout will take with a service's traffic. See `forecast` for one that is under way."""

from services.rollout.forecast import forecast

__all__ = ["forecast"]
