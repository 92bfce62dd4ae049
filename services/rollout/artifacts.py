"""How a version's files reach its engine, verified against the digest that was registered: the controller's two kinds of `Artifacts`.
The work is done by `services.serving.artifacts`; here its errors become reasons of a rollout.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.rollout import reasons
from services.rollout.errors import ArtifactError, RegistryUnavailable
from services.rollout.observed import VersionInfo
from services.rollout.revisions import DIGEST
from services.serving.artifacts import fetch, reference
from services.serving.errors import ArtifactError as FetchError
from services.serving.errors import ArtifactMismatch, ArtifactMissing, ArtifactUnsupported


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
        digest = _digest(info)
        try:
            return str(await asyncio.to_thread(fetch, info.source, digest, self._cache, self._uri))
        except (ArtifactMissing, ArtifactUnsupported) as error:
            raise ArtifactError(reasons.ARTIFACT_MISSING, str(error)) from error
        except ArtifactMismatch as error:
            raise ArtifactError(reasons.ARTIFACT_MISMATCH, str(error)) from error
        except FetchError as error:
            raise RegistryUnavailable(str(error)) from error


class ReferencedArtifacts:
    """Nothing is fetched here: an engine's pod does it, on its own node, by what this says."""

    async def fetch(self, info: VersionInfo) -> str:
        """The version's source and digest. Raises ArtifactError where there is no digest."""
        return reference(info.source, _digest(info))


def _digest(info: VersionInfo) -> str:
    digest = info.tags.get(DIGEST)
    if digest is None:
        raise ArtifactError(
            reasons.ARTIFACT_MISMATCH,
            f"v{info.version} has no tag {DIGEST}: nothing could tell whether its files are right",
        )
    return digest
