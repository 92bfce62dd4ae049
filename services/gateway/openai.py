"""The hot path: one client's request for a completion, from its first byte to its last.

    authenticate ── quota ── read, parse ── service's rules ── arm ── attempt (── fallback to stable) ── relay ── record ── last bytes

A bare ASGI application: the framework's routing and validation cost more than everything done here. It writes to one client, reads from
one engine at a time, and never waits for the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import Final

import aiohttp
from starlette.types import Receive, Scope, Send

from services.common import telemetry
from services.common.clock import Clock
from services.common.identifiers import uuid7
from services.common.routing import Hold, Rules, Target
from services.common.wire import ApiError, BadRequest, Unavailable
from services.gateway import request_log
from services.gateway.answer_filter import AnswerFilter
from services.gateway.assignment import Assigner, Placement
from services.gateway.auth import Caller, Keys
from services.gateway.content_filters import Filters, PromptBlocked, sift_answer, sift_prompt
from services.gateway.errors import AttemptFailed, Internal
from services.gateway.exchange import ClientGone, ClientWatch, Head, read_body, respond, respond_error
from services.gateway.feedback import Answered
from services.gateway.holding import WaitingRooms
from services.gateway.metrics import Metrics
from services.gateway.mirror import Copy, Mirror
from services.gateway.quota import Quotas
from services.gateway.recorder import Recorder
from services.gateway.requests import USER_LENGTH, Endpoint, ModelRequest, parse
from services.gateway.routes import Entry, RoutingTable, Standing
from services.gateway.rows import observation
from services.gateway.sampling import Sampled, Sampling
from services.gateway.settings import GatewaySettings
from services.gateway.tracing import Trace, Tracer
from services.gateway.upstream import Attempt
from services.store.records import Exposure, Observation, Outcome

PATHS: Final[dict[str, Endpoint]] = {"/v1/chat/completions": "chat/completions", "/v1/completions": "completions"}

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Call:
    """One request on its way."""

    request_id: str
    head: Head
    caller: Caller
    request: ModelRequest
    entry: Entry
    placement: Placement
    began: float
    """Monotonic."""
    started_at: float
    """The same moment in the store's time; every attempt's start is reckoned from it, so none lies before the unit's exposure."""
    headers: Headers
    trace: Trace | None
    """None: tracing is off."""
    sample: str | None = None
    """Its id, where the answer is to be looked at."""
    unrecorded: list[Attempt] = field(default_factory=list)


class Completions:
    """Answers `PATHS`."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        clock: Clock,
        keys: Keys,
        quotas: Quotas,
        filters: Filters,
        table: RoutingTable,
        assigner: Assigner,
        session: aiohttp.ClientSession,
        waiting: WaitingRooms,
        recorder: Recorder,
        mirror: Mirror,
        sampling: Sampling,
        answered: Answered,
        metrics: Metrics,
        tracer: Tracer | None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._keys = keys
        self._quotas = quotas
        self._filters = filters
        self._table = table
        self._assigner = assigner
        self._session = session
        self._waiting = waiting
        self._recorder = recorder
        self._mirror = mirror
        self._sampling = sampling
        self._answered = answered
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid7()
        trace = None
        if self._tracer is not None:
            trace = self._tracer.begin(request_id, scope["path"], scope["headers"])
        self._metrics.in_flight.inc()
        try:
            call = await self._admit(scope, receive, request_id, trace)
            await self._answer(call, receive, send)
        except ClientGone:
            self._metrics.refused(telemetry.UNKNOWN, "client_gone")
            if trace is not None:
                trace.status = 499
        except ApiError as error:
            if trace is not None:
                trace.refused(error)
            request_log.refused(request_id, trace, error)
            await respond_error(send, error, request_id)
        except Exception:  # noqa: BLE001  # logged; the server must not answer in its own words
            request_log.crashed(request_id, trace)
            if trace is not None:
                trace.status, trace.error = 500, "internal_error"
            with contextlib.suppress(RuntimeError):  # the answer had begun: the server closes the connection
                await respond_error(
                    send, Internal("The gateway failed; the request id helps to find out why."), request_id
                )
        finally:
            self._metrics.in_flight.dec()
            if self._tracer is not None and trace is not None:
                self._tracer.end(trace)

    async def _admit(self, scope: Scope, receive: Receive, request_id: str, trace: Trace | None) -> _Call:
        """Everything up to the choice of the engine; a refusal is counted by its code."""
        service = telemetry.UNKNOWN
        try:
            head = Head(scope["headers"])
            began = self._clock.monotonic()
            caller = self._keys.authenticate(head.authorization)
            self._quotas.take(caller)
            if trace is not None:
                trace.authenticated = self._clock.monotonic()
                trace.client_request_id = head.client_request_id
            body = await read_body(receive, head, self._settings.limits)
            request = parse(body, PATHS[scope["path"]], self._settings.limits)
            if self._filters:
                request, _ = sift_prompt(self._filters, request)
            if trace is not None:
                trace.read = self._clock.monotonic()
            entry, version = self._table.find(request.model)
            service = entry.route.service
            user = request.user or head.user
            if user is not None and len(user) > USER_LENGTH:
                raise BadRequest(f"X-User-Id is longer than {USER_LENGTH} characters.", code="too_long")
            unit = self._assigner.unit(caller, user)
            if entry.route.rules is not None:
                request = self._enforce(entry, entry.route.rules, caller, unit, request)
            if version is not None:
                placement = self._assigner.pin(entry, unit, version, caller)
            else:
                placement = self._assigner.place(
                    entry,
                    unit,
                    lease_valid=self._table.lease_valid,
                    candidate_allowed=self._table.candidate_allowed(entry),
                )
        except ApiError as error:
            self._metrics.refused(service, error.code or error.type)
            raise
        call = _Call(
            request_id, head, caller, request, entry, placement,
            began=began, started_at=self._table.store_time(), headers=[(b"x-request-id", request_id.encode())], trace=trace,
        )  # fmt: skip
        if trace is not None:
            trace.placed(entry, placement, request)
            trace.routed = self._clock.monotonic()
        if placement.exposed:
            self._expose(call)
        call.sample = self._sampling.draw(entry, placement, call.started_at)
        return call

    def _enforce(self, entry: Entry, rules: Rules, caller: Caller, unit: str, request: ModelRequest) -> ModelRequest:
        """What the service declares for requests: quotas, then content filters. Before the arm is chosen, so the same for both.

        Raises:
            QuotaExceeded, PromptBlocked: it goes no further.
        """
        service = entry.route.service
        self._quotas.admit(service, rules, caller, unit)
        if not entry.prompt_filters:
            return request
        try:
            request, hits = sift_prompt(entry.prompt_filters, request)
        except PromptBlocked as blocked:
            self._metrics.filtered(service, "prompt", blocked.filter, "block")
            raise
        for name, action in hits.effects():
            self._metrics.filtered(service, "prompt", name, action)
        return request

    async def _answer(self, call: _Call, receive: Receive, send: Send) -> None:
        watch = ClientWatch(receive)
        hold = call.entry.route.hold
        deadline = asyncio.get_running_loop().time() + call.entry.route.total_time + (hold.seconds if hold else 0.0)
        attempt: Attempt | None = None
        try:
            attempt = await self._open(call, deadline)
            self._debug_headers(call, attempt)
            if attempt.streamed:
                await self._relay(call, attempt, send, watch, deadline)
            else:
                self._record(call, attempt, "ok")
                watch.stop()
                await respond(send, 200, attempt.body, call.headers, attempt.content_type)
        except asyncio.CancelledError:
            for unfinished in list(call.unrecorded):
                unfinished.close()  # the engine stops working for nobody
                self._record(call, unfinished, "error" if unfinished.failure else "cancelled")
            if not watch.left():
                raise
        except AttemptFailed as failure:
            watch.stop()
            raise failure.api_error(call.request.model) from None
        finally:
            watch.stop()
            for unfinished in call.unrecorded:  # only a fault of ours leaves any
                unfinished.close()
            if attempt is not None and not attempt.meter.done:
                attempt.close()
        if attempt is not None and attempt.meter.done:
            await attempt.finish()
            caller = call.caller
            self._mirror.offer(
                Copy(
                    call.request,
                    call.request_id,
                    call.entry,
                    call.placement.unit,
                    caller.tenant,
                    caller.name,
                    call.trace,
                )
            )
            if call.sample is not None and attempt.failure is None:
                self._sample(call, call.sample, attempt)

    def _sample(self, call: _Call, drawn: str, attempt: Attempt) -> None:
        answer = sift_answer(call.entry.answer_filters, attempt.meter.text)
        content = Sampled(
            call.request_id, attempt.target.revision, call.caller.tenant, call.request.last_prompt(), answer
        )
        self._sampling.offer(drawn, call.started_at, call.placement.unit, call.entry.route.service, content)

    async def _open(self, call: _Call, deadline: float) -> Attempt:
        """The attempt whose answer the client gets, its first bytes at hand.

        Raises:
            AttemptFailed: of the only attempt, or of stable's after that of the revision on trial.
        """
        route, placement = call.entry.route, call.placement
        on_trial = placement.on_trial
        if route.hold is not None and not on_trial:
            return await self._open_held(call, route.hold, deadline)
        first = self._begin(call, placement.target, 0)
        if on_trial and self._clock.monotonic() < self._standing(call).ejected_until:
            # Only a variant's: a candidate's users are not even placed then. They count as failed, and do not wait for it.
            first.failure = AttemptFailed("ejected")
            self._record(call, first, "error")
            return await self._fall_back(call, first, route.stable, deadline)
        try:
            await first.open(self._session, call.request_id, self._patience(call, deadline, may_fall_back=on_trial))
        except AttemptFailed as failure:
            if not on_trial:
                self._failed(call, first, failure)
                raise
            if not failure.blames_request(call.request.constrained):
                self._trial_failed(call, first)
        else:
            return first
        return await self._fall_back(call, first, route.stable, deadline)

    async def _open_held(self, call: _Call, hold: Hold, deadline: float) -> Attempt:
        """As `_open`, of an engine that may have to start first. Attempts that reached no engine leave no row.

        Raises:
            EngineStarting: it may not wait, or has waited long enough.
            AttemptFailed: the engine runs and failed.
        """
        target = call.placement.target
        patience = self._patience(call, deadline, may_fall_back=False)
        until = deadline - call.entry.route.total_time if call.request.streamed else deadline
        with self._waiting.enter(call.entry.route.service, target.revision, hold, patience, until) as place:
            while True:
                attempt = self._begin(call, target, 0)
                try:
                    opened = await place.open(attempt, self._session, call.request_id)
                except AttemptFailed as failure:
                    self._failed(call, attempt, failure)
                    raise
                if place.held:
                    call.placement = replace(call.placement, counted=False)
                if opened:
                    return attempt
                call.unrecorded.remove(attempt)
                await place.pause()

    async def _fall_back(self, call: _Call, first: Attempt, stable: Target, deadline: float) -> Attempt:
        """Stable answers in the place of the revision on trial. Where the request may be to blame, stable's answer tells whether it was."""
        self._metrics.fell_back(call.entry.route.service)
        second = self._begin(call, stable, 1)
        try:
            await second.open(self._session, call.request_id, self._patience(call, deadline, may_fall_back=False))
        except AttemptFailed as failure:
            same = first.failure is not None and first.failure.status == failure.status
            if first in call.unrecorded:
                if same and failure.blames_request(call.request.constrained):
                    self._record(call, first, "client_error")
                else:
                    self._trial_failed(call, first)
            self._failed(call, second, failure)
            raise
        if first in call.unrecorded:
            self._trial_failed(call, first)
        return second

    def _failed(self, call: _Call, attempt: Attempt, failure: AttemptFailed) -> None:
        """Records an attempt that was the last one: the request's fault or the engine's."""
        self._record(call, attempt, "client_error" if failure.blames_request(call.request.constrained) else "error")

    async def _relay(self, call: _Call, attempt: Attempt, send: Send, watch: ClientWatch, deadline: float) -> None:
        """Sends a stream on as it comes. The last piece waits until the row is recorded."""
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", attempt.content_type),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                    *call.headers,
                ],
            }
        )
        piece = attempt.body
        try:
            async with asyncio.timeout_at(deadline):
                while not attempt.meter.done:
                    if piece:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    piece = await attempt.more()
        except (AttemptFailed, TimeoutError) as error:
            failure = error if isinstance(error, AttemptFailed) else attempt.timed_out()
            if call.placement.on_trial and attempt.number == 0:
                self._trial_failed(call, attempt)
            else:
                self._record(call, attempt, "error")
            told = failure.api_error(call.request.model).body()
            piece += b"data: " + told + b"\n\n"
        else:
            self._record(call, attempt, "ok")
        watch.stop()
        await send({"type": "http.response.body", "body": piece, "more_body": False})

    def _begin(self, call: _Call, target: Target, number: int) -> Attempt:
        urls = call.entry.urls(target, call.request.endpoint)
        filters = call.entry.answer_filters
        screen = AnswerFilter(filters, call.request.choices()) if filters else None
        trace = call.trace
        attempt = Attempt(
            call.request, target, urls, self._clock, number=number, screen=screen,
            keep_text=call.sample is not None or (trace is not None and trace.may_keep_content),
            context=trace.context(number) if trace is not None else None,
        )  # fmt: skip
        call.unrecorded.append(attempt)
        return attempt

    def _patience(self, call: _Call, deadline: float, *, may_fall_back: bool) -> float:
        """Seconds to the first byte of a stream; an answer in one piece may take all the time there is (a candidate half of it, so that
        stable has the other half)."""
        left = deadline - asyncio.get_running_loop().time()
        if call.request.streamed:
            return min(left, call.entry.route.time_to_first_byte)
        return left / 2 if may_fall_back else left

    def _standing(self, call: _Call) -> Standing:
        """Of the revision on trial."""
        in_experiment = call.placement.experiment is not None
        return call.entry.standing(call.placement.target.revision) if in_experiment else call.entry.candidate

    def _trial_failed(self, call: _Call, attempt: Attempt) -> None:
        row = self._record(call, attempt, "error")
        route, standing, seconds = call.entry.route, self._standing(call), self._settings.eject_seconds
        if standing.failed(self._clock.monotonic(), route.eject_after, seconds):
            self._metrics.ejected(route.service)
            request_log.ejected(row, call.trace, standing.failures, seconds)

    def _record(self, call: _Call, attempt: Attempt, outcome: Outcome) -> Observation:
        placement = call.placement
        call.unrecorded.remove(attempt)
        if outcome == "ok" and placement.on_trial and attempt.number == 0:
            self._standing(call).succeeded()
        if call.entry.route.rules is not None:
            self._settle(call, call.entry.route.rules, attempt)
        if outcome == "ok" and attempt.refused:
            outcome = "filtered"
        row = observation(
            attempt,
            self._recorder,
            outcome,
            request_id=call.request_id,
            kind="live",
            route=call.entry.route,
            rollout=placement.experiment.id if placement.experiment is not None else call.entry.route.rollout,
            arm=placement.arm,
            unit=placement.unit,
            bucket=placement.bucket,
            started_at=call.started_at + (attempt.began - call.began),
            tenant=call.caller.tenant,
            key=call.caller.name,
            client_request_id=call.head.client_request_id,
            counted=placement.counted,
        )
        self._recorder.record(row)
        pinned = call.request.model != row.service  # their answers may be compared with one another
        self._answered.remember(row, call.request.last_prompt() if pinned else None)
        self._metrics.observed(row, cached=attempt.meter.tokens_cached, queued=attempt.began - call.began)
        if call.trace is not None:
            call.trace.tried(row, attempt)
        request_log.ended(row, call.trace)
        return row

    def _settle(self, call: _Call, rules: Rules, attempt: Attempt) -> None:
        """Charges the answer's tokens and counts what filters did to it."""
        service = call.entry.route.service
        self._quotas.charge(service, rules, call.caller, call.placement.unit, attempt.tokens)
        if attempt.screen is not None:
            for name, action in sorted({effect for hits in attempt.screen.hits for effect in hits.effects()}):
                self._metrics.filtered(service, "answer", name, action)

    def _expose(self, call: _Call) -> None:
        route, placement = call.entry.route, call.placement
        tried = placement.experiment
        rollout = route.rollout if tried is None else tried.id
        horizon, settle = (route.horizon, route.settle) if tried is None else (tried.horizon, tried.settle)
        if rollout is None or placement.bucket is None:
            raise Unavailable("The routing table is inconsistent.")
        self._recorder.record(
            Exposure(
                rollout=rollout,
                service=route.service,
                unit=placement.unit,
                arm=placement.arm,
                bucket=placement.bucket,
                step=route.step if tried is None else 0,
                route_version=route.version,
                first_at=call.started_at,
                horizon_at=call.started_at + horizon,
                closes_at=call.started_at + horizon + settle,
                gateway=self._recorder.gateway,
                boot=self._recorder.boot,
                sequence=self._recorder.next_sequence(),
            )
        )

    def _debug_headers(self, call: _Call, attempt: Attempt) -> None:
        """Only who may debug learns which revision answered: users must not know their arm."""
        if "debug" in call.caller.scopes:
            call.headers.append((b"x-understudy-revision", attempt.target.revision.encode()))
            call.headers.append((b"x-understudy-arm", call.placement.arm.encode()))
