"""`services.cli.processes` and the laptop's platform: started, watched, ended whole."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import aiohttp
import psutil
import pytest

from services.cli.local import LocalPlatform, LocalStack
from services.cli.processes import Child, LocalError, refuse_used_ports
from services.rollout.resources import Metadata
from services.serving.local_ray import free_ports

SERVER = (
    "import subprocess, sys; from http.server import HTTPServer, BaseHTTPRequestHandler as H\n"
    "H.do_GET = lambda s: (s.send_response(200), s.end_headers())\n"
    "H.log_message = lambda *a: None\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print('listening', flush=True)\n"
    "HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
)


def child(tmp_path: Path, code: str = SERVER, within: float = 10.0) -> Child:
    with free_ports(1) as ports:
        argv = [sys.executable, "-c", code, str(ports[0])]
    return Child("server", argv, os.environ, tmp_path / "log", f"http://127.0.0.1:{ports[0]}/", within)


async def test_a_child_is_awaited_started_again_and_ended_with_its_family(tmp_path: Path) -> None:
    one = child(tmp_path)
    told: list[str] = []
    async with aiohttp.ClientSession() as session:
        one.start()
        await one.ready(session)
        keeper = asyncio.create_task(one.keep(session, told.append))
        assert one.process is not None
        first = one.process.pid
        family = psutil.Process(first).children()
        assert len(family) == 1
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(15):
            while one.process.pid == first:
                await asyncio.sleep(0.05)
            await one.ready(session)
        assert "ended with status -9" in told[0]
        await asyncio.to_thread(one.stop)
        await keeper
    assert one.process.poll() is not None
    family[0].kill()  # the first one's own child outlived its killed parent; the stack's tag would find it


async def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    one = child(tmp_path, "raise SystemExit('no such database')")
    async with aiohttp.ClientSession() as session:
        one.start()
        with pytest.raises(LocalError, match=r"ended with status 1.*no such database"):
            await one.ready(session)
    one.stop()


def test_a_used_port_is_named_with_its_holder_and_the_field() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(
            LocalError,
            match=rf"port {port} is in use by .*process {os.getpid()}.*set another port in x.yaml spec.gatewayPort",
        ):
            refuse_used_ports({"x.yaml spec.gatewayPort": port})


async def test_two_stacks_cannot_share_a_state_folder_and_keys_last(tmp_path: Path) -> None:
    with free_ports(3) as (gateway, registry, controller):
        spec = {"gatewayPort": gateway, "registryPort": registry, "controllerPort": controller}
        environments = {"engineEnvironment": sys.prefix, "registryEnvironment": sys.prefix}
    platform = LocalPlatform.model_validate({"metadata": {"name": "t"}, "spec": spec | environments})
    config = tmp_path / "x.yaml"
    async with LocalStack(config, platform, print) as first:
        key = first.api_key
        assert (first.state / "secrets.json").stat().st_mode & 0o777 == 0o600
        with pytest.raises(LocalError, match="another Understudy runs"):
            async with LocalStack(config, platform, print):
                pass
    async with LocalStack(config, platform, print) as again:
        assert again.api_key == key
    async with LocalStack(config, platform, print, fresh=True) as fresh:
        assert fresh.api_key != key
    assert platform.metadata == Metadata(name="t")


ENDING = (
    "import asyncio, pathlib, sys; from services.cli.local import interruptible\n"
    "async def main():\n"
    "    stop = interruptible(); print('running', flush=True)\n"
    "    await stop.wait(); print('ending', flush=True); pathlib.Path(sys.argv[1]).touch()\n"
    "asyncio.run(main())\n"
)


def take_terminal() -> None:
    """In the child. Who runs the tests under nohup has hang-ups ignored, and children inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_closed_terminal_ends_everything_in_order(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    ended = tmp_path / "ended"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING, str(ended)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        assert (
            terminal.readline().strip() == b"running"
        )  # to its end: a terminal closed in midst of a line is the writer's error
    assert process.wait(10) == 0
    assert ended.exists()
