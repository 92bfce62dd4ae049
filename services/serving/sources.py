"""Downloads a version's files from wherever the registry says they are. `artifacts` calls it, with an empty folder to fill.

Sources: MLflow's (`mlflow-artifacts:/`, `runs:/`, `models:/`), the stores that MLflow's client reads (`s3://`, `gs://`),
`hf://organisation/name[@revision]`, `pvc://claim/path` (mounted below `CLAIMS`), `file:` URLs and plain folders. Credentials come from the
environment, as each store's own client reads them; a source that carries some is refused, since sources are logged.
Each client is imported here alone, and only for its own sources. It must not change files at the source.
"""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from services.serving.errors import ArtifactMissing, ArtifactUnavailable, ArtifactUnsupported

CLAIMS: Final = "/var/lib/understudy/claims"
"""Where a pod that fetches from a claim has it mounted, under the claim's name."""

_NOTHING_THERE: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")  # MLflow's error codes
_NOTHING_THERE_CODES: Final = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")  # HTTP's and S3's
# What MLflow's client needs beyond itself.
_PACKAGES: Final = {"s3": "boto3", "gs": "google-cloud-storage"}
_MLFLOW: Final = ("mlflow-artifacts", "runs", "models", "http", "https", *_PACKAGES)

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s@]+@")


def download(source: str, scratch: Path, registry_uri: str | None) -> Path:
    """The folder with the source's files, below `scratch`.

    Raises ArtifactMissing, ArtifactUnavailable, ArtifactUnsupported; OSError and shutil.Error for faults of the disk.
    """
    parts = urlsplit(source)
    if parts.scheme in _MLFLOW and ("@" in parts.netloc or (parts.query and parts.scheme in ("http", "https"))):
        raise ArtifactUnsupported(f"a {parts.scheme}: source carries credentials: give them in the environment instead")
    if parts.scheme in ("", "file"):
        return _copied(Path(unquote(parts.path)) if parts.scheme else Path(source), scratch)
    if parts.scheme == "pvc":
        return _copied(_below(Path(CLAIMS) / parts.netloc, unquote(parts.path)), scratch)
    if parts.scheme == "hf":
        return _from_hub(parts.netloc + parts.path, scratch)
    if parts.scheme in _MLFLOW:
        return _from_mlflow(source, parts.scheme, scratch, registry_uri)
    raise ArtifactUnsupported(f"{source}: there is no way to fetch from {parts.scheme}:")


def claim_of(source: str) -> str | None:
    """The claim that a pod must mount to fetch from `source`, if any."""
    parts = urlsplit(source)
    return parts.netloc if parts.scheme == "pvc" else None


def _copied(folder: Path, scratch: Path) -> Path:
    if not folder.is_dir():
        raise ArtifactMissing(f"{folder} is no folder on this machine")
    return Path(shutil.copytree(folder, scratch / "files"))


def _below(root: Path, path: str) -> Path:
    folder = root / path.strip("/")
    if ".." in folder.parts:
        raise ArtifactMissing(f"{folder} leads out of its claim")
    return folder


def _from_mlflow(source: str, scheme: str, scratch: Path, registry_uri: str | None) -> Path:
    from mlflow.artifacts import download_artifacts  # slow to import, and not needed for folders

    def call() -> Path:
        target = str(scratch / "files")
        return Path(download_artifacts(artifact_uri=source, dst_path=target, tracking_uri=registry_uri))

    return _translated(source, call, _PACKAGES.get(scheme))


def _from_hub(name: str, scratch: Path) -> Path:
    model, _, revision = name.partition("@")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise _needs(f"hf://{name}", "huggingface_hub") from error
    folder = scratch / "files"
    _translated(
        f"hf://{name}",
        lambda: Path(hub.snapshot_download(repo_id=model, revision=revision or None, local_dir=str(folder))),
        "huggingface_hub",
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes, with times: no part of the model
    return folder


def _translated(source: str, call: Callable[[], Path], package: str | None) -> Path:
    """Each store's client has errors of its own: only what they have in common is looked at."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except ImportError as error:
        raise _needs(source, package or str(error.name)) from error
    except OSError as error:
        if not hasattr(error, "response"):  # requests' errors are OSErrors; those of the disk are the caller's
            raise
        raise _fault(source, error) from error
    except MlflowException as error:
        if isinstance(error.__cause__, ImportError):
            raise _needs(source, package or str(error.__cause__.name)) from error
        kind = ArtifactMissing if error.error_code in _NOTHING_THERE else ArtifactUnavailable
        raise kind(f"{source} could not be downloaded: {_plain(error)}") from error
    except Exception as error:  # boto3's, Google's and the hub's, none of which can be named here
        raise _fault(source, error) from error


def _fault(source: str, error: Exception) -> ArtifactMissing | ArtifactUnavailable:
    kind = ArtifactMissing if _code(error) in _NOTHING_THERE_CODES else ArtifactUnavailable
    return kind(f"{source} could not be downloaded: {type(error).__name__}: {_plain(error)}")


def _plain(error: Exception) -> str:
    """Clients quote addresses with what opens them, and answers with all their lines."""
    return _CREDENTIALS.sub("***@", " ".join(str(error).split()))


def _code(error: Any) -> str:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(response, "status_code", getattr(error, "code", "")))  # requests, hub; Google


def _needs(source: str, package: str) -> ArtifactUnsupported:
    scheme = urlsplit(source).scheme
    return ArtifactUnsupported(
        f"{scheme}:// sources need the Python package {package}: add it to the image that fetches "
        "(the chart's images.mlflow; on platform serve images.controller)"
    )
