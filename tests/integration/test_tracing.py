"""Traces and feedback in a real MLflow, through its OTLP endpoint and its REST API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from services.gateway.otlp_settings import otlp_settings
from services.store import migrate, open_store
from tests.fakes.gateway import KEY, RunningGateway, gateway_settings, route, running_gateway, target
from tests.fakes.openai_engine import Engine, serve

pytestmark = pytest.mark.integration

Found = dict[str, Any]


@pytest.fixture
async def experiment(mlflow_server: str) -> str:
    async with aiohttp.ClientSession() as http:
        url = f"{mlflow_server}/api/2.0/mlflow/experiments/create"
        async with http.post(url, json={"name": "traffic of the assistant"}) as response:
            return str((await response.json())["experiment_id"])


@pytest.fixture
async def gateway(mlflow_server: str, experiment: str, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway that exports to MLflow as docs/tracing.md says; content is allowed for `open` alone."""
    url = f"sqlite:///{tmp_path / 'understudy.db'}"
    migrate(url)
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": mlflow_server,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-mlflow-experiment-id={experiment}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    async with serve(Engine()) as engine:
        store = open_store(url)
        for service in ("assistant", "open"):
            published = route(target(f"{service}-v3-aaaa", "3", engine.address))
            store.publish_route(msgspec.structs.replace(published, service=service, trace_content=service == "open"))
        store.close()
        settings = gateway_settings(url, tmp_path / "state", tracing={"mlflow_uri": mlflow_server})
        async with running_gateway(settings, otlp=otlp_settings(environment)) as running:
            yield running


async def test_a_model_owner_sees_traces_and_feedback_in_mlflow(
    gateway: RunningGateway, mlflow_server: str, experiment: str
) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        asked = {}
        for service in ("assistant", "open"):
            body = {"model": service, "stream": True, "messages": [{"role": "user", "content": "capital of france?"}]}
            async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
                await response.read()
                asked[service] = response.headers["x-request-id"]
            said = {"request_id": asked[service], "kind": "rating", "value": 2, "comment": "not what i asked"}
            async with http.post(f"{gateway.url}/v1/feedback", json=said) as response:
                assert response.status == 201
    traces = {service: await trace_of(mlflow_server, request_id) for service, request_id in asked.items()}

    info = traces["assistant"]
    assert info["trace_location"]["mlflow_experiment"]["experiment_id"] == experiment
    assert info["state"] == "OK"
    tags = info["tags"]
    assert (tags["understudy.service"], tags["understudy.model.version"]) == ("assistant", "3")
    usage = msgspec.json.decode(info["trace_metadata"]["mlflow.trace.tokenUsage"])
    assert (usage["input_tokens"], usage["output_tokens"]) == (7, 6)
    [assessment] = info["assessments"]
    assert (assessment["assessment_name"], assessment["feedback"]["value"]) == ("rating", 2.0)
    assert assessment["source"]["source_type"] == "HUMAN"
    assert assessment["metadata"]["revision"] == "assistant-v3-aaaa"

    assert "capital" not in str(info)
    assert "asked" not in str(info)
    [told] = traces["open"]["assessments"]
    assert told["rationale"] == "not what i asked"
    assert "capital of france?" in traces["open"]["request_preview"]
    assert "paris" in traces["open"]["response_preview"]


async def trace_of(mlflow: str, request_id: str) -> Found:
    """MLflow's trace once it has its assessment."""
    url = f"{mlflow}/api/3.0/mlflow/traces/tr-{request_id.replace('-', '')}"
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            async with http.get(url) as response:
                found: Found = (await response.json())["trace"]["trace_info"] if response.status == 200 else {}
            if found.get("assessments"):
                return found
            await asyncio.sleep(0.1)
