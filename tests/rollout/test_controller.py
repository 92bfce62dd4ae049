"""The file mode around the loops: one controller a store, a file that changes, looks that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from services.common import telemetry
from services.common.clock import SystemClock
from services.rollout import loop as module
from services.rollout.controller import Controller, FileSource
from services.rollout.decide import Decision
from services.rollout.errors import InvalidResource, LockHeld
from services.rollout.health import Health
from services.rollout.lock import FileLock, SessionLock, holding
from services.rollout.loop import ServiceLoop
from services.rollout.metrics import Metrics
from services.rollout.reconcile import Reconciler
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus, ServiceStatus, Stage
from services.store import StoreUnavailable

DOCUMENT = """\
apiVersion: understudy.dev/v1alpha1
kind: LLMService
metadata: {{name: {name}}}
spec:
  model: {{registeredModel: m}}
  rollout: {{look: 10ms, alpha: {alpha}}}
"""


class Looker:
    """Counts looks in place of a reconciler, and fails the first ones."""

    def __init__(self, service: LLMService, failures: list[Exception]) -> None:
        self.service, self.failures = service, failures
        self.last = None
        self.looked = asyncio.Event()
        self.alphas: set[float] = set()

    async def look(self) -> Decision:
        if self.failures:
            raise self.failures.pop()
        self.alphas.add(self.service.spec.rollout.alpha)
        self.looked.set()
        return Decision((), ServiceStatus())

    async def close(self) -> None:
        pass


@asynccontextmanager
async def running(config: Path, lock: Any, failures: list[Exception] | None = None) -> AsyncIterator[dict[str, Looker]]:
    made: dict[str, Looker] = {}

    def make(service: LLMService) -> Reconciler:
        made[service.name] = Looker(service, failures or [])
        return cast(Reconciler, made[service.name])

    clock = SystemClock()
    metrics, health = Metrics(), Health(clock, {})

    hold = holding(lock)

    def loop(service: LLMService) -> ServiceLoop:
        return ServiceLoop(service, hold, make, lambda _: (), metrics, health, clock)

    task = asyncio.create_task(Controller(FileSource(config, loop), lock).run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "services.yaml"
    path.write_text(DOCUMENT.format(name="one", alpha=0.05))
    return path


async def test_an_edited_file_is_followed_and_a_wrong_one_is_not(config: Path, tmp_path: Path, caplog: Any) -> None:
    async with running(config, FileLock(tmp_path / "lock")) as made:
        await until(lambda: "one" in made and made["one"].looked.is_set())
        config.write_text(DOCUMENT.format(name="one", alpha=0.1) + "---\n" + DOCUMENT.format(name="two", alpha=0.1))
        await until(lambda: "two" in made and 0.1 in made["one"].alphas)
        config.write_text(DOCUMENT.format(name="one", alpha="much"))
        await until(lambda: "last version stays in force" in caplog.text)
        assert "services.yaml:6: spec.rollout.alpha" in caplog.text
        made["two"].looked.clear()
        await until(made["two"].looked.is_set)


async def test_a_file_that_is_wrong_at_the_start_ends_the_controller(config: Path, tmp_path: Path) -> None:
    config.write_text("kind: LLMService\n")
    with pytest.raises(InvalidResource, match=r"metadata: the field is missing"):
        async with running(config, FileLock(tmp_path / "lock")):
            await asyncio.sleep(0.1)


async def test_looks_go_on_after_failures(config: Path, tmp_path: Path) -> None:
    failures: list[Exception] = [StoreUnavailable("locked"), RuntimeError("a fault")]
    async with running(config, FileLock(tmp_path / "lock"), failures) as made:
        await until(lambda: "one" in made and made["one"].looked.is_set())


async def test_a_second_controller_stands_by_until_the_first_is_gone(config: Path, tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.take()
    async with running(config, second) as made:
        await asyncio.sleep(0.1)
        assert not made
        first.release()
        await until(lambda: "one" in made)


@pytest.mark.integration
def test_the_lock_of_postgresql_ends_with_its_session(postgres_url: str) -> None:
    from sqlalchemy import create_engine, make_url, text

    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    first, second = SessionLock(url), SessionLock(url)
    first.take()
    first.take()
    with pytest.raises(LockHeld, match="another controller"):
        second.take()
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(
            text(
                "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
            )
        )
    admin.dispose()
    with pytest.raises(LockHeld, match="connection"):
        first.take()
    second.take()
    second.release()
    first.release()


def rolling(stage: Stage, stage_started_at: float | None) -> ServiceStatus:
    rollout = RolloutStatus.model_construct(stage=stage, stage_started_at=stage_started_at)
    return ServiceStatus.model_construct(rollout=rollout)


@pytest.mark.parametrize(
    ("status", "services", "pause"),
    [
        (ServiceStatus(), 1, 2.0),
        (ServiceStatus(), 51, 10.0),
        (rolling("canary", None), 51, 0.5),
        (rolling("canary", 7.0), 1, 10.0),
        (rolling("finished", 7.0), 1, 2.0),
    ],
)
async def test_a_look_comes_soon_where_somebody_waits_for_it(
    status: ServiceStatus, services: int, pause: float
) -> None:
    clock = SystemClock()
    health = Health(clock, {})
    service = LLMService.model_validate(
        {
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "assistant"},
            "spec": {"model": {"registeredModel": "m"}},
        }
    )
    looker = cast(Reconciler, Looker(service, []))
    hold = holding(FileLock(Path("unused")))
    loop = ServiceLoop(service, hold, lambda _: looker, lambda _: (), Metrics(), health, clock)
    for number in range(services - 1):
        health.turned(f"other-{number}", 0.0)
    assert loop.pause(Decision((), status)) == pause
    await loop.close()


async def test_who_loses_the_lock_tells_nothing_more_of_its_services() -> None:
    class Lock:
        held = True

        def take(self) -> None:
            if not self.held:
                raise LockHeld("another controller has it")

    service = LLMService.model_validate({"metadata": {"name": "one"}, "spec": {"model": {"registeredModel": "one"}}})
    metrics, clock, lock = Metrics(), SystemClock(), Lock()
    make = lambda of: cast(Reconciler, Looker(of, []))  # noqa: E731
    loop = ServiceLoop(service, holding(cast(Any, lock)), make, lambda _: (), metrics, Health(clock, {}), clock)

    def last_look() -> float | None:
        return metrics.registry.get_sample_value(telemetry.LAST_LOOK.name, {"service": "one"})

    assert await loop.look() is not None
    assert last_look() == pytest.approx(clock.time(), abs=30)
    lock.held = False
    assert await loop.look() is None
    assert last_look() is None
    await loop.close()
