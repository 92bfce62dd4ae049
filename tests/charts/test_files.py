"""The programs that the chart's test pod and uninstall job run, against servers of their own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

FILES = Path(__file__).parents[2] / "charts/understudy/files"
Answer = Callable[[str, str, str], tuple[int, bytes]]
"""(method, path, Authorization) -> (status, body)."""


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers as told; returns its address."""
    running: list[tuple[ThreadingHTTPServer, Thread]] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = answer(self.command, self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        running.append((one, thread))
        return f"http://127.0.0.1:{one.server_port}"

    yield start
    for one, thread in running:
        one.shutdown()
        one.server_close()
        thread.join()


TEST_POD = "/api/v1/namespaces/ns1/pods/demo-test"


def run(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As the chart does: the text of the file, by `python -c`."""
    command = [sys.executable, "-c", (FILES / program).read_text()]
    environment = {"PATH": os.environ["PATH"], "PAUSE_SECONDS": "0.01", "TEST_POD": TEST_POD, **env}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


# --- uninstall.py


class Services:
    """LLMServices whose finalizers end `looks` lists after their deletion; None: never."""

    def __init__(self, *names: str, looks: int | None = 2) -> None:
        self.left = dict.fromkeys(names, looks)
        self.deleted: list[str] = []
        self.path = "/apis/understudy.dev/v1alpha1/namespaces/ns1/llmservices"

    def __call__(self, method: str, path: str, authorization: str) -> tuple[int, bytes]:
        assert authorization == "Bearer token"
        if method == "DELETE":
            self.deleted.append(path.removeprefix(self.path + "/"))
            return 200, b"{}"
        assert path == self.path
        for name in self.deleted:
            if (looks := self.left.get(name)) is not None:
                self.left[name] = looks - 1
                if looks == 0:
                    del self.left[name]
        return 200, json.dumps({"items": [self.item(name) for name in self.left]}).encode()

    def item(self, name: str) -> dict[str, object]:
        going = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if name in self.deleted else {}
        return {"metadata": {"name": name, "namespace": "ns1", **going}}


@pytest.fixture
def account(tmp_path: Path) -> str:
    (tmp_path / "token").write_text("token\n")
    return str(tmp_path)


def test_uninstall_deletes_each_service_once_and_waits_for_its_end(
    server: Callable[[Answer], str], account: str
) -> None:
    services = Services("assistant", "search")
    done = run(
        "uninstall.py", NAMESPACE="ns1", TIMEOUT_SECONDS="20", API_SERVER=server(services), SERVICE_ACCOUNT=account
    )
    assert done.returncode == 0, done.stderr
    assert sorted(services.deleted) == [TEST_POD, "assistant", "search"]
    assert not services.left


def test_uninstall_gives_up_and_names_what_is_left(server: Callable[[Answer], str], account: str) -> None:
    services = Services("assistant", looks=None)
    done = run(
        "uninstall.py", NAMESPACE="ns1", TIMEOUT_SECONDS="0.5", API_SERVER=server(services), SERVICE_ACCOUNT=account
    )
    assert done.returncode == 1
    assert "ns1/assistant" in done.stderr


def test_uninstall_has_nothing_to_do_without_the_definition(server: Callable[[Answer], str], account: str) -> None:
    address = server(lambda *_: (404, b"{}"))
    done = run("uninstall.py", NAMESPACE="", TIMEOUT_SECONDS="20", API_SERVER=address, SERVICE_ACCOUNT=account)
    assert (done.returncode, done.stdout) == (0, "no LLMService is left\n")


def test_uninstall_outlives_an_api_server_that_stumbles(server: Callable[[Answer], str], account: str) -> None:
    services, asked = Services("assistant"), itertools.count()

    def stumbling(method: str, path: str, authorization: str) -> tuple[int, bytes]:
        return (500, b"") if next(asked) % 3 == 0 else services(method, path, authorization)

    done = run(
        "uninstall.py", NAMESPACE="ns1", TIMEOUT_SECONDS="20", API_SERVER=server(stumbling), SERVICE_ACCOUNT=account
    )
    assert done.returncode == 0, done.stderr
    assert not services.left


# --- check.py


def gateway(models: list[str], stream: bytes, status: int = 200) -> Answer:
    def answer(method: str, path: str, authorization: str) -> tuple[int, bytes]:
        if path == "/v1/models":
            assert authorization == "Bearer sk-1"
            return 200, json.dumps({"data": [{"id": name} for name in models]}).encode()
        if path == "/v1/chat/completions":
            return status, stream
        return 200, b"ok"

    return answer


def check(address: str, controller: str | None = None, seconds: str = "20") -> subprocess.CompletedProcess[str]:
    return run(
        "check.py", TIMEOUT_SECONDS=seconds, GATEWAY_URL=address, CONTROLLER_URL=controller or address, API_KEY="sk-1"
    )


def test_the_check_streams_a_completion(server: Callable[[Answer], str]) -> None:
    done = check(server(gateway(["assistant"], b'data: {"choices": []}\n\ndata: [DONE]\n\n')))
    assert done.returncode == 0, done.stdout
    assert "ok    completion: assistant streamed 1 events" in done.stdout


def test_the_check_passes_before_there_is_a_service(server: Callable[[Answer], str]) -> None:
    done = check(server(gateway([], b"")))
    assert done.returncode == 0
    assert "no LLMService yet" in done.stdout


@pytest.mark.parametrize(
    ("stream", "status"),
    [(b'data: {"choices": []}\n\n', 200), (b'data: {"error": {}}\n\ndata: [DONE]\n\n', 200), (b"{}", 503)],
)
def test_the_check_fails_where_no_stream_ends_well(server: Callable[[Answer], str], stream: bytes, status: int) -> None:
    done = check(server(gateway(["assistant"], stream, status)), seconds="0.5")
    assert done.returncode == 1
    assert "FAILED completion: assistant:" in done.stdout


def test_the_check_names_the_part_that_is_away(server: Callable[[Answer], str]) -> None:
    def without_controller(method: str, path: str, authorization: str) -> tuple[int, bytes]:
        return 503, b""

    done = check(server(gateway([], b"")), server(without_controller), seconds="0.5")
    assert done.returncode == 1
    assert "FAILED controller: HTTP Error 503" in done.stdout
