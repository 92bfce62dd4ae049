"""Rows as the controller and the gateways write them into the store, and a clock moved by hand: for whoever reads the store."""

from __future__ import annotations

from typing import Any

from services.common.routing import Route, Target
from services.evidence import Reading
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.store import AuditEntry, Exposure, Feedback, Observation, RolloutRow, Store

START = 1_700_000_000.0


SERVICE = LLMService.model_validate(
    {
        "metadata": {"name": "assistant"},
        "spec": {
            "model": {"registeredModel": "assistant"},
            "rollout": {"canary": {"steps": [{"weight": 10}, {"weight": 50}]}},
        },
    }
)


class HandClock:
    """Moved by the test."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def target(version: str) -> Target:
    return Target(
        revision=f"assistant-v{version}-7c1f", version=version, addresses=("http://127.0.0.1:9000/v1",), model="m"
    )


def route(**changes: Any) -> Route:
    return Route(**{"service": "assistant", "version": 0, "stable": target("1"), **changes})


def row(rollout: str, version: str, *, started_at: float = START, **status: Any) -> RolloutRow:
    state = RolloutStatus(
        id=rollout,
        service="assistant",
        model="assistant",
        version=version,
        revision=target(version).revision,
        kind="weights",
        trigger="challenger",
        salt="00",
        engine=target(version).revision,
        weights_version=version,
        champion_version="1",
        champion_revision=target("1").revision,
        started_at=started_at,
        **status,
    )
    return RolloutRow(
        id=rollout,
        service="assistant",
        model="assistant",
        version=version,
        revision=state.revision,
        stage=state.stage,
        verdict=state.verdict,
        reason=state.reason,
        started_at=started_at,
        finished_at=state.finished_at,
        spec=SERVICE.model_dump(mode="json", by_alias=True),
        status=state.to_json(),
    )


def reading(metric: str, **changes: Any) -> dict[str, Any]:
    """A rate's reading in the second canary step; relative metrics and others by `changes`."""
    plain = Reading(
        metric=metric,
        kind="rate",
        mode="harmOnly",
        margin=0.1,
        relative=False,
        direction="lower",
        n_control=70,
        n_candidate=66,
        pairs=60,
        expired=1,
        excluded={},
        control=0.125,
        candidate=0.5,
        effect=0.375,
        lower=0.11,
        upper=0.6,
        e_harm=95.0,
        harm_threshold=80.0,
        harmful=True,
        e_promote=None,
        promote_threshold=10.0,
        non_inferior=False,
        trustworthy=True,
    ).to_json()
    return {"stage": "canary", "step": 1, **plain, **changes}


TTFT = {
    "kind": "quantile", "mode": "nonInferior", "margin": 0.5, "relative": True, "control": 0.0612, "candidate": 0.0731,
    "effect": 0.194, "lower": -0.2, "upper": 0.62, "e_harm": None, "harmful": False,
}  # fmt: skip


def audit(
    rollout: str | None, action: str, reason: str, message: str, at: float = START, actor: str = "controller"
) -> AuditEntry:
    return AuditEntry(at, "assistant", rollout, actor, action, reason, message, {})


def gate(candidate: float) -> dict[str, Any]:
    return {"accuracy": {"candidate": candidate, "champion": 0.9}, "items": 300}


class Gateway:
    """Writes what a gateway would: numbered observations, exposures and thumbs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sequence = 0

    def serve(
        self, unit: str, arm: Any, version: str, at: float, *, rollout: str | None, ttft: float, thumb: float | None
    ) -> None:
        request = f"{unit}-{at}"
        records: list[Any] = [
            Observation(
                request_id=request, service="assistant", rollout=rollout, revision=target(version).revision, arm=arm, unit=unit,
                route_version=1, started_at=at, streamed=True, ttft=ttft, duration=0.5, tokens_out=20, outcome="ok", status=200,
                **self._stamp(),
            )
        ]  # fmt: skip
        if rollout is not None and arm != "stable":
            records.append(
                Exposure(
                    rollout=rollout, service="assistant", unit=unit, arm=arm, bucket=1, step=0, route_version=1, first_at=at,
                    horizon_at=at + 8, closes_at=at + 12, **self._stamp(),
                )
            )  # fmt: skip
        if thumb is not None:
            records.append(
                Feedback(
                    id=f"f-{request}",
                    request_id=request,
                    service="assistant",
                    kind="thumb",
                    value=thumb,
                    at=at + 1,
                    **self._stamp(),
                )
            )
        self.store.write(records)

    def _stamp(self) -> dict[str, Any]:
        self.sequence += 1
        return {"gateway": "g1", "boot": "b1", "sequence": self.sequence}
