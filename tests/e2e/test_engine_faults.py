"""What can happen to engines, registry and cluster in the middle of a rollout, with load on: the right verdict, and nobody loses.

On platform kuberay, where each revision has pods of its own: on the cluster's KubeRay operator, or where none answers on a stand-in with
small engines. Run by `make e2e-full`. Killing parts of the cluster needs E2E_RUN_FOLDER, the folder with a file `NAME.pid` for each, and
E2E_CLUSTER_UP, the command that starts again what has ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from services.rollout.registry import OWNER_TAG
from tests.e2e.installation import RELEASE, SERVICE, Platform, Recorded, manifest, why_no_kuberay
from tests.e2e.kube import Namespace, run, until
from tests.e2e.small_kuberay import SmallKubeRay

pytestmark = pytest.mark.e2e_full
WORKERS = "ray.io/node-type=worker,understudy.dev/revision"


@pytest.fixture(scope="module")
def small() -> Iterator[bool]:
    """Whether a stand-in with small engines works here, because no operator does."""
    probe = Namespace(f"understudy-probe-{secrets.token_hex(3)}")
    run("kubectl", "create", "namespace", probe.name)
    try:
        reason = why_no_kuberay(probe)
    finally:
        run("kubectl", "delete", "namespace", probe.name, "--wait=false")
    if reason is None:
        yield False
        return
    operator = SmallKubeRay()
    operator.start()
    try:
        yield True
    finally:
        operator.stop()


def _service(small: bool) -> dict[str, Any]:
    """Errors decide, and soon: answers of small engines are all alike. Two replicas where there is room for them."""
    steps = [{"weight": 50, "minDuration": "20s", "minUnits": 40, "maxDuration": "8m"}]
    service = manifest(
        guardrails=[{"metric": "errors", "margin": 0.1, "mode": "nonInferior"}],
        rehearsal={"share": 0.5, "inFlight": 2, "minPairs": 10, "minDuration": "5s", "maxDuration": "5m"},
        canary={"steps": steps},
    )
    replicas = 2 if small else 1
    service["spec"]["engine"] |= {
        "platform": "kuberay",
        "resources": {"cpu": 0.2, "memory": "256Mi" if small else "4Gi"},
        "autoscaling": {"min": replicas, "max": replicas},
        "startTimeout": "10m",
    }
    return service


@pytest.fixture(scope="module")
def first(small: bool, request: pytest.FixtureRequest) -> tuple[Platform, str, str]:
    """An installation for platform kuberay with the service; numbers of its champion and of a version that is no worse."""
    platform: Platform = request.getfixturevalue("kuberay")
    champion, challenger = platform.register("v1", "v2")
    platform.set_alias("champion", champion)
    platform.namespace.apply(_service(small))
    platform.wait_for("condition=Ready", 600)
    return platform, champion, challenger


@pytest.fixture
def platform(first: tuple[Platform, str, str], small: bool) -> Platform:
    """The service on its first champion, no rollout under way."""
    found, champion, _ = first
    found.namespace.apply(_service(small))
    if found.aliases().get("champion") != champion:
        found.set_alias("champion", champion)
    found.wait_for(f"jsonpath={{.status.stable.version}}={champion}", 600)
    found.wait_for("condition=Ready", 300)
    return found


@pytest.fixture
def challenger(first: tuple[Platform, str, str]) -> str:
    """Number of the version that is no worse than the champion."""
    return first[2]


@contextlib.contextmanager
def _load(platform: Platform, record_property: Recorded, repeats: int = 3) -> Iterator[None]:
    """Users all the while; each of their requests is answered in the end."""
    with platform.users(arrivalsPerSecond=5, meanRequests=2.5, repeatsFailed=repeats) as users:
        yield
        users.answered(20)
        seen = users.stop()
    for name in ("requests", "repeated", "failed"):
        record_property(name, getattr(seen, name))
    assert seen.failed == 0, seen


def _until_canary(platform: Platform, number: str) -> str:
    """Start the rollout of a version, wait until users are on it; its revision."""
    before = platform.rollout().get("id")
    platform.set_alias("challenger", number)
    until("a rollout begins", lambda: platform.rollout().get("id") not in (None, before), 60)

    def there() -> bool:
        status = platform.status()
        assert status["rollout"].get("finishedAt") is None, status["rollout"]
        return bool(status["stage"] == "canary" and status["weights"]["candidate"] > 0)

    until("users are on the candidate", there, 900)
    return str(platform.status()["candidate"]["revision"])


def _finished(platform: Platform, timeout: int = 600) -> dict[str, Any]:
    platform.wait_for("condition=RolloutFinished", timeout)
    return platform.rollout()


def _engines(platform: Platform, revision: str) -> list[str]:
    found = platform.namespace.get("pods", f"--selector={WORKERS}={revision}")["items"]
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def _kill(platform: Platform, pods: list[str]) -> None:
    assert pods
    platform.namespace.kubectl("delete", "pod", *pods, "--grace-period=0", "--force", "--wait=false")


def test_stable_engine_killed(platform: Platform, challenger: str, record_property: Recorded, small: bool) -> None:
    if not small:
        pytest.skip("stable has one replica here: nobody can answer in its place")
    with _load(platform, record_property):
        _until_canary(platform, challenger)
        _kill(platform, _engines(platform, platform.status()["stable"]["revision"])[:1])
        rollout = _finished(platform)
    assert rollout["verdict"] == "advance", rollout


def test_candidate_engine_killed(platform: Platform, challenger: str, record_property: Recorded) -> None:
    with _load(platform, record_property):
        _kill(platform, _engines(platform, _until_canary(platform, challenger)))
        rollout = _finished(platform)
    assert rollout["verdict"] == "abort", rollout
    assert rollout["reason"] in ("EngineFailed", "ErrorsHarmful"), rollout


def test_candidate_hangs(platform: Platform, challenger: str, record_property: Recorded) -> None:
    with _load(platform, record_property):
        for pod in _engines(platform, _until_canary(platform, challenger)):
            platform.namespace.kubectl("exec", pod, "--", "bash", "-c", "kill -STOP -1")
        rollout = _finished(platform)
    assert rollout["verdict"] == "abort", rollout
    assert rollout["reason"] in ("EngineFailed", "ErrorsHarmful"), rollout


@pytest.mark.parametrize(
    ("engine", "word"),
    [({"image": "registry.invalid/understudy-engine:none"}, "registry.invalid"), ({"memory": "40Mi"}, "OOMKilled")],
    ids=["bad image", "too little memory"],
)
def test_candidate_that_cannot_start(
    platform: Platform, record_property: Recorded, small: bool, engine: dict[str, str], word: str
) -> None:
    before = platform.status()["stable"], platform.rollout().get("id")
    changed = _service(small)
    spec = changed["spec"]["engine"]
    spec["resources"] |= {name: value for name, value in engine.items() if name == "memory"}
    spec |= {name: value for name, value in engine.items() if name == "image"}
    with _load(platform, record_property):
        platform.namespace.apply(changed)
        until("a rollout begins", lambda: platform.rollout().get("id") not in (None, before[1]), 60)
        rollout = _finished(platform)
    assert (rollout["verdict"], rollout["reason"]) == ("abort", "EngineFailed"), rollout
    assert word in rollout["message"], rollout
    assert platform.status()["stable"] == before[0]


def test_registry_away_for_a_minute(platform: Platform, challenger: str, record_property: Recorded) -> None:
    registry = f"deployment/{RELEASE}-mlflow"
    with _load(platform, record_property):
        _until_canary(platform, challenger)
        platform.namespace.kubectl("scale", registry, "--replicas=0")
        time.sleep(60)
        assert platform.rollout().get("finishedAt") is None, "promoted without the registry"
        platform.namespace.kubectl("scale", registry, "--replicas=1")
        platform.namespace.kubectl("rollout", "status", registry, "--timeout=5m", timeout=310)
        rollout = _finished(platform)
    assert rollout["verdict"] == "advance", rollout
    until("the registry is told", lambda: platform.aliases() == {"champion": challenger}, 60)


@pytest.fixture
def kill() -> Callable[[str], None]:
    """Ends a part of the cluster without any grace, waits a little, and starts it again."""
    folder, up = os.environ.get("E2E_RUN_FOLDER"), os.environ.get("E2E_CLUSTER_UP")
    if not folder or not up:
        pytest.skip(
            "E2E_RUN_FOLDER and E2E_CLUSTER_UP do not say how parts of the cluster are killed and started again"
        )

    def ended(name: str) -> None:
        os.kill(int((Path(folder) / f"{name}.pid").read_text()), signal.SIGKILL)
        time.sleep(10)
        run(*shlex.split(up), timeout=300)

    return ended


@pytest.mark.parametrize("part", ["kube-apiserver", "etcd", "kubelet"])
def test_part_of_the_cluster_killed(
    platform: Platform, challenger: str, record_property: Recorded, kill: Callable[[str], None], part: str
) -> None:
    with _load(platform, record_property):
        _until_canary(platform, challenger)
        kill(part)
        until("the API server answers", lambda: platform.rollout(), 60)
        rollout = _finished(platform)
    assert rollout["verdict"] == "advance", rollout


def test_service_deleted(platform: Platform, challenger: str, small: bool) -> None:
    with platform.users(arrivalsPerSecond=5, meanRequests=2.5) as users:
        candidate = _until_canary(platform, challenger)
        id_, stable = platform.rollout()["id"], platform.status()["stable"]["revision"]
        users.answered(20)
        assert users.counts().failed == 0
        platform.namespace.kubectl("delete", "llmservice", SERVICE, "--timeout=5m", timeout=310)
    with platform.registry() as url:
        client = MlflowClient(url, url)
        model = client.get_registered_model(SERVICE)
        tags = client.get_model_version(SERVICE, challenger).tags
    said = {name.removeprefix("understudy."): value for name, value in tags.items()}
    assert (said["rollout"], said["verdict"], said["reason"]) == (id_, "abort", "ServiceDeleted")
    assert "challenger" not in model.aliases
    assert not [tag for tag in model.tags if OWNER_TAG in tag]
    assert not _engines(platform, stable) + _engines(platform, candidate)
    platform.namespace.apply(_service(small))
    platform.wait_for("condition=Ready", 600)
