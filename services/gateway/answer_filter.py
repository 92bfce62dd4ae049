"""An answer on its way to the client, through a service's content filters: whole, or as the events of a stream.

Made for each attempt at a service that filters answers, and only there. Each text of each choice (content, reasoning, refusal, arguments
of a tool call) is filtered for itself. Only the fields named here go on: others, log probabilities and token numbers among them, would
repeat what was withheld.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from services.gateway.content_filters import Filters, Hits, Stream, sift
from services.gateway.errors import AttemptFailed
from services.gateway.measure import data_of

_ENVELOPE: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage")
_TEXTS: Final = ("reasoning_content", "reasoning", "content", "refusal")
_DONE: Final = b"[DONE]"

_encode = msgspec.json.Encoder().encode
_Json = dict[str, Any]
_Channel = tuple[str, int]
"""A text of a choice: its field and, of a tool call, the call's number."""


class _Choice:
    """One choice of a stream and its texts under way."""

    def __init__(self) -> None:
        self.streams: dict[_Channel, Stream] = {}
        self.hits = Hits()
        self.ended = False


class AnswerFilter:
    """One answer; `expected`: how many choices it will have."""

    def __init__(self, filters: Filters, expected: int) -> None:
        self._filters = filters
        self._expected = expected
        self._choices: dict[int, _Choice] = {}
        self._envelope: _Json = {}
        self.hits: list[Hits] = []
        """What was done, by choice."""

    @property
    def blocked(self) -> str | None:
        """Name of a filter that blocked a choice."""
        return next((hits.blocked for hits in self.hits if hits.blocked is not None), None)

    @property
    def over(self) -> bool:
        """Every choice was blocked: the engine works for nobody."""
        return sum(hits.blocked is not None for hits in self.hits) >= self._expected

    def whole(self, body: bytes) -> bytes:
        """An answer in one piece; of a choice that is blocked the finish reason is left.

        Raises:
            AttemptFailed: it cannot be read.
        """
        answer = _decoded(body)
        choices = [self._whole_choice(given) for given in answer["choices"]]
        return _encode({key: answer[key] for key in _ENVELOPE if key in answer} | {"choices": choices})

    def feed(self, events: bytes) -> bytes:
        """What the client gets for whole events of a stream.

        Raises:
            AttemptFailed: one cannot be read.
        """
        told = b""
        for event in events.split(b"\n\n"):
            if event and not self.over:
                told += self._event(event)
        return told

    def _whole_choice(self, given: _Json) -> _Json:
        hits = Hits()
        self.hits.append(hits)
        made = _bare(given, "message")
        for channel, text in _texts(given, "message"):
            _put(made, "message", channel, sift(self._filters, text, hits))
        if hits.blocked is None:
            return made
        withheld = {"text": ""} if "text" in made else {"message": {"role": "assistant", "content": ""}}
        return {"index": made["index"], "finish_reason": "content_filter", **withheld}

    def _event(self, event: bytes) -> bytes:
        data = data_of(event)
        if not data:
            return event + b"\n\n"  # keeps the connection alive
        if data == _DONE:
            return self._remainder() + _said(_DONE)
        chunk = _decoded(data)
        choices = [made for given in chunk.get("choices") or () if (made := self._choice(given)) is not None]
        if chunk.get("choices") and not choices:
            return b""
        envelope = {key: chunk[key] for key in _ENVELOPE if key in chunk}
        self._envelope = {key: value for key, value in envelope.items() if key != "usage"}
        told = _said(_encode({**envelope, "choices": choices}))
        return told + _said(_DONE) if self.over else told

    def _choice(self, given: _Json) -> _Json | None:
        """What the client gets of a choice; None where nothing can go on yet."""
        choice = self._choices.get(given.get("index", 0))
        if choice is None:
            choice = self._choices[given.get("index", 0)] = _Choice()
            self.hits.append(choice.hits)
        if choice.ended:
            return None
        made = _bare(given, "delta")
        texts = list(_texts(given, "delta"))
        if texts:  # a text ends where another begins
            self._end(choice, made, choice.streams.keys() - {channel for channel, _ in texts})
        for channel, text in texts:
            if channel not in choice.streams:
                choice.streams[channel] = Stream(self._filters, choice.hits)
            if choice.hits.blocked is None:
                _put(made, "delta", channel, choice.streams[channel].push(text))
        if made["finish_reason"] is not None:
            self._end(choice, made, set(choice.streams))
        if choice.hits.blocked is not None:
            made["finish_reason"] = "content_filter"
            made.pop("stop_reason", None)
        choice.ended = made["finish_reason"] is not None
        return made if choice.ended or made.get("text") or made.get("delta") else None

    def _end(self, choice: _Choice, made: _Json, channels: set[_Channel]) -> None:
        """Texts that are complete: what was held back of them goes on."""
        for channel in sorted(channels):
            _put(made, "delta", channel, choice.streams.pop(channel).push("", last=True))

    def _remainder(self) -> bytes:
        """What an engine that names no finish reason would leave behind."""
        rest = []
        for index, choice in self._choices.items():
            if not choice.ended and choice.streams:
                made = _bare({"index": index} | ({"text": ""} if ("text", 0) in choice.streams else {}), "delta")
                self._end(choice, made, set(choice.streams))
                if choice.hits.blocked is not None:
                    made["finish_reason"] = "content_filter"
                rest.append(made)
        return _said(_encode({**self._envelope, "choices": rest})) if rest else b""


def _texts(given: _Json, field: str) -> Iterator[tuple[_Channel, str]]:
    """The texts of a choice that hold anything."""
    message = given.get(field) or {}
    calls = [(("tool_calls", number), call.get("function")) for number, call in _calls(message)]
    calls.append((("function_call", 0), message.get("function_call")))
    found = [(("text", 0), given.get("text")), *(((name, 0), message.get(name)) for name in _TEXTS)]
    found += [(channel, function.get("arguments")) for channel, function in calls if isinstance(function, dict)]
    for channel, text in found:
        if isinstance(text, str) and text:
            yield channel, text


def _bare(given: _Json, field: str) -> _Json:
    """A choice without its texts; empty ones stay as they are."""
    made: _Json = {"index": given.get("index", 0), "finish_reason": given.get("finish_reason")}
    if "stop_reason" in given:
        made["stop_reason"] = given["stop_reason"]
    if "text" in given:
        return made | {"text": ""}
    message = given.get(field) or {}
    bare = {
        name: message[name] for name in ("role", *_TEXTS) if name in message and (name == "role" or not message[name])
    }
    calls = [
        {key: call[key] for key in ("index", "id", "type") if key in call}
        | {"function": _function(call.get("function"))}
        for _, call in _calls(message)
    ]
    if calls:
        bare["tool_calls"] = calls
    if message.get("function_call"):
        bare["function_call"] = _function(message["function_call"])
    return made | {field: bare}


def _function(given: Any) -> _Json:
    function = given if isinstance(given, dict) else {}
    return {"name": function["name"]} if function.get("name") else {}


def _calls(message: Mapping[str, Any]) -> list[tuple[int, _Json]]:
    """The tool calls with their numbers."""
    calls = message.get("tool_calls")
    found = calls if isinstance(calls, list) else []
    return [(call.get("index", place), call) for place, call in enumerate(found) if isinstance(call, dict)]


def _put(made: _Json, field: str, channel: _Channel, text: str) -> None:
    """Adds to a text of a choice."""
    name, number = channel
    holder = made if name == "text" else made[field]
    if not text:
        return
    if name == "tool_calls":
        calls = holder.setdefault("tool_calls", [])
        call = next((call for place, call in enumerate(calls) if call.get("index", place) == number), None)
        if call is None:  # what was held back of a call that is complete comes before the next
            call = {"index": number, "function": {}}
            calls.insert(0, call)
        holder, name = call["function"], "arguments"
    elif name == "function_call":
        holder, name = holder.setdefault("function_call", {}), "arguments"
    holder[name] = (holder.get(name) or "") + text


def _decoded(data: bytes) -> _Json:
    try:
        value: _Json = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        raise AttemptFailed("invalid_answer") from None
    return value


def _said(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
