"""The registry adapter against a real MLflow server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from services.rollout.artifacts import CachedArtifacts
from services.rollout.errors import ArtifactError, RegistryRejected, RegistryUnavailable
from services.rollout.observed import VersionInfo
from services.rollout.registry import MlflowRegistry
from services.serving.artifacts import folder_digest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def _register(uri: str, model: str, files: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    client.create_registered_model(model)
    run = client.create_run(client.create_experiment(model)).info.run_id
    client.log_artifacts(run, str(files), "model")
    items = [{"id": "q1", "correct": True}]
    client.log_text(run, json.dumps({"dataset": {"digest": "d1"}, "items": items}), "evaluation/evaluation.json")
    tags = {"understudy.digest": folder_digest(files)}
    client.create_model_version(model, f"runs:/{run}/model", run, tags=tags)
    empty = client.create_run(client.get_experiment_by_name(model).experiment_id).info.run_id
    client.create_model_version(model, f"runs:/{empty}/model", empty, tags={"understudy.digest": "0" * 64})


async def test_what_the_controller_asks_of_it(mlflow_server: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    await asyncio.to_thread(_register, mlflow_server, "asked", files)
    registry = MlflowRegistry(mlflow_server, timeout=60)
    assert await registry.alias("asked", "champion") is None
    assert await registry.alias("no such model", "champion") is None
    assert await registry.version("asked", "9") is None
    await registry.set_alias("asked", "champion", "1")
    champion = await registry.alias("asked", "champion")
    assert champion is not None
    assert champion.version == "1"
    evaluation = await registry.evaluation(champion)
    assert evaluation is not None
    assert evaluation.items == {"q1": True}
    second = await registry.version("asked", "2")
    assert second is not None
    assert await registry.evaluation(second) is None
    await registry.tag_version("asked", "1", {"understudy.verdict": "advance"})
    tagged = await registry.version("asked", "1")
    assert tagged is not None
    assert tagged.tags["understudy.verdict"] == "advance"
    for _ in range(2):
        await registry.delete_alias("asked", "champion")
    assert await registry.alias("asked", "champion") is None
    assert await registry.claim("asked", "champion", "a/asked") == "a/asked"
    assert await registry.claim("asked", "champion", "b/asked") == "a/asked", "the first owner stays"
    with pytest.raises(RegistryRejected):
        await registry.set_alias("asked", "champion", "9")
    await registry.close()
    await _fetch(mlflow_server, tmp_path / "cache", champion, second)


async def _fetch(uri: str, cache: Path, whole: VersionInfo, empty: VersionInfo) -> None:
    artifacts = CachedArtifacts(uri, cache)
    folder = Path(await artifacts.fetch(whole))
    assert (folder / "config.json").read_text() == "{}"
    with pytest.raises(ArtifactError) as caught:
        await artifacts.fetch(empty)
    assert caught.value.reason == "ArtifactMissing"
    with pytest.raises(ArtifactError, match=r"has no tag understudy\.digest"):
        await artifacts.fetch(VersionInfo("3", whole.source, {}, None))


async def test_one_that_is_not_there_is_unavailable_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowRegistry("http://127.0.0.1:9", timeout=60)
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9"):
        await registry.alias("asked", "champion")
    await registry.close()
