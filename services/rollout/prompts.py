"""What is kept of a sampled prompt, so that its text need not be: where it lies among others, its language, its length and, encrypted,
which words it has. Called by the controller's task that reads material; read again by `prompt_drift` and `topics`.

A prompt leaves this module for the embeddings' endpoint alone.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from cryptography.fernet import Fernet, InvalidToken

from services.rollout.embedding import LONG, Vector

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SURE: Final = 0.4
"""The identifier's confidence from which a language is named. Of 30 short prompts it was then never wrong, and silent on six of one or two
words (`tests/rollout/test_prompts`)."""
TERMS: Final = 200
"""Different words kept of a prompt: the first."""
LENGTHS: Final = range(3, 31)
"""Letters of a word that is kept. Shorter ones hardly ever say what a prompt is about."""

_UNSPACED: Final = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without spaces between words."""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+(?:['’-](?:(?![{_UNSPACED}])\w)+)*")
_RUN: Final = re.compile(rf"[{_UNSPACED}]{{2,}}")
_LETTERS: Final = re.compile(rf"(?:(?![{_UNSPACED}])[^\W\d_])+")
_PRIVATE: Final = re.compile(r"\d|@|://|^www\.", re.IGNORECASE)
"""Pieces of text that name somebody or something: numbers, addresses. No word of theirs is kept."""


class Embedder(Protocol):
    """What turns texts into vectors: `embedding.EmbeddingEndpoint`."""

    model: str

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """A vector a text; None where there is none for it. Raises EmbeddingUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class PromptRead:
    """Fields of `Sample` that come of its prompt."""

    model: str | None
    embedding: bytes | None
    language: str | None
    words: int
    terms: bytes


class PromptReader:
    """Reads prompts. `cipher`: with the content key; it encrypts the words."""

    def __init__(self, embedder: Embedder, cipher: Fernet) -> None:
        self._embedder, self._cipher = embedder, cipher

    async def read(self, prompts: Sequence[str]) -> list[PromptRead]:
        """What a sample keeps of each. Raises EmbeddingUnavailable."""
        vectors = await self._embedder.embed(prompts)
        return await asyncio.to_thread(lambda: list(map(self._read, prompts, vectors)))

    def _read(self, prompt: str, vector: Vector | None) -> PromptRead:
        return PromptRead(
            None if vector is None else self._embedder.model,
            None if vector is None else vector.astype("<f4").tobytes(),
            language_of(prompt),
            words_of(prompt),
            self._cipher.encrypt(json.dumps(terms_of(prompt)).encode()),
        )


def vector_of(embedding: bytes) -> Vector:
    """The vector of `Sample.embedding`."""
    return np.frombuffer(embedding, "<f4")


def read_terms(cipher: Fernet, terms: bytes | None) -> frozenset[str]:
    """The words of `Sample.terms`; none where another key encrypted them."""
    if terms is None:
        return frozenset()
    try:
        return frozenset(json.loads(cipher.decrypt(terms)))
    except InvalidToken:
        return frozenset()


def language_of(prompt: str) -> str | None:
    """ISO 639-1; None where it cannot be told, as with most prompts of one or two words."""
    label, confidence = _identifier().classify(prompt[:LONG])
    return label if confidence >= SURE and len(label) == 2 else None


def words_of(prompt: str) -> int:
    """Number of words; a character counts as one where there are no spaces between words."""
    return sum(1 for _ in _WORD.finditer(prompt))


def terms_of(prompt: str) -> list[str]:
    """The prompt's different words, in lower case; where words are not spaced, pairs of characters."""
    found: dict[str, None] = {}
    for piece in prompt.casefold().split():
        if _PRIVATE.search(piece):
            continue
        found.update(dict.fromkeys(word for word in _LETTERS.findall(piece) if len(word) in LENGTHS))
        for run in _RUN.findall(piece):
            found.update(dict.fromkeys(run[start : start + 2] for start in range(len(run) - 1)))
    return list(found)[:TERMS]


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    """Two seconds and some megabytes, for controllers that read prompts alone."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
