"""What the gateway costs: requests a second on one core, and latency added to a static upstream, with everything on.

    .venv/bin/python -m benchmarks.gateway [--seconds 10] [--repeat 3] [--tracing]

nginx answers at once with a fixed completion (in one piece, or as a stream of 32 tokens). The gateway runs on core 0 with a key, a canary
at half the users, a thousand users, journal and SQLite store; nginx and wrk share core 1. Beside it, in the same run, a relay that does
nothing else: a bare ASGI route with aiohttp upstream, on uvicorn, uvloop and httptools. Medians of the repeats; ratios to the relay.
With `--tracing`, in place of that, three gateways: traces off, at 1 % and at 100 %, exported to nginx, which takes all; ratios to off,
medians of the rounds'.
Needs `wrk`, `nginx` and `taskset` on PATH. Writes benchmarks/results/gateway.json, or gateway_tracing.json.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from services.common import telemetry
from services.common.routing import Route, Target
from services.store import migrate, open_store

RESULTS = Path(__file__).parent / "results"
KEY = "sk-benchmark"
TOKENS = 32
MODEL = "assistant-v1-0000"

Figures = dict[str, float]


class Server(NamedTuple):
    """A process under test."""

    url: str
    process: psutil.Process


def main() -> int:
    """Runs the benchmark; exit status 2 where a tool is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10, help="of load for each figure")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tracing", action="store_true", help="what tracing costs, in place of what the gateway costs")
    parser.add_argument("--relay", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.relay:
        return serve_relay(arguments.relay)
    missing = [tool for tool in ("wrk", "nginx", "taskset") if shutil.which(tool) is None]
    if missing:
        print(f"missing: {', '.join(missing)} (Debian: apt-get install wrk nginx-light util-linux)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measured = measure_tracing if arguments.tracing else measure
        results = measured(Path(folder), stack, arguments.seconds, arguments.repeat)
    RESULTS.mkdir(exist_ok=True)
    name = "gateway_tracing.json" if arguments.tracing else "gateway.json"
    (RESULTS / name).write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


def measure(folder: Path, stack: contextlib.ExitStack, seconds: int, repeat: int) -> dict[str, Any]:
    """All figures of one run."""
    upstream = stack.enter_context(nginx(folder))
    gateway = stack.enter_context(gateway_process(folder, upstream.url))
    relay = stack.enter_context(relay_process(folder, upstream.url))
    results = circumstances("python -m benchmarks.gateway", repeat)
    for mode in ("whole", "stream"):
        script = wrk_script(folder, streamed=mode == "stream")
        runs: dict[str, list[Figures]] = {"upstream": [], "relay": [], "gateway": []}
        for _ in range(repeat):
            for name, server in (("upstream", upstream), ("relay", relay), ("gateway", gateway)):
                path = "" if name == "gateway" else f"/{mode}"
                runs[name].append(one_run(server, path, script, seconds))
        figures = {
            name: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for name, found in runs.items()
        }
        for name in ("relay", "gateway"):
            for quantile in ("p50_ms", "p99_ms"):
                figures[name][f"added_{quantile}"] = round(figures[name][quantile] - figures["upstream"][quantile], 3)
        for key in ("requests_per_second", "requests_per_cpu_second"):
            figures["gateway"][f"{key}_to_relay"] = round(figures["gateway"][key] / figures["relay"][key], 3)
        results[mode] = figures
    results["records"] = records(folder)
    return results


def measure_tracing(folder: Path, stack: contextlib.ExitStack, seconds: int, repeat: int) -> dict[str, Any]:
    """The same gateway without traces and with two shares of them."""
    upstream = stack.enter_context(nginx(folder))
    gateways: dict[str, Server] = {}
    for name, share in (("off", None), ("1 %", "0.01"), ("100 %", "1")):
        own = folder / f"traces-{share}"
        own.mkdir()
        tracing = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": upstream.url, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": share
        }  # fmt: skip
        variables = {key: value for key, value in tracing.items() if share is not None and value is not None}
        gateways[name] = stack.enter_context(gateway_process(own, upstream.url, **variables))
    results = circumstances("python -m benchmarks.gateway --tracing", repeat)
    for mode in ("whole", "stream"):
        script = wrk_script(folder, streamed=mode == "stream")
        runs: dict[str, list[Figures]] = {name: [] for name in gateways}
        for _ in range(repeat):
            for name, server in gateways.items():
                runs[name].append(one_run(server, "", script, seconds))
        figures = {
            name: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for name, found in runs.items()
        }
        for name, found in figures.items():
            found["p50_ms_more"] = round(found["p50_ms"] - figures["off"]["p50_ms"], 3)
            # Within each round: what else the machine does changes from one to the next.
            rounds = list(zip(runs[name], runs["off"], strict=True))
            for key in ("requests_per_second", "requests_per_cpu_second"):
                found[f"{key}_to_off"] = round(statistics.median(run[key] / off[key] for run, off in rounds), 3)
            more = (1 / run["requests_per_cpu_second"] - 1 / off["requests_per_cpu_second"] for run, off in rounds)
            found["cpu_ms_more"] = round(1_000 * statistics.median(more), 4)
        results[mode] = figures
    results["spans"] = {name: spans(server.url) for name, server in gateways.items()}
    return results


def circumstances(command: str, repeat: int) -> dict[str, Any]:
    """What figures depend on."""
    return {
        "command": command,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": os.getloadavg()[0]},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("uvicorn", "uvloop", "httptools", "aiohttp", "msgspec", "fastapi", "protobuf")
        },
        "repeats": repeat,
    }


def spans(url: str) -> dict[str, int]:
    """Spans that a gateway exported and lost so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310  # an address of this machine
        text = answer.read().decode()
    names = {"exported": telemetry.SPANS_EXPORTED, "lost": telemetry.SPANS_DROPPED}
    return {key: int(float(re.findall(rf"^{name} (\S+)$", text, re.M)[0])) for key, name in names.items()}


def one_run(server: Server, path: str, script: Path, seconds: int) -> Figures:
    """Latency with one client; throughput with 32, and per second of processor time, which other work on the machine blurs less."""
    alone = wrk(server.url + path, script, 1, max(2, seconds // 2))
    before = cpu_seconds(server.process)
    busy = wrk(server.url + path, script, 32, seconds)
    spent = cpu_seconds(server.process) - before
    return {
        "p50_ms": alone["p50"], "p99_ms": alone["p99"], "requests_per_second": busy["rate"],
        "busy_p50_ms": busy["p50"], "busy_p99_ms": busy["p99"], "requests_per_cpu_second": round(busy["requests"] / spent, 1),
    }  # fmt: skip


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process and its children so far."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def wrk(url: str, script: Path, clients: int, seconds: int) -> Figures:
    """One wrk run on core 1; any answer but 200 is an error of the benchmark."""
    command = [
        "taskset",
        "-c",
        "1",
        "wrk",
        "-t1",
        f"-c{clients}",
        f"-d{seconds}s",
        "--latency",
        "--timeout",
        "10s",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}

    def latency(quantile: str) -> float:
        found = re.search(rf"{quantile}%\s+([\d.]+)(us|ms|s)", text)
        assert found is not None, text
        return round(float(found[1]) * scale[found[2]], 3)

    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    requests = re.search(r"(\d+) requests in", text)
    assert requests is not None, text
    return {"p50": latency("50"), "p99": latency("99"), "rate": float(rate[1]), "requests": float(requests[1])}


def wrk_script(folder: Path, *, streamed: bool) -> Path:
    """A request of one of a thousand users."""
    path = folder / f"wrk-{streamed}.lua"
    body = {
        "model": "stream" if streamed else "whole",
        "stream": streamed,
        "user": "USER",
        "messages": [{"role": "user", "content": "what is the capital of france"}],
    }
    path.write_text(
        f"""local body = '{json.dumps(body)}'
local headers = {{["Content-Type"] = "application/json", ["Authorization"] = "Bearer {KEY}"}}
local path = ""
function init(args)
  path = wrk.path .. "/v1/chat/completions"
  if wrk.path == "/" then path = "/v1/chat/completions" end
end
function request()
  return wrk.format("POST", path, headers, (body:gsub("USER", "user-" .. math.random(1000))))
end
"""
    )
    return path


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    """The static upstream on core 1; everything under `/whole` and `/stream` answers any POST with the same file."""
    head = {"id": "x", "created": 1, "model": MODEL}
    usage = {"prompt_tokens": 7, "completion_tokens": TOKENS, "total_tokens": TOKENS + 7}
    message = {"role": "assistant", "content": " ".join(["paris"] * TOKENS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = dump({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunk = {**head, "object": "chat.completion.chunk"}
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, *[{"content": " paris"}] * TOKENS]
    events = [{**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    lines = [dump(event) for event in [*events, {**chunk, "choices": [], "usage": usage}]] + ["[DONE]"]
    (folder / "whole.txt").write_text(whole)
    (folder / "stream.txt").write_text("".join(f"data: {line}\n\n" for line in lines))
    port = free_port()
    # A file answers GET alone: the 405 of a POST is turned into the file.
    locations = "".join(
        f"""    location /{name}/ {{ try_files /{name}.txt =404; error_page 405 =200 /{name}.txt; }}
    location = /{name}.txt {{ default_type {kind}; }}
"""
        for name, kind in (("whole", "application/json"), ("stream", "text/event-stream"))
    )
    (folder / "nginx.conf").write_text(
        f"""{"user root;" if os.geteuid() == 0 else ""}
daemon off; worker_processes 1; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; open_file_cache max=10;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port}; root {folder};
    location = /v1/traces {{ client_max_body_size 64m; return 200; }}
{locations}  }}
}}
"""
    )
    command = ["taskset", "-c", "1", "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    url = f"http://127.0.0.1:{port}"
    with child(command, folder / "nginx.log", f"{url}/whole.txt") as process:
        yield Server(url, process)


@contextlib.contextmanager
def gateway_process(folder: Path, upstream: str, **variables: str) -> Iterator[Server]:
    """The gateway on core 0, with everything on; `variables` of its environment."""
    store_url = f"sqlite:///{folder}/understudy.db"
    migrate(store_url)
    store = open_store(store_url)
    for service in ("whole", "stream"):
        sides = [
            Target(revision=f"{service}-v{n}", version=str(n), addresses=(f"{upstream}/{service}/v1",), model=MODEL)
            for n in (1, 2)
        ]
        store.publish_route(
            Route(
                service=service, version=0, stable=sides[0], candidate=sides[1], rollout=f"r-{service}", salt="5a" * 16,
                stage="canary", weight=5_000, horizon=60.0, settle=10.0,
            )
        )  # fmt: skip
    store.close()
    port = free_port()
    settings = {
        "STORE_URL": store_url,
        "STATE_DIR": str(folder / "state"),
        "UNIT_KEY": "a key for the units of a benchmark",
        "KEYS": json.dumps([{"name": "benchmark", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]),
        "PORT": str(port),
    }
    environment = os.environ | variables | {f"UNDERSTUDY_GATEWAY_{key}": value for key, value in settings.items()}
    url = f"http://127.0.0.1:{port}"
    command = ["taskset", "-c", "0", sys.executable, "-m", "services.gateway"]
    with child(command, folder / "gateway.log", f"{url}/readyz", environment) as process:
        yield Server(url, process)


@contextlib.contextmanager
def relay_process(folder: Path, upstream: str) -> Iterator[Server]:
    """The bare relay on core 0."""
    port = free_port()
    command = ["taskset", "-c", "0", sys.executable, "-m", "benchmarks.gateway", "--relay", f"{port} {upstream}"]
    url = f"http://127.0.0.1:{port}"
    with child(command, folder / "relay.log", f"{url}/whole.txt") as process:
        yield Server(url, process)


def serve_relay(arguments: str) -> int:
    """What the relay's process runs: bytes to the upstream, bytes back, nothing looked at."""
    import aiohttp
    import uvicorn

    port, upstream = arguments.split()
    session: aiohttp.ClientSession | None = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal session
        if scope["type"] == "lifespan":
            return
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        async with session.request(scope["method"], upstream + scope["path"], data=body) as answer:
            headers = [(b"content-type", answer.content_type.encode())]
            if answer.content_length is not None:
                headers.append((b"content-length", str(answer.content_length).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    return 0


def records(folder: Path) -> dict[str, int]:
    """Waits until the store has everything the gateway recorded; rows, and how many are missing."""
    store = open_store(f"sqlite:///{folder}/understudy.db")
    try:
        ended = store.now()
        while store.watermark() < ended + 2.0:  # two polls later the lease has counted everything, too
            time.sleep(0.5)
        [lease], [stream] = store.leases(), store.gaps()
        return {
            "recorded": lease.recorded, "stored": stream["rows"], "missing": stream["missing"],
            "dropped": lease.dropped, "waited_on_disk": lease.spilled,
        }  # fmt: skip
    finally:
        store.close()


@contextlib.contextmanager
def child(
    command: list[str], log: Path, health: str, environment: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """A process that runs until the block ends; its log is shown when it does not come up."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(health, timeout=1).close()  # noqa: S310  # an address of this machine
                    break
                time.sleep(0.1)
            else:
                raise RuntimeError(f"{command} did not start:\n{log.read_text()}")
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def dump(value: object) -> str:
    """Compact JSON, as vLLM sends it."""
    return json.dumps(value, separators=(",", ":"))


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
