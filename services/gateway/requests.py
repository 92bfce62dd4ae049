"""One client's request: what the gateway must know of it, what it may cost, and the body an engine gets in its place.

Only the fields named here are decoded; all others travel as the bytes they came in (`msgspec.Raw`), tools and structured output included.
Called by the hot path and the mirror; pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import msgspec

from services.common.routing import Target
from services.common.wire import BadRequest
from services.gateway.settings import LimitSettings

Endpoint = Literal["chat/completions", "completions"]
_Decoded = TypeVar("_Decoded")

USER_LENGTH: Final = 512

_ENGINE_FIELDS: Final = frozenset(
    {
        "request_id",
        "priority",
        "kv_transfer_params",
        "vllm_xargs",
        "chat_template",
        "mm_processor_kwargs",
        "media_io_kwargs",
    }
)
"""Fields by which a client of vLLM would steer the engine itself; refused."""
_SCHEMA_FIELDS: Final = (
    "response_format", "tools", "functions", "structured_outputs",
    "guided_json", "guided_regex", "guided_grammar", "guided_choice", "structural_tag",
)  # fmt: skip
_BOUNDS: Final = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains", "maxContains"}
)
_REPEATS: Final = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_NOT_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[^][{}"]+', re.DOTALL)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_optional_text = msgspec.json.Decoder(str | None)
_flag = msgspec.json.Decoder(bool | None)
_count = msgspec.json.Decoder(int | None)
_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_prompt = msgspec.json.Decoder(str | list[Any])
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that passed every check."""

    endpoint: Endpoint
    fields: dict[str, msgspec.Raw]
    model: str
    """As the client wrote it."""
    streamed: bool
    wants_usage: bool
    """The client itself asked for the usage chunk of a stream."""
    user: str | None
    constrained: bool
    """It carries a schema or grammar that the engine compiles."""

    def engine_body(self, target: Target, *, streamed: bool | None = None) -> bytes:
        """The body for one revision's engine: its model name, its prompt before the client's, usage always asked for in a stream.

        The user's name stays here. `streamed` overrides the client's choice (the mirror always streams, to see first tokens).
        """
        fields = dict(self.fields)
        fields["model"] = msgspec.Raw(_encode(target.model))
        fields.pop("user", None)
        fields.pop("safety_identifier", None)
        stream = self.streamed if streamed is None else streamed
        if stream:
            options = _options.decode(fields["stream_options"]) if "stream_options" in fields else None
            fields["stream"] = _TRUE
            fields["stream_options"] = msgspec.Raw(_encode({**(options or {}), "include_usage": True}))
        if target.system_prompt:
            if self.endpoint == "chat/completions":
                fields["messages"] = _with_system(fields["messages"], target.system_prompt)
            else:
                fields["prompt"] = _with_prefix(fields["prompt"], target.system_prompt)
        return _encode(fields)

    def texts(self) -> list[str]:
        """The contents of the prompt, decoded: for the judge."""
        return _strings(
            msgspec.json.decode(self.fields["messages" if self.endpoint == "chat/completions" else "prompt"])
        )

    def with_texts(self, change: Callable[[str], str]) -> ModelRequest:
        """The request with each text of the prompt put through `change`: contents, reasoning and tool calls of messages, documents, the
        suffix. Names, pictures and schemas stay.

        Raises:
            BadRequest: a text is no Unicode.
        """
        fields = dict(self.fields)
        for name in _TEXT_FIELDS[self.endpoint]:
            if name not in fields:
                continue
            try:
                before = msgspec.json.decode(fields[name])
            except msgspec.DecodeError:
                raise BadRequest(f"`{name}` is not valid JSON.", param=name, code="invalid_json") from None
            after = _changed(before, change)
            if after != before:
                fields[name] = msgspec.Raw(_encode(after))
        return replace(self, fields=fields)

    def has_token_prompt(self) -> bool:
        """Whether some of the prompt is given as token numbers."""
        if self.endpoint != "completions":
            return False
        prompt = _prompt.decode(self.fields["prompt"])
        return isinstance(prompt, list) and not all(isinstance(one, str) for one in prompt)

    def choices(self) -> int:
        """How many answers are wanted: `n` for each prompt."""
        many = (_count.decode(self.fields["n"]) if "n" in self.fields else None) or 1
        prompt = _prompt.decode(self.fields["prompt"]) if self.endpoint == "completions" else ""
        return many * (len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1)

    def last_prompt(self) -> str:
        """The last user message, or the prompt: what a judge sees."""
        if self.endpoint == "completions":
            return "\n".join(self.texts())
        try:
            messages = msgspec.json.decode(self.fields["messages"])
        except msgspec.MsgspecError:  # a number that nobody can hold, in a field that nobody here reads
            return ""
        for message in reversed(messages):
            if isinstance(message, dict) and message.get("role") == "user":
                return "\n".join(_strings(message.get("content")))
        return ""


_TRUE: Final = msgspec.Raw(b"true")
_TEXT_FIELDS: Final[dict[Endpoint, tuple[str, ...]]] = {
    "chat/completions": ("messages", "documents"),
    "completions": ("prompt", "suffix"),
}
_TEXT_KEYS: Final = frozenset(
    {
        "content", "text", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call", "function", "arguments",
        "title", "contents",
    }
)  # fmt: skip
"""Keys under which messages and documents hold what an engine reads as text."""


def parse(body: bytes, endpoint: Endpoint, limits: LimitSettings) -> ModelRequest:
    """The request in `body`.

    Raises:
        BadRequest: not UTF-8, not JSON (with the position), nested too deeply, a wrong type (with the field), or beyond a limit.
    """
    fields = _decode(body, limits)
    model = _typed(fields, "model", _text, "a text")
    if not model:
        raise BadRequest("`model` is missing: name the service you want to call.", param="model", code="missing_model")
    streamed = bool(_typed(fields, "stream", _flag, "true or false"))
    options = _typed(fields, "stream_options", _options, "an object")
    _check_prompt(fields, endpoint, limits)
    _check_fields(fields, limits)
    return ModelRequest(
        endpoint=endpoint,
        fields=fields,
        model=model,
        streamed=streamed,
        wants_usage=bool(options and bytes(options.get("include_usage", b"")) == b"true"),
        user=_user(fields),
        constrained=_check_schemas(fields, limits),
    )


def _decode(body: bytes, limits: LimitSettings) -> dict[str, msgspec.Raw]:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8 (byte {error.start}).", code="invalid_encoding") from None
    if body.count(b"[") + body.count(b"{") > limits.json_depth and _deeper_than(body, limits.json_depth):
        raise BadRequest(f"The body is nested more than {limits.json_depth} levels deep.", code="too_deep")
    try:
        return _fields.decode(body)
    except msgspec.ValidationError:
        raise BadRequest("The body must be a JSON object.", code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}", code="invalid_json") from None


def _deeper_than(body: bytes, depth: int) -> bool:
    """Counts in C: strings and everything but brackets go at once, then one level of empty brackets after the other."""
    brackets = _NOT_BRACKETS.sub(b"", body)
    for _ in range(depth):
        inner = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return bool(brackets)


def _typed(
    fields: dict[str, msgspec.Raw], name: str, decoder: msgspec.json.Decoder[_Decoded], expected: str
) -> _Decoded | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError:
        raise BadRequest(f"`{name}` must be {expected}.", param=name, code="invalid_type") from None


def _user(fields: dict[str, msgspec.Raw]) -> str | None:
    for name in ("safety_identifier", "user"):
        value: str | None = _typed(fields, name, _optional_text, "a text")
        if value:
            if len(value) > USER_LENGTH:
                raise BadRequest(f"`{name}` is longer than {USER_LENGTH} characters.", param=name, code="too_long")
            return value
    return None


def _check_prompt(fields: dict[str, msgspec.Raw], endpoint: Endpoint, limits: LimitSettings) -> None:
    if endpoint == "chat/completions":
        messages = fields.get("messages")
        if messages is None:
            raise BadRequest("`messages` is missing.", param="messages", code="missing_messages")
        first = bytes(messages)
        if not first.startswith(b"["):
            raise BadRequest("`messages` must be a list of messages.", param="messages", code="invalid_type")
        if not first[1:-1].strip():
            raise BadRequest("`messages` must hold at least one message.", param="messages", code="empty_messages")
        return
    prompt = _typed(fields, "prompt", _prompt, "a text or a list")
    if prompt is None:
        raise BadRequest("`prompt` is missing.", param="prompt", code="missing_prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) and len(prompt) > limits.choices:
        raise BadRequest(
            f"`prompt` may hold at most {limits.choices} prompts.", param="prompt", code="too_many_prompts"
        )


def _check_fields(fields: dict[str, msgspec.Raw], limits: LimitSettings) -> None:
    if not _ENGINE_FIELDS.isdisjoint(fields):
        name = sorted(_ENGINE_FIELDS.intersection(fields))[0]
        raise BadRequest(f"`{name}` is not accepted here.", param=name, code="unsupported_parameter")
    for name in ("n", "best_of"):
        count = _typed(fields, name, _count, "a whole number")
        if count is not None and not 1 <= count <= limits.choices:
            raise BadRequest(f"`{name}` must be between 1 and {limits.choices}.", param=name, code="out_of_range")


def _check_schemas(fields: dict[str, msgspec.Raw], limits: LimitSettings) -> bool:
    """Refuses schemas that an engine would unroll into more memory than it has; says whether there is any."""
    size = 0
    for name in _SCHEMA_FIELDS:
        raw = fields.get(name)
        if raw is None:
            continue
        size += len(bytes(raw))
        if size > limits.schema_bytes:
            raise BadRequest(
                f"Schemas and tools take more than {limits.schema_bytes} bytes.", param=name, code="schema_too_large"
            )
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, RecursionError):
            raise BadRequest(f"`{name}` is not valid JSON.", param=name, code="invalid_json") from None
        _check_schema(value, name, limits.schema_bound, pattern=name in ("guided_regex", "guided_grammar"))
    return size > 0


def _check_schema(root: object, name: str, bound: int, *, pattern: bool) -> None:
    todo: list[tuple[object, bool]] = [(root, pattern)]
    while todo:
        value, is_pattern = todo.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                if key in _BOUNDS and isinstance(item, int | float) and item > bound:
                    raise BadRequest(f"`{key}` may be at most {bound}.", param=name, code="schema_bound")
                todo.append((item, key in ("pattern", "regex", "grammar", "patternProperties")))
        elif isinstance(value, list):
            todo.extend((item, is_pattern) for item in value)
        elif is_pattern and isinstance(value, str) and _largest_repeat(value) > bound:
            raise BadRequest(f"A repetition in a pattern may be at most {bound}.", param=name, code="schema_bound")


def _largest_repeat(pattern: str) -> int:
    # Ten digits are more than any bound; longer numbers would cost time to convert.
    return max((int(number[:10]) for pair in _REPEATS.findall(pattern) for number in pair if number), default=0)


def _with_system(messages: msgspec.Raw, prompt: str) -> msgspec.Raw:
    first = _encode({"role": "system", "content": prompt})
    return msgspec.Raw(b"[" + first + b"," + bytes(messages)[1:])


def _with_prefix(raw: msgspec.Raw, prefix: str) -> msgspec.Raw:
    """Texts get the prefix; prompts given as token numbers cannot and stay as they are."""
    prompt = _prompt.decode(raw)
    if isinstance(prompt, str):
        return msgspec.Raw(_encode(f"{prefix}\n{prompt}"))
    return msgspec.Raw(_encode([f"{prefix}\n{one}" if isinstance(one, str) else one for one in prompt]))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _changed(item, change) if key in _TEXT_KEYS else item for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return value


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in ("content", "text") for text in _strings(value.get(key))]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []
