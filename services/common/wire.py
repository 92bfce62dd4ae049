"""OpenAI's error body, built in this one place, for every answer that is not a success.

    ApiError                        status  type                   code
    ├── BadRequest                  400     invalid_request_error  e.g. invalid_type
    ├── Unauthenticated             401     authentication_error   invalid_api_key
    ├── Forbidden                   403     permission_error       insufficient_scope
    ├── NotFound                    404     invalid_request_error  model_not_found, request_not_found, not_found
    ├── MethodNotAllowed            405     invalid_request_error  method_not_allowed
    ├── TooLarge                    413     invalid_request_error  request_too_large
    ├── TooManyRequests             429     rate_limit_error       rate_limit_exceeded
    ├── UpstreamFailed              502     server_error           engine_error
    ├── Unavailable                 503     server_error           no_engine, overloaded
    └── UpstreamTimeout             504     server_error           engine_timeout

`code` is text or null, never a number: typed clients break on a number.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The object under `error`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not a success; its text is shown to the client, so it names no user, key or prompt."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    def body(self) -> bytes:
        """The JSON body in OpenAI's shape."""
        return error_body(self.message, self.type, param=self.param, code=self.code)


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class Unauthenticated(ApiError):
    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(ApiError):
    status = 403
    type = "permission_error"
    default_code = "insufficient_scope"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class TooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class TooManyRequests(ApiError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class UpstreamFailed(ApiError):
    status = 502
    default_code = "engine_error"


class Unavailable(ApiError):
    status = 503
    default_code = "no_engine"


class UpstreamTimeout(ApiError):
    status = 504
    default_code = "engine_timeout"


def error_body(message: str, type_: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error body as JSON bytes."""
    return msgspec.json.encode(ErrorBody(error=ErrorDetail(message=message, type=type_, param=param, code=code)))
