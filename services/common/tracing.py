"""Every span, event and attribute of the platform's traces: the one place where their names are written, for the gateway that makes them
and for the reference page (docs/generate.py). Metrics' names stand in `telemetry`.

OpenTelemetry's GenAI conventions name what they can (`gen_ai.*`). They are still in development: a renaming is a change to this module
alone. Must not hold what a user wrote, except for the two attributes of content, which a service's resource has to allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


class Attribute(str):
    """The key of an attribute, with its type, unit and meaning."""

    __slots__ = ("kind", "text")
    kind: str
    text: str

    def __new__(cls, name: str, kind: str, text: str) -> Attribute:
        made = super().__new__(cls, name)
        made.kind, made.text = kind, text
        return made


@dataclass(frozen=True, slots=True)
class EventSpec:
    """Something that happens at one moment of a span."""

    name: str
    text: str
    attributes: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True)
class SpanSpec:
    """One kind of span. `name`: as traces show it, with what differs in braces."""

    name: str
    kind: Literal["server", "client", "internal"]
    text: str
    attributes: tuple[Attribute, ...]
    events: tuple[EventSpec, ...] = ()


SCOPE: Final = "understudy.gateway"
"""Name of the instrumentation scope."""
PROVIDER: Final = "vllm"
OPERATIONS: Final = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
"""Values of `gen_ai.operation.name`, by route."""

# Of HTTP and errors (stable conventions)
METHOD: Final = Attribute("http.request.method", "string", "Always `POST`.")
ROUTE: Final = Attribute("http.route", "string", "`/v1/chat/completions` or `/v1/completions`.")
STATUS: Final = Attribute("http.response.status_code", "int", "Status; 499: the client left.")
ERROR: Final = Attribute("error.type", "string", "An error's code, or the kind of an attempt's failure.")
ADDRESS: Final = Attribute("server.address", "string", "Host of the engine or of its proxy.")
PORT: Final = Attribute("server.port", "int", "Its port.")

# Of GenAI (in development)
OPERATION: Final = Attribute("gen_ai.operation.name", "string", "`chat` or `text_completion`.")
PROVIDER_NAME: Final = Attribute("gen_ai.provider.name", "string", f"Always `{PROVIDER}`.")
REQUEST_MODEL: Final = Attribute("gen_ai.request.model", "string", "The service.")
RESPONSE_MODEL: Final = Attribute("gen_ai.response.model", "string", "The revision that answered.")
INPUT_TOKENS: Final = Attribute("gen_ai.usage.input_tokens", "int", "Tokens of the prompt, as the engine counts them.")
OUTPUT_TOKENS: Final = Attribute(
    "gen_ai.usage.output_tokens", "int", "Tokens of the answer, as the engine counts them."
)
CACHED_TOKENS: Final = Attribute(
    "gen_ai.usage.cache_read.input_tokens", "int", "Of the prompt's tokens those that the engine had, where it tells."
)
TIME_TO_FIRST_TOKEN: Final = Attribute(
    "gen_ai.server.time_to_first_token", "double, seconds", "From sending to the engine until its first token."
)
TIME_PER_OUTPUT_TOKEN: Final = Attribute(
    "gen_ai.server.time_per_output_token", "double, seconds", "Mean time between the tokens of a streamed answer."
)
INPUT_MESSAGES: Final = Attribute(
    "gen_ai.input.messages", "string, JSON", "The prompt. Only where `privacy.traceContent` is true."
)
OUTPUT_MESSAGES: Final = Attribute(
    "gen_ai.output.messages", "string, JSON", "The answer's first choice. Only where `privacy.traceContent` is true."
)
EVALUATION_NAME: Final = Attribute("gen_ai.evaluation.name", "string", "The feedback's kind: `thumb`, `rating`, …")
EVALUATION_VALUE: Final = Attribute("gen_ai.evaluation.score.value", "double", "The feedback's value; not of comments.")
EVALUATION_LABEL: Final = Attribute("gen_ai.evaluation.score.label", "string", "`good`, `bad` or `neutral`.")
EVALUATION_EXPLANATION: Final = Attribute(
    "gen_ai.evaluation.explanation", "string", "The comment. Only where `privacy.traceContent` is true."
)

# The platform's own
REQUEST_ID: Final = Attribute(
    "understudy.request.id", "string", "The answer's `x-request-id`; of a mirrored copy its own."
)
CLIENT_REQUEST_ID: Final = Attribute("understudy.client_request.id", "string", "The client's own `x-request-id`.")
KEPT: Final = Attribute(
    "understudy.trace.kept", "string", "Why the trace is here: `sampled`, `error`, `slow` or `feedback`."
)
SERVICE: Final = Attribute("understudy.service", "string", "The service.")
REVISION: Final = Attribute("understudy.revision", "string", "The revision, e.g. `assistant-v4-7c1f`.")
VERSION: Final = Attribute("understudy.model.version", "string", "The registry's number of the version.")
PROMPT_VERSION: Final = Attribute(
    "understudy.prompt.version",
    "string",
    "The version whose system prompt was put before the client's messages; not there without one.",
)
ARM: Final = Attribute("understudy.arm", "string", "`stable`, `control`, `candidate`, or an experiment's group.")
ROLLOUT: Final = Attribute("understudy.rollout", "string", "The rollout or experiment that the user takes part in.")
STEP: Final = Attribute("understudy.step", "int", "Canary step, from 0; only in a rollout.")
ATTEMPT: Final = Attribute("understudy.attempt", "int", "0: the assigned arm's; 1: stable's, after that one failed.")
OUTCOME: Final = Attribute("understudy.outcome", "string", "`ok`, `error`, `client_error`, `cancelled` or `filtered`.")
KIND: Final = Attribute("understudy.kind", "string", "Of a mirrored copy: `mirror`.")
PAIR: Final = Attribute("understudy.pair", "string", "Of a mirrored copy: the id of the request that was copied.")
STREAMED: Final = Attribute("understudy.streamed", "boolean", "Whether the answer was streamed.")
COST: Final = Attribute(
    "understudy.cost.amount",
    "double",
    "What it cost, as far as that is known at its end; of a request the sum of its attempts. Only where the service names prices.",
)
CURRENCY: Final = Attribute("understudy.cost.currency", "string", "Of the amount; ISO 4217.")
COST_ESTIMATED: Final = Attribute(
    "understudy.cost.estimated",
    "boolean",
    "True: the engine is paid by the hour, the amount its duration at the last day's price of a second. False: tokens at their price.",
)

MLFLOW_TAG: Final = "mlflow.traceTag."
"""Before an attribute of the first span: MLflow makes the rest a tag of the trace. Only where `tracing.mlflow_uri` is set."""
TAGGED: Final = (SERVICE, REVISION, VERSION, ARM, KEPT)

FIRST_TOKEN: Final = EventSpec("gen_ai.first_token", "The engine's first token arrived.", (TIME_TO_FIRST_TOKEN,))
HEADERS: Final = EventSpec("understudy.engine.headers", "The engine took the request: its answer's headers arrived.")
AUTHENTICATED: Final = EventSpec("understudy.authenticated", "The key is known and its quota allows the request.")
BODY_READ: Final = EventSpec(
    "understudy.body_read", "The body is whole, valid, and through the gateway's content filters."
)
EVALUATION: Final = EventSpec(
    "gen_ai.evaluation.result",
    "A piece of feedback.",
    (EVALUATION_NAME, EVALUATION_VALUE, EVALUATION_LABEL, EVALUATION_EXPLANATION),
)

REQUEST: Final = SpanSpec(
    "POST {http.route}", "server",
    "One request, from its first byte until the last byte of the answer. Child of the client's span where it names one.",
    (METHOD, ROUTE, STATUS, ERROR, REQUEST_ID, CLIENT_REQUEST_ID, KEPT, SERVICE, ARM, ROLLOUT, STEP, REVISION, VERSION,
     STREAMED, COST, CURRENCY, COST_ESTIMATED, INPUT_MESSAGES, OUTPUT_MESSAGES),
)  # fmt: skip
ADMISSION: Final = SpanSpec(
    "admission", "internal", "Key, quotas, body, content filters and the choice of the arm.", (), (AUTHENTICATED, BODY_READ)
)  # fmt: skip
INFERENCE: Final = SpanSpec(
    "{gen_ai.operation.name} {gen_ai.request.model}", "client",
    "One attempt of one engine. The engine's own spans are its children.",
    (OPERATION, PROVIDER_NAME, REQUEST_MODEL, RESPONSE_MODEL, REVISION, VERSION, PROMPT_VERSION, ARM, ATTEMPT, OUTCOME,
     STREAMED, STATUS, ERROR, INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, TIME_TO_FIRST_TOKEN, TIME_PER_OUTPUT_TOKEN,
     ADDRESS, PORT, COST, CURRENCY, COST_ESTIMATED, INPUT_MESSAGES, OUTPUT_MESSAGES),
    (HEADERS, FIRST_TOKEN),
)  # fmt: skip
MIRROR: Final = SpanSpec(
    "mirror {gen_ai.operation.name} {gen_ai.request.model}", "client",
    "One copy of the request in a rehearsal, to the candidate or to stable (arm `control`), after its answer: nobody got this one.",
    (KIND, PAIR, REQUEST_ID, OPERATION, PROVIDER_NAME, REQUEST_MODEL, RESPONSE_MODEL, REVISION, VERSION, PROMPT_VERSION, ARM,
     OUTCOME, STREAMED, STATUS, ERROR, INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, TIME_TO_FIRST_TOKEN, TIME_PER_OUTPUT_TOKEN,
     ADDRESS, PORT, COST, CURRENCY, COST_ESTIMATED, OUTPUT_MESSAGES),
    (HEADERS, FIRST_TOKEN),
)  # fmt: skip
STREAM: Final = SpanSpec("stream", "internal", "From the first token to the last; streamed answers.", ())
FEEDBACK: Final = SpanSpec(
    "feedback {gen_ai.evaluation.name}", "internal",
    "What a user said of the answer; in the request's trace, a child of its first span.",
    (REQUEST_ID, SERVICE, REVISION, ARM, EVALUATION_NAME, EVALUATION_LABEL, KEPT),
    (EVALUATION,),
)  # fmt: skip

SPANS: Final = (REQUEST, ADMISSION, INFERENCE, MIRROR, STREAM, FEEDBACK)
"""All of them, parents first."""
