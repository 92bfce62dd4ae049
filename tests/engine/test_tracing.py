"""One trace from the gateway through Ray's proxy into a real vLLM, which exports its own span of the request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from services.common.routing import Route, Target
from services.gateway.otlp_settings import OtlpSettings
from services.gateway.tracing import Sampler
from services.rollout.platforms.base import RevisionSpec
from services.rollout.platforms.serve import ServePlatform
from services.store import migrate, open_store
from tests.engine.conftest import ENGINE, make_model
from tests.fakes.collector import Collector, collect
from tests.fakes.gateway import KEY, gateway_settings, running_gateway

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

NAME = "assistant-v1-aaaa"


async def test_the_engines_span_is_a_child_of_the_gateways(platform: ServePlatform, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", 0)
    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    async with collect(Collector()) as collector:
        engine = ENGINE | {"disable_log_stats": False, "otlp_traces_endpoint": collector.endpoint}
        await platform.apply(RevisionSpec(NAME, "assistant", str(model), engine, {"CPU": 0.5}, (1, 1), 32, {}))
        async with asyncio.timeout(400):
            while (state := (await platform.observe("assistant")).get(NAME)) is None or state.phase != "ready":
                await asyncio.sleep(0.5)
        assert state.address is not None
        store = open_store(url)
        for service, address in (("direct", state.direct or state.address), ("proxied", state.address)):
            target = Target(revision=NAME, version="1", addresses=(address,), model=NAME)
            store.publish_route(Route(service=service, version=0, stable=target))
        store.close()
        otlp = OtlpSettings(endpoint=collector.endpoint, delay=0.1, sampler=Sampler(0.0, True))
        asked: dict[str, str] = {}
        async with (
            running_gateway(gateway_settings(url, tmp_path / "state"), otlp=otlp) as gateway,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        ):
            for number, service in enumerate(("direct", "proxied", "unsampled")):
                trace_id = f"{number + 1:032x}"
                flag = "00" if service == "unsampled" else "01"
                body = {
                    "model": service.replace("unsampled", "direct"),
                    "prompt": "a b c",
                    "max_tokens": 4,
                    "stream": True,
                }
                headers = {"traceparent": f"00-{trace_id}-00000000000000aa-{flag}"}
                async with http.post(f"{gateway.url}/v1/completions", json=body, headers=headers) as response:
                    assert response.status == 200, await response.text()
                    await response.read()
                asked[service] = trace_id
            async with asyncio.timeout(30):
                while len([span for span in collector.spans if span.name == "llm_request"]) < 2:
                    await asyncio.sleep(0.2)
    spans = [span for span in collector.spans if span.name == "llm_request"]
    assert {span.trace_id for span in spans} == {asked["direct"], asked["proxied"]}  # nor any of the warm-up's
    for span in spans:
        [attempt] = [one for one in collector.spans if one.trace_id == span.trace_id and one.kind == "client"]
        assert span.parent == attempt.span_id
        assert span.attributes["gen_ai.usage.completion_tokens"] == attempt.attributes["gen_ai.usage.output_tokens"]
