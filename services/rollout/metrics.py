"""The controller's own metrics and its health, over HTTP: `/metrics` and `/healthz`. Fed by `controller`; served by `__main__`."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from services.rollout.status import ServiceStatus

_STAGES = ("gate", "rehearsal", "canary", "watch", "finished")


class Metrics:
    """Labels are service names and stages, so their number is bounded by the resources."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._looks = Counter(
            "understudy_controller_looks",
            "Looks at a service, by whether they ended.",
            ["service", "result"],
            registry=self.registry,
        )
        self._weight = Gauge(
            "understudy_rollout_weight_ratio", "Share of users on the candidate.", ["service"], registry=self.registry
        )
        self._stage = Gauge(
            "understudy_rollout_stage",
            "1 for the newest rollout's stage, else 0.",
            ["service", "stage"],
            registry=self.registry,
        )

    def looked(self, service: str, status: ServiceStatus) -> None:
        """A look ended."""
        self._looks.labels(service, "done").inc()
        rollout = status.rollout
        self._weight.labels(service).set(rollout.weight / 100 if rollout is not None else 0.0)
        for stage in _STAGES:
            self._stage.labels(service, stage).set(float(rollout is not None and rollout.stage == stage))

    def failed(self, service: str) -> None:
        """A look broke off."""
        self._looks.labels(service, "failed").inc()


def health_app(metrics: Metrics) -> web.Application:
    """`/healthz` says that the process runs its loop: a store or registry that is away is no reason to restart it."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", exposition)
    return app
