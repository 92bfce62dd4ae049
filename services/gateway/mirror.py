"""Rehearsal: copies of live requests to candidate and stable, which no user waits for or sees.

One request of each sampled unit is copied after its live answer has ended, to both revisions one after the other, in an order drawn by
hash, so that both meet the same load and each is first equally often. Rows of kind `mirror`; prompt and answers, where the service says
so, encrypted for the judge. Spans belong to the live request's trace. Called by the hot path, which never waits for it; more than the
declared number of pairs are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec
from cryptography.fernet import Fernet

from services.common import events
from services.common.assignment import BUCKETS, Arm, bucket_of
from services.common.clock import Clock
from services.common.identifiers import uuid7
from services.common.routing import Target
from services.gateway.content_filters import sift_answer
from services.gateway.errors import AttemptFailed
from services.gateway.metrics import Metrics
from services.gateway.recorder import Recorder
from services.gateway.requests import ModelRequest
from services.gateway.routes import Entry, RoutingTable
from services.gateway.rows import observation
from services.gateway.tracing import COPIES, Trace, Tracer, Tried, tried
from services.gateway.upstream import Attempt
from services.store import JudgeMaterial, Store, StoreError
from services.store.records import Outcome

log = logging.getLogger(__name__)

UNITS: Final = 200_000
"""Units remembered as mirrored; one that was forgotten is mirrored again, and judged once all the same."""


class Content(msgspec.Struct, frozen=True):
    """What the judge reads, as JSON under Fernet."""

    prompt: str
    candidate: str
    stable: str


@dataclass(frozen=True, slots=True)
class Copy:
    """One live request as the mirror needs it."""

    request: ModelRequest
    request_id: str
    entry: Entry
    unit: str
    tenant: str
    key: str
    trace: Trace | None


class Mirror:
    """The mirrored pairs of this gateway."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        recorder: Recorder,
        table: RoutingTable,
        metrics: Metrics,
        store: Store,
        executor: Executor,
        clock: Clock,
        content_key: bytes | None,
        tracer: Tracer | None,
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._table = table
        self._metrics = metrics
        self._store = store
        self._executor = executor
        self._clock = clock
        self._tracer = tracer
        self._cipher = Fernet(content_key) if content_key else None
        self._pairs: dict[asyncio.Task[None], str] = {}
        self._mirrored: OrderedDict[tuple[str, str], None] = OrderedDict()

    def offer(self, copy: Copy) -> None:
        """Mirrors the request if its unit is sampled, was not mirrored yet, and a pair's place is free."""
        route = copy.entry.route
        mirror = route.mirror
        if route.stage != "rehearsal" or mirror is None or route.candidate is None or route.rollout is None:
            return
        if bucket_of(copy.entry.mirror_salt, route.rollout, copy.unit) >= mirror.share:
            return
        if (route.rollout, copy.unit) in self._mirrored or not self._table.lease_valid:
            return
        if sum(1 for service in self._pairs.values() if service == route.service) >= mirror.in_flight:
            self._metrics.mirror_dropped(route.service, "in_flight")  # the unit's next request may find a place
            return
        self._mirrored[(route.rollout, copy.unit)] = None
        if len(self._mirrored) > UNITS:
            self._mirrored.popitem(last=False)
        task = asyncio.create_task(
            self._pair(copy, route.candidate, content=mirror.content), name=f"mirror {copy.request_id}"
        )
        self._pairs[task] = route.service
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Ends the pairs under way; a pair that was cut leaves only the rows of its copies that had ended."""
        tasks = list(self._pairs)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._pairs[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(events.MIRROR_CRASHED, {"request_id": task.get_name().removeprefix("mirror ")}, exc_info=error)

    async def _pair(self, copy: Copy, candidate: Target, *, content: bool) -> None:
        route = copy.entry.route
        sides: list[tuple[Arm, Target]] = [("candidate", candidate), ("control", route.stable)]
        if bucket_of(copy.entry.mirror_salt, copy.request_id, "order") >= BUCKETS // 2:
            sides.reverse()
        answers: dict[Arm, str] = {}
        spans: list[Tried] = []
        try:
            for arm, target in sides:
                text = await self._answer(copy, arm, target, spans, keep_text=content)
                if text is not None:
                    answers[arm] = text
        finally:
            if spans and self._tracer is not None and copy.trace is not None:
                self._tracer.mirrored(copy.trace, tuple(spans))
        if content and len(answers) == 2:
            shown = {arm: sift_answer(copy.entry.answer_filters, text) for arm, text in answers.items()}
            await self._keep(copy, Content(copy.request.last_prompt(), shown["candidate"], shown["control"]))

    async def _answer(self, copy: Copy, arm: Arm, target: Target, spans: list[Tried], *, keep_text: bool) -> str | None:
        """One copy's answer, recorded and added to `spans`; None where it failed."""
        route, trace = copy.entry.route, copy.trace
        traces_content = trace is not None and trace.may_keep_content
        urls = copy.entry.urls(target, copy.request.endpoint)
        request_id = uuid7()
        started_at = self._table.store_time()
        attempt = Attempt(
            copy.request, target, urls, self._clock, streamed=True, keep_text=keep_text or traces_content,
            context=trace.context(COPIES + len(spans)) if trace is not None else None,
        )  # fmt: skip
        outcome: Outcome = "ok"
        try:
            async with asyncio.timeout(route.total_time):
                await attempt.open(self._session, request_id, route.time_to_first_byte)
                while not attempt.meter.done:
                    await attempt.more()
        except TimeoutError:
            attempt.timed_out()
        except AttemptFailed:
            pass  # the attempt keeps it
        finally:
            attempt.close()
        if attempt.failure is not None:
            outcome = "client_error" if attempt.failure.blames_request(copy.request.constrained) else "error"
        elif attempt.refused:
            outcome = "filtered"
        row = observation(
            attempt,
            self._recorder,
            outcome,
            request_id=request_id,
            kind="mirror",
            route=route,
            rollout=route.rollout,
            arm=arm,
            unit=copy.unit,
            started_at=started_at,
            pair=copy.request_id,
            tenant=copy.tenant,
            key=copy.key,
        )
        self._recorder.record(row)
        self._metrics.observed(row, cached=attempt.meter.tokens_cached)
        if trace is not None:
            spans.append(tried(row, attempt, keep_content=traces_content))
        return attempt.meter.text if attempt.failure is None else None

    async def _keep(self, copy: Copy, content: Content) -> None:
        route = copy.entry.route
        if self._cipher is None or route.rollout is None:
            self._metrics.mirror_dropped(route.service, "no_content_key")
            return
        material = JudgeMaterial(
            pair=copy.request_id,
            rollout=route.rollout,
            unit=copy.unit,
            ciphertext=self._cipher.encrypt(msgspec.json.encode(content)),
            at=self._table.store_time(),
        )
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._store.put_judge_material, [material])
        except StoreError:
            self._metrics.mirror_dropped(
                route.service, "store"
            )  # content waits nowhere else: it is not written to disk here
