"""Brings a version's files to this machine's cache, verified against the digest that was registered: the controller's `Artifacts`. The
work is done by `services.serving.artifacts`; here its errors become reasons of a rollout.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.rollout import reasons
from services.rollout.errors import ArtifactError, RegistryUnavailable
from services.rollout.observed import VersionInfo
from services.rollout.revisions import DIGEST
from services.serving.artifacts import fetch
from services.serving.errors import ArtifactError as FetchError
from services.serving.errors import ArtifactMismatch, ArtifactMissing


class CachedArtifacts:
    """Folders below `cache`, named by digest; engines read them there."""

    def __init__(self, registry_uri: str, cache: Path) -> None:
        self._uri, self._cache = registry_uri, cache.resolve()

    async def fetch(self, info: VersionInfo) -> str:
        """The version's folder.

        Raises:
            ArtifactError: the files are missing, or are not those that were registered.
            RegistryUnavailable: they cannot be had now (registry away, disk full).
        """
        digest = info.tags.get(DIGEST)
        if digest is None:
            raise ArtifactError(
                reasons.ARTIFACT_MISMATCH,
                f"v{info.version} has no tag {DIGEST}: nothing could tell whether its files are right",
            )
        try:
            return str(await asyncio.to_thread(fetch, info.source, digest, self._cache, self._uri))
        except ArtifactMissing as error:
            raise ArtifactError(reasons.ARTIFACT_MISSING, str(error)) from error
        except ArtifactMismatch as error:
            raise ArtifactError(reasons.ARTIFACT_MISMATCH, str(error)) from error
        except FetchError as error:
            raise RegistryUnavailable(str(error)) from error
