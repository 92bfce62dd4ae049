"""What is measured of an engine's answer while it is relayed: first token, gaps between tokens, numbers of tokens, whole or cut off.

Times are taken by the caller, when bytes arrive from the engine, before anything else is done with them. Called for each chunk of each
stream, so only needed fields are decoded. Nothing here does I/O.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.gateway.errors import AttemptFailed

EVENT_BYTES: Final = 4 * 1024 * 1024
"""Longest event of a stream; beyond it the engine is at fault."""
ANSWER_BYTES: Final = 64 * 1024
"""Longest text kept of an answer (for the judge)."""

_NOTHING: Final = msgspec.Raw(b"null")


def _is_given(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in (b"null", b"[]")


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = _NOTHING
    function_call: msgspec.Raw = _NOTHING

    def has_token(self) -> bool:
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.refusal
            or _is_given(self.tool_calls)
            or _is_given(self.function_call)
        )


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    def is_refusal(self) -> bool:
        said = self.delta or self.message
        return self.finish_reason == "content_filter" or (said is not None and bool(said.refusal))


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NOTHING


_chunk = msgspec.json.Decoder(_Chunk)


class Meter:
    """The measurements of one answer. Durations are seconds since `started` (monotonic).

    Attributes:
        ttft: until the first token arrived; None before, and for answers that do not stream.
        gap_max: the longest wait between two arrivals of tokens.
        tokens_in, tokens_out: as the engine counts them. tokens_cached: of tokens_in, those it had, where it tells.
        done: the answer is whole.
        refused: the model or its server would not answer: a text in `refusal`, or `finish_reason` content_filter.
        text: the answer's first choice, where it is kept.
    """

    def __init__(self, started: float, *, keep_text: bool = False) -> None:
        self.started = started
        self.ttft: float | None = None
        self.gap_max: float | None = None
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.tokens_cached: int | None = None
        self.done = False
        self.refused = False
        self._arrivals = 0
        self._first_at = self._last_at = started
        self._text: list[str] | None = [] if keep_text else None
        self._kept = 0

    @property
    def text(self) -> str:
        return "".join(self._text or ())

    @property
    def tokens(self) -> int | None:
        """Tokens of prompt and answer together, as the engine counts them."""
        return (self.tokens_in or 0) + self.tokens_out if self.tokens_out is not None else None

    @property
    def arrivals(self) -> int:
        """Events with text that have come: hardly more than there were tokens."""
        return self._arrivals

    @property
    def gap_mean(self) -> float | None:
        """Mean seconds between tokens: first to last arrival, over the engine's count of tokens (of arrivals, where it counts none)."""
        tokens = self.tokens_out or self._arrivals
        if self.ttft is None or tokens < 2:
            return None
        return (self._last_at - self._first_at) / (tokens - 1)

    def event(self, data: bytes, now: float) -> bool:
        """Takes in one event's data; says whether it is a chunk of usage alone.

        Raises:
            AttemptFailed: the engine reports an error in the stream, or what it sends is no chunk.
        """
        if data == b"[DONE]":
            self.done = True
            return False
        try:
            chunk = _chunk.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            raise AttemptFailed("invalid_answer") from None
        if _is_given(chunk.error):
            raise AttemptFailed("stream_error")
        if chunk.usage is not None:
            self._count(chunk.usage)
        choices = chunk.choices
        if not choices:
            return chunk.usage is not None
        for choice in choices:
            if choice.is_refusal():
                self.refused = True
        for choice in choices:
            if choice.text or (choice.delta is not None and choice.delta.has_token()):
                self._token(now)
                if self._text is not None:
                    self._keep(choices[0])
                break
        return False

    def whole(self, body: bytes) -> None:
        """Takes in an answer that was not streamed.

        Raises:
            AttemptFailed: it is no JSON object of an answer's shape.
        """
        try:
            chunk = _chunk.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            raise AttemptFailed("invalid_answer") from None
        if chunk.choices is None:
            raise AttemptFailed("invalid_answer")
        if chunk.usage is not None:
            self._count(chunk.usage)
        self.refused = any(choice.is_refusal() for choice in chunk.choices)
        if self._text is not None and chunk.choices:
            self._keep(chunk.choices[0])
        self.done = True

    def _count(self, usage: _Usage) -> None:
        self.tokens_in = usage.prompt_tokens
        self.tokens_out = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self.tokens_cached = usage.prompt_tokens_details.cached_tokens

    def _token(self, now: float) -> None:
        if self.ttft is None:
            self.ttft = now - self.started
            self._first_at = now
        else:
            self.gap_max = max(self.gap_max or 0.0, now - self._last_at)
        self._last_at = now
        self._arrivals += 1

    def _keep(self, choice: _Choice) -> None:
        said = choice.delta or choice.message
        piece = choice.text or (said.content if said else None) or ""
        if choice.index == 0 and self._text is not None and self._kept < ANSWER_BYTES:
            self._text.append(piece)
            self._kept += len(piece)


class Rename:
    """Puts the client's name of a model where the engine wrote its own, in the bytes of an answer.

    The bytes `"model":"NAME"` cannot occur inside a JSON text (its quotes would be escaped), so no parsing is needed.
    """

    def __init__(self, engine_model: str, model: str) -> None:
        name, wanted = msgspec.json.encode(engine_model), msgspec.json.encode(model)
        self._pairs = ((b'"model":' + name, b'"model":' + wanted), (b'"model": ' + name, b'"model": ' + wanted))

    def __call__(self, data: bytes) -> bytes:
        for old, new in self._pairs:
            if old in data:
                return data.replace(old, new)
        return data


def data_of(event: bytes) -> bytes:
    """The data of one event; empty for a comment."""
    lines = (line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)


class EventStream:
    """Cuts an engine's bytes into events, measures each, and gives back the bytes for the client.

    An event ends with an empty line. Lines end with \\n, \\r\\n or \\r and with nothing else (U+2028 is text); the client gets \\n.
    """

    def __init__(self, meter: Meter, rename: Rename, *, strip_usage: bool) -> None:
        self._meter = meter
        self._rename = rename
        self._strip_usage = strip_usage
        self._rest = b""

    def feed(self, chunk: bytes, now: float) -> bytes:
        """The whole events that `chunk` completes, ready for the client; empty where it completes none.

        Raises:
            AttemptFailed: an event is too long, no chunk, or an error.
        """
        data = self._rest + chunk if self._rest else chunk
        held = b""
        if b"\r" in data:
            if data.endswith(b"\r"):
                data, held = data[:-1], b"\r"  # perhaps the first half of \r\n
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events = data.split(b"\n\n")
        rest = events.pop()
        self._rest = rest + held
        if len(self._rest) > EVENT_BYTES:
            raise AttemptFailed("invalid_answer")
        kept = [event for event in events if not self._take(event, now)]
        if len(kept) == len(events):
            return self._rename(data[: len(data) - len(rest)])
        return self._rename(b"".join(event + b"\n\n" for event in kept))

    def close(self, now: float) -> bytes:
        """What is left when the engine closes: an event without its empty line counts."""
        return self.feed(b"\n\n", now) if self._rest.strip(b"\r\n") else b""

    def _take(self, event: bytes, now: float) -> bool:
        """Measures one event; True when the client does not get it."""
        if event.startswith(b"data: ") and b"\n" not in event:
            data = event[6:]
        else:
            data = data_of(event)
            if not data:
                return False  # a comment that keeps the connection alive, or a field we do not know
        return self._meter.event(data, now) and self._strip_usage
