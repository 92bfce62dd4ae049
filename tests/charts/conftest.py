"""Renders the chart: with the `helm` program where it is on PATH, else with Helm's own library (helm-python-sdk)."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts/understudy"
RELEASE, NAMESPACE = "demo", "ns1"


class Refused(Exception):
    """Helm would not render these values."""


class Chart(Protocol):
    """`api`: the address of an API server that `lookup` asks; without one it finds nothing."""

    def __call__(
        self, values: dict[str, Any], *, upgrade: bool = False, api: str | None = None
    ) -> list[dict[str, Any]]: ...


class Program:
    """The `helm` program."""

    def __init__(self, program: str, scratch: Path) -> None:
        self._program, self._scratch = program, scratch

    def __call__(
        self, values: dict[str, Any], *, upgrade: bool = False, api: str | None = None
    ) -> list[dict[str, Any]]:
        file = self._scratch / "values.json"
        file.write_text(json.dumps(values))
        command = [self._program, "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", str(file)]
        command += ["--kube-version", "1.34.0"]  # what a helm that was not released itself takes for the newest is old
        command += ["--is-upgrade"] if upgrade else []
        command += ["--dry-run=server", f"--kube-apiserver={api}", "--kube-token=none"] if api else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr)
        return objects(done.stdout)


class Library:
    """Helm's Go library, in this process."""

    def __init__(self, helm: Any) -> None:
        self._helm = helm
        self._chart = helm.Chart.load(CHART)

    def __call__(
        self, values: dict[str, Any], *, upgrade: bool = False, api: str | None = None
    ) -> list[dict[str, Any]]:
        try:
            if api:
                with self._helm.Config(kube_apiserver=api, kube_token="none", namespace=NAMESPACE) as cluster:
                    release = cluster.install(self._chart, RELEASE, values, namespace=NAMESPACE, dry_run="server")
                    return objects(release["manifest"])
            self._chart.validate_schema(values)
            files = self._chart.render(
                values, name=RELEASE, namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade
            )
        except self._helm.HelmError as error:
            raise Refused(str(error)) from error
        return [one for name, text in files.items() if not name.endswith(".txt") for one in objects(text)]


def objects(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if one]


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    if program := shutil.which("helm"):
        return Program(program, tmp_path_factory.mktemp("helm"))
    try:
        return Library(importlib.import_module("helm_python"))
    except ImportError:
        pytest.skip("neither the helm program nor helm-python-sdk is here")


KINDS = {
    "v1": ["Secret", "Service", "ServiceAccount", "PersistentVolumeClaim"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "batch/v1": ["Job"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
    "admissionregistration.k8s.io/v1": ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"],
}


@dataclass
class SecretsApi:
    """As much of an API server as a dry run needs: discovery, and these Secrets."""

    address: str = ""
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def answer(self, path: str) -> dict[str, Any] | None:
        match path.split("?")[0].strip("/").split("/"):
            case ["version"]:
                return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
            case ["openapi", "v3"]:
                return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in map(root, KINDS)}}
            case ["openapi", "v3", *parts]:
                return self.schema(parts)
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [group(name) for name in KINDS if name != "v1"],
                }
            case ["api", "v1"]:
                return self.resources("v1")
            case ["apis", name, version] if f"{name}/{version}" in KINDS:
                return self.resources(f"{name}/{version}")
            case ["api", "v1", "namespaces", "ns1", "secrets", name]:
                return self.secrets.get(name)
        return None

    def resources(self, version: str) -> dict[str, Any]:
        made = [
            {
                "name": plural(kind),
                "kind": kind,
                "namespaced": not kind.startswith(("Cluster", "Mut", "Val")),
                "verbs": ["get"],
            }
            for kind in KINDS[version]
        ]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": made}

    def schema(self, parts: list[str]) -> dict[str, Any]:
        """Says of each kind that the server validates fields itself, so that clients need no schema."""
        version = "/".join(parts[1:])
        name, _, number = version.rpartition("/")
        check = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        kinds = [{"group": name, "version": number, "kind": kind} for kind in KINDS[version]]
        patches = [{"parameters": check, "responses": {}, "x-kubernetes-group-version-kind": kind} for kind in kinds]
        paths = {f"/{number}": {"patch": patch} for number, patch in enumerate(patches)}
        return {"openapi": "3.0.0", "info": {"title": "", "version": "1"}, "paths": paths}


def root(version: str) -> str:
    return f"api/{version}" if version == "v1" else f"apis/{version}"


def plural(kind: str) -> str:
    return kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")


def group(version: str) -> dict[str, Any]:
    one = {"groupVersion": version, "version": version.split("/")[1]}
    return {"name": version.split("/")[0], "versions": [one], "preferredVersion": one}


@pytest.fixture
def secrets_api() -> Iterator[SecretsApi]:
    api = SecretsApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = api.answer(self.path)
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(answer or missing).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        api.address = f"http://127.0.0.1:{server.server_port}"
        yield api
        server.shutdown()
        thread.join()
