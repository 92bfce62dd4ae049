"""Child processes of the laptop's platform: started with a log file, awaited until they answer, restarted when they die, ended whole.

`services.cli.local` calls this; it also tags the children's environment, so that what a killed supervisor left is found at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil


class LocalError(Exception):
    """The laptop's platform cannot start or go on; the text says what to do."""


@dataclass
class Child:
    """One supervised process."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    health: str
    """URL that answers 200 when the process is ready."""
    ready_within: float = 60.0
    """Seconds."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    stopping: bool = False

    def start(self) -> None:
        """Start the process in a session of its own, so that a Ctrl-C reaches the supervisor alone."""
        self.stopping = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Wait until the health URL answers.

        Raises:
            LocalError: the process ended first, or `ready_within` is over.
        """
        deadline = asyncio.get_running_loop().time() + self.ready_within
        while asyncio.get_running_loop().time() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise LocalError(f"{self.name} ended with status {self.process.returncode}; {self.last_words()}")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(self.health, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
        raise LocalError(
            f"{self.name} did not answer at {self.health} within {self.ready_within:.0f} s; {self.last_words()}"
        )

    async def keep(self, session: aiohttp.ClientSession, tell: Callable[[str], None]) -> None:
        """Start the process again whenever it ends on its own, as a kubelet would: after 1 s, then twice as long, at most 30 s."""
        pause = 1.0
        while True:
            assert self.process is not None  # noqa: S101  (started before it is kept)
            await asyncio.to_thread(self.process.wait)
            if self.stopping:
                return
            tell(f"{self.name} ended with status {self.process.returncode}; starting it again ({self.last_words(1)})")
            await asyncio.sleep(pause)
            if self.stopping:
                return
            self.start()
            try:
                await self.ready(session)
                pause = 1.0
            except LocalError as error:
                tell(str(error))
                pause = min(2 * pause, 30.0)

    def stop(self, patience: float = 15.0) -> None:
        """End the process and its descendants: SIGTERM, then SIGKILL after `patience` seconds. Does nothing when it has ended."""
        self.stopping = True
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
            if self.process.poll() is None:
                root.send_signal(signal.SIGTERM)
            end(family, patience)
        self.process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of the log, with the log's path."""
        text = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        tail = " | ".join(line.strip() for line in text[-lines:] if line.strip())
        return f"its log ({self.log}) ends: {tail or '(empty)'}"


def end(family: Sequence[psutil.Process], patience: float) -> None:
    """Wait up to `patience` seconds for the first of the family, then end whoever is left."""
    psutil.wait_procs(family[:1], timeout=patience)
    _, alive = psutil.wait_procs(family, timeout=1.0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5.0)


def refuse_used_ports(ports: Mapping[str, int]) -> None:
    """Check that nobody listens on the ports (keyed by the configuration field that sets them).

    Raises:
        LocalError: names the port, who holds it where that can be seen, and the field to change.
    """
    listening = {c.laddr[1]: c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr}
    for where, port in ports.items():
        if port in listening:
            pid = listening[port]
            holder = ""
            if pid is not None:
                with contextlib.suppress(psutil.Error):
                    holder = f" by {psutil.Process(pid).name()} (process {pid})"
            raise LocalError(f"port {port} is in use{holder}: end that process or set another port in {where}")
