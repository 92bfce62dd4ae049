"""One exchange with one client over ASGI: the headers that matter, the body within its limits, whether the client is still there, answers.

Used by the hot path; the parts of the API that FastAPI serves do not need it, except for `error_headers`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Final

from starlette.types import Receive, Send

from services.common.wire import ApiError, BadRequest, TooLarge
from services.gateway.errors import EngineStarting, QuotaExceeded
from services.gateway.settings import LimitSettings

CLIENT_ID_LENGTH: Final = 128
DISCARD_BYTES: Final = 32 * 1024 * 1024
"""Most of a too large body that is read and thrown away, so that a client that sends before it reads still gets its answer."""


class ClientGone(Exception):
    """The client left before its request was whole."""


class Head:
    """The request headers that the gateway knows; no other is looked at or passed on."""

    __slots__ = ("authorization", "client_request_id", "content_length", "user")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.authorization: bytes | None = None
        self.content_length: int | None = None
        self.user: str | None = None
        self.client_request_id: str | None = None
        for name, value in headers:
            if name == b"authorization":
                self.authorization = value
            elif name == b"content-length":
                self.content_length = int(value)  # the server has checked that it is a number
            elif name == b"x-user-id":
                self.user = value.decode("latin-1") or None
            elif name == b"x-request-id":
                text = value.decode("latin-1")
                self.client_request_id = text if len(text) <= CLIENT_ID_LENGTH and text.isprintable() else None


async def read_body(receive: Receive, head: Head, limits: LimitSettings) -> bytes:
    """The whole body.

    Raises:
        TooLarge: longer than the limit.
        BadRequest: not there in time.
        ClientGone: the client left.
    """
    if head.content_length is not None and head.content_length > DISCARD_BYTES:
        raise _too_large(limits)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await _read_more(receive, body, limits)
        except TimeoutError:
            raise BadRequest(
                f"The body did not arrive within {limits.body_seconds:g} s.", code="body_timeout"
            ) from None
    if len(body) > limits.body_bytes:
        raise _too_large(limits)
    return body


async def _read_more(receive: Receive, body: bytes, limits: LimitSettings) -> bytes:
    pieces, size, more = [body], len(body), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        size += len(message.get("body", b""))
        if size <= limits.body_bytes:
            pieces.append(message.get("body", b""))
        elif size > DISCARD_BYTES:
            break
    if size > limits.body_bytes:
        raise _too_large(limits)
    return b"".join(pieces)


def _too_large(limits: LimitSettings) -> TooLarge:
    return TooLarge(f"The body is larger than {limits.body_bytes} bytes.")


class ClientWatch:
    """Cancels the current task when the client leaves. `stop` it before the last bytes go out."""

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a client is watched from within a task")
        self._task = task
        self._gone = False
        self._watch = asyncio.get_running_loop().create_task(self._run(receive))

    def stop(self) -> None:
        self._watch.cancel()

    def left(self) -> bool:
        """Whether a cancellation that just arrived meant that the client left; if so it is taken back."""
        if self._gone:
            self._task.uncancel()
        return self._gone

    async def _run(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()


def error_headers(error: ApiError) -> list[tuple[bytes, bytes]]:
    """Headers that belong to an error."""
    if isinstance(error, (QuotaExceeded, EngineStarting)):
        return [(b"retry-after", str(math.ceil(error.retry_after)).encode())]
    if isinstance(error, TooLarge):
        return [(b"connection", b"close")]  # the rest of the body is not read
    return [(b"www-authenticate", b"Bearer")] if error.status == 401 else []


async def respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]], content_type: bytes = b"application/json"
) -> None:
    """Sends an answer in one piece."""
    lead = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": lead + headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def respond_error(send: Send, error: ApiError, request_id: str) -> None:
    """Sends an error in OpenAI's shape."""
    await respond(send, error.status, error.body(), [*error_headers(error), (b"x-request-id", request_id.encode())])
