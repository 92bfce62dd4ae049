"""The gateway's application: builds its parts, starts and stops them, and serves all but the hot path through FastAPI.

`create_app` is called by `python -m services.gateway` and by tests. The two completion routes are dispatched before the framework sees
them (`services.gateway.openai`); they are part of the API's description all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from services.common import telemetry
from services.common.clock import Clock, SystemClock
from services.common.identifiers import uuid7
from services.common.wire import ApiError, BadRequest, MethodNotAllowed, NotFound
from services.gateway import request_log
from services.gateway.assignment import Assigner
from services.gateway.auth import Caller, Keys
from services.gateway.content_filters import Filter
from services.gateway.errors import Internal
from services.gateway.exchange import error_headers, respond_error
from services.gateway.feedback import Answered, FeedbackDesk, FeedbackIn, FeedbackOut
from services.gateway.holding import WaitingRooms
from services.gateway.metrics import Metrics
from services.gateway.mirror import Mirror
from services.gateway.openai import PATHS, Completions
from services.gateway.otlp_settings import OtlpSettings
from services.gateway.prices import PriceList
from services.gateway.quota import Quotas
from services.gateway.recorder import Recorder
from services.gateway.routes import RoutePoller, RoutingTable
from services.gateway.sampling import Sampling
from services.gateway.settings import GatewaySettings
from services.gateway.tracing import Tracer
from services.gateway.upstream import open_session
from services.store import Store, open_store

FLUSH_SECONDS = 10.0
"""Seconds that the last records may take to reach the store at the end; what does not is replayed at the next start."""


class GatewayApp(FastAPI):
    """FastAPI with the hot path in front, a request id on every answer, and OpenAI's error shape on every error."""

    def __init__(self, keys: Keys, **settings: Any) -> None:
        super().__init__(**settings)
        self.completions: Completions | None = None
        self.keys = keys
        self.draining = False
        """Set at SIGTERM: not ready any more, running answers go on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif self.completions is not None and scope["path"] in PATHS and scope["method"] == "POST":
            await self.completions(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid7()
        started = False

        async def with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await super().__call__(scope, receive, with_id)
        except Exception:  # noqa: BLE001  # logged; the server must not answer in its own words
            request_log.crashed(request_id, None)
            if not started:
                await respond_error(
                    send, Internal("The gateway failed; the request id helps to find out why."), request_id
                )

    def openapi(self) -> dict[str, Any]:
        """The description, with the completion routes, whose bodies are OpenAI's."""
        if not self.openapi_schema:
            description = super().openapi()
            for path in PATHS:
                description["paths"][path] = {"post": _COMPLETION}
        return super().openapi()


_COMPLETION: dict[str, Any] = {
    "summary": "A completion, as in OpenAI's API, streamed or in one piece",
    "description": "`model` names a service (`assistant`), or with the scope `pin` one revision of it (`assistant@v3`). "
    "The user is named by `safety_identifier`, `user` or the header `X-User-Id`. The answer's `x-request-id` is what feedback refers to.",
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    "responses": {
        "200": {"description": "The answer", "content": {"application/json": {}, "text/event-stream": {}}},
        "default": {"description": "OpenAI's error body"},
    },
}


def create_app(
    settings: GatewaySettings,
    *,
    otlp: OtlpSettings | None = None,
    clock: Clock | None = None,
    store_factory: Callable[[str], Store] = open_store,
) -> GatewayApp:
    """The application. Its parts start with ASGI's lifespan and end with it: running answers first, then records, then the lease.
    The caller sees to it that no other process has `state_dir`. `otlp`: where traces go; None: tracing is off.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert isinstance(app, GatewayApp)  # noqa: S101  (FastAPI hands back the object made below)
        async with _running(app, settings, otlp, clock or SystemClock(), store_factory):
            yield

    app = GatewayApp(
        Keys(settings.keys),
        title="Understudy gateway",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would go to whatever host the client named
        docs_url=None,  # the page would load scripts from elsewhere
        redoc_url=None,
    )
    _add_errors(app)
    return app


@contextlib.asynccontextmanager
async def _running(
    app: GatewayApp,
    settings: GatewaySettings,
    otlp: OtlpSettings | None,
    clock: Clock,
    store_factory: Callable[[str], Store],
) -> AsyncIterator[None]:
    boot = uuid7()
    metrics = Metrics()
    table = RoutingTable(clock, settings.lease_seconds)
    assigner = Assigner(settings.unit_key.get_secret_value().encode(), settings.heavy_unit_share)
    async with contextlib.AsyncExitStack() as stack:
        store = store_factory(settings.store_url)
        stack.callback(store.close)
        executor = stack.enter_context(ThreadPoolExecutor(max_workers=4, thread_name_prefix="store"))
        recorder = Recorder(
            store, settings.state_dir / "journal", settings.recorder, executor,
            gateway=settings.name, boot=boot, store_time=table.store_time,
        )  # fmt: skip
        stack.push_async_callback(recorder.close, FLUSH_SECONDS)
        session = await stack.enter_async_context(open_session(settings.connect_seconds))
        content_key = settings.content_key.get_secret_value().encode() if settings.content_key else None
        prices = PriceList(store, table, executor)
        tracer = _tracer(stack, settings, otlp, metrics, clock, prices)
        mirror = Mirror(session, recorder, table, metrics, store, executor, clock, content_key, tracer)
        stack.push_async_callback(mirror.close)
        sampling = Sampling(metrics, store, executor, content_key)
        stack.push_async_callback(sampling.close)
        poller = RoutePoller(
            store, table, settings, clock, executor,
            lease=lambda routes, now: recorder.lease(routes, now, seconds=settings.lease_seconds, address=settings.address),
            changed=lambda: metrics.keep_only(table.revisions(), set(table.services())),
        )  # fmt: skip
        poller.load_cache()
        _add_gauges(metrics, table, recorder, assigner, settings)
        answered = Answered()
        app.completions = Completions(
            settings, clock=clock, keys=app.keys,
            quotas=Quotas(settings.quotas, clock, lambda: table.gateways),
            filters=tuple(Filter(one.declared()) for one in settings.content_filters), table=table, assigner=assigner, session=session,
            waiting=WaitingRooms(metrics, settings.engine_silence_seconds, table.revisions),
            recorder=recorder, mirror=mirror, sampling=sampling, answered=answered, metrics=metrics, tracer=tracer,
        )  # fmt: skip
        desk = FeedbackDesk(store, executor, recorder, assigner, answered, metrics, table, tracer)
        _add_routes(app, table, desk, metrics, tracing=tracer is not None)
        await poller.poll()  # ready at once where the store is there
        for run in (poller.run, recorder.run, *([prices.run] if tracer is not None else [])):
            stack.push_async_callback(_end, asyncio.create_task(run(), name=run.__qualname__))
        yield


def _tracer(
    stack: contextlib.AsyncExitStack,
    settings: GatewaySettings,
    otlp: OtlpSettings | None,
    metrics: Metrics,
    clock: Clock,
    prices: PriceList,
) -> Tracer | None:
    """The tracer, its exporter at work until the stack ends; None: tracing is off."""
    if otlp is None:
        metrics.read(telemetry.SPANS_EXPORTED, lambda: 0)
        metrics.read(telemetry.SPANS_DROPPED, lambda: 0)
        return None
    # Imported here: a gateway without traces has nothing of OpenTelemetry in memory.
    from services.gateway.trace_exporter import TraceExporter

    exporter = TraceExporter(otlp, settings.tracing.mlflow_uri)
    stack.push_async_callback(exporter.close, FLUSH_SECONDS)
    exporter.start()
    metrics.read(telemetry.SPANS_EXPORTED, lambda: exporter.exported)
    metrics.read(telemetry.SPANS_DROPPED, lambda: exporter.dropped)
    return Tracer(settings.tracing, otlp.sampler, exporter, clock, metrics.exemplified, prices.of)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _add_gauges(
    metrics: Metrics, table: RoutingTable, recorder: Recorder, assigner: Assigner, settings: GatewaySettings
) -> None:
    metrics.read(telemetry.STORE_CONTACT_AGE, lambda: min(table.contact_age, 1e9))
    metrics.read(telemetry.LEASE_VALID, lambda: float(table.lease_valid))
    metrics.read(telemetry.RECORDS, lambda: recorder.recorded)
    metrics.read(telemetry.RECORDS_QUEUED, lambda: recorder.queued)
    metrics.read(telemetry.RECORDS_SPILLED, lambda: recorder.spilled)
    metrics.read(telemetry.RECORDS_DROPPED, lambda: recorder.dropped)
    metrics.read(telemetry.RECORDER_LAG, lambda: recorder.lag)
    metrics.read(telemetry.JOURNAL_BYTES, lambda: recorder.journal_bytes)
    metrics.read(telemetry.JOURNAL_LIMIT, lambda: settings.recorder.journal_bytes)
    metrics.read(telemetry.HEAVY_UNITS, assigner.heavy_units)


def _add_errors(app: GatewayApp) -> None:
    """Every error in OpenAI's shape."""

    async def told(request: Request, error: Exception) -> Response:
        answer = _as_api_error(error)
        headers = {name.decode(): value.decode() for name, value in error_headers(answer)}
        return Response(answer.body(), answer.status, headers, media_type="application/json")

    for kind in (ApiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, told)


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            reason = first.get("ctx", {}).get("error", "")
            return BadRequest(f"The body is not valid JSON: {reason} (byte {first['loc'][-1]})", code="invalid_json")
        field = ".".join(str(part) for part in first["loc"][1:]) or None
        return BadRequest(f"{field or 'The body'}: {first['msg']}", param=field, code="invalid_type")
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            return MethodNotAllowed("This route does not know that method.")
        if error.status_code == 404:
            return NotFound("No such route.")
        if error.status_code == 400:  # FastAPI could not read the body at all, e.g. not UTF-8
            return BadRequest("The body cannot be read: it must be JSON in UTF-8.", code="invalid_json")
    return Internal("The gateway failed.")


async def _caller(request: Request) -> Caller:
    authorization = request.headers.get("authorization")
    keys: Keys = request.app.keys
    return keys.authenticate(authorization.encode("latin-1") if authorization is not None else None)


Known = Annotated[Caller, Depends(_caller)]


def _add_routes(app: GatewayApp, table: RoutingTable, desk: FeedbackDesk, metrics: Metrics, *, tracing: bool) -> None:
    def model(service: str) -> dict[str, Any]:
        return {
            "id": service,
            "object": "model",
            "created": math.floor(table.known_since(service)),
            "owned_by": "understudy",
        }

    async def models(_: Known) -> dict[str, Any]:
        return {"object": "list", "data": [model(service) for service in table.services()]}

    async def one_model(name: str, _: Known) -> dict[str, Any]:
        if name not in table.services():
            raise NotFound("No such model; `GET /v1/models` lists them.", param="model", code="model_not_found")
        return model(name)

    async def feedback(given: FeedbackIn, who: Known) -> FeedbackOut:
        return await desk.take(given, who)

    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    async def ready() -> Response:
        # Without any service there is nothing to route, but once the store has said so clients get to know it: a 404 is an answer.
        if app.draining or not (table.versions() or math.isfinite(table.contact_age)):
            reason = "draining" if app.draining else "no routing table yet"
            return Response(f'{{"status": "{reason}"}}', 503, media_type="application/json")
        return Response('{"status": "ready"}', media_type="application/json")

    async def exposition(request: Request) -> Response:
        # Exemplars need OpenMetrics; without traces there are none, and the format stays what it always was.
        if tracing and "application/openmetrics-text" in request.headers.get("accept", ""):
            kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
            return Response(metrics.exposition(openmetrics=True), media_type=kind)
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route("/v1/models", models, methods=["GET"], summary="The services")
    app.add_api_route("/v1/models/{name:path}", one_model, methods=["GET"], summary="One service")
    app.add_api_route(
        "/v1/feedback", feedback, methods=["POST"], status_code=201, summary="What a user says of an answer"
    )
    app.add_api_route("/healthz", alive, methods=["GET"], summary="The process runs")
    app.add_api_route("/readyz", ready, methods=["GET"], summary="Requests may come")
    app.add_api_route("/metrics", exposition, methods=["GET"], summary="Prometheus' text format")
    for path in PATHS:
        app.add_api_route(path, _only_post, methods=["POST"], include_in_schema=False)


async def _only_post() -> None:
    """Lets the router answer 405 to other methods on the completion routes; their POST never gets this far."""
    raise NotFound("No such route.")
