"""One attempt of one engine at one request: sending it, reading the answer, measuring it, and the row that is left of it.

Used by the hot path for live requests and by the mirror for copies. Talks to the addresses of the routing table only; redirects are not
followed; no header of the client's goes to the engine, and only the content type comes back.
"""

from __future__ import annotations

import asyncio
import io
from typing import Final, NoReturn

import aiohttp
from yarl import URL

from services.common.clock import Clock
from services.common.routing import Target
from services.gateway.answer_filter import AnswerFilter
from services.gateway.errors import AttemptFailed
from services.gateway.measure import EventStream, Meter, Rename
from services.gateway.requests import ModelRequest
from services.store.records import Outcome

AT_ONCE_BYTES: Final = 512 * 1024
"""Longest body that is sent in one piece."""
REFUSAL_BYTES: Final = 64 * 1024
"""Most that is read of an engine's error body."""


def open_session(connect_seconds: float) -> aiohttp.ClientSession:
    """The HTTP client of all engines. Connections are as many as requests; idle ones go before uvicorn's five seconds end at the engine."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )


class Attempt:
    """One engine's attempt. Open it, read it, close it; `outcome` is set by whoever decides what it was.

    Args:
        urls: the revision's addresses, tried in turn while a connection cannot be opened (nothing has been sent then).
        number: 0 for the assigned arm, 1 for the fallback.
        keep_text: keep the answer's text (for the judge).
        screen: filters the answer on its way to the client.
        context: headers by which the engine's spans join the request's trace; None: it is not traced.
        strip_usage: keep back the usage chunk that the client did not ask for.
    """

    def __init__(
        self,
        request: ModelRequest,
        target: Target,
        urls: list[URL],
        clock: Clock,
        *,
        number: int = 0,
        streamed: bool | None = None,
        keep_text: bool = False,
        screen: AnswerFilter | None = None,
        context: dict[str, str] | None = None,
    ) -> None:
        self.target = target
        self.number = number
        self.streamed = request.streamed if streamed is None else streamed
        self.failure: AttemptFailed | None = None
        self.body = b""
        self.content_type = b"application/json"
        self.began = clock.monotonic()
        self.meter = Meter(self.began, keep_text=keep_text)
        self.url: URL | None = None
        """The address that took the connection, and when its headers came; only of a traced request."""
        self.headers_at: float | None = None
        self._context = context
        self._body = request.engine_body(target, streamed=self.streamed)
        self._urls = urls
        self._clock = clock
        self.screen = screen
        self._rename = Rename(target.model, request.model)
        self._events = EventStream(self.meter, self._rename, strip_usage=not request.wants_usage)
        self._response: aiohttp.ClientResponse | None = None

    async def open(self, session: aiohttp.ClientSession, request_id: str, seconds: float) -> None:
        """Sends the request; returns once the first token (of a stream) or the whole answer is in `body`.

        Raises:
            AttemptFailed: anything but that, `seconds` without it included.
        """
        try:
            async with asyncio.timeout(seconds):
                self._response = await self._send(session, request_id)
                if self._response.status != 200:
                    await self._refused(self._response)
                elif self.streamed:
                    await self._first_event(self._response)
                else:
                    self.body = await self._whole(self._response)
        except AttemptFailed as failure:
            self._fail(failure)
        except TimeoutError:
            self._fail(AttemptFailed("timeout", 504))
        except (aiohttp.ClientError, OSError):
            self._fail(AttemptFailed("reset"))

    async def more(self) -> bytes:
        """The stream's next whole events, perhaps none; the answer is whole when `meter.done`.

        Raises:
            AttemptFailed: the engine broke off or reported an error.
        """
        if self._response is None:
            raise RuntimeError("more() before open()")
        try:
            chunk = await self._response.content.readany()
            now = self._clock.monotonic()
            out = self._events.feed(chunk, now) if chunk else self._events.close(now)
            if self.screen is not None:
                out = self._screened(self.screen, out)
            if not chunk and not self.meter.done:
                raise AttemptFailed("truncated")
        except AttemptFailed as failure:
            self._fail(failure)
        except (aiohttp.ClientError, OSError):
            self._fail(AttemptFailed("reset"))
        return out

    async def finish(self) -> None:
        """After a whole answer: reads the little that may follow a stream, so that the connection can be used again."""
        if self._response is None or self._response.closed:
            return
        try:
            async with asyncio.timeout(1.0):
                await self._response.read()
        except (TimeoutError, aiohttp.ClientError, OSError):
            self.close()  # the answer is whole; only the connection is lost

    def close(self) -> None:
        """Ends the attempt; an engine that is still at work sees the connection close."""
        if self._response is not None:
            self._response.close()

    def timed_out(self) -> AttemptFailed:
        """The whole request took too long."""
        self.failure = AttemptFailed("timeout", 504)
        return self.failure

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer. Where the engine's count did not come (the client left), of what did come: one an event, and one
        for four bytes of the request.
        """
        if self.meter.tokens is not None:
            return self.meter.tokens
        return self.meter.arrivals + len(self._body) // 4 if self.meter.arrivals else 0

    @property
    def duration(self) -> float:
        """Seconds since it began."""
        return self._clock.monotonic() - self.began

    @property
    def refused(self) -> bool:
        """Whether the model or a content filter withheld the answer, or its end."""
        return self.meter.refused or (self.screen is not None and self.screen.blocked is not None)

    def status(self, outcome: Outcome) -> int:
        """The HTTP status for the row: the engine's; 499 for a client that left; ours where the engine gave none."""
        if outcome == "cancelled":
            return 499
        if self.failure is not None:
            return self.failure.status
        return 200

    async def _send(self, session: aiohttp.ClientSession, request_id: str) -> aiohttp.ClientResponse:
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        if self._context is not None:
            headers.update(self._context)
        for url in self._urls:
            try:
                # aiohttp writes bytes at once and a file piece by piece: a large body must not hold up everyone else.
                data = self._body if len(self._body) <= AT_ONCE_BYTES else io.BytesIO(self._body)
                response = await session.post(url, data=data, headers=headers, allow_redirects=False)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                continue
            if self._context is not None:
                self.url, self.headers_at = url, self._clock.monotonic()
            return response
        raise AttemptFailed("connect")

    async def _refused(self, response: aiohttp.ClientResponse) -> None:
        body = await response.content.read(REFUSAL_BYTES)
        raise AttemptFailed(f"status_{response.status}", response.status, body)

    async def _first_event(self, response: aiohttp.ClientResponse) -> None:
        """Reads up to the first token. What comes before it (the role) waits, so that a failure can still fall back."""
        while self.meter.ttft is None and not self.meter.done:
            chunk = await response.content.readany()
            if not chunk:
                raise AttemptFailed("truncated")
            out = self._events.feed(chunk, self._clock.monotonic())
            self.body += out if self.screen is None else self._screened(self.screen, out)
        self.content_type = b"text/event-stream; charset=utf-8"

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        body = await response.read()
        self.meter.whole(body)
        body = self._rename(body)
        return body if self.screen is None else self.screen.whole(body)

    def _screened(self, screen: AnswerFilter, events: bytes) -> bytes:
        out = screen.feed(events)
        if screen.over and not self.meter.done:
            self.meter.done = True  # for the client it is whole; the engine need not finish it
            self.close()
        return out

    def _fail(self, failure: AttemptFailed) -> NoReturn:
        failure.engine_model = self.target.model
        self.failure = failure
        self.close()
        raise failure from None
