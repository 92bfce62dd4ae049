"""What `helm test` runs: every part answers, and a service that is ready completes a stream. Standard library only.

Parts get until the time is up; the last trouble of each is told.
"""
# ruff: noqa: S310, T201  (the addresses are the chart's own; a pod's output is its log)

import json
import os
import sys
import time
import urllib.error
import urllib.request

DEADLINE = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "2"))
KEY = os.environ.get("API_KEY", "")


def ask(url, body=None, timeout=10):
    headers = {"Content-Type": "application/json"}
    if KEY and "/v1/" in url:
        headers["Authorization"] = f"Bearer {KEY}"
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=timeout)


def answers(url):
    ask(url).close()
    return "answers"


def streams(gateway):
    """A streamed completion of the first service that gives one."""
    with ask(f"{gateway}/v1/models") as answer:
        models = [model["id"] for model in json.load(answer)["data"]]
    if not models:
        return "answers; no LLMService yet, so nothing to complete"
    troubles = []
    for model in models:
        body = {"model": model, "stream": True, "max_tokens": 16, "user": "helm-test"}
        body["messages"] = [{"role": "user", "content": "Hello"}]
        try:
            with ask(f"{gateway}/v1/chat/completions", body, timeout=60) as answer:
                events = [line[5:].strip() for line in answer if line.startswith(b"data:")]
        except OSError as error:
            troubles.append(f"{model}: {error}")
            continue
        if events and events[-1] == b"[DONE]" and not any(b'"error"' in event for event in events):
            return f"{model} streamed {len(events) - 1} events"
        troubles.append(f"{model}: the stream broke off: {events[-1:]}")
    raise OSError("; ".join(troubles))


def until_it_works(name, check, *arguments):
    """Whether it did in time."""
    trouble = "the time was up before it was asked"
    while time.monotonic() < DEADLINE:
        try:
            print(f"ok    {name}: {check(*arguments)}", flush=True)
            return True
        except (OSError, ValueError, KeyError) as error:
            trouble = error
        time.sleep(PAUSE_SECONDS)
    print(f"FAILED {name}: {trouble}", flush=True)
    return False


def main():
    env = os.environ
    checks = [
        ("gateway", answers, env["GATEWAY_URL"] + "/readyz"),
        ("controller", answers, env["CONTROLLER_URL"] + "/readyz"),
    ]
    if "MLFLOW_URL" in env:
        checks.append(("MLflow", answers, env["MLFLOW_URL"] + "/health"))
    if "RAY_URL" in env:
        checks.append(("Ray", answers, env["RAY_URL"] + "/api/gcs_healthz"))
    if KEY:
        checks.append(("completion", streams, env["GATEWAY_URL"]))
    results = [until_it_works(*check) for check in checks]
    return 0 if all(results) else 1


sys.exit(main())
