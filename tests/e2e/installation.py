"""The platform as one namespace of a cluster: images, release, service, registry, simulated users. Built by `conftest.platform`.

Everything that tests learn they learn from outside: kubectl, helm, the registry's API, the gateway's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient

from pipelines.register import register
from tests.e2e.kube import ROOT, CommandFailed, Namespace, run, until

RELEASE, SERVICE = "understudy", "assistant"
CHART = "charts/understudy"
DEFINITION = "llmservices.understudy.dev"
MODELS = ROOT / ".cache/models"
Recorded = Callable[[str, object], None]
"""pytest's `record_property`: figures, which the end of the run shows."""
TARGETS = ("gateway", "controller", "mlflow", "postgresql", "engine")


def version() -> str:
    """The chart's appVersion, which is the images' tag."""
    return str(yaml.safe_load((ROOT / CHART / "Chart.yaml").read_text())["appVersion"])


@functools.cache
def build_images() -> None:
    """Once a run: each target by the command in E2E_BUILD_IMAGE, which also hands it to the cluster; none where E2E_IMAGES is `there`."""
    if os.environ.get("E2E_IMAGES") == "there":
        return
    builder = os.environ.get("E2E_BUILD_IMAGE", "tests/e2e/build-image")
    for target in TARGETS:
        run(builder, f"understudy-{target}:{version()}", "--target", target, ".", timeout=1200)


def delete(namespace: Namespace) -> None:
    """The namespace with what is in it, also after an installation that failed; nothing where there is none."""
    if not run("kubectl", "get", "namespace", namespace.name, "--ignore-not-found"):
        return
    # A controller that lives would put finalizers on again, so it goes first.
    controllers = ["deployment", "--selector=app.kubernetes.io/component=controller"]
    namespace.kubectl("delete", *controllers, "--cascade=foreground", "--timeout=90s")
    if has_definition():
        for resource in namespace.kubectl("get", "llmservices", "--output=name").split():
            namespace.kubectl("patch", resource, "--type=merge", '--patch={"metadata": {"finalizers": null}}')
    run("kubectl", "delete", "namespace", namespace.name, "--wait", "--timeout=3m", timeout=200)


def manifest(**rollout: Any) -> dict[str, Any]:
    """The demo's LLMService without its judge, whose references are a file of the laptop, and without samples for it; `rollout` replaces
    fields of `spec.rollout`.
    """
    documents = yaml.safe_load_all((ROOT / "demo/demo.yaml").read_text())
    service: dict[str, Any] = next(one for one in documents if one["kind"] == "LLMService")
    rules = service["spec"]["rollout"]
    del rules["judge"], service["spec"]["drift"], service["spec"]["privacy"]
    rules["guardrails"] = [one for one in rules["guardrails"] if one["metric"] != "judge"]
    rules.update(rollout)
    return service


@dataclass(frozen=True)
class Counts:
    """What simulated users saw (`demo.users.Counts`)."""

    requests: int
    failed: int
    repeated: int
    last_error: str
    right: int


class Users:
    """A crowd of simulated users in a pod, which talk to the gateway's Service as applications in the cluster do."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        self._namespace, self._name = namespace, name

    def start(self, image: str, seed: int, behaviour: dict[str, Any]) -> None:
        source = (ROOT / "demo/users.py").read_text()
        command = ["python", "-m", "demo.users", "--url", f"http://{RELEASE}-gateway:8080/v1", "--model", SERVICE]
        command += ["--run", self._name, "--seed", str(seed), "--counts", "/tmp/counts.json"]
        command += ["--behaviour", json.dumps(behaviour)]
        # The shell hands SIGTERM on, waits for the users who are still there, and leaves the last counts as the pod's log.
        script = '"$@" & child=$!; trap "kill -TERM $child" TERM; wait $child; wait $child; cat /tmp/counts.json'
        key = {"secretKeyRef": {"name": f"{RELEASE}-api-keys", "key": "api_key"}}
        container = {
            "name": "users",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script, "users", *command],
            "env": [
                {"name": "UNDERSTUDY_API_KEY", "valueFrom": key},
                {"name": "PYTHONPATH", "value": "/e2e"},
                {"name": "HOME", "value": "/tmp"},
            ],
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "source", "mountPath": "/e2e/demo"}, {"name": "tmp", "mountPath": "/tmp"}],
        }
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "source", "configMap": {"name": self._name}}, {"name": "tmp", "emptyDir": {}}],
        }
        self._namespace.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self._name}, "data": {"users.py": source}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self._name}, "spec": spec},
        )
        until("users arrive", lambda: self.counts().requests > 0, 120)

    def counts(self) -> Counts:
        """What has happened so far."""
        return _counts(self._namespace.kubectl("exec", self._name, "--", "cat", "/tmp/counts.json"))

    def answered(self, more: int, timeout: float = 120) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.counts().requests + more
        until(f"{more} more requests", lambda: self.counts().requests >= goal, timeout)

    def stop(self) -> Counts:
        """Let no more users in, wait for those who are there, and count."""
        self._namespace.kubectl("exec", self._name, "--", "sh", "-c", "kill -TERM 1")
        self._namespace.kubectl(
            "wait", f"pod/{self._name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s"
        )
        return _counts(self._namespace.kubectl("logs", self._name).splitlines()[-1])

    def remove(self) -> None:
        self._namespace.kubectl("delete", "pod,configmap", self._name, "--ignore-not-found", "--grace-period=1")


def _counts(text: str) -> Counts:
    said = json.loads(text)
    return Counts(**{name: said[name] for name in Counts.__dataclass_fields__})


class Platform:
    """An installation of the chart."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._crowds = 0

    # --- release

    def install(self, *settings: str) -> None:
        """Under the pod security standard `restricted`. The definition comes along unless the cluster has it."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": self.namespace.name, "labels": labels}
        run(
            "kubectl",
            "apply",
            "--filename=-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
        )
        command = ["install", RELEASE, CHART, "--values", f"{CHART}/values-cpu.yaml"]
        command += [part for setting in settings for part in ("--set", setting)]
        command += ["--set", f"crds.install={str(not has_definition()).lower()}", "--wait", "--timeout=10m"]
        try:
            self.namespace.helm(*command, timeout=660)
        except CommandFailed as failure:  # helm does not say what it waited for
            raise CommandFailed(f"{failure}\n\n{self.namespace.diagnosis()}") from None

    def upgrade(self, *settings: str, wait: bool = True) -> None:
        """`helm upgrade` with changed values."""
        changes = [part for setting in settings for part in ("--set", setting)]
        waiting = ["--wait", "--timeout=5m"] if wait else []
        self.namespace.helm("upgrade", RELEASE, CHART, "--reuse-values", *changes, *waiting, timeout=360)

    # --- service

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.namespace.get("llmservice", SERVICE).get("status", {})
        return status

    def rollout(self) -> dict[str, Any]:
        """The newest rollout, as the resource's status shows it."""
        found: dict[str, Any] = self.status().get("rollout", {})
        return found

    def wait_for(self, condition: str, timeout: int) -> None:
        """By `kubectl wait`."""
        command = ["wait", f"--for={condition}", f"llmservice/{SERVICE}", f"--timeout={timeout}s"]
        self.namespace.kubectl(*command, timeout=timeout + 30)

    def ask(self, body: dict[str, Any]) -> bytes:
        """One completion through the gateway, with the key that the chart generated."""
        key = self.namespace.secret(f"{RELEASE}-api-keys", "api_key")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        with self.namespace.forward(f"service/{RELEASE}-gateway", 8080) as url:
            request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  ours
                return bytes(answer.read())

    # --- registry

    @contextlib.contextmanager
    def registry(self) -> Iterator[str]:
        """The address of the cluster's MLflow."""
        with self.namespace.forward(f"service/{RELEASE}-mlflow", 5000) as url:
            yield url

    def register(self, *names: str, models: Path = MODELS) -> list[str]:
        """Versions of the demo by name; their numbers in the registry."""
        with self.registry() as url:
            return [register(url, SERVICE, models, name) for name in names]

    def set_alias(self, alias: str, number: str) -> None:
        with self.registry() as url:
            MlflowClient(url, url).set_registered_model_alias(SERVICE, alias, number)

    def aliases(self) -> dict[str, str]:
        """Alias to version number."""
        with self.registry() as url:
            return dict(MlflowClient(url, url).get_registered_model(SERVICE).aliases)

    # --- load

    @contextlib.contextmanager
    def users(self, **behaviour: Any) -> Iterator[Users]:
        """Simulated users for as long as the context lasts."""
        self._crowds += 1
        users = Users(self.namespace, f"users-{self._crowds}")
        try:
            users.start(f"understudy-engine:{version()}", self._crowds, behaviour)
            yield users
        finally:
            users.remove()


def has_definition() -> bool:
    """Whether the cluster knows LLMServices."""
    return DEFINITION in run("kubectl", "get", "customresourcedefinitions", "--output=name")


def why_no_kuberay(namespace: Namespace) -> str | None:
    """Why no RayService would become anything here. An operator is there if it refuses one whose name is too long for it."""
    definition = "rayservices.ray.io"
    if definition not in run("kubectl", "get", "customresourcedefinitions", "--output=name"):
        return "the cluster knows no RayServices"
    name = "too-long-for-the-operator".ljust(60, "-") + "x"
    template = {"spec": {"containers": [{"name": "ray-head", "image": "none"}]}}
    head = {"rayStartParams": {}, "template": template}
    probe = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {"rayClusterConfig": {"headGroupSpec": head}},
    }
    namespace.apply(probe)
    try:
        until("the operator answers", lambda: namespace.get(definition, name).get("status") or None, 30)
    except AssertionError:
        return "no KubeRay operator looks at RayServices"
    finally:
        namespace.kubectl("delete", definition, name, "--timeout=60s")
    return None
