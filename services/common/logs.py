"""Logs of every process: one JSON object a line on the error stream, and a level that can be changed while it runs.

    {"time": "2026-11-21T20:15:03.120Z", "level": "warning", "component": "gateway", "event": "store.away", "message": "…", "error": "…"}

`event` is a name of `events`; lines of libraries have their `logger` in its place. SIGUSR1 changes the level to debug, SIGUSR2 back to what
it was at the start; both concern this project's own lines alone, since libraries at debug write down what they send. Called by `__main__`s.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import IO, Any, Final, Literal

from services.common.clock import rfc3339
from services.common.events import LEVEL_CHANGED, Event

Level = Literal["debug", "info", "warning", "error"]

OWN: Final = "services"
"""The logger above all of ours."""
_LONGEST: Final = 4000
_FRAMES: Final = 30
_OF_REQUESTS: Final = ("asyncio", "uvicorn.error")
"""Loggers of libraries that tell of exceptions raised while a request was answered."""


class JsonLines(logging.Formatter):
    """One JSON object a line. Of exceptions that a request raised there is the type and the stack, not the words, which may quote it."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        fields = record.args if isinstance(record.args, Mapping) else {}
        line: dict[str, Any] = {
            "time": rfc3339(record.created, "milliseconds"),
            "level": record.levelname.lower(),
            "component": self._component,
        }
        if isinstance(record.msg, Event):
            line["event"] = record.msg.name
        else:
            line["logger"] = record.name
        line["message"] = record.getMessage()[:_LONGEST]
        line.update((key, _plain(value)) for key, value in fields.items() if key not in line and value is not None)
        if record.exc_info and record.exc_info[1] is not None:
            quoting = "request_id" in fields or record.name in _OF_REQUESTS
            line["exception"] = _exception(record.exc_info[1], with_words=not quoting)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(component: str, stream: IO[str] | None = None) -> None:
    """Makes all lines of this process JSON, at level info."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(component))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def follow_signals(level: Level) -> None:
    """Sets the level of our own lines, and lets SIGUSR1 and SIGUSR2 change it. From the main thread."""
    own, start = logging.getLogger(OWN), logging.getLevelNamesMapping()[level.upper()]
    own.setLevel(start)

    def change(number: int, _: FrameType | None) -> None:
        wanted = logging.DEBUG if number == signal.SIGUSR1 else start
        own.setLevel(wanted)
        own.log(max(wanted, logging.INFO), LEVEL_CHANGED, {"level": logging.getLevelName(wanted).lower()})

    signal.signal(signal.SIGUSR1, change)
    signal.signal(signal.SIGUSR2, change)


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float) else str(value)[:_LONGEST]


def _exception(error: BaseException, *, with_words: bool) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    told: dict[str, Any] = {
        "type": type(error).__qualname__,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if with_words:
        told["message"] = str(error)[:_LONGEST]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        told["cause"] = _exception(cause, with_words=with_words)
    return told
