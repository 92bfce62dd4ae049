"""Everything that goes wrong in the gateway.

ApiError (services.common.wire)      what a client is told, in OpenAI's shape
├── QuotaExceeded                    429, says when to try again
├── EngineStarting                   503, the same
├── HeadersTooLarge                  431
├── Internal                         500, a fault of the gateway itself
└── EngineRefused                    the engine's own 4xx, its words in our shape

GatewayError
├── AttemptFailed                    one engine did not answer one request; may be tried on stable
├── StateDirectoryInUse              permanent: another gateway process has the folder
└── BadRoute                         a row of the routing table that cannot be obeyed; the last good one stays
"""

from __future__ import annotations

import msgspec

from services.common import wire

CLIENT_STATUSES = frozenset({400, 413, 415, 422})
"""Statuses by which an engine blames the request. Its 401, 403, 404 or 405 blame our configuration instead: the gateway's route list
and model names leave a client no way to cause them."""


class QuotaExceeded(wire.TooManyRequests):
    """A bucket is empty. `quota`: whose, and how large it is; `retry_after`: seconds until one request fits again."""

    def __init__(self, quota: str, retry_after: float) -> None:
        super().__init__(f"The quota is used up. {quota}; try again in {retry_after:.1f} s.")
        self.retry_after = retry_after


class EngineStarting(wire.Unavailable):
    """No replica runs, and this request may not wait for one, or has waited long enough. `retry_after`: seconds."""

    default_code = "engine_starting"

    def __init__(self, retry_after: float, why: str) -> None:
        super().__init__(f"The model's engine is starting: {why}. Try again in {retry_after:.0f} s.")
        self.retry_after = retry_after


class HeadersTooLarge(wire.BadRequest):
    status = 431
    default_code = "headers_too_large"


class Internal(wire.ApiError):
    status = 500
    default_code = "internal_error"


class EngineRefused(wire.BadRequest):
    """A 4xx of the engine that blames the request: its status and message, passed on."""

    def __init__(self, status: int, message: str, *, param: str | None, code: str | None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status  # type: ignore[misc]  # the engine's, not the class's


class GatewayError(Exception):
    """Root of what is not told to clients as it is."""


class StateDirectoryInUse(GatewayError):
    """Two processes on one journal would replay and delete each other's records."""


class BadRoute(GatewayError):
    """Says which field of the route is wrong."""


class AttemptFailed(GatewayError):
    """One attempt at one engine failed.

    Attributes:
        kind: `connect`, `timeout`, `reset`, `truncated`, `invalid_answer`, `stream_error`, `status_<n>`, or
            `ejected` (nothing was sent); a bounded set, used in rows.
        status: the engine's HTTP status; 502 where it gave none, 504 for a timeout.
        body: the engine's error body, for a status.
        engine_model: the engine's name of the model, which clients do not get to see.
    """

    def __init__(self, kind: str, status: int = 502, body: bytes = b"") -> None:
        super().__init__(kind)
        self.kind = kind
        self.status = status
        self.body = body
        self.engine_model = ""

    @property
    def answered(self) -> bool:
        """The engine gave a status of its own."""
        return self.kind.startswith("status_")

    @property
    def from_proxy(self) -> bool:
        """No engine spoke: there was no connection, or an error without an engine's words."""
        return self.kind in ("connect", "reset") or (
            self.answered and self.status >= 500 and not _engine_error(self.body).message
        )

    def blames_request(self, constrained: bool) -> bool:
        """Whether the request, not the engine, may be at fault: a client's 4xx, or a 500 where the request carries a schema or grammar
        (engines answer 500 to a grammar that refers to itself). A candidate's failure of this kind is left out only if stable fails so too.
        """
        return self.answered and (self.status in CLIENT_STATUSES or (constrained and self.status == 500))

    def api_error(self, model: str) -> wire.ApiError:
        """What the client is told: the engine's words for a refused request (its model name replaced by the client's), ours otherwise."""
        if self.answered and self.status in CLIENT_STATUSES:
            detail = _engine_error(self.body)
            message = detail.message or "The engine refused the request."
            if self.engine_model:
                message = message.replace(self.engine_model, model)
            return EngineRefused(self.status, message, param=detail.text("param"), code=detail.text("code"))
        if self.answered and self.status in (429, 503):
            return wire.Unavailable("The engine is overloaded; try again shortly.", code="overloaded")
        if self.kind == "timeout":
            return wire.UpstreamTimeout("The engine did not answer in time.")
        if self.kind == "connect":
            return wire.Unavailable("No engine can be reached for this model.")
        return wire.UpstreamFailed("The engine failed to answer.")


class _EngineErrorDetail(msgspec.Struct):
    message: str = ""
    param: object = None
    code: object = None

    def text(self, field: str) -> str | None:
        value = getattr(self, field)
        return value if isinstance(value, str) else None  # engines send numbers here; typed clients break on them


class _EngineErrorBody(msgspec.Struct):
    error: _EngineErrorDetail | None = None
    message: str = ""


def _engine_error(body: bytes) -> _EngineErrorDetail:
    try:
        parsed = msgspec.json.decode(body, type=_EngineErrorBody)
    except msgspec.MsgspecError:
        return _EngineErrorDetail()
    return parsed.error or _EngineErrorDetail(message=parsed.message)
