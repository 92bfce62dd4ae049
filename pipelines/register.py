"""Registers a built version in MLflow: `python -m pipelines.register --registry http://127.0.0.1:5000 --version v2`.

Run in the platform's environment (mlflow-skinny); the demo calls `register`. A version's files and its evaluation become artifacts of
a run, the version's tags say what the controller must know: kind, digest, for an adapter and a prompt the base version, and a prompt's
text. Registering the same files again returns the version that is there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

KIND, DIGEST = "understudy.kind", "understudy.digest"
BASE, SYSTEM_PROMPT = "understudy.base-version", "understudy.system-prompt"


class NotBuilt(Exception):
    """The version is not in the folder; the text says how to build it."""


def register(registry_uri: str, model: str, models: Path, name: str) -> str:
    """Register the version `name` (for example `v2`) that `models` holds, after its base; returns its number in the registry.

    Raises:
        NotBuilt: the folder does not hold it.
        mlflow.exceptions.MlflowException: the registry cannot be reached or refuses.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    manifest = read_manifest(models, name)
    client = MlflowClient(registry_uri, registry_uri)
    tags = {KIND: manifest["kind"], DIGEST: manifest["digest"], "understudy.name": name}
    if manifest["kind"] in ("adapter", "prompt"):
        tags[BASE] = register(registry_uri, model, models, manifest["base"])
    if manifest["kind"] == "prompt":
        tags[SYSTEM_PROMPT] = manifest["system_prompt"]
    _ensure_model(client, model)
    known = _same(client, model, tags)
    if known is not None:
        return known
    experiment = client.get_experiment_by_name(model)
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(model), run_name=name)
    try:
        for key, value in manifest["recipe"].items():
            client.log_param(run.info.run_id, key, value)
        client.log_metric(run.info.run_id, "accuracy", manifest["accuracy"])
        client.log_artifacts(run.info.run_id, str(models / name), "model")
        evaluation = (models / f"{name}.evaluation.json").read_text()
        client.log_text(run.info.run_id, evaluation, "evaluation/evaluation.json")
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    source = f"runs:/{run.info.run_id}/model"
    made = client.create_model_version(model, source, run.info.run_id, tags=tags, await_creation_for=0)
    return str(made.version)


def read_manifest(models: Path, name: str) -> dict[str, Any]:
    """What the build wrote about a version. Raises NotBuilt."""
    try:
        manifest: dict[str, Any] = json.loads((models / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        raise NotBuilt(f"{models} holds no version {name} ({error}); run `make models`") from error
    return manifest


def _ensure_model(client: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _same(client: Any, model: str, tags: dict[str, str]) -> str | None:
    """The newest version with the same content: kind, digest, base and prompt."""
    matching = (KIND, DIGEST, BASE, SYSTEM_PROMPT)
    for version in client.search_model_versions(f"name='{model}'"):
        if all(version.tags.get(tag) == tags.get(tag) for tag in matching):
            return str(version.version)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Register a built version in MLflow.")
    parser.add_argument("--registry", required=True, help="MLflow's tracking server, e.g. http://127.0.0.1:5000")
    parser.add_argument("--model", default="assistant", help="registered model")
    parser.add_argument("--models", type=Path, default=Path(".cache/models"), help="folder of built versions")
    parser.add_argument("--version", required=True, help="version to register, e.g. v2")
    options = parser.parse_args()
    print(register(options.registry, options.model, options.models, options.version))


if __name__ == "__main__":
    main()
