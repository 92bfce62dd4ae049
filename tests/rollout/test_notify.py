"""Notifications over real HTTP: who is told of what, once more where it is due, and never for ever."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.rollout import reasons
from services.rollout.notify import PAUSES, STALE_SECONDS, Notifier
from services.rollout.resources import LLMService
from services.store import AuditEntry, Store, migrate, open_store
from tests.fakes.rollout_world import service

SECRETS = {"UNDERSTUDY_SECRET_KEY": "k3y"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path}/store.db"
    migrate(url)
    opened = open_store(url)
    yield opened
    opened.close()


class Receiver:
    """A webhook: answers as it is told, then 200; keeps what came."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        status = self.answers.pop(0) if self.answers else 200
        return web.Response(status=status, headers={"Location": self.url} if status == 302 else {})

    @property
    def events(self) -> list[str]:
        return [json.loads(body)["event"] for body in self.bodies]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


class Naps:
    """Sleeps no time, but lets others run; keeps how long it should have slept."""

    def __init__(self) -> None:
        self.lengths: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.lengths.append(seconds)
        await asyncio.sleep(0.001)


def told(url: str, **fields: Any) -> LLMService:
    return service(notifications=[{"name": "ops", "url": url, **fields}])


def happen(store: Store, *actions: str, age: float = 0.0) -> None:
    at = store.now() - age
    entry = {"service": "assistant", "rollout": "r1", "actor": "controller", "reason": "Why", "evidence": {"ttft": 0.3}}
    store.append_audit([AuditEntry(at=at, action=a, message=f"<{a}> & so on", **entry) for a in actions])  # type: ignore[arg-type]


def ends(store: Store) -> list[str]:
    return [entry.reason for entry in store.audit() if entry.action == "notify"]


@contextlib.asynccontextmanager
async def running(resource: LLMService, store: Store, environ: dict[str, str] = SECRETS) -> AsyncIterator[Naps]:
    naps = Naps()
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(Notifier(resource, store, session, environ, naps).run())
        async with asyncio.timeout(5):
            while not ends(store):
                await asyncio.sleep(0.002)
            yield naps
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(store: Store, *wanted: str) -> None:
    while ends(store)[1:] != list(wanted):
        await asyncio.sleep(0.002)


async def test_wanted_events_come_in_order_signed_and_once(store: Store, receiver: Receiver) -> None:
    happen(store, "abort")  # before anybody was to be told
    async with running(told(receiver.url, secretEnv="UNDERSTUDY_SECRET_KEY"), store):
        happen(store, "start", "step", "hold")
        await until(store, *[reasons.NOTIFICATION_SENT] * 2)
    assert ends(store)[0] == reasons.NOTIFICATIONS_BEGIN
    assert receiver.events == ["start", "hold"]
    body = json.loads(receiver.bodies[0])
    assert (body["service"], body["rollout"], body["reason"], body["evidence"]) == (
        "assistant",
        "r1",
        "Why",
        {"ttft": 0.3},
    )
    assert receiver.headers[0]["X-Understudy-Event"] == str(body["id"])
    expected = hmac.new(b"k3y", receiver.bodies[0], hashlib.sha256).hexdigest()
    assert receiver.headers[0]["X-Understudy-Signature"] == f"sha256={expected}"


async def test_what_happens_while_no_controller_runs_is_told_by_the_next(store: Store, receiver: Receiver) -> None:
    async with running(told(receiver.url), store):
        pass
    happen(store, "start", "abort")
    async with running(told(receiver.url), store):
        await until(store, *[reasons.NOTIFICATION_SENT] * 2)
    assert receiver.events == ["start", "abort"]


async def test_slack_gets_text(store: Store, receiver: Receiver) -> None:
    environ = {"UNDERSTUDY_SECRET_SLACK": receiver.url}
    resource = service(
        notifications=[{"name": "ops", "kind": "slack", "urlEnv": "UNDERSTUDY_SECRET_SLACK", "events": ["step"]}]
    )
    async with running(resource, store, environ):
        happen(store, "step")
        await until(store, reasons.NOTIFICATION_SENT)
    assert json.loads(receiver.bodies[0]) == {"text": "assistant: step (Why)\n&lt;step&gt; &amp; so on\nby controller"}


async def test_a_busy_receiver_is_tried_again(store: Store, receiver: Receiver) -> None:
    receiver.answers = [503, 429]
    async with running(told(receiver.url), store) as naps:
        happen(store, "abort")
        await until(store, reasons.NOTIFICATION_SENT)
    assert receiver.events == ["abort"] * 3
    assert [length for length in naps.lengths if length in PAUSES[:2]] == list(PAUSES[:2])


@pytest.mark.parametrize(
    ("answers", "environ", "attempts", "words"),
    [
        ([500] * 5, SECRETS, 5, "answered 500"),
        ([404], SECRETS, 1, "answered 404"),
        ([302], SECRETS, 1, "answered 302"),
        ([], {}, 0, "no UNDERSTUDY_SECRET_KEY"),
    ],
)
async def test_what_cannot_be_delivered_is_noted_and_the_next_follows(
    store: Store, receiver: Receiver, answers: list[int], environ: dict[str, str], attempts: int, words: str
) -> None:
    receiver.answers = answers
    async with running(told(receiver.url, secretEnv="UNDERSTUDY_SECRET_KEY"), store, environ):
        happen(store, "abort")
        await until(store, reasons.NOTIFICATION_FAILED)
        assert receiver.events == ["abort"] * attempts
        happen(store, "hold")
        await until(
            store, reasons.NOTIFICATION_FAILED, reasons.NOTIFICATION_SENT if attempts else reasons.NOTIFICATION_FAILED
        )
    failed = next(entry for entry in store.audit() if entry.reason == reasons.NOTIFICATION_FAILED)
    assert words in failed.message
    assert receiver.url not in failed.message


async def test_one_that_is_away_holds_up_no_other(store: Store, receiver: Receiver) -> None:
    away = {"name": "away", "url": "http://127.0.0.1:1/secret-path"}
    resource = service(notifications=[away, {"name": "ops", "url": receiver.url}])
    async with running(resource, store):
        while len(ends(store)) < 2:
            await asyncio.sleep(0.002)
        happen(store, "abort")
        while set(ends(store)[2:]) != {reasons.NOTIFICATION_SENT, reasons.NOTIFICATION_FAILED}:
            await asyncio.sleep(0.002)
    assert receiver.events == ["abort"]
    assert all("secret-path" not in entry.message for entry in store.audit())


async def test_the_distant_past_stays_untold(store: Store, receiver: Receiver) -> None:
    async with running(told(receiver.url), store):
        happen(store, "abort", age=STALE_SECONDS + 60)
        happen(store, "hold")
        await until(store, reasons.NOTIFICATION_SENT)
    assert receiver.events == ["hold"]
