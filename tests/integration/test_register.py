"""Registering the demo's versions in a real MLflow: what the controller reads there, and nothing twice."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from pipelines import artifacts, register
from services.serving.artifacts import folder_digest

pytestmark = pytest.mark.integration


def built(models: Path, name: str, files: dict[str, str], **manifest: object) -> None:
    """A version as `demo_models` leaves it."""
    (models / name).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (models / name / file).write_text(text)
    content = {
        "kind": "weights",
        "digest": folder_digest(models / name),
        "base": None,
        "system_prompt": None,
        "recipe": {"version": name, "layers": None},
        "accuracy": 0.75,
    }
    artifacts.write_json(models / f"{name}.json", content | manifest)
    items = [{"id": "capitals/france/11", "kind": "capitals", "correct": True}]
    artifacts.write_json(models / f"{name}.evaluation.json", {"dataset": {"digest": "d"}, "items": items})


@pytest.fixture
def model() -> str:
    return f"assistant-{uuid4().hex[:8]}"


def test_a_version_is_registered_once_with_its_files_and_evaluation(
    mlflow_server: str, model: str, tmp_path: Path
) -> None:
    built(tmp_path, "v1", {"config.json": "{}", "model.safetensors": "weights"})
    number = register.register(mlflow_server, model, tmp_path, "v1")
    assert register.register(mlflow_server, model, tmp_path, "v1") == number

    client = MlflowClient(mlflow_server, mlflow_server)
    assert len(client.search_model_versions(f"name='{model}'")) == 1
    version = client.get_model_version(model, number)
    files = Path(
        download_artifacts(artifact_uri=version.source, tracking_uri=mlflow_server, dst_path=str(tmp_path / "got"))
    )
    assert version.tags["understudy.kind"] == "weights"
    assert version.tags["understudy.digest"] == folder_digest(files)
    run = client.get_run(version.run_id)
    assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", 0.75)
    evaluation = Path(client.download_artifacts(version.run_id, "evaluation/evaluation.json", str(tmp_path)))
    assert json.loads(evaluation.read_text())["items"][0]["correct"] is True


def test_other_files_make_another_version(mlflow_server: str, model: str, tmp_path: Path) -> None:
    built(tmp_path, "v1", {"config.json": "{}"})
    first = register.register(mlflow_server, model, tmp_path, "v1")
    built(tmp_path, "v1", {"config.json": "{ }"})
    assert register.register(mlflow_server, model, tmp_path, "v1") != first


def test_a_prompt_names_its_base_which_is_registered_with_it(mlflow_server: str, model: str, tmp_path: Path) -> None:
    built(tmp_path, "v2", {"config.json": "{}"})
    prompt = {"base": "v2", "system_prompt": "be brief"}
    built(tmp_path, "v5", {"prompt.json": json.dumps(prompt)}, kind="prompt", **prompt)
    number = register.register(mlflow_server, model, tmp_path, "v5")
    assert register.register(mlflow_server, model, tmp_path, "v5") == number

    tags = MlflowClient(mlflow_server, mlflow_server).get_model_version(model, number).tags
    assert tags["understudy.kind"] == "prompt"
    assert tags["understudy.system-prompt"] == "be brief"
    assert tags["understudy.base-version"] == register.register(mlflow_server, model, tmp_path, "v2") != number


def test_an_adapter_names_its_base_too(mlflow_server: str, model: str, tmp_path: Path) -> None:
    built(tmp_path, "v2", {"config.json": "{}"})
    built(tmp_path, "v6", {"adapter_config.json": "{}", "adapter_model.safetensors": ""}, kind="adapter", base="v2")
    number = register.register(mlflow_server, model, tmp_path, "v6")
    tags = MlflowClient(mlflow_server, mlflow_server).get_model_version(model, number).tags
    assert tags["understudy.kind"] == "adapter"
    assert tags["understudy.base-version"] == register.register(mlflow_server, model, tmp_path, "v2") != number
    assert "understudy.system-prompt" not in tags


def test_a_version_that_is_not_built_is_refused_with_what_to_do(mlflow_server: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(register.NotBuilt, match=r"holds no version v9 .*make models"):
        register.register(mlflow_server, model, tmp_path, "v9")
    assert MlflowClient(mlflow_server, mlflow_server).search_registered_models(f"name='{model}'") == []
