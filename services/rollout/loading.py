"""Reads `LLMService` resources from a file. Called by the controller in file mode and by the command line."""

from __future__ import annotations

from pathlib import Path

from services.common.manifest import InvalidManifest, read
from services.rollout.errors import InvalidResource
from services.rollout.resources import LLMService


def load(path: Path) -> list[LLMService]:
    """All services of a file (YAML, several documents allowed; those of other kinds are left alone), in order.

    Raises:
        InvalidResource: one line a mistake, `path:line: field: message`.
    """
    try:
        return read(path, {"LLMService": LLMService})
    except InvalidManifest as error:
        raise InvalidResource(str(error)) from error
