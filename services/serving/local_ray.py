"""A Ray head on this machine, as child processes: the laptop's cluster for the platform `serve`.

`services.cli` starts and stops it; tests do as well. It runs `ray` out of the engine's own environment and imports nothing of it.
It must leave no process and no file behind it but its log. Some of Ray's processes outlive their parents, so every one of them
carries a tag (`UNDERSTUDY_STACK`) in its environment, by which it is found at the end, or at the next start after a crash.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from services.serving.engine_plugin import IN_PROCESS
from services.serving.errors import LocalRayError

TAG = "UNDERSTUDY_STACK"

# sockaddr_un.sun_path holds 107 bytes and Ray appends `/session_<time>_<pid>/sockets/plasma_store`; HAProxy's socket needs more:
# a node id of 56 digits, `admin.sock` and a temporary suffix.
_LONGEST_SCRATCH = 24

_STOP_SECONDS = 5.0  # engines hold no state: what has not ended by then is killed


@dataclass(frozen=True, slots=True)
class RaySizes:
    """What the head declares and may use.

    `cpus` is what Ray hands out, and may exceed the machine's cores: revisions reserve fractions of it. `threads` is the number of
    compute threads of one engine: more than one lets small engines wait for each other on a small machine.
    """

    cpus: int = 8
    object_store_bytes: int = 100_000_000
    threads: int = 1
    drain_seconds: int = 5  # how long a removed replica still answers, so that proxies can turn away from it


class LocalRay:
    """A head started by `start` and ended by `stop`; both are safe to call again.

    `environment` is the engine's virtual environment, `owner` a folder that names the stack: two heads with the same owner are one
    stack, and `start` ends what an earlier one left. Ray's output goes to the file `log`.
    """

    def __init__(self, environment: Path, owner: Path, log: Path, sizes: RaySizes | None = None) -> None:
        self.token = secrets.token_hex(32)  # Ray's ports run any code for whoever reaches them
        self.dashboard_url = ""
        self.proxy_url = ""
        self._environment = environment.absolute()
        self._tag = f"{owner.resolve()}#ray"
        self._log = log
        self._sizes = sizes or RaySizes()
        self._scratch: Path | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def metrics_targets(self) -> Path:
        """The file in which Ray lists what exposes metrics, as Prometheus reads it. Only while it runs."""
        if self._scratch is None:
            raise LocalRayError("Ray does not run")
        return self._scratch / "prom_metrics_service_discovery.json"

    async def start(self, timeout: float = 120.0) -> None:
        """Returns when Serve's REST API answers. Raises LocalRayError; nothing is left running then."""
        if self._process is not None:
            return
        await end_tagged(self._tag)
        self._scratch = _short_folder()
        try:
            with free_ports(7) as ports:
                environment, arguments = self._command(self._scratch, ports)
                self.dashboard_url, self.proxy_url = (f"http://127.0.0.1:{port}" for port in ports[:2])
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *arguments,
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            await self._wait(timeout)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends every process of this head and removes its scratch folder."""
        process, self._process = self._process, None
        await asyncio.shield(asyncio.ensure_future(end_tagged(self._tag)))
        if process is not None:
            await process.wait()
        if self._scratch is not None:
            await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
            self._scratch = None

    async def _wait(self, timeout: float) -> None:
        assert self._process is not None  # noqa: S101
        headers = {"Authorization": f"Bearer {self.token}"}
        deadline = asyncio.get_running_loop().time() + timeout
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
            while asyncio.get_running_loop().time() < deadline:
                if self._process.returncode:
                    raise LocalRayError(f"Ray ended with status {self._process.returncode}; {self._last_words()}")
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{self.dashboard_url}/api/serve/applications/") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.2)
        raise LocalRayError(f"Ray did not answer at {self.dashboard_url} within {timeout:.0f} s; {self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            return f"its last words, from {self._log}:\n" + "\n".join(lines[-8:])
        return f"see {self._log}"

    def _command(self, scratch: Path, ports: list[int]) -> tuple[dict[str, str], list[str]]:
        dashboard, _, gcs, agent, metrics, stats, client = ports
        haproxy = scratch / "h"
        haproxy.mkdir()
        bin_folder = self._environment / "bin"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "VLLM_", "UNDERSTUDY_"))},
            "PATH": f"{bin_folder}:{os.environ.get('PATH', os.defpath)}",
            TAG: self._tag,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Workers that fetched a model stay idle with all of vLLM imported, 1 GB each; Ray would keep one per declared CPU.
            "RAY_num_workers_soft_limit": "0",
            # Ray gives its workers a niceness of 15: whatever else the machine does would come before the engines.
            "RAY_worker_niceness": "0",
            # The stock direct path: HAProxy to the replica, no Python proxy between.
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
            # A proxy tells that a request waits for an engine to start; Ray's own ten seconds would be added to every such start.
            "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(self._sizes.drain_seconds),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{haproxy}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{haproxy}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{haproxy}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{haproxy}/state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            IN_PROCESS: "1",
            "RAYLLM_VLLM_ENGINE_CLS": "services.serving.local_engine:LocalEngine",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # Pinned threads of several engines would share the same cores and wait for each other.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(self._sizes.threads),
            # Without it the engine compiles kernels at its first request, for which it needs g++ and seconds.
            "TORCHDYNAMO_DISABLE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        # With this set, each of an engine's processes would compile its 20,000 modules again: it doubles the time to start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        arguments = [
            # Without --block: with it, Ray takes everything down when its client server, which nobody uses, is slow to start.
            *(str(bin_folder / "ray"), "start", "--head", "--disable-usage-stats", "--no-monitor"),
            # Not 127.0.0.1: Ray replaces that by the address of a network card.
            "--node-ip-address=127.0.0.2",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            "--include-log-monitor=false",
            f"--num-cpus={self._sizes.cpus}",
            f"--object-store-memory={self._sizes.object_store_bytes}",
            f"--temp-dir={scratch}",
        ]
        return environment, arguments


async def end_tagged(tag: str) -> int:
    """Ends every process of this user whose environment carries the tag: asks, waits, then kills. Returns how many there were."""
    found = set(tagged(tag))
    count = len(found)
    _signal(
        [process for process in found if process.parent() not in found], kill=False
    )  # Ray's head takes its children down in order
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _STOP_SECONDS
    # Those seen once stay known: an orphan whose environment is gone is found by nothing else.
    while found := _living(found | set(tagged(tag))):
        if loop.time() > deadline:
            _signal(found, kill=True)
        await asyncio.sleep(0.1)  # processes that are not our children send no event
    return count


def tagged(tag: str) -> list[psutil.Process]:
    """Live processes of this user whose environment carries the tag and their descendants, without the caller itself.

    The parts of Ray's dashboard write their title over the whole of their environment.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        if process.pid != os.getpid() and process not in found and _carries(process, tag):
            found.add(process)
            with contextlib.suppress(psutil.Error):
                found.update(process.children(recursive=True))
    return sorted(_living(found), key=lambda process: process.pid)


def _living(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    living = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.add(process)
    return living


def _carries(process: psutil.Process, tag: str) -> bool:
    # Read raw: Ray's agents write their title over the block's beginning, and psutil takes the empty strings there for its end.
    with contextlib.suppress(psutil.Error, OSError):
        entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        return f"{TAG}={tag}".encode() in entries
    return False


def _signal(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            (process.kill if kill else process.terminate)()


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports of 127.0.0.1 that nobody listens on; held until the block ends, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]


def _short_folder() -> Path:
    for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  (mkdtemp makes the folder for this user alone)
        if len(base) + len("/us-XXXXXXXX") <= _LONGEST_SCRATCH and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="us-", dir=base))
    raise LocalRayError(
        f"Ray's sockets need a temporary folder whose path is at most {_LONGEST_SCRATCH - 12} characters long: "
        "set TMPDIR to one, for example TMPDIR=/tmp"
    )
