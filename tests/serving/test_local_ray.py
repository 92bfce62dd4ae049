"""The laptop's Ray as child processes, with a small program in Ray's place."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.serving.errors import LocalRayError
from services.serving.local_ray import TAG, LocalRay, end_tagged, tagged

# Answers the REST API on the dashboard's port, and leaves a grandchild in another session that ignores SIGTERM, as Ray's workers may.
RAY = """#!{python}
import http.server, json, os, subprocess, sys
options = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:] if "=" in a)
json.dump([options, dict(os.environ)], open({record!r}, "w"))
if {broken}:
    sys.exit("Failed to bind to port")
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True, stdout=subprocess.PIPE).stdout.readline()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["RAY_AUTH_TOKEN"]
        self.send_response(200 if known and not {silent} else 401)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(options["dashboard-port"])), Handler).serve_forever()
"""


class Head:
    """A fake engine environment in a folder, and a LocalRay on it."""

    def __init__(self, folder: Path, *, broken: bool = False, silent: bool = False) -> None:
        self.record = folder / "record.json"
        program = folder / "environment" / "bin" / "ray"
        program.parent.mkdir(parents=True)
        program.write_text(RAY.format(python=sys.executable, record=str(self.record), broken=broken, silent=silent))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.tag = f"{folder.resolve()}#ray"
        self.ray = LocalRay(folder / "environment", folder, folder / "ray.log")

    def started_with(self) -> tuple[dict[str, str], dict[str, str]]:
        options, environment = json.loads(self.record.read_text())
        return options, environment


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.serving.local_ray._STOP_SECONDS", 0.3)


async def test_nothing_is_left_after_stop(tmp_path: Path) -> None:
    head = Head(tmp_path)
    await head.ray.start()
    options, environment = head.started_with()
    assert len(tagged(head.tag)) == 2
    assert head.ray.dashboard_url.endswith(options["dashboard-port"])
    scratch = Path(options["temp-dir"])
    assert scratch.is_dir()
    assert len(f"{scratch}/h/{'0' * 56}/admin.sock.1234567.12.tmp") <= 107
    assert environment["RAY_AUTH_MODE"] == "token"
    await head.ray.stop()
    await head.ray.stop()
    assert tagged(head.tag) == []
    assert not scratch.exists()


async def test_the_head_gets_no_variables_of_another_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    head = Head(tmp_path)
    await head.ray.start()
    await head.ray.stop()
    assert not {"RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE"} & head.started_with()[1].keys()


async def test_what_a_crash_left_is_ended_at_the_next_start(tmp_path: Path) -> None:
    head = Head(tmp_path)
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, TAG: head.tag}, start_new_session=True
    )
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, TAG: f"{head.tag}-other"}
    )
    try:
        await head.ray.start()
        assert orphan.wait(timeout=5) != 0
        assert stranger.poll() is None
    finally:
        await head.ray.stop()
        stranger.kill()
        stranger.wait()


async def test_an_orphan_without_an_environment_is_ended_with_its_parent(tmp_path: Path) -> None:
    head = Head(tmp_path)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stubborn!r}], env={{}})",
        ],
        env={**os.environ, TAG: head.tag},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    child = psutil.Process(parent.pid).children()[0]
    assert child in tagged(head.tag)
    assert await end_tagged(head.tag) == 2
    parent.communicate()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_head_that_dies_says_why(tmp_path: Path) -> None:
    head = Head(tmp_path, broken=True)
    with pytest.raises(LocalRayError, match="Failed to bind to port"):
        await head.ray.start()
    assert not Path(head.started_with()[0]["temp-dir"]).exists()


async def test_a_head_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    head = Head(tmp_path, silent=True)
    with pytest.raises(LocalRayError, match="did not answer"):
        await head.ray.start(timeout=0.5)
    assert tagged(head.tag) == []


async def test_a_temporary_folder_with_too_long_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("d" * 60)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LocalRayError, match="TMPDIR"):
        await Head(tmp_path).ray.start()
