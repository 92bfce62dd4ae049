"""`python -m services.gateway` as a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.fakes.gateway import KEY, hashed


class Process:
    """A gateway process."""

    def __init__(self, store_url: str, state: Path, **changes: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {
            "STORE_URL": store_url,
            "STATE_DIR": str(state),
            "UNIT_KEY": "a key for the units of tests",
            "KEYS": json.dumps([{"name": "user", "sha256": hashed(KEY)}]),
            "PORT": str(self.port),
            "NAME": "g1",
            "POLL_SECONDS": "0.1",
        } | changes
        environment = {key: value for key, value in os.environ.items() if not key.startswith("UNDERSTUDY_")}
        environment |= {f"UNDERSTUDY_GATEWAY_{key}": value for key, value in settings.items() if value}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "services.gateway"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(10)
        if self.child.stdout is not None:
            self.child.stdout.close()

    async def ready(self) -> Process:
        async with asyncio.timeout(40), aiohttp.ClientSession() as http:
            while True:
                assert self.child.poll() is None, self.words()
                try:
                    async with http.get(f"{self.url}/readyz") as response:
                        if response.status == 200:
                            return self
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.child.wait, 30)

    def words(self) -> str:
        return self.child.stdout.read().decode() if self.child.stdout is not None else ""

    async def ask(self, user: str = "ada", **fields: Any) -> tuple[str, bytes]:
        """One chat completion: its id and its bytes."""
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "user": user, **fields}
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{self.url}/v1/chat/completions"
        async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as response:
            data = await response.read()
            assert response.status == 200, data
            return response.headers["x-request-id"], data

    async def thumb(self, request_id: str) -> None:
        said = {"request_id": request_id, "kind": "thumb", "value": 1}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.post(f"{self.url}/v1/feedback", json=said) as response,
        ):
            assert response.status == 201
