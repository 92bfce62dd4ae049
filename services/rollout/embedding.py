"""What turns prompts into vectors: an embedding model behind any OpenAI-compatible server (vLLM, TEI, Ollama, OpenAI).

Called by `prompts`. Texts leave this module for the endpoint alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
import numpy as np
from numpy.typing import NDArray

from services.rollout.errors import EmbeddingRefused, EmbeddingUnavailable

log = logging.getLogger(__name__)

Vector = NDArray[np.float32]
"""Of length 1."""

BATCH: Final = 32
"""Texts a request: what Text Embeddings Inference takes unless told otherwise."""
LONG: Final = 1_000
"""Characters of a text that are embedded: what it is about stands there, and small models read 256 tokens, about as much in English."""
SHORT: Final = 200
"""Characters of one that is refused at that length: in some scripts a character is a token."""


class EmbeddingEndpoint:
    """One embedding model behind an OpenAI-compatible server. `timeout` is seconds per request of at most `BATCH` texts."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, key: str | None, timeout: float) -> None:
        self.model = model
        self._session, self._url = session, url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """A vector a text; None where the endpoint has none for it. Raises EmbeddingUnavailable."""
        found: list[Vector | None] = []
        for start in range(0, len(texts), BATCH):
            found += await self._embed([text[:LONG] for text in texts[start : start + BATCH]])
        return found

    async def _embed(self, texts: list[str]) -> list[Vector | None]:
        try:
            return list(await self._ask(texts))
        except EmbeddingRefused as error:
            if len(texts) > 1:  # one of them; the others are not to suffer for it
                return [one for text in texts for one in await self._embed([text])]
            if len(texts[0]) > SHORT:
                return await self._embed([texts[0][:SHORT]])
            log.warning("a prompt stays without embedding: %s", error)
            return [None]

    async def _ask(self, texts: list[str]) -> list[Vector]:
        body = {"model": self.model, "input": texts}
        url = f"{self._url}/embeddings"
        try:
            async with self._session.post(url, json=body, headers=self._headers, timeout=self._timeout) as response:
                if response.status in (400, 413, 422):
                    raise EmbeddingRefused(f"{self._url} refused a text ({response.status})")
                if response.status != 200:
                    raise EmbeddingUnavailable(f"embeddings of {self.model} at {self._url}: {response.status}")
                document: Any = await response.json(content_type=None)
                return _vectors(document, len(texts))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EmbeddingUnavailable(f"embeddings at {self._url}: no answer: {error!r}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EmbeddingRefused(f"what {self._url} answers are no embeddings: {error!r}") from error


def _vectors(document: Any, count: int) -> list[Vector]:
    """Raises KeyError, IndexError, TypeError or ValueError."""
    rows = sorted(document["data"], key=lambda one: one["index"])
    vectors = np.asarray([one["embedding"] for one in rows], np.float64)
    sizes = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if vectors.ndim != 2 or len(vectors) != count or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"{count} texts, vectors of shape {vectors.shape}")
    return list((vectors / sizes).astype("<f4"))
