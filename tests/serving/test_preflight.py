"""What an engine needs of this machine."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from services.serving import preflight
from services.serving.preflight import Finding, examine


def finding(check: str, environment: Path, state: Path) -> Finding:
    return next(found for found in examine(environment, state) if found.check == check)


def test_every_finding_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    found = {each.check: each for each in examine(tmp_path / "none", tmp_path / "state" / "below")}
    expected = {
        "libnuma": "apt-get install libnuma1",
        "engine environment": "make setup-engine",
        "memory": "end other programs",
        "disk": "free some",
        "shared memory": "--shm-size",
    }
    assert {check for check, each in found.items() if not each.ok} == expected.keys()
    assert all(words in found[check].message for check, words in expected.items())
    assert not found["shared memory"].required


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_cgroup_limit", lambda: 2**30)
    assert not finding("memory", tmp_path, tmp_path).ok


def test_an_environment_without_the_engine(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 3.11.7 vllm\n")
    program.chmod(0o755)
    assert "lacks vllm" in finding("engine environment", tmp_path, tmp_path).message
    program.write_text("#!/bin/sh\necho 3.10.1\n")
    assert "too old" in finding("engine environment", tmp_path, tmp_path).message
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'print(\"3.12.0\")'\n")
    assert finding("engine environment", tmp_path, tmp_path).ok


@pytest.mark.parametrize(("flags", "ok"), [("fpu avx avx2 bmi1", True), ("fpu avx", False), ("asimd crc32", True)])
def test_the_processor(tmp_path: Path, flags: str, ok: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert preflight._processor(tmp_path / "cpuinfo").ok is ok
