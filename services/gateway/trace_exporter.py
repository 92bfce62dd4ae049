"""Hands kept traces to a collector: OTLP over HTTP, in batches, from a queue of bounded size; and feedback to MLflow as assessments.

The hot path only appends to the queue. Encoding and compression run in a thread of their own, sending on the event loop. What does not fit
into the queue, is refused, or cannot be delivered for half a minute is dropped and counted; a client never waits for any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.common import events
from services.common.clock import rfc3339
from services.gateway.otlp_settings import OtlpSettings
from services.gateway.spans import encode
from services.gateway.tracing import Item, Told, Trace

log = logging.getLogger(__name__)

PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before an export is tried again."""
MAY_PASS: Final = frozenset({429, 502, 503, 504})
"""Statuses after which the specification of OTLP wants another try."""
MLFLOW_TRACE: Final = "tr-"
"""Before an OpenTelemetry trace's id, in MLflow's."""


class NotDelivered(Exception):
    """One try failed. `again`: another may not."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class TraceExporter:
    """One gateway's exporter. Counters are in spans.

    Args:
        mlflow_uri: server that gets assessments; None: none does. The destination's headers go to it only where it is the destination.
    """

    def __init__(self, settings: OtlpSettings, mlflow_uri: str | None = None) -> None:
        self._settings = settings
        self._mlflow = mlflow_uri.rstrip("/") if mlflow_uri else None
        self._queue: deque[Item] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "traces")
        self._delivering = True
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_tls(settings)),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,  # HTTPS_PROXY, as for every exporter
        )
        self.exported = 0
        self.dropped = 0

    def put(self, item: Item) -> None:
        """Queues it, or drops it where the queue is full."""
        if self._waiting + item.spans > self._settings.queue:
            self._drop([item])
            return
        self._queue.append(item)
        self._waiting += item.spans
        if self._waiting >= self._settings.batch:
            self._wake.set()

    def start(self) -> None:
        """Begins to export; `close` ends it."""
        self._task = asyncio.create_task(self._run(), name="trace exporter")

    async def close(self, seconds: float) -> None:
        """Exports what waits, within `seconds`; the rest is dropped."""
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._task, seconds)
        self._drop(self._take(self._waiting))
        await self._session.close()
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            if not self._closing.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._settings.delay)
            while self._queue:
                await self._export(self._take(self._settings.batch))
            if self._closing.is_set():
                return
            self._wake.clear()

    def _take(self, spans: int) -> list[Item]:
        """Items of about so many spans, at least one."""
        taken: list[Item] = []
        while self._queue and spans > 0:
            item = self._queue.popleft()
            self._waiting -= item.spans
            spans -= item.spans
            taken.append(item)
        return taken

    async def _export(self, items: list[Item]) -> None:
        loop, count = asyncio.get_running_loop(), sum(item.spans for item in items)
        try:
            body = await loop.run_in_executor(self._thread, self._encoded, items)
            rejected = await self._deliver(partial(self._send, body))
        except NotDelivered as error:
            if self._delivering:
                log.warning(events.TRACES_DROPPED, {"spans": count, "error": error})
            self._delivering = False
            self._drop(items)
            return
        except Exception:
            log.exception(events.TRACES_CRASHED)
            self._drop(items)
            return
        finally:
            for item in items:
                if isinstance(item, Trace):
                    item.forget_content()
        if not self._delivering:
            log.info(events.TRACES_FLOW)
        self._delivering = True
        self.exported += count - rejected
        self.dropped += rejected
        if self._mlflow is not None:
            await self._assess([item for item in items if isinstance(item, Told)])

    def _encoded(self, items: Sequence[Item]) -> bytes:
        body = encode(items, self._settings.resource, tagged=self._mlflow is not None)
        return gzip.compress(body, 1) if self._settings.compression == "gzip" else body

    async def _deliver(self, send: Callable[[], Awaitable[int]]) -> int:
        """Tries until it is delivered; at the end of the process once. Raises NotDelivered."""
        for pause in (*PAUSES, None):
            try:
                return await send()
            except NotDelivered as error:
                if not error.again or pause is None or self._closing.is_set():
                    raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
        raise AssertionError("unreachable")

    async def _send(self, body: bytes) -> int:
        """One try; the number of spans that the collector refused."""
        headers = {"Content-Type": "application/x-protobuf", **self._settings.headers}
        if self._settings.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        answer = await self._post(self._settings.endpoint, headers, data=body)
        try:
            return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
        except DecodeError:
            return 0  # delivered all the same: some answer in JSON

    async def _post(self, url: str, headers: dict[str, str], **body: Any) -> bytes:
        try:
            async with self._session.post(url, headers=headers, allow_redirects=False, **body) as response:
                answer = await response.read()
                if response.status >= 300:
                    reason = f"{url.split('?')[0]} answered {response.status}"
                    raise NotDelivered(reason, again=response.status in MAY_PASS)
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotDelivered(f"{url.split('?')[0]}: {type(error).__name__}", again=True) from None

    async def _assess(self, told: Sequence[Told]) -> None:
        """Feedback as assessments of MLflow's traces, which it has by now."""
        for one in told:
            try:
                await self._deliver(partial(self._send_assessment, one))
            except NotDelivered as error:
                log.warning(events.ASSESSMENT_LOST, {"request_id": one.request_id, "error": error})

    async def _send_assessment(self, told: Told) -> int:
        trace = MLFLOW_TRACE + told.trace_id
        value: float | str | None = told.value if told.value is not None else told.comment
        now = rfc3339(told.at, "milliseconds")
        assessment: dict[str, Any] = {
            "assessment_name": told.kind,
            "trace_id": trace,
            "source": {"source_type": "HUMAN", "source_id": told.source},
            "create_time": now,
            "last_update_time": now,
            "feedback": {"value": value if value is not None else told.mark},
            "metadata": {"revision": told.revision, "arm": told.arm, "mark": told.mark},
            "valid": True,
        }
        if told.comment is not None:
            assessment["rationale"] = told.comment
        url = f"{self._mlflow}/api/3.0/mlflow/traces/{trace}/assessments"
        same = urlsplit(url)[:2] == urlsplit(self._settings.endpoint)[:2]
        await self._post(url, dict(self._settings.headers) if same else {}, json={"assessment": assessment})
        return 0

    def _drop(self, items: Sequence[Item]) -> None:
        self.dropped += sum(item.spans for item in items)


def _tls(settings: OtlpSettings) -> ssl.SSLContext | bool:
    if settings.certificate is None and settings.client_certificate is None:
        return True
    context = ssl.create_default_context(cafile=str(settings.certificate) if settings.certificate else None)
    if settings.client_certificate is not None:
        context.load_cert_chain(str(settings.client_certificate), settings.client_key and str(settings.client_key))
    return context
