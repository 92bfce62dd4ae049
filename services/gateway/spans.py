"""From ended traces to OpenTelemetry's spans in protobuf (`ExportTraceServiceRequest`). Pure; the exporter calls it in a thread of its own.

Spans are built from what was noted, with opentelemetry-proto's messages: the SDK's span objects would cost each request a tenth of a
millisecond of its own time (docs/decisions.md). Names and attributes are those of `services.common.tracing`. Content goes in only where
the trace carries it, which the service's resource has to allow; answers go through the service's content filters first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.common import tracing as names
from services.common.tracing import Attribute, EventSpec, SpanSpec
from services.gateway.content_filters import Filters, sift_answer
from services.gateway.tracing import COPIES, Item, Mirrored, Told, Trace, Tried

Value = str | bool | int | float
Attributes = dict[Attribute, Value | None]
"""Those that are None are left out."""

CONTENT_LENGTH: Final = 32 * 1024
"""Characters of one text of a prompt or answer; longer ones are cut."""

_KINDS: Final = {"server": Span.SPAN_KIND_SERVER, "client": Span.SPAN_KIND_CLIENT, "internal": Span.SPAN_KIND_INTERNAL}
_SAMPLED: Final = 1  # the flag in `flags`
_whole = msgspec.json.Decoder(dict[str, Any])


def encode(items: Iterable[Item], resource: Mapping[str, str], *, tagged: bool) -> bytes:
    """The body of one export. `resource`: attributes of this process; `tagged`: also MLflow's tags of a trace."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.extend(_pair(key, value) for key, value in resource.items())
    scope = group.scope_spans.add()
    scope.scope.name = names.SCOPE
    for item in items:
        if isinstance(item, Trace):
            scope.spans.extend(_of_request(item, tagged))
        else:
            scope.spans.extend(_of_copies(item) if isinstance(item, Mirrored) else [_of_feedback(item)])
    body: bytes = request.SerializeToString()
    return body


def _of_request(trace: Trace, tagged: bool) -> Iterator[Span]:
    last = trace.tries[-1] if trace.tries else None
    status, error = trace.status, trace.error
    if error is None and last is not None:
        status, error = 499 if last.row.outcome == "cancelled" else status, last.row.error
    content = _content(trace, last)
    attributes: Attributes = {
        names.METHOD: "POST",
        names.ROUTE: trace.path,
        names.STATUS: status,
        names.ERROR: error,
        names.REQUEST_ID: trace.request_id,
        names.CLIENT_REQUEST_ID: trace.client_request_id,
        names.KEPT: trace.kept,
        names.SERVICE: trace.service,
        names.ARM: trace.arm,
        names.ROLLOUT: trace.rollout,
        names.STEP: trace.step,
        names.REVISION: last.row.revision if last is not None else None,
        names.VERSION: last.target.version if last is not None else None,
        names.STREAMED: last.row.streamed if last is not None else None,
        **_cost(trace, *trace.tries),
        **content,
    }
    began, ended = _nanos(trace, trace.began), _nanos(trace, trace.ended)
    span = _span(names.REQUEST, trace, f"POST {trace.path}", trace.span_id, trace.parent, began, ended, attributes)
    if tagged:
        pairs = ((names.MLFLOW_TAG + name, attributes[name]) for name in names.TAGGED)
        span.attributes.extend(_pair(name, value) for name, value in pairs if value is not None)
    if status >= 500 or (last is not None and last.row.outcome == "error"):
        span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=error or ""))
    yield span
    yield _admission(trace)
    for number, tried in enumerate(trace.tries):
        own: Attributes = {names.ATTEMPT: tried.row.attempt, **(content if tried is last else {})}
        yield from _of_attempt(names.INFERENCE, trace, tried, number, own)


def _of_copies(mirrored: Mirrored) -> Iterator[Span]:
    """Answers of copies go in where the request's own may; the prompt is the request's."""
    trace = mirrored.trace
    for number, copy in enumerate(mirrored.copies, COPIES):
        own: Attributes = {names.KIND: copy.row.kind, names.PAIR: copy.row.pair, names.REQUEST_ID: copy.row.request_id}
        if copy.answer is not None:
            own[names.OUTPUT_MESSAGES] = _said(copy.answer, trace.filters)
        yield from _of_attempt(names.MIRROR, trace, copy, number, own)


def _admission(trace: Trace) -> Span:
    began = _nanos(trace, trace.began)
    ended = _nanos(trace, trace.routed if trace.routed is not None else trace.ended)
    span = _span(names.ADMISSION, trace, "admission", trace.child(1), trace.span_id, began, ended, {})
    if trace.authenticated is not None:
        _event(span, names.AUTHENTICATED, _nanos(trace, trace.authenticated), {})
    if trace.read is not None:
        _event(span, names.BODY_READ, _nanos(trace, trace.read), {})
    return span


def _of_attempt(spec: SpanSpec, trace: Trace, tried: Tried, number: int, own: Attributes) -> Iterator[Span]:
    """`own`: attributes of this kind of attempt alone."""
    row, operation = tried.row, names.OPERATIONS[trace.path]
    attributes: Attributes = {
        names.OPERATION: operation,
        names.PROVIDER_NAME: names.PROVIDER,
        names.REQUEST_MODEL: row.service,
        names.RESPONSE_MODEL: row.revision,
        names.REVISION: row.revision,
        names.VERSION: tried.target.version,
        names.PROMPT_VERSION: tried.target.version if tried.target.system_prompt else None,
        names.ARM: row.arm,
        names.OUTCOME: row.outcome,
        names.STREAMED: row.streamed,
        names.STATUS: row.status,
        names.ERROR: row.error,
        names.INPUT_TOKENS: row.tokens_in,
        names.OUTPUT_TOKENS: row.tokens_out,
        names.CACHED_TOKENS: tried.tokens_cached,
        names.TIME_TO_FIRST_TOKEN: row.ttft,
        names.TIME_PER_OUTPUT_TOKEN: row.gap_mean,
        names.ADDRESS: tried.host,
        names.PORT: tried.port,
        **_cost(trace, tried),
        **own,
    }
    name, span_id = f"{operation} {row.service}", trace.child(2 + 2 * number)
    if spec is names.MIRROR:
        name = f"mirror {name}"
    began, ended = _nanos(trace, tried.began), _nanos(trace, tried.began + row.duration)
    span = _span(spec, trace, name, span_id, trace.span_id, began, ended, attributes)
    if tried.headers is not None:
        _event(span, names.HEADERS, _nanos(trace, tried.headers), {})
    if row.ttft is not None:
        first = _nanos(trace, tried.began + row.ttft)
        _event(span, names.FIRST_TOKEN, first, {names.TIME_TO_FIRST_TOKEN: row.ttft})
    if row.outcome == "error":
        span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=row.error or ""))
    yield span
    if row.ttft is not None:
        stream = trace.child(3 + 2 * number)
        yield _span(names.STREAM, trace, "stream", stream, span_id, _nanos(trace, tried.began + row.ttft), ended, {})


def _cost(trace: Trace, *tries: Tried) -> Attributes:
    amount = trace.cost(*tries)
    if amount is None or trace.price is None:
        return {}
    return {
        names.COST: amount,
        names.CURRENCY: trace.price.currency,
        names.COST_ESTIMATED: trace.price.estimated,
    }


def _of_feedback(told: Told) -> Span:
    at = round(told.at * 1e9)
    attributes: Attributes = {
        names.REQUEST_ID: told.request_id,
        names.SERVICE: told.service,
        names.REVISION: told.revision,
        names.ARM: told.arm,
        names.EVALUATION_NAME: told.kind,
        names.EVALUATION_LABEL: told.mark,
        names.KEPT: told.kept,
    }
    span = _span(names.FEEDBACK, told, f"feedback {told.kind}", told.span_id, told.parent, at, at, attributes)
    said: Attributes = {
        names.EVALUATION_NAME: told.kind,
        names.EVALUATION_VALUE: told.value,
        names.EVALUATION_LABEL: told.mark,
        names.EVALUATION_EXPLANATION: told.comment,
    }
    _event(span, names.EVALUATION, at, said)
    return span


def _span(
    spec: SpanSpec, of: Trace | Told, name: str, span_id: str, parent: str | None, began: int, ended: int, attributes: Attributes
) -> Span:  # fmt: skip
    """Times in nanoseconds since the epoch."""
    state = of.state if isinstance(of, Trace) else None
    return Span(
        trace_id=bytes.fromhex(of.trace_id),
        span_id=bytes.fromhex(span_id),
        parent_span_id=bytes.fromhex(parent or ""),
        trace_state=(state or b"").decode("ascii"),
        flags=_SAMPLED,
        name=name,
        kind=_KINDS[spec.kind],
        start_time_unix_nano=began,
        end_time_unix_nano=ended,
        attributes=_pairs(attributes),
    )


def _event(span: Span, spec: EventSpec, at: int, attributes: Attributes) -> None:
    span.events.add(time_unix_nano=at, name=spec.name, attributes=_pairs(attributes))


def _nanos(trace: Trace, moment: float) -> int:
    """Nanoseconds since the epoch of a monotonic moment."""
    return round((trace.at + (moment - trace.began)) * 1e9)


def _pairs(attributes: Attributes) -> list[KeyValue]:
    return [
        _pair(key, value) if key in _VARIED else _known_pair(key, value)
        for key, value in attributes.items()
        if value is not None
    ]


def _pair(key: str, value: Value) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(double_value=value))


# Services, revisions, outcomes, numbers of tokens: the same few again and again.
_known_pair = lru_cache(maxsize=4096, typed=True)(_pair)
_VARIED: Final = frozenset(
    {
        names.REQUEST_ID, names.CLIENT_REQUEST_ID, names.PAIR, names.TIME_TO_FIRST_TOKEN, names.TIME_PER_OUTPUT_TOKEN, names.COST,
        names.INPUT_MESSAGES, names.OUTPUT_MESSAGES, names.EVALUATION_EXPLANATION,
    }
)  # fmt: skip
"""Attributes whose values are hardly ever met twice."""


def _content(trace: Trace, last: Tried | None) -> Attributes:
    """Prompt and answer as the GenAI conventions write messages; nothing where the trace does not carry them."""
    if not trace.may_keep_content or trace.prompt is None:
        return {}
    messages = [_message(role, text) for role, text in _prompt(trace.prompt)]
    found: Attributes = {names.INPUT_MESSAGES: msgspec.json.encode(messages).decode()}
    if last is not None and last.answer is not None:
        found[names.OUTPUT_MESSAGES] = _said(last.answer, trace.filters)
    return found


def _said(answer: str | bytes, filters: Filters) -> str:
    return msgspec.json.encode([_message("assistant", _answer(answer, filters))]).decode()


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text[:CONTENT_LENGTH]}]}


def _prompt(raw: bytes) -> Iterator[tuple[str, str]]:
    prompt = msgspec.json.decode(raw)
    if isinstance(prompt, str):
        yield "user", prompt
        return
    for one in prompt if isinstance(prompt, list) else ():
        if isinstance(one, str):
            yield "user", one
        elif isinstance(one, dict):
            yield str(one.get("role", "user")), "\n".join(_texts(one.get("content")))


def _texts(content: object) -> Iterator[str]:
    """The texts of a message's content; pictures and sound are left out."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def _answer(answer: str | bytes, filters: Filters) -> str:
    if isinstance(answer, str):
        return sift_answer(filters, answer)
    choice: Any = next(iter(_whole.decode(answer).get("choices") or ()), {})
    text = choice.get("text") or (choice.get("message") or {}).get("content") or ""
    return sift_answer(filters, text) if isinstance(text, str) else ""
