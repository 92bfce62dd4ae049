"""The controller's own metrics and its health, over HTTP: `/metrics`, `/healthz`, `/readyz`. Fed by `loop`; served by `__main__`."""

from __future__ import annotations

import contextlib

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from services.rollout.health import Health
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

    def gone(self, service: str) -> None:
        """The service is no more."""
        for stage in _STAGES:
            self._forget(self._stage, service, stage)
        self._forget(self._weight, service)
        for result in ("done", "failed"):
            self._forget(self._looks, service, result)

    @staticmethod
    def _forget(metric: Counter | Gauge, *labels: str) -> None:
        with contextlib.suppress(KeyError):  # one that never had a value
            metric.remove(*labels)

    def failed(self, service: str) -> None:
        """A look broke off."""
        self._looks.labels(service, "failed").inc()


def health_app(metrics: Metrics, health: Health) -> web.Application:
    """`/healthz` fails where a loop hangs: a store or registry that is away is no reason to restart the process. `/readyz` fails while
    something is away that the controller cannot do without; one that stands by is ready.
    """

    async def healthz(_: web.Request) -> web.Response:
        stuck = health.stuck()
        return web.Response(status=503, text=f"hang: {', '.join(stuck)}\n") if stuck else web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = await health.missing()
        return web.Response(status=503, text="\n".join([*missing, ""])) if missing else web.Response(text="ok\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return app
