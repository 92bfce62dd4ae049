"""The Ray Serve adapter against a small Serve."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.rollout.platforms.base import PlatformRejected, PlatformUnavailable, RevisionSpec, RevisionState
from services.rollout.platforms.serve import ServePlatform
from services.rollout.platforms.serve_status import engine_error
from tests.fakes.serve_api import ServeApi

ONE, TWO = "assistant-v1-aaaa", "assistant-v2-bbbb"


def spec(name: str, service: str = "assistant", **changes: Any) -> RevisionSpec:
    values: dict[str, Any] = {
        "artifact": "/models/one",
        "engine": {"dtype": "float32"},
        "resources": {"CPU": 0.5},
        "replicas": (1, 1),
        "max_ongoing_requests": 64,
        **changes,
    }
    return RevisionSpec(name=name, service=service, **values)


@pytest.fixture
def serve() -> ServeApi:
    return ServeApi()


@pytest.fixture
async def platform(serve: ServeApi) -> AsyncIterator[ServePlatform]:
    async with TestServer(serve.app) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("/"))
        platform = ServePlatform(session, url, url, token="secret")
        yield platform
        await platform.close()


@pytest.fixture
async def direct(serve: ServeApi) -> AsyncIterator[ServePlatform]:
    """A platform whose proxy is the first port and whose replicas listen where they say."""
    async with TestServer(serve.app) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("/"))
        serve.logs["node", f"serve/{ONE}-0.log"] = f"Started HTTP server on port {server.port}\nPOST /x 200\n"
        platform = ServePlatform(session, url, url.replace("127.0.0.1", "localhost"), token="secret", direct=True)
        yield platform
        await platform.close()


async def observed(platform: ServePlatform, name: str, until: Callable[[RevisionState], bool]) -> RevisionState:
    async with asyncio.timeout(2):
        while not until(state := (await platform.observe("assistant"))[name]):
            await asyncio.sleep(0)
        return state


async def test_a_revision_is_ready_once_it_has_answered_at_its_address(
    platform: ServePlatform, serve: ServeApi
) -> None:
    await platform.apply(spec(ONE))
    state = (await platform.observe("assistant"))[ONE]
    assert (state.phase, state.address) == ("starting", None)
    serve.status(ONE, "RUNNING")
    assert (await platform.observe("assistant"))[ONE].phase == "starting"  # RUNNING alone is not enough
    state = await observed(platform, ONE, lambda state: state.phase == "ready")
    assert state.ready_replicas == 1
    assert state.address is not None
    assert state.address.endswith(f"/assistant/{ONE}/v1")
    assert set(serve.completions) == {(f"/assistant/{ONE}/v1/completions", ONE)}
    asked = len(serve.completions)
    await platform.observe("assistant")
    await asyncio.sleep(0)
    assert len(serve.completions) == asked  # remembered


async def test_a_revision_that_stopped_running_must_answer_anew(platform: ServePlatform, serve: ServeApi) -> None:
    await platform.apply(spec(ONE))
    serve.status(ONE, "RUNNING")
    await observed(platform, ONE, lambda state: state.phase == "ready")
    serve.status(ONE, "UNHEALTHY", "1 replica died.", replicas=0)
    assert (await platform.observe("assistant"))[ONE].phase == "failed"
    serve.status(ONE, "RUNNING")
    serve.completion_status = 503
    state = await observed(platform, ONE, lambda state: "503" in state.message)
    assert (state.phase, state.address) == ("starting", None)


async def test_a_second_revision_leaves_every_other_application_alone(platform: ServePlatform, serve: ServeApi) -> None:
    serve.foreign("theirs", "declarative")
    serve.foreign("their-code", "imperative")
    await platform.apply(spec(ONE))
    await platform.apply(spec(TWO))
    assert {name: app["status"] for name, app in serve.applications.items()} == {
        "theirs": "RUNNING",
        "their-code": "RUNNING",
        ONE: "DEPLOYING",
        TWO: "DEPLOYING",
    }
    assert set(await platform.observe("assistant")) == {ONE, TWO}
    assert await platform.observe("other") == {}
    # Serve's own options are repeated: it would take others for a change.
    assert serve.puts[-1]["http_options"] == {"host": "127.0.0.1", "port": 1}


async def test_applying_again_writes_nothing(platform: ServePlatform, serve: ServeApi) -> None:
    await platform.apply(spec(ONE))
    await platform.apply(spec(ONE))
    assert len(serve.puts) == 1
    await platform.apply(spec(ONE, max_ongoing_requests=8))
    assert len(serve.puts) == 2


async def test_other_bounds_leave_running_replicas_alone(platform: ServePlatform, serve: ServeApi) -> None:
    await platform.apply(spec(ONE, replicas=(1, 4)))
    serve.foreign("theirs", "declarative")
    serve.status(ONE, "RUNNING", replicas=2)
    state = await observed(platform, ONE, lambda state: state.phase == "ready")
    assert state.replicas == (1, 4)
    asked = len(serve.completions)
    await platform.scale(ONE, (0, 4))
    state = (await platform.observe("assistant"))[ONE]
    assert (state.phase, state.replicas, state.ready_replicas) == ("ready", (0, 4), 2)
    assert len(serve.completions) == asked  # it need not answer anew
    before = len(serve.puts)
    await platform.scale(ONE, (0, 4))
    await platform.scale("theirs", (0, 4))
    await platform.scale(TWO, (0, 4))
    assert len(serve.puts) == before


async def test_without_a_replica_it_is_ready_for_the_next_request(direct: ServePlatform, serve: ServeApi) -> None:
    await direct.apply(spec(ONE, replicas=(0, 1)))
    serve.status(ONE, "RUNNING")
    await observed(direct, ONE, lambda state: state.direct is not None)
    serve.status(ONE, "RUNNING", replicas=0)
    state = (await direct.observe("assistant"))[ONE]
    assert (state.phase, state.ready_replicas, state.direct) == ("ready", 0, None)
    assert state.address is not None


async def test_concurrent_writes_lose_nothing(platform: ServePlatform, serve: ServeApi) -> None:
    await asyncio.gather(*(platform.apply(spec(f"assistant-v{i}-0000")) for i in range(5)))
    assert len(serve.applications) == 5


async def test_a_removed_revision_drains_and_is_not_brought_back(platform: ServePlatform, serve: ServeApi) -> None:
    await platform.apply(spec(ONE))
    await platform.apply(spec(TWO))
    await platform.remove(ONE)
    assert (await platform.observe("assistant"))[ONE].phase == "draining"
    await platform.remove(ONE)
    await platform.apply(spec("assistant-v3-cccc"))  # a write while the first one drains
    assert serve.applications[ONE]["status"] == "DELETING"
    serve.finish_draining()
    assert set(await platform.observe("assistant")) == {TWO, "assistant-v3-cccc"}


async def test_another_writer_undoing_a_write(platform: ServePlatform, serve: ServeApi) -> None:
    serve.foreign("theirs", "declarative")
    serve.lose_writes = 2
    await platform.apply(spec(ONE))
    assert ONE in serve.applications
    serve.lose_writes = 10
    with pytest.raises(PlatformUnavailable, match="another writer"):
        await platform.apply(spec(TWO))


async def test_a_failed_engine_says_why(platform: ServePlatform, serve: ServeApi) -> None:
    await platform.apply(spec(ONE))
    serve.logs[f"actor-{ONE}", "out"] = (
        "(Worker pid=7) INFO loading\n"
        "(Worker pid=7) ERROR [executor.py:9] RuntimeError: tensor a (384) must match tensor b (192)\n"
        "(EngineCore pid=6) Exception: WorkerProc initialization failed\n"
    )
    serve.status(ONE, "DEPLOY_FAILED", "The deployment failed to start.\n  File x\nRuntimeError: see above", replicas=0)
    state = (await platform.observe("assistant"))[ONE]
    assert (state.phase, state.ready_replicas, state.address) == ("failed", 0, None)
    assert state.message == (
        "The deployment failed to start. RuntimeError: see above\n"
        "RuntimeError: tensor a (384) must match tensor b (192)"
    )


async def test_a_failed_engine_that_writes_its_log_late_still_says_why(
    platform: ServePlatform, serve: ServeApi
) -> None:
    await platform.apply(spec(ONE))
    serve.status(ONE, "DEPLOY_FAILED", "see above", replicas=0)
    assert (await platform.observe("assistant"))[ONE].phase == "starting"
    serve.logs[f"actor-{ONE}", "out"] = "ValueError: bad dtype\n"
    state = (await platform.observe("assistant"))[ONE]
    assert (state.phase, state.message) == ("failed", "see above\nValueError: bad dtype")


async def test_a_failed_engine_without_a_log_still_fails(
    platform: ServePlatform, serve: ServeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rollout.platforms.serve._WORDS_WITHIN", 0)
    await platform.apply(spec(ONE))
    serve.status(ONE, "DEPLOY_FAILED", "no room", replicas=0)
    state = (await platform.observe("assistant"))[ONE]
    assert (state.phase, state.message) == ("failed", "no room")


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("all is well\n", ""),
        ("[W] Warning: something\nValueError: bad dtype\nException: later\n", "ValueError: bad dtype"),
        ("\x1b[36m(x)\x1b[0m torch.OutOfMemoryError: 20 GB\n", "torch.OutOfMemoryError: 20 GB"),
        ("worker 7 was killed by SIGKILL\n", "worker 7 was killed by SIGKILL"),
    ],
)
def test_the_cause_in_an_engines_log(log: str, cause: str) -> None:
    assert engine_error(log) == cause


async def test_names_that_are_taken_or_unusable_are_refused(platform: ServePlatform, serve: ServeApi) -> None:
    serve.foreign(ONE, "declarative")
    with pytest.raises(PlatformRejected, match="not ours"):
        await platform.apply(spec(ONE))
    with pytest.raises(PlatformRejected, match="URL"):
        await platform.apply(spec("Assistant/v2"))
    assert serve.puts == []


async def test_an_application_of_others_is_never_removed(platform: ServePlatform, serve: ServeApi) -> None:
    serve.foreign("theirs", "declarative")
    await platform.remove("theirs")
    assert serve.applications["theirs"]["status"] == "RUNNING"


async def test_faults_of_the_rest_api_are_told_apart(platform: ServePlatform, serve: ServeApi) -> None:
    serve.faults = [web.Response(status=503, text="GCS is down")]
    with pytest.raises(PlatformUnavailable, match="GCS is down"):
        await platform.observe("assistant")
    serve.faults = [web.Response(text="<html>a proxy's page</html>")]
    with pytest.raises(PlatformUnavailable, match="something else"):
        await platform.observe("assistant")
    serve.foreign("theirs", "declarative")
    serve.faults = []
    serve.token = "another"
    with pytest.raises(PlatformRejected, match="token"):
        await platform.observe("assistant")


async def test_an_unreachable_dashboard_is_unavailable(unused_tcp_port: int) -> None:
    async with aiohttp.ClientSession() as session:
        platform = ServePlatform(session, f"http://127.0.0.1:{unused_tcp_port}", "http://127.0.0.1:1")
        with pytest.raises(PlatformUnavailable, match="did not answer"):
            await platform.observe("assistant")


async def test_a_revision_with_one_replica_is_addressed_past_the_proxy(direct: ServePlatform, serve: ServeApi) -> None:
    await direct.apply(spec(ONE))
    serve.status(ONE, "RUNNING")
    state = await observed(direct, ONE, lambda state: state.phase == "ready")
    assert state.address is not None
    assert state.address.startswith("http://localhost:")
    assert state.direct == state.address.replace("localhost", "127.0.0.1")
    serve.status(ONE, "RUNNING", replicas=2)  # now Ray's proxy balances
    state = (await direct.observe("assistant"))[ONE]
    assert (state.phase, state.direct) == ("ready", None)


@pytest.mark.parametrize("log", ["", "Started HTTP server on port 1\n"])
async def test_a_replica_that_cannot_be_found_or_does_not_answer_is_reached_through_the_proxy(
    direct: ServePlatform, serve: ServeApi, log: str
) -> None:
    serve.logs["node", f"serve/{ONE}-0.log"] = log
    await direct.apply(spec(ONE))
    serve.status(ONE, "RUNNING")
    state = await observed(direct, ONE, lambda state: state.phase == "ready")
    assert state.address is not None
    assert state.direct is None
