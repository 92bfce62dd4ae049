"""The laptop's Prometheus: a configuration that Prometheus takes, and a platform that runs without it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from services.cli import local
from services.cli.local import LocalPlatform, LocalStack
from services.cli.prometheus import configuration
from tests.fakes.shipped_monitoring import SHIPPED, program


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    promtool = program("promtool")
    if promtool is None:
        pytest.skip("promtool is neither on PATH nor in the cache of the cluster's tools")
    targets = tmp_path / "targets.json"
    targets.write_text("[]")
    made = configuration(["127.0.0.1:8080"], ["127.0.0.1:8081"], discovery=targets, rules=[SHIPPED / "rules.yaml"])
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump(made))
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def stack(folder: Path, port: int, told: list[str]) -> LocalStack:
    document = {"metadata": {"name": "laptop"}, "spec": {"prometheusPort": port, "stateDirectory": str(folder)}}
    return LocalStack(folder / "platform.yaml", LocalPlatform.model_validate(document), told.append)


async def test_without_the_program_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.shutil, "which", lambda _: None)
    told: list[str] = []
    made = stack(tmp_path, 9090, told)
    await made.start_prometheus()
    assert told == ["Prometheus is left out: there is no `prometheus` on the PATH"]
    assert "Prometheus" not in made.addresses()


async def test_a_port_in_use_leaves_it_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.shutil, "which", lambda _: "prometheus")
    told: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await stack(tmp_path, port, told).start_prometheus()
    (line,) = told
    assert f"port {port} is in use" in line
    assert "spec.prometheusPort" in line
