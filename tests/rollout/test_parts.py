"""What runs beside a service's looks, made from resource and settings: here the reading of samples, by a real endpoint of embeddings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.fernet import Fernet
from pydantic import SecretStr

from services.rollout.metrics import Metrics
from services.rollout.parts import Parts
from services.rollout.prompts import read_terms
from services.rollout.resources import LLMService
from services.rollout.settings import ControllerSettings
from services.store import JudgeMaterial, material_of, migrate, open_store
from tests.fakes.embedder import embedding
from tests.fakes.recorded import samples, until

KEY = Fernet.generate_key()


async def embeddings(request: web.Request) -> web.Response:
    body = await request.json()
    assert request.headers["Authorization"] == "Bearer secret"
    assert body["model"] == "words"
    data = [{"index": i, "embedding": embedding(text).tolist()} for i, text in enumerate(body["input"])]
    return web.json_response({"data": data})


def service(url: str, references: Path) -> LLMService:
    spec: dict[str, Any] = {
        "model": {"registeredModel": "assistant"},
        "privacy": {"content": "topics"},
        "rollout": {"judge": {"kind": "exactMatch", "references": str(references)}},
        "drift": {
            "sample": 0.5,
            "prompts": {"endpoint": url, "model": "words", "apiKeyEnv": "UNDERSTUDY_SECRET_EMBEDDINGS"},
        },
    }
    return LLMService.model_validate({"metadata": {"name": "assistant"}, "spec": spec})


async def test_a_resource_with_samples_has_them_judged_and_their_prompts_read(tmp_path: Path) -> None:
    references = tmp_path / "references.json"
    references.write_text(json.dumps({"capital of france?": "paris"}))
    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    store = open_store(url)
    content = {
        "request_id": "r",
        "revision": "assistant-v1-aaaa",
        "tenant": "shop",
        "prompt": "capital of france?",
        "answer": "Paris.",
    }
    ciphertext = Fernet(KEY).encrypt(json.dumps(content).encode())
    store.put_judge_material([JudgeMaterial("a", material_of("assistant"), "unit", ciphertext, store.now())])
    settings = ControllerSettings(store_url=url, registry_uri="http://127.0.0.1:9", content_key=SecretStr(KEY.decode()))
    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    environ = {"UNDERSTUDY_SECRET_EMBEDDINGS": "secret"}
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        parts = Parts(settings, store, session, environ, tmp_path, None, None)
        tasks = parts._beside(service(str(server.make_url("/v1")), references), Metrics())
        try:
            (sample,) = await until(lambda: samples(store))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.close()
    assert (sample.score, sample.judge, sample.model, sample.words) == (1.0, "exactMatch", "words", 3)
    assert sample.embedding == embedding("capital of france?").tobytes()
    assert read_terms(Fernet(KEY), sample.terms) == {"capital", "france"}
