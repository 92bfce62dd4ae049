"""The HTTP server's protocol: uvicorn's, on httptools, with its faults closed. Used by `python -m services.gateway`.

httptools, not h11: h11 answers a smuggled second request when `Transfer-Encoding` and `Content-Length` are both sent, and on bare line
feeds; httptools (llhttp, strict) refuses both, and is twice as fast. What uvicorn's use of it leaves open is closed here:

- a request with `Upgrade: h2c` lost its body, which was then read as the next request: the upgrade is passed over, as HTTP allows;
- HTTP/1.0 clients got chunks: they get the plain body, ended by closing;
- headers could be endless, or never end: both are bounded;
- its own refusals were plain text: they have OpenAI's shape and an `x-request-id`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.common.identifiers import uuid7
from services.common.wire import ApiError, BadRequest
from services.gateway.errors import HeadersTooLarge
from services.gateway.settings import LimitSettings

_HOP_BY_HOP = frozenset({b"connection", b"upgrade", b"http2-settings"})


class _PlainCycle(RequestResponseCycle):
    """Answers an HTTP/1.0 request: no chunks; the end of the connection is the end of the body."""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.chunked_encoding = False
        elif message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class Protocol(HttpToolsProtocol):
    """One connection. `limits` is set on the subclass that `protocol_class` makes."""

    limits: LimitSettings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._in_headers = True
        self._header_bytes = 0
        self._upgrading = False
        self._refusal: ApiError | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._in_headers:
            self._header_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("The HTTP request is malformed.")
        if self._in_headers and self._header_bytes:
            if self._header_bytes > self.limits.header_bytes:
                self._refusal = self._too_large()
                self.send_400_response("")
            elif self._deadline is None:
                self._await_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        self._headers_came()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refusal = self._too_large()
            raise self._refusal
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refusal = BadRequest("CONNECT is not served here.", code="method_not_allowed")
                raise self._refusal
            self._upgrading = True
            return
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _PlainCycle

    def on_body(self, body: bytes) -> None:
        if not self._upgrading:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._upgrading:
            super().on_message_complete()
            self._in_headers = True

    def send_400_response(self, msg: str) -> None:
        """Refuses what cannot be given to the application, and closes."""
        if self.transport.is_closing():
            return
        error = self._refusal or BadRequest(msg, code="invalid_http")
        body = error.body()
        lines = [
            STATUS_LINE[error.status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"x-request-id: %s\r\n" % uuid7().encode(),
            b"connection: close\r\n\r\n",
            body,
        ]
        self.transport.write(b"".join(lines))
        self.transport.close()

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Reads the request again without its wish to upgrade. The parser has stopped behind the headers and would take the body for
        another protocol."""
        method, target = bytes(self.parser.get_method()), self.url
        kept = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name not in _HOP_BY_HOP]
        self._upgrading = False
        self.parser = httptools.HttpRequestParser(self)
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (method, target, b"".join(kept))
        try:
            self.parser.feed_data(head + rest)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.send_400_response("The HTTP request is malformed.")

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_seconds, self._headers_late)

    def _headers_came(self) -> None:
        self._in_headers = False
        self._header_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _headers_late(self) -> None:
        self._deadline = None
        self._refusal = BadRequest("The request's headers did not arrive in time.", code="header_timeout")
        self.send_400_response("")

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The request line and headers are larger than {self.limits.header_bytes} bytes.")


def protocol_class(limits: LimitSettings) -> type[Protocol]:
    """The protocol with these limits, for uvicorn's `http` setting."""
    return type("LimitedProtocol", (Protocol,), {"limits": limits})
