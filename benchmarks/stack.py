"""What the stack costs: TTFT and tokens/s of vLLM's own server, of Ray Serve alone, and of Ray Serve through the gateway, in one run.

`python -m benchmarks.stack` (or `make bench`) starts the three side by side with the same model and takes turns between them,
round by round, so that the machine's moods hit all three alike. It writes `benchmarks/results/stack.json` and prints medians over rounds.
The gateway runs as in production: keys, assignment (a canary step at 50 %), measuring, journal and store; it speaks to
the replica directly, as it does wherever a revision has one replica that it can reach.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from services.cli.processes import Child
from services.common.routing import Route, Target
from services.rollout.platforms.base import RevisionSpec
from services.rollout.platforms.serve import ServePlatform
from services.serving.engine_plugin import IN_PROCESS
from services.serving.local_ray import LocalRay, RaySizes, free_ports
from services.store import migrate, open_store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/stack.json"
CLIENTS = (1, 8, 32)
TOKENS = 32
REVISION = "bench-v1-0000"
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 64,
    "enforce_eager": True,
    "gpu_memory_utilization": 0.15,
    "kv_cache_memory_bytes": 67108864,
    "disable_log_stats": True,
}
WAYS = ("vllm", "ray", "gateway")


async def stream(session: aiohttp.ClientSession, url: str, model: str, user: str) -> tuple[float, int]:
    """One streamed completion: seconds to the first content, tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "what is the capital of france?"}],
        "stream": True,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "user": user,
    }
    began = time.perf_counter()
    first = 0.0
    chunks = 0
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if line.startswith(b"data: {") and b'"content":' in line and b'"content":""' not in line:
                first = first or time.perf_counter() - began
                chunks += 1
    return first, TOKENS


async def load(url: str, key: str, model: str, clients: int, seconds: float) -> dict[str, float]:
    """Closed loop of `clients` for about `seconds`; medians of TTFT in ms and tokens/s over the whole time."""
    ttfts: list[float] = []
    tokens = 0
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {key}"}) as session:
        began = time.perf_counter()

        async def client(number: int) -> None:
            nonlocal tokens
            count = 0
            while time.perf_counter() - began < seconds or count == 0:
                ttft, got = await stream(session, url, model, f"user-{number}-{count}")
                ttfts.append(ttft)
                tokens += got
                count += 1

        await asyncio.gather(*(client(number) for number in range(clients)))
        took = time.perf_counter() - began
    ranked = sorted(ttfts)
    return {
        "ttft_p50_ms": 1e3 * statistics.median(ranked),
        "ttft_p95_ms": 1e3 * ranked[min(int(0.95 * len(ranked)), len(ranked) - 1)],
        "tokens_per_second": tokens / took,
        "requests": len(ranked),
    }


async def start_vllm(stack: AsyncExitStack, session: aiohttp.ClientSession, model: Path, logs: Path, port: int) -> str:
    arguments = ["--model", str(model), "--served-model-name", REVISION, "--host", "127.0.0.1", "--port", str(port)]
    for name, value in ENGINE.items():
        flag = f"--{name.replace('_', '-')}"
        arguments += [flag] if value is True else [flag, str(value)]
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VLLM_")) and k != "PYTHONDONTWRITEBYTECODE"
    }
    env = keep | {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", IN_PROCESS: "1",
    }  # fmt: skip
    argv = [str(ROOT / ".venv-engine/bin/python"), "-m", "vllm.entrypoints.openai.api_server", *arguments]
    child = Child("vllm", argv, env, logs / "vllm.log", f"http://127.0.0.1:{port}/health", ready_within=240)
    child.start()
    stack.push_async_callback(asyncio.to_thread, child.stop)
    await child.ready(session)
    return f"http://127.0.0.1:{port}/v1"


async def start_ray(
    stack: AsyncExitStack, session: aiohttp.ClientSession, model: Path, folder: Path
) -> tuple[str, str]:
    """The engine's addresses: Ray's proxy, and the replica itself."""
    ray = LocalRay(ROOT / ".venv-engine", folder, folder / "ray.log", RaySizes())
    stack.push_async_callback(ray.stop)
    await ray.start()
    serve = ServePlatform(session, ray.dashboard_url, ray.proxy_url, token=ray.token, direct=True)
    stack.push_async_callback(serve.close)
    await serve.apply(RevisionSpec(REVISION, "bench", str(model), ENGINE, {"CPU": 0.5}, (1, 1), 64))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        state = (await serve.observe("bench")).get(REVISION)
        if state is not None and state.phase == "failed":
            raise RuntimeError(state.message)
        if state is not None and state.address is not None and state.direct is not None:
            return state.address, state.direct
        await asyncio.sleep(0.5)
    raise RuntimeError("the engine under Ray Serve was not ready within 300 s")


async def start_gateway(
    stack: AsyncExitStack, session: aiohttp.ClientSession, engine: tuple[str, str], folder: Path, port: int, key: str
) -> str:
    url = f"sqlite:///{folder / 'bench.db'}"
    migrate(url)
    store = open_store(url)
    stack.callback(store.close)
    target = Target(revision=REVISION, version="1", addresses=(engine[1],), reserve=engine[0], model=REVISION)
    route = Route(
        service="bench", version=0, stable=target, candidate=target, rollout="bench", salt=secrets.token_hex(16),
        stage="canary", weight=5_000, horizon=60.0, settle=10.0,
    )  # fmt: skip
    store.publish_route(route)
    prefix = "UNDERSTUDY_GATEWAY_"
    env = dict(os.environ) | {
        f"{prefix}STORE_URL": url,
        f"{prefix}STATE_DIR": str(folder / "gateway"),
        f"{prefix}UNIT_KEY": secrets.token_hex(32),
        f"{prefix}KEYS": json.dumps([{"name": "bench", "sha256": hashlib.sha256(key.encode()).hexdigest()}]),
        f"{prefix}PORT": str(port),
    }
    argv = [sys.executable, "-m", "services.gateway"]
    child = Child("gateway", argv, env, folder / "gateway.log", f"http://127.0.0.1:{port}/readyz")
    child.start()
    stack.push_async_callback(asyncio.to_thread, child.stop)
    await child.ready(session)
    return f"http://127.0.0.1:{port}/v1"


async def measure(model: Path, rounds: int, seconds: float) -> dict[str, Any]:
    key = f"sk-{secrets.token_hex(16)}"
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="us-bench-")))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        with free_ports(2) as ports:
            pass
        print("starting vLLM's own server", flush=True)
        urls = {"vllm": (await start_vllm(stack, session, model, folder, ports[0]), REVISION)}
        print("starting Ray Serve", flush=True)
        engine = await start_ray(stack, session, model, folder)
        urls["ray"] = (engine[0], REVISION)
        print("starting the gateway", flush=True)
        urls["gateway"] = (await start_gateway(stack, session, engine, folder, ports[1], key), "bench")
        found: dict[str, dict[str, list[dict[str, float]]]] = {way: {str(c): [] for c in CLIENTS} for way in WAYS}
        for url, name in urls.values():
            await load(url, key, name, 8, 2.0)
        for number in range(rounds):
            for clients in CLIENTS:
                for way in WAYS if number % 2 == 0 else reversed(WAYS):
                    url, name = urls[way]
                    found[way][str(clients)].append(await load(url, key, name, clients, seconds))
            print(f"round {number + 1} of {rounds}", flush=True)
    return summary(found)


def summary(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Medians over rounds, what each layer adds, and the share of tokens/s it keeps; differences and ratios are taken round by round."""
    names = ("ttft_p50_ms", "ttft_p95_ms", "tokens_per_second")
    ways = {
        way: {c: {n: round(statistics.median(r[n] for r in rows), 2) for n in names} for c, rows in by.items()}
        for way, by in found.items()
    }

    def against(way: str, base: str, clients: str) -> dict[str, float]:
        pairs = list(zip(found[way][clients], found[base][clients], strict=True))
        added = [a["ttft_p50_ms"] - b["ttft_p50_ms"] for a, b in pairs]
        kept = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
        return {
            "added_ttft_p50_ms": round(statistics.median(added), 2),
            "tokens_kept": round(statistics.median(kept), 3),
        }

    clients = [str(c) for c in CLIENTS]
    return {
        "ways": ways,
        "gateway_over_ray": {c: against("gateway", "ray", c) for c in clients},
        "gateway_over_vllm": {c: against("gateway", "vllm", c) for c in clients},
        "ray_over_vllm": {c: against("ray", "vllm", c) for c in clients},
        "rounds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/v2", help="model folder")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="seconds of load per round, way and number of clients"
    )
    options = parser.parse_args()
    result = asyncio.run(measure(options.model.resolve(), options.rounds, options.seconds))
    result["setting"] = {
        "command": "python -m benchmarks.stack",
        "tokens_per_answer": TOKENS,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for way, by in result["ways"].items():
        print(way, by)
    for name in ("ray_over_vllm", "gateway_over_ray", "gateway_over_vllm"):
        print(name, result[name])


if __name__ == "__main__":
    main()
