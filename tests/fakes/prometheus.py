"""A real Prometheus for tests: scrapes what it is told to, every second, until the block ends."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml


class Prometheus:
    """Asked over HTTP."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session

    async def series(self, expr: str, start: float, end: float, step: str = "2s") -> list[dict[str, Any]]:
        """The series of an expression over a time. Fails where Prometheus refuses it."""
        asked = {"query": expr, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": step}
        async with self._session.post(f"{self.url}/api/v1/query_range", data=asked) as response:
            answer = await response.json()
        assert answer["status"] == "success", f"{expr}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def targets(self) -> dict[str, str]:
        """Health by scrape address."""
        async with self._session.get(f"{self.url}/api/v1/targets") as response:
            answer = await response.json()
        return {one["scrapeUrl"]: one["health"] for one in answer["data"]["activeTargets"]}


@asynccontextmanager
async def running_prometheus(program: str, folder: Path, configuration: Mapping[str, Any]) -> AsyncIterator[Prometheus]:
    """Serves on a free port, its data below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(dict(configuration)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        child = subprocess.Popen([program, *arguments, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(None) as patience:
            patience.reschedule(asyncio.get_running_loop().time() + 60)
            while True:
                assert child.poll() is None, (folder / "prometheus.log").read_text()
                try:
                    async with session.get(f"http://{address}/-/ready") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
            patience.reschedule(None)
            yield Prometheus(f"http://{address}", session)
    finally:
        child.terminate()
        child.wait(30)
