"""A collector of OpenTelemetry's traces on aiohttp: decodes what it gets and keeps it, or refuses it as a test says."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass(frozen=True)
class Span:
    """One span as it came. Times in nanoseconds."""

    trace_id: str
    span_id: str
    parent: str
    name: str
    kind: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    events: Mapping[str, Mapping[str, Any]]
    failed: bool
    state: str


@dataclass
class Collector:
    """`spans`: all that came. `statuses`: what the next exports are answered; 200 after that. `rejects`: spans refused of each."""

    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    rejects: int = 0
    port: int = 0

    @property
    def endpoint(self) -> str:
        """Where traces are sent to."""
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def trace(self, trace_id: str) -> dict[str, Span]:
        """The spans of one trace by name."""
        return {span.name: span for span in self.spans if span.trace_id == trace_id}

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()  # aiohttp undoes the compression
        self.headers.append(request.headers.copy())
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            return web.Response(status=status)
        self.bodies.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for group in ExportTraceServiceRequest.FromString(self.bodies[-1]).resource_spans:
            self.resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans.extend(_span(span) for span in scope.spans)
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejects
        return web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf")


@contextlib.asynccontextmanager
async def collect(collector: Collector) -> AsyncIterator[Collector]:
    """Runs the collector; `collector.port` is known inside the block."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.port = runner.addresses[0][1]
    try:
        yield collector
    finally:
        await runner.cleanup()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


def _span(span: Any) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        KINDS[span.kind],
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(span.attributes),
        {event.name: {"at": event.time_unix_nano, **_attributes(event.attributes)} for event in span.events},
        span.status.code == 2,
        span.trace_state,
    )
