"""What the tests on real engines share: the environment, an engine's settings, tiny models, one HTTP session a module, a Ray a test."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio

from services.rollout.platforms.serve import ServePlatform
from services.serving.local_ray import LocalRay

ENVIRONMENT: Final = Path(__file__).parents[2] / ".venv-engine"
ENGINE: Final[dict[str, Any]] = {
    "max_model_len": 128,
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 2**26,
    "disable_log_stats": True,
}


def make_model(folder: Path, seed: int) -> Path:
    """A tiny model with random weights in `folder`."""
    script = Path(__file__).with_name("tiny_model.py")
    subprocess.run([ENVIRONMENT / "bin/python", script, folder, str(seed)], check=True, capture_output=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[ServePlatform]:
    """On a Ray of the test's own; gateways reach engines directly."""
    ray = LocalRay(ENVIRONMENT, tmp_path, tmp_path / "ray.log")
    await ray.start(300.0)
    try:
        async with aiohttp.ClientSession() as session:
            platform = ServePlatform(session, ray.dashboard_url, ray.proxy_url, token=ray.token, direct=True)
            yield platform
            await platform.close()
    finally:
        await ray.stop()
