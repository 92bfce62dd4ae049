"""kubectl and helm as a person uses them, on the cluster that KUBECONFIG names; the e2e tests see the platform through them alone.

Waiting here is always for a condition, and what was last seen is told when the time is up.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
# kubectl finds its plug-in where this Python is.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
Found = TypeVar("Found")


class CommandFailed(AssertionError):
    """A command's exit status was not 0; the text holds what it said."""


def run(*command: str, stdin: str | None = None, timeout: float = 120) -> str:
    """The command's standard output. Raises CommandFailed."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=ENVIRONMENT,
            cwd=ROOT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(command)}: no end after {timeout:g} s: {error.output!r}") from error
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(command)} ({done.returncode}): {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def until(what: str, look: Callable[[], Found | None], timeout: float, pause: float = 1.0) -> Found:
    """What `look` finds, asked until it is something; a failed command counts as nothing. Raises AssertionError."""
    deadline = time.monotonic() + timeout
    trouble = ""
    while time.monotonic() < deadline:
        try:
            found = look()
        except (CommandFailed, OSError) as error:
            found, trouble = None, f"; the last trouble: {error}"
        if found is not None and found is not False:
            return found
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {timeout:g} s{trouble}")


def ready(pod: dict[str, Any]) -> bool:
    """Whether a pod's condition says so."""
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


class Namespace:
    """One namespace of the cluster."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        end = arguments.index("--") if "--" in arguments else len(arguments)  # what follows is a pod's own command
        own = (*arguments[:end], "--namespace", self.name, *arguments[end:])
        return run("kubectl", *own, stdin=stdin, timeout=timeout)

    def helm(self, *arguments: str, timeout: float = 120) -> str:
        return run("helm", *arguments, "--namespace", self.name, timeout=timeout)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def apply(self, *manifests: dict[str, Any]) -> None:
        together = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--server-side", "--filename=-", stdin=json.dumps(together))

    def secret(self, name: str, key: str) -> str:
        return base64.b64decode(self.get("secret", name)["data"][key]).decode()

    @contextlib.contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """The base URL at which `target` (service/name) answers meanwhile."""
        command = ["kubectl", "port-forward", "--namespace", self.name, target, f":{port}"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
        ) as child:
            try:
                yield f"http://127.0.0.1:{_forwarded(child)}"
            finally:
                child.terminate()

    def pods(self, component: str) -> list[dict[str, Any]]:
        """The component's pods that are not on their way out."""
        found = self.get("pods", f"--selector=app.kubernetes.io/component={component}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def diagnosis(self) -> str:
        """What a person would look at first: nodes and their complaints, pods, the resource, events, the last words of each container."""
        columns = "NODE:.metadata.name,TAINTS:.spec.taints[*].key,TRUE:.status.conditions[?(@.status=='True')].type"
        told = "--output=custom-columns=:.lastTimestamp,:.involvedObject.name,:.reason,:.message"
        parts = []
        for command in (
            ("kubectl", "get", "nodes", f"--output=custom-columns={columns}"),
            ("kubectl", "get", "events", "--namespace=default", "--field-selector=type=Warning", told),
            ("kubectl", "get", "pods,llmservices", "--output=wide", f"--namespace={self.name}"),
            ("kubectl", "get", "llmservices", "--output=jsonpath={.items[*].status}", f"--namespace={self.name}"),
            ("kubectl", "get", "events", "--sort-by=.lastTimestamp", told, f"--namespace={self.name}"),
        ):
            with contextlib.suppress(CommandFailed):
                parts.append("\n".join(run(*command).splitlines()[-60:]))
        with contextlib.suppress(CommandFailed):
            for pod in self.kubectl("get", "pods", "--output=name").split():
                with contextlib.suppress(CommandFailed):
                    said = self.kubectl("logs", pod, "--all-containers", "--tail=40", "--prefix", "--ignore-errors")
                    parts.append(said)
        return "\n\n".join(parts)


def _forwarded(child: subprocess.Popen[str]) -> int:
    """The local port that kubectl chose."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        said = child.stdout.readline() if ready.select(timeout=30) else ""
    match = re.search(r"127\.0\.0\.1:(\d+)", said)
    assert match, f"kubectl port-forward said {said!r}"
    return int(match.group(1))
