"""A model registry in memory, for tests of the controller: aliases, versions and evaluations; may be away or hold another owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from services.rollout.errors import RegistryUnavailable
from services.rollout.observed import Evaluation, VersionInfo


class FakeRegistry:
    """Implements `services.rollout.registry.Registry` for one model."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.versions: dict[str, VersionInfo] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.owner: str | None = None
        self.away = False

    def add(self, version: str, evaluation: Evaluation | None = None, **tags: str) -> VersionInfo:
        """Registers a version; tags are given without the prefix `understudy.`, with underscores for dashes."""
        named = {f"understudy.{key.replace('_', '-')}": value for key, value in tags.items()}
        self.versions[version] = VersionInfo(version, f"runs:/run-{version}/model", named, f"run-{version}")
        if evaluation is not None:
            self.evaluations[version] = evaluation
        return self.versions[version]

    async def alias(self, model: str, alias: str) -> VersionInfo | None:
        self._answer()
        version = self.aliases.get(alias)
        return self.versions[version] if version is not None else None

    async def version(self, model: str, version: str) -> VersionInfo | None:
        self._answer()
        return self.versions.get(version)

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        self._answer()
        self.aliases[alias] = version

    async def delete_alias(self, model: str, alias: str) -> None:
        self._answer()
        self.aliases.pop(alias, None)

    async def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        self._answer()
        info = self.versions[version]
        self.versions[version] = replace(info, tags={**info.tags, **tags})

    async def evaluation(self, info: VersionInfo) -> Evaluation | None:
        self._answer()
        return self.evaluations.get(info.version)

    async def claim(self, model: str, alias: str, owner: str) -> str:
        self._answer()
        self.owner = self.owner or owner
        return self.owner

    async def release(self, model: str, alias: str, owner: str) -> None:
        self._answer()
        if self.owner == owner:
            self.owner = None

    async def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            raise RegistryUnavailable("the registry is away")
