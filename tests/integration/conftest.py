"""Real servers for the integration tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ENVIRONMENT = Path(".venv-mlflow/bin/python")


@pytest.fixture(scope="session")
def mlflow_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """URI and process group of a real MLflow server on SQLite."""
    if not ENVIRONMENT.exists():
        pytest.fail(f"{ENVIRONMENT} is missing: run `make setup`")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(ENVIRONMENT.absolute()),
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        _await_health(uri, child, folder / "log")
        yield uri, child.pid
    finally:
        for number in (signal.SIGCONT, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(5)


@pytest.fixture
def mlflow_server(mlflow_process: tuple[str, int]) -> str:
    """URI of a real MLflow server, shared by the session's tests: each makes models of its own names."""
    return mlflow_process[0]


def _await_health(uri: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:  # noqa: S310  ours
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"MLflow did not start:\n{log.read_text()[-2000:]}")
