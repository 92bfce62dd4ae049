"""Log lines as a log store reads them."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common import events
from services.common.events import EVENTS, Event
from services.common.logs import JsonLines, follow_signals


def line(logger: str, message: str, fields: Any = None, exc_info: Any = None) -> dict[str, Any]:
    record = logging.LogRecord(logger, logging.WARNING, __file__, 1, message, (fields,) if fields else (), exc_info)
    text = JsonLines("gateway").format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def failure(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def test_an_event_has_its_name_words_and_fields() -> None:
    told = line("services.gateway.routes", events.STORE_AWAY, {"error": OSError("no\nroute"), "seconds": 2.5})
    assert told["time"].endswith("Z")
    del told["time"]
    assert told == {
        "level": "warning", "component": "gateway", "event": "store.away", "error": "no\nroute", "seconds": 2.5,
        "message": "the store cannot be reached; going on with the last routing table: no\nroute",
    }  # fmt: skip


def test_a_librarys_line_names_its_logger() -> None:
    told = line("kopf.objects", "handler %s", ("x",))
    assert (told["logger"], told["message"]) == ("kopf.objects", "handler ('x',)")
    assert "event" not in told


def test_exceptions_of_requests_keep_their_words_to_themselves() -> None:
    own = line("services.gateway", events.REQUEST_CRASHED, {"request_id": "r1"}, failure("what the user wrote"))
    assert own["exception"]["type"] == "ValueError"
    assert own["exception"]["stack"][-1].endswith(" failure")
    assert "user wrote" not in str(own)
    assert "user wrote" not in str(line("asyncio", "never retrieved", None, failure("what the user wrote")))
    assert line("services.rollout", "the look failed", None, failure("bad file"))["exception"]["message"] == "bad file"


@pytest.fixture
def own_level() -> Iterator[logging.Logger]:
    logger = logging.getLogger("services")
    level, handlers = logger.level, [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)]
    yield logger
    logger.setLevel(level)
    for number, handler in zip((signal.SIGUSR1, signal.SIGUSR2), handlers, strict=True):
        signal.signal(number, handler)


def test_signals_change_the_level_and_bring_it_back(own_level: logging.Logger) -> None:
    follow_signals("warning")
    assert own_level.level == logging.WARNING
    os.kill(os.getpid(), signal.SIGUSR1)
    assert own_level.level == logging.DEBUG
    os.kill(os.getpid(), signal.SIGUSR2)
    assert own_level.level == logging.WARNING
    assert logging.getLogger().level != logging.DEBUG  # libraries write down what they send


SAYING = ("debug", "info", "warning", "error", "exception", "critical", "log")
PARTS = ("gateway", "rollout", "serving", "store")
ELSEWHERE = Path("services/serving/engine_plugin.py")
"""Runs in vLLM's processes, whose logs these are, and may import nothing of ours."""


def test_no_part_says_anything_outside_the_vocabulary() -> None:
    known = {name for name, value in vars(events).items() if isinstance(value, Event)}
    assert len({event.name for event in EVENTS}) == len(EVENTS) == len(known)
    used = set()
    paths = [path for part in PARTS for path in Path("services", part).rglob("*.py") if path != ELSEWHERE]
    for path in [*paths, Path("services/common/logs.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            assert ast.unparse(node.func.value) != "logging" or node.func.attr not in SAYING, f"{path}:{node.lineno}"
            if not isinstance(node.func.value, ast.Name) or node.func.value.id not in ("log", "own"):
                continue
            if node.func.attr in SAYING:
                first = 1 if node.func.attr == "log" else 0
                event, fields = node.args[first], node.args[first + 1 :]
                name = event.attr if isinstance(event, ast.Attribute) else ast.unparse(event)
                assert name in known, f"{path}:{node.lineno}"
                assert len(fields) <= 1, f"{path}:{node.lineno}: fields are one mapping"
                used.add(name)
    assert used == known


def test_every_field_in_the_words_of_an_event_is_told() -> None:
    """Where the fields stand in the call itself; what is spread into them is seen by the tests of its module."""
    for part in PARTS:
        for path in Path("services", part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    not isinstance(node, ast.Call)
                    or not node.args
                    or not ast.unparse(node.args[0]).startswith("events.")
                ):
                    continue
                event = getattr(events, ast.unparse(node.args[0]).removeprefix("events."))
                wanted = set(re.findall(r"%\((\w+)\)", event))
                if len(node.args) == 1:
                    assert not wanted, f"{path}:{node.lineno}"
                elif isinstance(node.args[1], ast.Dict) and None not in node.args[1].keys:
                    told = {ast.literal_eval(key) for key in node.args[1].keys if key is not None}
                    assert wanted <= told, f"{path}:{node.lineno}"
