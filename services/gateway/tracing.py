"""Tracing on the hot path: one `Trace` a request, in which times are noted as it goes, and the decision at its end whether it is exported.

No span exists here. What spans are made of is mostly measured anyway; `spans` builds them from it in the exporter's thread. Without
tracing nothing of this module is used: the hot path has None in place of a `Trace`.

    head sampling      by the trace's id, or as the client's `traceparent` says; decided at the start, told to the engine
    always             failures, slow requests, and those that a user marks as bad: decided when that is known
    held               every other trace for a while, in a buffer of bounded size, in case a bad mark comes
    copies             of a rehearsal go with the request's trace; where one failed, they bring it

A trace's id is the request's own id, unless the client brought one; so feedback finds the trace of a request that another gateway answered.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from services.common.clock import Clock
from services.common.pricing import Price
from services.common.routing import Target
from services.common.wire import ApiError
from services.gateway.assignment import Placement
from services.gateway.content_filters import Filters
from services.gateway.requests import ModelRequest
from services.gateway.routes import Entry
from services.gateway.settings import TracingSettings
from services.gateway.upstream import Attempt
from services.store.records import Observation

Kept = Literal["sampled", "error", "slow", "feedback"]
Mark = Literal["good", "bad", "neutral"]

STATE_LENGTH: Final = 512
"""Longest `tracestate` that is passed on (W3C Trace Context, section 3.3.1.5)."""
_PARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_RANDOM_DIGITS: Final = 14
"""Digits at the end of a trace's id that are random (W3C Trace Context, level 2)."""
COPIES: Final = 3
"""Number of the first mirrored copy's attempt; a request has two of its own at most."""
_SAMPLERS: Final = ("always_on", "always_off", "traceidratio")


class Parent(NamedTuple):
    """What a client's `traceparent` says."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_parent(value: bytes) -> Parent | None:
    """The parent; None where it is not well formed."""
    found = _PARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    return Parent(found[2].decode(), found[3].decode(), bool(int(found[4], 16) & 1))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Head sampling. `ratio`: of the traces that begin here; `parent_based`: a client's decision counts for the others."""

    ratio: float
    parent_based: bool

    def __call__(self, trace_id: str, parent: Parent | None) -> bool:
        """Whether the trace is exported whatever comes of it. The same for one id in every gateway."""
        if parent is not None and self.parent_based:
            return parent.sampled
        if self.ratio >= 1:
            return True
        return int(trace_id[-_RANDOM_DIGITS:], 16) < self.ratio * 16**_RANDOM_DIGITS


class Tried(Struct, frozen=True, gc=False):
    """One attempt that has ended: what is left of it besides its row. Moments are monotonic."""

    row: Observation
    began: float
    headers: float | None
    """When the engine's headers came."""
    target: Target
    host: str | None
    port: int | None
    tokens_cached: int | None
    answer: str | bytes | None
    """Text of a stream as the engine sent it, body of a whole answer; None where it may not be kept."""


def tried(row: Observation, attempt: Attempt, *, keep_content: bool) -> Tried:
    """What is left of an attempt that has ended."""
    answer: str | bytes | None = None
    if keep_content and row.outcome in ("ok", "cancelled"):
        answer = attempt.meter.text if attempt.streamed else attempt.body
    url = attempt.url
    return Tried(
        row, attempt.began, attempt.headers_at, attempt.target, url.host if url else None, url.port if url else None,
        attempt.meter.tokens_cached, answer,
    )  # fmt: skip


def _own_ids(request_id: str) -> tuple[str, str]:
    """Ids of the trace that a request begins, and of its first span."""
    trace_id = request_id.replace("-", "")
    return trace_id, trace_id[16:]


class Trace(Struct, eq=False, gc=False):
    """One request. Times are the clock's monotonic seconds; None: it did not come to that.

    Ten thousand are held: objects that the garbage collector knew would cost every request a tenth of its time. Nothing here may lead back
    to the trace.
    """

    request_id: str
    path: str
    began: float
    at: float
    """Seconds since the epoch at `began`."""
    trace_id: str
    span_id: str
    parent: str | None = None
    state: bytes | None = None
    sampled: bool = False
    authenticated: float | None = None
    read: float | None = None
    routed: float | None = None
    ended: float = 0.0
    status: int = 200
    error: str | None = None
    service: str | None = None
    arm: str | None = None
    rollout: str | None = None
    step: int | None = None
    client_request_id: str | None = None
    tries: tuple[Tried, ...] = ()
    copies: tuple[Tried, ...] = ()
    """Mirrored ones that wait to be exported."""
    kept: Kept | None = None
    may_keep_content: bool = False
    prompt: bytes | None = None
    """The messages or the prompt as JSON."""
    filters: Filters = ()
    """Those that an answer must go through before it is shown."""
    marks: frozenset[str] = frozenset()
    """Feedback that was told already."""
    price: Price | None = None
    """The service's when the trace was exported."""

    def context(self, number: int) -> dict[str, str]:
        """Headers for the engine of attempt `number`; mirrored copies count on from `COPIES`."""
        flags = "01" if self.sampled else "00"
        headers = {"traceparent": f"00-{self.trace_id}-{self.child(2 + 2 * number)}-{flags}"}
        if self.state is not None:
            headers["tracestate"] = self.state.decode("ascii")
        return headers

    def child(self, number: int) -> str:
        """Id of a span: the first span's has random bits, and a trace has a handful of children."""
        return f"{int(self.span_id, 16) ^ number:016x}"

    def placed(self, entry: Entry, placement: Placement, request: ModelRequest) -> None:
        """The request is admitted, its arm chosen."""
        route, experiment = entry.route, placement.experiment
        self.service, self.arm = route.service, placement.arm
        self.rollout = route.rollout if experiment is None else experiment.id
        self.step = route.step if experiment is None and route.rollout is not None else None
        if route.trace_content:
            self.may_keep_content = True
            self.filters = entry.answer_filters
            self.prompt = bytes(request.fields["messages" if request.endpoint == "chat/completions" else "prompt"])

    def tried(self, row: Observation, attempt: Attempt) -> None:
        """An attempt has ended."""
        self.tries = (*self.tries, tried(row, attempt, keep_content=self.may_keep_content))

    def refused(self, error: ApiError) -> None:
        """The client is told this error."""
        self.status, self.error = error.status, error.code or error.type

    @property
    def failed(self) -> bool:
        """Whether gateway or an engine failed; a candidate's failure counts, though stable answered."""
        return self.status >= 500 or _any_failed(self.tries)

    @property
    def seconds_to_first_token(self) -> float:
        """From the request's arrival, over all attempts; 0 where no token came."""
        ends = [one.began + one.row.ttft for one in self.tries if one.row.ttft is not None]
        return ends[-1] - self.began if ends else 0.0

    def cost(self, *tries: Tried) -> float | None:
        """What these attempts cost; None where that is not known of each."""
        if self.price is None or not tries:
            return None
        total = 0.0
        for one in tries:
            row, engine = one.row, one.target.engine or one.target.model
            amount = self.price.of(engine, row.duration, row.tokens_in, one.tokens_cached, row.tokens_out)
            if amount is None:
                return None
            total += amount
        return total

    @property
    def spans(self) -> int:
        """How many spans will be made of it."""
        return 2 + _spans(self.tries)

    @property
    def content_bytes(self) -> int:
        """Bytes, about, of prompt and answers."""
        if not self.may_keep_content:
            return 0
        return len(self.prompt or b"") + sum(len(one.answer or b"") for one in (*self.tries, *self.copies))

    def forget_content(self) -> None:
        """Prompt and answers have been exported, or will not be."""
        self.prompt = None
        self.tries = tuple(replace(one, answer=None) for one in self.tries)


class Mirrored(Struct, frozen=True, eq=False):
    """The mirrored copies of one exported request."""

    trace: Trace
    copies: tuple[Tried, ...]

    @property
    def spans(self) -> int:
        return _spans(self.copies)


def _any_failed(tries: tuple[Tried, ...]) -> bool:
    return any(one.row.outcome == "error" for one in tries)


def _spans(tries: tuple[Tried, ...]) -> int:
    """Each has one, and one of its stream."""
    return len(tries) + sum(one.row.ttft is not None for one in tries)


@dataclass(frozen=True, slots=True)
class Told:
    """One piece of feedback on its way. `at`: seconds since the epoch; `comment`: None where content may not be kept."""

    trace_id: str
    parent: str
    span_id: str
    request_id: str
    service: str
    revision: str
    arm: str
    kind: str
    value: float | None
    mark: Mark
    comment: str | None
    source: str
    """The tenant."""
    at: float
    kept: Kept

    @property
    def spans(self) -> int:
        return 1


Item = Trace | Mirrored | Told


class Outlet(Protocol):
    """Where what is kept goes; never waits."""

    def put(self, item: Item) -> None: ...


class Tracer:
    """Makes traces and decides which are kept; `exemplified` is told of each attempt in one that is. `price`: a service's."""

    def __init__(
        self,
        rules: TracingSettings,
        sampler: Sampler,
        outlet: Outlet,
        clock: Clock,
        exemplified: Callable[[Observation, str], None],
        price: Callable[[str], Price | None],
    ) -> None:
        self._rules, self._sampler, self._outlet, self._clock = rules, sampler, outlet, clock
        self._exemplified, self._price = exemplified, price
        self._recent: OrderedDict[str, Trace] = OrderedDict()
        self._content = 0

    def begin(self, request_id: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace:
        """A request has come, with these headers."""
        trace = Trace(request_id, path, self._clock.monotonic(), self._clock.time(), *_own_ids(request_id))
        parent, state = None, b""
        for name, value in headers:
            if name == b"traceparent":
                parent = parse_parent(value)
            elif name == b"tracestate":
                state = state + b"," + value if state else value
        if parent is not None:
            trace.trace_id, trace.parent = parent.trace_id, parent.span_id
            if state and len(state) <= STATE_LENGTH and state.isascii():
                trace.state = state
        trace.sampled = self._sampler(trace.trace_id, parent)
        return trace

    def end(self, trace: Trace) -> None:
        """The request has ended: exports its trace, or holds it."""
        trace.ended = self._clock.monotonic()
        kept = self._worth(trace)
        if kept is not None:
            self._export(trace, kept)
        if trace.service is not None:
            self._hold(trace)

    def mirrored(self, trace: Trace, copies: tuple[Tried, ...]) -> None:
        """The copies of a request that has ended have ended, too: a failure brings the request's trace, as one of its own would."""
        if trace.kept is not None:
            self._export_copies(trace, copies)
            return
        held = self._recent.get(trace.request_id) is trace
        if held:
            self._content -= trace.content_bytes
        trace.copies = copies
        if _any_failed(copies):
            self._export(trace, "error")
        elif held:
            self._content += trace.content_bytes
            self._make_room()

    def feedback(
        self, request_id: str, *, service: str, revision: str, arm: str, kind: str, value: float | None, mark: Mark,
        comment: str | None, source: str, key: str,
    ) -> None:  # fmt: skip
        """A user said something of an answer. `key` is the feedback's own id: what was told once is not told again."""
        trace = self._recent.get(request_id)
        if trace is not None:
            if key in trace.marks:
                return
            trace.marks |= {key}
            trace_id, parent, kept = trace.trace_id, trace.span_id, trace.kept
        else:
            trace_id, parent = _own_ids(request_id)
            kept = "sampled" if self._sampler(trace_id, None) else None
        if kept is None:
            if mark != "bad":
                return
            kept = "feedback"
            if trace is not None:
                self._content -= trace.content_bytes
                self._export(trace, kept)
        self._outlet.put(
            Told(
                trace_id, parent, sha256(f"{request_id}\0{key}".encode()).hexdigest()[:16], request_id, service, revision,
                arm, kind, value, mark, comment if trace is not None and trace.may_keep_content else None, source,
                self._clock.time(), kept,
            )
        )  # fmt: skip

    def _worth(self, trace: Trace) -> Kept | None:
        if trace.sampled:
            return "sampled"
        if trace.failed:
            return "error"
        rules = self._rules
        first = trace.seconds_to_first_token
        if trace.ended - trace.began > rules.slow_seconds or first > rules.slow_first_token_seconds:
            return "slow"
        return None

    def _export(self, trace: Trace, kept: Kept) -> None:
        trace.kept = kept
        trace.price = self._price(trace.service) if trace.service is not None else None
        for one in trace.tries:
            self._exemplified(one.row, trace.trace_id)
        self._outlet.put(trace)
        if trace.copies:
            self._export_copies(trace, trace.copies)
            trace.copies = ()

    def _export_copies(self, trace: Trace, copies: tuple[Tried, ...]) -> None:
        for one in copies:
            self._exemplified(one.row, trace.trace_id)
        self._outlet.put(Mirrored(trace, copies))

    def _hold(self, trace: Trace) -> None:
        """Content of exported traces is the exporter's; of the others it counts here, and the oldest go when it is too much."""
        self._recent[trace.request_id] = trace
        if trace.kept is None:
            self._content += trace.content_bytes
        self._make_room()

    def _make_room(self) -> None:
        while self._recent and (
            len(self._recent) > self._rules.held_requests or self._content > self._rules.held_content_bytes
        ):
            _, oldest = self._recent.popitem(last=False)
            if oldest.kept is None:
                self._content -= oldest.content_bytes


def make_sampler(name: str, argument: str | None) -> Sampler:
    """The sampler that OpenTelemetry's variables name.

    Raises:
        ValueError: there is none of that name, or the argument is no share.
    """
    kind = name.removeprefix("parentbased_")
    if kind not in _SAMPLERS:
        raise ValueError(f"there is no sampler {name!r}: {', '.join(_SAMPLERS)}, each also with parentbased_ before it")
    ratio = float(argument or 1.0) if kind == "traceidratio" else float(kind == "always_on")
    if not 0 <= ratio <= 1:
        raise ValueError(f"a sampler's share lies between 0 and 1, not at {ratio:g}")
    return Sampler(ratio, parent_based=kind != name)
