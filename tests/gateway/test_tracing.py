"""Traces of a real gateway, as a collector gets them."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from services.common import tracing as names
from services.common.pricing import STALE_SECONDS, Price, document_of, key_of
from services.common.routing import ContentFilter, Mirror, Route, Rules
from services.common.tracing import Attribute
from services.gateway.otlp_settings import OtlpSettings
from services.gateway.prices import PriceList
from services.gateway.trace_exporter import TraceExporter
from services.gateway.tracing import Sampler, Told
from tests.fakes.collector import Collector, Span, collect
from tests.fakes.gateway import KEY, RunningGateway, gateway_settings, running_gateway
from tests.fakes.openai_engine import Behaviour, Engine
from tests.fakes.recorded import observations, until
from tests.gateway.test_feedback import say

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT = "what did the oracle whisper"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collect(Collector()) as running:
        yield running


def otlp(collector: Collector, ratio: float = 1.0, **changes: Any) -> OtlpSettings:
    values: dict[str, Any] = {
        "endpoint": collector.endpoint, "delay": 0.02, "resource": {"service.name": "gateway"}, "sampler": Sampler(ratio, True),
    }  # fmt: skip
    return OtlpSettings(**(values | changes))


async def ask(
    gateway: RunningGateway, *, traceparent: str | None = None, headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, str]:
    """Status and id of one chat completion."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": PROMPT}], "user": "zorro", **fields}
    sent = {"Authorization": f"Bearer {KEY}", **(headers or {})}
    if traceparent is not None:
        sent["traceparent"] = traceparent
    async with (
        aiohttp.ClientSession(headers=sent) as http,
        http.post(f"{gateway.url}/v1/chat/completions", json=body) as response,
    ):
        await response.read()
        return response.status, response.headers["x-request-id"]


def mine(spans: list[Span], trace_id: str) -> list[Span]:
    return [span for span in spans if span.trace_id == trace_id]


async def test_one_trace_holds_the_phases_of_a_request(
    start: Any, idle: Route, stable: Engine, collector: Collector
) -> None:
    stable.behaviour = Behaviour(first_after=0.02, gap=0.005)
    prompted = msgspec.structs.replace(idle, stable=msgspec.structs.replace(idle.stable, system_prompt="Be brief."))
    gateway = await start(prompted, otlp=otlp(collector))
    _, request_id = await ask(gateway, stream=True, traceparent=CLIENT, headers={"tracestate": "vendor=1"})
    trace = await until(lambda: collector.trace("0af7651916cd43dd8448eb211c80319c"))
    root, admission = trace["POST /v1/chat/completions"], trace["admission"]
    inference, stream = trace["chat assistant"], trace["stream"]

    assert (root.parent, admission.parent, inference.parent) == ("b7ad6b7169203331", root.span_id, root.span_id)
    assert stream.parent == inference.span_id
    assert [one.kind for one in (root, admission, inference, stream)] == ["server", "internal", "client", "internal"]
    assert root.start <= admission.start <= admission.end <= inference.start <= stream.start <= stream.end <= root.end
    assert all(span.state == "vendor=1" and not span.failed for span in trace.values())
    # The engine's own spans are children of the attempt.
    assert stable.headers[0]["traceparent"] == f"00-{root.trace_id}-{inference.span_id}-01"
    assert stable.headers[0]["tracestate"] == "vendor=1"

    assert list(admission.events) == ["understudy.authenticated", "understudy.body_read"]
    first = inference.events["gen_ai.first_token"]
    assert first["gen_ai.server.time_to_first_token"] >= 0.02
    assert inference.events["understudy.engine.headers"]["at"] <= first["at"] == stream.start
    assert root.attributes == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "understudy.request.id": request_id, "understudy.trace.kept": "sampled", "understudy.service": "assistant",
        "understudy.arm": "stable", "understudy.revision": "assistant-v1-aaaa", "understudy.model.version": "1",
        "understudy.streamed": True,
    }  # fmt: skip
    known = dict(inference.attributes)
    assert known.pop("gen_ai.server.time_to_first_token") == first["gen_ai.server.time_to_first_token"]
    assert 0 < known.pop("gen_ai.server.time_per_output_token") < 1
    assert known == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "assistant",
        "gen_ai.response.model": "assistant-v1-aaaa", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 6,
        "understudy.revision": "assistant-v1-aaaa", "understudy.model.version": "1", "understudy.prompt.version": "1",
        "understudy.arm": "stable", "understudy.attempt": 0, "understudy.outcome": "ok", "understudy.streamed": True,
        "http.response.status_code": 200, "server.address": "127.0.0.1", "server.port": stable.port,
    }  # fmt: skip
    assert collector.resource == {"service.name": "gateway"}


async def test_every_name_is_in_the_vocabulary(
    start: Any, canary: Route, candidate: Engine, collector: Collector
) -> None:
    candidate.behaviour = Behaviour(status=500)
    allowed = msgspec.structs.replace(canary, trace_content=True)
    gateway = await start(allowed, otlp=otlp(collector))
    for user in range(6):
        _, request_id = await ask(gateway, user=f"user-{user}", stream=user % 2 == 0)
        await say(gateway, request_id=request_id, kind="rating", value=1, comment="no")
    await until(lambda: len(collector.named("feedback rating")) == 6)
    known = {str(value) for value in vars(names).values() if isinstance(value, Attribute)}
    events = {event.name for spec in names.SPANS for event in spec.events}
    for span in collector.spans:
        assert set(span.attributes) <= known
        assert set(span.events) <= events
    declared = {str(attribute) for spec in names.SPANS for attribute in spec.attributes}
    declared |= {str(key) for spec in names.SPANS for event in spec.events for key in event.attributes}
    assert declared == known  # each is in the reference page


def rehearsed(canary: Route, **changes: Any) -> Route:
    mirror = Mirror(salt="ab" * 16, share=10_000, in_flight=9, content=False)
    return msgspec.structs.replace(canary, stage="rehearsal", weight=0, mirror=mirror, **changes)


async def test_mirrored_copies_are_in_the_trace_of_the_request_and_no_one_takes_them_for_its_answer(
    start: Any, canary: Route, candidate: Engine, collector: Collector
) -> None:
    candidate.behaviour = Behaviour(first_after=0.02)
    gateway = await start(rehearsed(canary), otlp=otlp(collector))
    _, request_id = await ask(gateway, traceparent=CLIENT)
    copies = await until(lambda: len(found := collector.named("mirror chat assistant")) == 2 and found)
    spans = mine(collector.spans, "0af7651916cd43dd8448eb211c80319c")
    [root] = [span for span in spans if span.kind == "server"]
    [answer] = [span for span in spans if span.name == "chat assistant"]
    by_arm = {span.attributes["understudy.arm"]: span for span in copies}
    assert {arm: span.attributes["understudy.revision"] for arm, span in by_arm.items()} == {
        "candidate": "assistant-v2-bbbb",
        "control": "assistant-v1-aaaa",
    }
    assert answer.attributes["understudy.arm"] == "stable"
    for span in copies:
        assert (span.parent, span.kind, span.failed) == (root.span_id, "client", False)
        assert span.start >= answer.end
        assert (span.attributes["understudy.kind"], span.attributes["understudy.pair"]) == ("mirror", request_id)
        assert span.attributes["understudy.request.id"] != request_id
        assert span.attributes["gen_ai.usage.output_tokens"] == 6
        assert span.events["gen_ai.first_token"]["gen_ai.server.time_to_first_token"] > 0
        assert [one.parent for one in spans if one.name == "stream" and one.parent == span.span_id]
    assert len({span.span_id for span in spans}) == len(spans) == 7
    # The engine's own spans join.
    assert candidate.headers[0]["traceparent"] == f"00-{root.trace_id}-{by_arm['candidate'].span_id}-01"


async def test_a_copy_that_fails_brings_the_request_and_others_wait_with_it(
    start: Any, canary: Route, candidate: Engine, collector: Collector, store: Any
) -> None:
    gateway = await start(rehearsed(canary), otlp=otlp(collector, ratio=0.0))
    _, blamed = await ask(gateway, user="first")
    await copied(store, 2)
    assert candidate.headers[0]["traceparent"].endswith("-00")
    candidate.behaviour = Behaviour(status=500)
    _, failed = await ask(gateway, user="second")
    await until(lambda: len(collector.named("mirror chat assistant")) == 2)
    [root] = collector.named("POST /v1/chat/completions")
    assert (root.attributes["understudy.request.id"], root.attributes["understudy.trace.kept"]) == (failed, "error")
    assert not root.failed
    [broken] = [span for span in collector.named("mirror chat assistant") if span.failed]
    assert (broken.attributes["understudy.arm"], broken.attributes["error.type"]) == ("candidate", "status_500")
    await say(gateway, request_id=blamed, kind="thumb", value=-1)
    copies = await until(lambda: len(found := collector.named("mirror chat assistant")) == 4 and found)
    assert [span.attributes["understudy.pair"] for span in copies[2:]] == [blamed, blamed]


@pytest.mark.parametrize("allowed", [False, True])
async def test_answers_of_copies_are_in_traces_where_the_service_allows_it_and_as_filters_leave_them(
    start: Any, canary: Route, candidate: Engine, collector: Collector, allowed: bool
) -> None:
    candidate.behaviour = Behaviour(words=("call", " 555-1234", " now"))
    digits = ContentFilter(name="phone", applies_to="answer", pattern=r"\d{3}-\d{4}", action="redact", max_length=20)
    gateway = await start(
        rehearsed(canary, trace_content=allowed, rules=Rules(content_filters=(digits,))), otlp=otlp(collector)
    )
    await ask(gateway)
    copies = await until(lambda: len(found := collector.named("mirror chat assistant")) == 2 and found)
    said = {span.attributes["understudy.arm"]: span.attributes.get("gen_ai.output.messages") for span in copies}
    assert ("call [phone] now" in (said["candidate"] or "")) is allowed
    assert b"555-1234" not in b"".join(collector.bodies)
    if not allowed:
        assert set(said.values()) == {None}


async def test_what_copies_hold_of_content_is_bounded_with_the_rest(
    start: Any, canary: Route, candidate: Engine, collector: Collector, store: Any
) -> None:
    candidate.behaviour = Behaviour(words=("x" * 4_000,))
    gateway = await start(
        rehearsed(canary, trace_content=True), otlp=otlp(collector, ratio=0.0), tracing={"held_content_bytes": 5_000}
    )
    tracer = gateway.app.completions._tracer
    for user in range(3):
        await ask(gateway, user=f"user-{user}")
        await copied(store, 2 * user + 2)
    assert 4_000 < tracer._content <= 5_000
    assert len(tracer._recent) == 1


async def copied(store: Any, count: int) -> None:
    """So many copies have ended."""
    await until(lambda: len([row for row in observations(store) if row.kind == "mirror"]) == count)


async def test_attempts_and_requests_carry_their_cost_where_the_controller_told_prices(
    start: Any, canary: Route, stable: Engine, candidate: Engine, collector: Collector, store: Any
) -> None:
    candidate.behaviour = Behaviour(status=500)
    hourly = Price(at=store.now(), currency="EUR", seconds={"assistant-v1-aaaa": 2.0, "assistant-v2-bbbb": 1.0})
    store.keep_state(key_of("assistant"), store.now(), document_of(hourly))
    gateway = await start(canary, otlp=otlp(collector))
    await priced(gateway)
    for user in range(12):
        await ask(gateway, user=f"user-{user}")
    failed = await until(lambda: [span for span in collector.named("chat assistant") if span.failed])
    spans = mine(collector.spans, failed[0].trace_id)
    [root] = [span for span in spans if span.kind == "server"]
    first, second = (span for span in spans if span.name == "chat assistant")
    costs = [span.attributes["understudy.cost.amount"] for span in (first, second, root)]
    assert costs[0] == pytest.approx((first.end - first.start) / 1e9, abs=1e-3)
    assert costs[1] == pytest.approx(2 * (second.end - second.start) / 1e9, abs=1e-3)
    assert costs[2] == pytest.approx(costs[0] + costs[1])
    for span in (root, first, second):
        assert (span.attributes["understudy.cost.currency"], span.attributes["understudy.cost.estimated"]) == (
            "EUR",
            True,
        )
    assert not any("understudy.cost.amount" in span.attributes for span in collector.named("admission"))


async def test_tokens_cost_their_price_and_an_old_price_is_none(
    start: Any, idle: Route, collector: Collector, store: Any, tmp_path: Any
) -> None:
    by_token = Price(at=store.now(), currency="USD", tokens=(1e-3, 1e-4, 1e-2))
    store.keep_state(key_of("assistant"), store.now(), document_of(by_token))
    gateway = await start(idle, otlp=otlp(collector))
    await priced(gateway)
    await ask(gateway)
    [root] = await until(lambda: collector.named("POST /v1/chat/completions"))
    assert root.attributes["understudy.cost.amount"] == pytest.approx(7 * 1e-3 + 6 * 1e-2)
    assert root.attributes["understudy.cost.estimated"] is False
    old = msgspec.structs.replace(by_token, at=store.now() - 7_200)
    store.keep_state(key_of("assistant"), store.now(), document_of(old))
    reader = PriceList(store, gateway.app.completions._table, ThreadPoolExecutor(1))
    assert reader._read(["assistant"], store.now() - STALE_SECONDS) == {}


async def priced(gateway: RunningGateway) -> None:
    """The gateway has read the service's price."""
    assert gateway.app.completions is not None
    tracer = gateway.app.completions._tracer
    assert tracer is not None
    await until(lambda: tracer._price("assistant"))


async def test_a_fallback_is_two_attempts_in_one_trace(
    start: Any, canary: Route, candidate: Engine, collector: Collector
) -> None:
    candidate.behaviour = Behaviour(status=500)
    gateway = await start(canary, otlp=otlp(collector, ratio=0.0))
    for user in range(12):
        await ask(gateway, user=f"user-{user}")
    failed = await until(lambda: [span for span in collector.named("chat assistant") if span.failed])
    spans = mine(collector.spans, failed[0].trace_id)
    attempts = [span for span in spans if span.name == "chat assistant"]
    assert [(span.attributes["understudy.arm"], span.attributes["understudy.outcome"]) for span in attempts] == [
        ("candidate", "error"),
        ("candidate", "ok"),
    ]
    assert [span.attributes["understudy.revision"] for span in attempts] == ["assistant-v2-bbbb", "assistant-v1-aaaa"]
    assert len({span.span_id for span in spans}) == len(spans)
    [root] = [span for span in spans if span.kind == "server"]
    assert root.attributes["understudy.trace.kept"] == "error"
    assert not root.failed  # the user got an answer


async def test_failures_and_slow_requests_are_always_kept_and_others_are_not(
    start: Any, idle: Route, stable: Engine, collector: Collector
) -> None:
    rules = {"slow_seconds": 0.3, "slow_first_token_seconds": 0.1}
    gateway = await start(idle, otlp=otlp(collector, ratio=0.0), tracing=rules)
    await ask(gateway)
    assert stable.headers[0]["traceparent"].endswith("-00")  # the engine need not keep its spans either
    stable.behaviour = Behaviour(status=503)
    status, failed = await ask(gateway)
    stable.behaviour = Behaviour(first_after=0.15)
    _, late = await ask(gateway, stream=True)
    stable.behaviour = Behaviour(status=400)
    await ask(gateway)  # the client's mistake
    stable.behaviour = Behaviour()
    await ask(gateway, model="nobody")
    roots = await until(lambda: (found := collector.named("POST /v1/chat/completions")) and len(found) == 2 and found)
    kept = {root.attributes["understudy.request.id"]: root for root in roots}
    assert {key: root.attributes["understudy.trace.kept"] for key, root in kept.items()} == {
        failed: "error",
        late: "slow",
    }
    assert kept[failed].failed
    assert kept[failed].attributes["http.response.status_code"] == status
    assert kept[failed].attributes["error.type"] == "overloaded"


async def test_a_bad_mark_brings_the_request_back(start: Any, idle: Route, collector: Collector) -> None:
    gateway = await start(idle, otlp=otlp(collector, ratio=0.0))
    _, praised = await ask(gateway)
    _, blamed = await ask(gateway)
    await say(gateway, request_id=praised, kind="thumb", value=1)
    for _ in range(2):  # the second changes nothing
        await say(gateway, request_id=blamed, kind="thumb", value=-1, id="f1")
    [told] = await until(lambda: collector.named("feedback thumb"))
    [root] = collector.named("POST /v1/chat/completions")
    assert root.attributes["understudy.request.id"] == blamed
    assert root.attributes["understudy.trace.kept"] == "feedback"
    assert (told.trace_id, told.parent) == (root.trace_id, root.span_id) == (blamed.replace("-", ""), root.span_id)
    said = dict(told.events["gen_ai.evaluation.result"])
    del said["at"]
    assert said == {
        "gen_ai.evaluation.name": "thumb", "gen_ai.evaluation.score.value": -1.0, "gen_ai.evaluation.score.label": "bad"
    }  # fmt: skip


async def test_feedback_finds_the_trace_of_another_gateways_answer(
    start: Any, idle: Route, collector: Collector, tmp_path: Any
) -> None:
    first = await start(idle, otlp=otlp(collector, ratio=0.0))
    other = await start(None, otlp=otlp(collector, ratio=0.0), name="gateway-2", state_dir=tmp_path / "other")
    _, request_id = await ask(first)
    await say(other, request_id=request_id, kind="thumb", value=-1)
    [told] = await until(lambda: collector.named("feedback thumb"))
    assert (told.trace_id, told.parent) == (request_id.replace("-", ""), request_id.replace("-", "")[16:])


async def test_held_requests_are_bounded(start: Any, idle: Route, collector: Collector) -> None:
    gateway = await start(idle, otlp=otlp(collector, ratio=0.0), tracing={"held_requests": 2})
    asked = [(await ask(gateway))[1] for _ in range(4)]
    for request_id in asked:
        await say(gateway, request_id=request_id, kind="thumb", value=-1)
    await until(lambda: len(collector.named("feedback thumb")) == 4)
    roots = collector.named("POST /v1/chat/completions")
    assert [root.attributes["understudy.request.id"] for root in roots] == asked[2:]


async def test_the_garbage_collector_does_not_walk_what_is_held(start: Any, idle: Route, collector: Collector) -> None:
    gateway = await start(idle, otlp=otlp(collector, ratio=0.0))
    _, request_id = await ask(gateway, stream=True)
    held = gateway.app.completions._tracer._recent[request_id]
    gc.collect()  # by which tuples of such objects are left alone, too
    assert [one for one in (held, held.tries, *held.tries, held.tries[0].row) if gc.is_tracked(one)] == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_no_text_leaves_where_the_service_does_not_allow_it(
    start: Any, idle: Route, stable: Engine, collector: Collector, streamed: bool
) -> None:
    stable.behaviour = Behaviour(words=("the", " oracle's", " answer"))
    hidden = msgspec.structs.replace(idle, stable=msgspec.structs.replace(idle.stable, system_prompt="Secret rule."))
    gateway = await start(hidden, otlp=otlp(collector))
    _, request_id = await ask(gateway, stream=streamed, headers={"X-User-Id": "zorro@example.com"})
    await say(gateway, request_id=request_id, kind="thumb", value=-1, comment="bad oracle")
    stable.behaviour = Behaviour(status=400, error=f"cannot read {PROMPT}")
    await ask(gateway, stream=streamed)
    await until(lambda: collector.named("feedback thumb") and len(collector.named("chat assistant")) == 2)
    everything = b"".join(collector.bodies).lower()
    for text in (b"oracle", b"secret rule", b"zorro", KEY.encode()):
        assert text not in everything


@pytest.mark.parametrize("streamed", [False, True])
async def test_text_goes_along_where_the_service_allows_it(
    start: Any, idle: Route, stable: Engine, collector: Collector, streamed: bool
) -> None:
    stable.behaviour = Behaviour(words=("call", " 555-1234", " now"))
    digits = ContentFilter(name="phone", applies_to="both", pattern=r"\d{3}-\d{4}", action="redact", max_length=20)
    allowed = msgspec.structs.replace(idle, trace_content=True, rules=Rules(content_filters=(digits,)))
    gateway = await start(allowed, otlp=otlp(collector))
    parts = [{"type": "text", "text": "mine is 555-9876"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    _, request_id = await ask(gateway, stream=streamed, messages=[{"role": "user", "content": parts}])
    await say(gateway, request_id=request_id, kind="comment", comment="thanks")
    trace = await until(lambda: collector.trace(request_id.replace("-", "")))
    for span in (trace["POST /v1/chat/completions"], trace["chat assistant"]):
        [asked] = msgspec.json.decode(span.attributes["gen_ai.input.messages"])
        [told] = msgspec.json.decode(span.attributes["gen_ai.output.messages"])
        assert asked == {"role": "user", "parts": [{"type": "text", "content": "mine is [phone]"}]}
        assert told == {"role": "assistant", "parts": [{"type": "text", "content": "call [phone] now"}]}
    [feedback] = await until(lambda: collector.named("feedback comment"))
    assert feedback.events["gen_ai.evaluation.result"]["gen_ai.evaluation.explanation"] == "thanks"


@pytest.mark.parametrize(
    "header",
    [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "nonsense",
    ],
)
async def test_a_parent_that_is_none_begins_a_trace_of_its_own(
    start: Any, idle: Route, collector: Collector, header: str
) -> None:
    gateway = await start(idle, otlp=otlp(collector))
    _, request_id = await ask(gateway, traceparent=header)
    [root] = await until(lambda: collector.named("POST /v1/chat/completions"))
    assert (root.trace_id, root.parent) == (request_id.replace("-", ""), "")


async def test_a_collector_that_fails_costs_spans_and_no_request(start: Any, idle: Route, collector: Collector) -> None:
    collector.statuses = [400]
    gateway = await start(idle, otlp=otlp(collector, queue=8))
    await ask(gateway)
    await until(lambda: metric(gateway, "understudy_gateway_spans_dropped_total") == 3)
    collector.rejects = 1
    assert (await ask(gateway))[0] == 200
    await until(lambda: metric(gateway, "understudy_gateway_spans_exported_total") == 2)
    assert metric(gateway, "understudy_gateway_spans_dropped_total") == 4


async def test_an_export_is_tried_again_and_the_queue_is_bounded(
    start: Any, idle: Route, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.trace_exporter.PAUSES", (0.2, 0.2))
    collector.statuses = [503]
    gateway = await start(idle, otlp=otlp(collector, queue=6))
    await ask(gateway)
    await until(lambda: not collector.statuses)
    for _ in range(3):  # two fit
        await ask(gateway)
    assert metric(gateway, "understudy_gateway_spans_dropped_total") == 3
    await until(lambda: metric(gateway, "understudy_gateway_spans_exported_total") == 9)


async def test_what_waits_is_sent_at_the_end(
    start: Any, idle: Route, collector: Collector, store: Any, tmp_path: Any
) -> None:
    store.publish_route(idle)
    settings = gateway_settings(store.url, tmp_path / "state")
    async with running_gateway(settings, otlp=otlp(collector, delay=60.0)) as gateway:
        await ask(gateway)
        assert not collector.spans
    assert len(collector.spans) == 3


async def test_histograms_show_examples_by_trace(start: Any, idle: Route, collector: Collector) -> None:
    gateway = await start(idle, otlp=otlp(collector))
    _, request_id = await ask(gateway, stream=True)
    await until(lambda: collector.spans)
    accepts = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    async with aiohttp.ClientSession(headers=accepts) as http, http.get(f"{gateway.url}/metrics") as response:
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    for name in ("gen_ai_server_time_to_first_token_seconds", "gen_ai_server_request_duration_seconds"):
        [example] = [sample.exemplar for sample in families[name].samples if sample.exemplar]
        assert example.labels == {"trace_id": request_id.replace("-", "")}
        assert example.value > 0
    assert families["understudy_gateway_requests"].type == "counter"
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as response:
        assert "trace_id" not in await response.text()


async def test_without_tracing_nothing_of_it_exists(start: Any, idle: Route, stable: Engine) -> None:
    gateway = await start(idle)
    await ask(gateway, traceparent=CLIENT)
    assert "traceparent" not in stable.headers[0]
    assert gateway.app.completions._tracer is None  # type: ignore[union-attr]
    assert metric(gateway, "understudy_gateway_spans_exported_total") == 0


def test_without_tracing_opentelemetry_is_not_imported() -> None:
    code = "import sys, services.gateway.__main__; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def metric(gateway: RunningGateway, name: str) -> float | None:
    assert gateway.app.completions is not None
    return gateway.app.completions._metrics.registry.get_sample_value(name)


async def test_what_a_collector_that_is_away_leaves_is_counted_at_the_end() -> None:
    exporter = TraceExporter(OtlpSettings(endpoint="http://127.0.0.1:9/v1/traces", delay=60.0))
    exporter.start()
    for number in range(5):
        exporter.put(
            Told(
                "ab" * 16, "cd" * 8, f"{number:016x}", "r", "s", "v", "a", "thumb", 1, "good", None, "t", 1.0, "sampled"
            )
        )
    await exporter.close(2.0)
    assert (exporter.exported, exporter.dropped) == (0, 5)
