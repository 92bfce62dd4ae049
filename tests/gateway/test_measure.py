"""Cutting and measuring streams: whatever the pieces, the same events, times and numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.errors import AttemptFailed
from services.gateway.measure import EVENT_BYTES, EventStream, Meter, Rename


def chunk(text: str) -> bytes:
    return b'{"model":"m-1","choices":[{"index":0,"delta":{"content":"%s"}}]}' % text.encode()


USAGE = b'{"model":"m-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'


def stream(ends: bytes, *, strip: bool = True) -> tuple[Meter, EventStream, bytes]:
    meter = Meter(0.0, keep_text=True)
    events = EventStream(meter, Rename("m-1", "assistant"), strip_usage=strip)
    datas = [chunk(""), chunk("a"), chunk("b c"), chunk("\u2028d"), USAGE, b"[DONE]"]
    lines = ends[: len(ends) // 2]
    return meter, events, b": hello" + ends + b"".join(b"event: x" + lines + b"data: " + data + ends for data in datas)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), max_size=30), st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]), st.booleans())
def test_the_cut_of_the_bytes_changes_nothing(sizes: list[int], ends: bytes, strip: bool) -> None:
    meter, events, sent = stream(ends, strip=strip)
    out, at = b"", 0
    for size in sizes:
        out += events.feed(sent[at : at + size], 1.0)
        at += size
    out += events.feed(sent[at:], 2.0) + events.close(3.0)
    assert meter.done
    assert meter.text == "ab c\u2028d"
    assert (meter.tokens_in, meter.tokens_out) == (3, 4)
    assert out.count(b"data: ") == (5 if strip else 6)
    assert out.count(b'"model":"assistant"') == (4 if strip else 5)
    assert b"m-1" not in out


def test_times_are_those_of_the_tokens() -> None:
    meter, events, sent = stream(b"\n\n")
    pieces = sent.split(b"event: x\n")
    for number, piece in enumerate(pieces):
        events.feed(piece, float(number))
    # pieces: comment, role, "a" at 2, "b c" at 3, "d" at 4; the engine counts four tokens
    assert meter.ttft == 2.0
    assert meter.gap_mean == pytest.approx(2.0 / 3)
    assert meter.gap_max == 1.0


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"data: nonsense\n\n", "invalid_answer"),
        (b'data: {"error":{"message":"x","code":500}}\n\n', "stream_error"),
        (b"data: " + b"x" * (EVENT_BYTES + 1), "invalid_answer"),
    ],
)
def test_what_is_no_answer_fails(sent: bytes, kind: str) -> None:
    with pytest.raises(AttemptFailed) as caught:
        EventStream(Meter(0.0), Rename("a", "b"), strip_usage=True).feed(sent, 1.0)
    assert caught.value.kind == kind


@pytest.mark.parametrize("delta", [b'{"tool_calls":[{"index":0}]}', b'{"reasoning_content":"hm"}', b'{"refusal":"no"}'])
def test_tool_calls_and_reasoning_are_tokens_too(delta: bytes) -> None:
    meter = Meter(0.0)
    meter.event(b'{"choices":[{"delta":{"role":"assistant","content":"","tool_calls":[]}}]}', 1.0)
    assert meter.ttft is None
    meter.event(b'{"choices":[{"delta":' + delta + b"}]}", 2.0)
    assert meter.ttft == 2.0


def test_a_models_name_in_the_text_is_left_alone() -> None:
    rename = Rename("m-1", 'my "model"')
    body = b'{"content":"say \\"model\\":\\"m-1\\"","model":"m-1"}'
    assert rename(body) == b'{"content":"say \\"model\\":\\"m-1\\"","model":"my \\"model\\""}'


def test_cached_tokens_are_taken_where_the_engine_tells() -> None:
    told = b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":%s}}'
    for details, cached in ((b'{"cached_tokens":6}', 6), (b"null", None), (b"{}", None)):
        meter = Meter(0.0)
        meter.event(told % details, 1.0)
        assert (meter.tokens_in, meter.tokens_cached) == (9, cached)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (b'{"message":{"content":"yes"},"finish_reason":"stop"}', False),
        (b'{"message":{"content":null,"refusal":null},"finish_reason":"length"}', False),
        (b'{"message":{"content":null,"refusal":"I cannot help with that."},"finish_reason":"stop"}', True),
        (b'{"message":{"content":""},"finish_reason":"content_filter"}', True),
        (b'{"text":"","finish_reason":"content_filter"}', True),
    ],
)
def test_a_refusal_is_seen_streamed_or_not(answer: bytes, refused: bool) -> None:
    whole, streamed = Meter(0.0), Meter(0.0)
    whole.whole(b'{"choices":[{"message":{"content":"first"}},' + answer + b"]}")
    streamed.event(b'{"choices":[' + answer.replace(b"message", b"delta") + b"]}", 1.0)
    streamed.event(b'{"choices":[{"delta":{}}]}', 2.0)
    assert (whole.refused, streamed.refused) == (refused, refused)
