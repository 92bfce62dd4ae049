"""An embedder without a model: a direction a word, so that prompts with words in common lie near each other. Deterministic."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from services.rollout.embedding import Vector
from services.rollout.errors import EmbeddingUnavailable

DIMENSIONS = 48


class FakeEmbedder:
    """`away`: whether the endpoint is; `refused`: prompts that it has no embedding for."""

    def __init__(self, model: str = "words", refused: Sequence[str] = ()) -> None:
        self.model, self.refused, self.away = model, refused, False

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        if self.away:
            raise EmbeddingUnavailable("embeddings at http://nowhere: no answer")
        return [None if text in self.refused else embedding(text) for text in texts]


def embedding(text: str) -> Vector:
    """Of length 1."""
    words = [zlib.crc32(word.encode()) for word in text.casefold().split() or [""]]
    total = np.sum([np.random.RandomState(word).standard_normal(DIMENSIONS) for word in words], axis=0)
    return (total / np.linalg.norm(total)).astype("<f4")
