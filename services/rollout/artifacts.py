"""How a version's files reach its engine, verified against the digest that was registered: the controller's two kinds of `Artifacts`.
The work is done by `services.serving` (`artifacts`, `adapters`); here its errors become reasons of a rollout.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.rollout import reasons
from services.rollout.errors import ArtifactError, RegistryUnavailable
from services.rollout.observed import VersionInfo
from services.rollout.revisions import DIGEST
from services.serving.adapters import check
from services.serving.artifacts import fetch, reference
from services.serving.errors import AdapterInvalid, ArtifactMismatch, ArtifactMissing, ArtifactUnsupported
from services.serving.errors import ArtifactError as FetchError


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


def check_adapter(folder: str, info: VersionInfo, max_rank: int) -> None:
    """Raises ArtifactError where the version's files are no adapter that an engine with room for rank `max_rank` could load."""
    try:
        check(Path(folder), max_rank)
    except AdapterInvalid as error:
        raise ArtifactError(reasons.ADAPTER_REFUSED, f"v{info.version} is tagged as an adapter, but {error}") from error
    except OSError as error:
        raise RegistryUnavailable(f"the files of v{info.version} cannot be read: {error}") from error


def _digest(info: VersionInfo) -> str:
    digest = info.tags.get(DIGEST)
    if digest is None:
        raise ArtifactError(
            reasons.ARTIFACT_MISMATCH,
            f"v{info.version} has no tag {DIGEST}: nothing could tell whether its files are right",
        )
    return digest
