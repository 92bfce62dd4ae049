"""`python -m services.gateway`: one gateway process under uvicorn. Settings come from the environment (`services.gateway.settings`).

Exit status: 0 after SIGTERM or Ctrl-C, 2 for settings that are wrong, 1 for a port or folder in use.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from types import FrameType

import uvicorn
from pydantic import ValidationError

from services.common import events, logs
from services.gateway.app import GatewayApp, create_app
from services.gateway.errors import StateDirectoryInUse
from services.gateway.http import protocol_class
from services.gateway.journal import lock_state_directory
from services.gateway.otlp_settings import BadVariable, OtlpSettings, otlp_settings
from services.gateway.settings import GatewaySettings

log = logging.getLogger("services.gateway")

SWITCH_SECONDS = 0.0005
"""How long the worker threads may keep the interpreter from the event loop; Python's default of 5 ms would show in every p99."""

GARBAGE = 10_000
"""Objects made and not gone after which the collector looks for cycles; Python's default of 700 costs each request a twentieth of its time,
and stops every stream for ten milliseconds every thousand requests."""


class Server(uvicorn.Server):
    """uvicorn's server; a first signal makes the gateway unready, a moment later no connection is taken any more, running answers end."""

    def __init__(self, config: uvicorn.Config, app: GatewayApp, notice_seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._notice = notice_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.draining or self._notice == 0:
            self._app.draining = True
            super().handle_exit(sig, frame)
            return
        self._app.draining = True
        asyncio.get_running_loop().call_later(self._notice, super().handle_exit, sig, frame)


def build_server(settings: GatewaySettings, otlp: OtlpSettings | None) -> Server:
    """The server that `main` runs."""
    app = create_app(settings, otlp=otlp)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol_class(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's address is used
        timeout_keep_alive=75,  # longer than load balancers keep idle connections
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    return Server(config, app, settings.drain_notice_seconds)


def main() -> int:
    """Runs until a signal; returns the exit status."""
    logs.configure("gateway")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        settings = GatewaySettings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        for problem in error.errors():
            name = "UNDERSTUDY_GATEWAY_" + "__".join(str(part) for part in problem["loc"]).upper()
            print(f"{name}: {problem['msg']}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        otlp = otlp_settings(os.environ)
    except BadVariable as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    try:
        lock_state_directory(settings.state_dir)
    except (StateDirectoryInUse, OSError) as error:
        print(f"UNDERSTUDY_GATEWAY_STATE_DIR: {error}", file=sys.stderr)  # noqa: T201
        return 1
    signal.signal(signal.SIGTERM, _stop)
    logs.follow_signals(settings.log_level)
    server = build_server(settings, otlp)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what was imported lives as long as the process
    gc.set_threshold(GARBAGE)
    told = {
        "gateway": settings.name,
        "host": settings.host,
        "port": settings.port,
        "traces": otlp.endpoint if otlp else "off",
    }
    log.info(events.GATEWAY_STARTED, told)
    try:
        server.run()
    except KeyboardInterrupt:
        return 0
    except SystemExit as end:
        return 0 if end.code == 0 else 1  # uvicorn has its own number for a port in use
    return 0 if server.started else 1


def _stop(signum: int, frame: FrameType | None) -> None:
    """uvicorn repeats the signal once everything has ended; that is a clean end."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
