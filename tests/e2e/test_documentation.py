"""The guides in docs/operations, read by somebody who has nothing yet: every command that can be run is run, in a person's order.

They use the namespace `understudy` and the ports 5000 and 8080, as they are written. Between their commands it is checked that what they
promise has happened: the answer streams, what was lost is back, the user is gone.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.e2e.guides import Reader, every_block
from tests.e2e.installation import DEFINITION, RELEASE, SERVICE, Platform, build_images, delete, has_definition
from tests.e2e.kube import CommandFailed, Namespace, run, until

pytestmark = pytest.mark.e2e_full
NAMESPACE = "understudy"
QUESTION: dict[str, Any] = {
    "model": SERVICE,
    "stream": True,
    "max_tokens": 8,
    "user": "bob",
    "messages": [{"role": "user", "content": "what is two plus two?"}],
}
CLOUD, KIND, UPGRADE, BACKUP, TROUBLE, AIRGAP = (
    f"{name}.md"
    for name in ("install-cloud-gpu", "install-kind", "upgrade", "backup-restore", "troubleshooting", "air-gapped")
)


@pytest.fixture(scope="module")
def nothing() -> Iterator[None]:
    """A cluster that has never seen the platform; a definition that others left comes back at the end."""
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG names no cluster")
    if run("kubectl", "get", "namespace", NAMESPACE, "--ignore-not-found"):
        pytest.skip(f"the cluster has a namespace {NAMESPACE}, which the guides would use")
    for port in (5000, 8080):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something listens on port {port}, which the guides would use")
    build_images()
    definition = None
    if has_definition():
        if run("kubectl", "get", "llmservices", "--all-namespaces", "--output=name"):
            pytest.skip("the cluster has LLMServices: their definition cannot be taken away")
        definition = json.loads(run("kubectl", "get", "customresourcedefinition", DEFINITION, "--output=json"))
        run("kubectl", "delete", "customresourcedefinition", DEFINITION)
    try:
        yield
    finally:
        delete(Namespace(NAMESPACE))
        if definition is not None and not has_definition():
            metadata = {key: definition["metadata"][key] for key in ("name", "labels", "annotations")}
            made = {**definition, "metadata": metadata, "status": None}
            run("kubectl", "create", "--filename=-", stdin=json.dumps(made))


@pytest.fixture(scope="module")
def _reader(nothing: None) -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def reader(_reader: Reader) -> Reader:
    """Nobody reads on where something did not work."""
    if _reader.failed:
        pytest.skip(f"{_reader.failed} failed")
    return _reader


@pytest.fixture(scope="module")
def installed() -> Platform:
    """The platform that the guides make."""
    return Platform(Namespace(NAMESPACE))


def _delete_namespace() -> None:
    run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=2m", timeout=150)


def _stored_rollouts(platform: Platform) -> list[tuple[str, str]]:
    """Version and verdict of those that the store knows, asked by the command line in the controller's pod."""
    said = platform.namespace.kubectl(
        "exec", f"deployment/{RELEASE}-controller", "--", "understudy", "rollouts", "--output=json"
    )
    return [(one["version"], one["verdict"]) for one in json.loads(said)["rollouts"]]


def test_images_into_an_air_gap(reader: Reader) -> None:
    said = reader.read(AIRGAP, "Air-gapped")
    assert said.count('image: "understudy-') == 5
    assert "registry.example.internal/understudy-engine" in said
    _delete_namespace()


def test_a_cloud(reader: Reader) -> None:
    reader.read(CLOUD, "Secrets")
    assert "s3://BUCKET/mlflow" in reader.read(CLOUD, "The platform")
    _delete_namespace()


def test_installation(reader: Reader) -> None:
    said = reader.read(KIND, "The platform")
    assert "no LLMService yet" in said


def test_a_model(reader: Reader, installed: Platform) -> None:
    reader.read(KIND, "A model")
    assert installed.aliases() == {"champion": "1"}


def test_the_first_answer(reader: Reader) -> None:
    said = reader.read(KIND, "A service")
    assert said.rstrip().endswith("data: [DONE]")


def test_a_rollout_begins(reader: Reader, installed: Platform) -> None:
    said = reader.read(KIND, "A rollout")
    assert "gate" in said or "rehearsal" in said
    assert installed.rollout()["version"] == "2"


def test_a_service_for_gpus(reader: Reader) -> None:
    said = reader.read(CLOUD, "A service")
    assert "server dry run" in said
    assert "tensorParallelSize" in said


def test_upgrade_and_rollback(reader: Reader, installed: Platform) -> None:
    ray = [pod["metadata"]["uid"] for pod in installed.namespace.pods("ray-head")]
    said = reader.read(UPGRADE, "Upgrade and roll back")
    assert f"{SERVICE} streamed" in said
    reader.read(UPGRADE, "Roll the platform back")
    assert [pod["metadata"]["uid"] for pod in installed.namespace.pods("ray-head")] == ray, "engines start again"


def test_a_rollout_is_stopped(reader: Reader, installed: Platform) -> None:
    reader.read(UPGRADE, "Roll a model back")
    assert (installed.rollout()["verdict"], installed.rollout()["reason"]) == ("abort", "AbortedByCommand")
    reader.read(TROUBLE, "Somebody must stop a rollout now")


def test_first_looks_at_trouble(reader: Reader) -> None:
    assert "RolloutStarted" in reader.read(TROUBLE, "What to do when")


def test_new_keys(reader: Reader, installed: Platform) -> None:
    before = installed.namespace.secret(f"{RELEASE}-api-keys", "api_key")
    reader.read(UPGRADE, "Change the keys")
    installed.namespace.kubectl("rollout", "status", f"deployment/{RELEASE}-gateway", "--timeout=3m", timeout=190)
    assert installed.namespace.secret(f"{RELEASE}-api-keys", "api_key") != before
    assert b"[DONE]" in installed.ask(QUESTION)


def test_what_is_lost_comes_back(reader: Reader, installed: Platform, tmp_path: Path) -> None:
    reader.read(BACKUP, "Backup")
    before = _stored_rollouts(installed)
    assert before == [("2", "abort")]
    installed.namespace.kubectl("apply", "--dry-run=server", "--filename=/tmp/understudy-backup/llmservices.yaml")

    shell = ["exec", "understudy-postgresql-0", "--", "psql", "--host=/var/run/postgresql", "--username=postgres"]
    installed.namespace.kubectl(*shell, "understudy", "--command=TRUNCATE rollouts, audit CASCADE")
    assert _stored_rollouts(installed) == []
    reader.read(BACKUP, "Restore the store")
    assert _stored_rollouts(installed) == before

    with installed.registry() as url:
        MlflowClient(url, url).delete_model_version(SERVICE, "2")
    lose = "find /var/lib/mlflow -mindepth 1 -delete"
    installed.namespace.kubectl("exec", f"deployment/{RELEASE}-mlflow", "--container=mlflow", "--", "sh", "-c", lose)
    reader.read(BACKUP, "Restore the registry")
    with installed.registry() as url:
        client = MlflowClient(url, url)
        run_id = client.get_model_version(SERVICE, "2").run_id
        assert run_id is not None
        file = client.download_artifacts(run_id, "evaluation/evaluation.json", str(tmp_path))
    assert json.loads(Path(file).read_text())["items"]
    installed.wait_for("condition=Ready", 120)
    assert b"[DONE]" in installed.ask(QUESTION)


def test_a_user_is_erased(reader: Reader) -> None:
    assert "rows of user 'ada' of tenant 'default' deleted" in reader.read(BACKUP, "Erase one user's data")
    assert "nothing is stored of user 'ada'" in reader.read(BACKUP, "Erase one user's data")


def test_an_uninstallation_that_does_not_end(reader: Reader, installed: Platform) -> None:
    namespace, controller = installed.namespace, f"deployment/{RELEASE}-controller"
    installed.upgrade("uninstall.timeoutSeconds=60")
    namespace.kubectl("scale", controller, "--replicas=0")
    until("no controller is left", lambda: not namespace.pods("controller"), 60)
    with pytest.raises(CommandFailed, match="understudy-uninstall"):
        namespace.helm("uninstall", RELEASE, "--timeout=2m", timeout=150)
    assert SERVICE in reader.read(TROUBLE, "The uninstallation does not end")
    namespace.kubectl("scale", controller, "--replicas=1")
    namespace.kubectl("rollout", "status", controller, "--timeout=3m", timeout=190)


def test_nothing_stays(reader: Reader) -> None:
    reader.read(KIND, "Away with it")
    assert not run("kubectl", "get", "namespace", NAMESPACE, "--ignore-not-found")
    assert not has_definition()


def test_a_new_cluster_takes_the_keys(reader: Reader) -> None:
    said = reader.read(BACKUP, "Into a new cluster")
    kept = Namespace(NAMESPACE).secret(f"{RELEASE}-keys", "unit_key")
    assert kept in said, "the chart makes keys of its own"
    _delete_namespace()


def test_every_command_was_run(reader: Reader) -> None:
    assert not [str(block) for block in every_block() if block not in reader.done]
