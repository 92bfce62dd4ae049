"""Prompts become what is kept of them: the embeddings' endpoint and its faults, languages, lengths, words that name nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.fernet import Fernet

from services.rollout.embedding import BATCH, LONG, SHORT, EmbeddingEndpoint
from services.rollout.errors import EmbeddingUnavailable
from services.rollout.prompts import PromptReader, language_of, read_terms, terms_of, vector_of, words_of
from tests.fakes.embedder import FakeEmbedder, embedding

Answer = Callable[[list[str]], tuple[int, Any]]


def rows(texts: list[str]) -> dict[str, Any]:
    """As a server answers that ends in no particular order."""
    data = [{"index": i, "embedding": [3.0 * len(text), 4.0 * len(text)]} for i, text in enumerate(texts)]
    return {"object": "list", "data": data[::-1]}


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[EmbeddingEndpoint]:
    async def embeddings(request: web.Request) -> web.Response:
        body = await request.json()
        assert request.headers["Authorization"] == "Bearer secret"
        assert body["model"] == "small"
        status, document = answer(body["input"])
        return web.json_response(document, status=status)

    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield EmbeddingEndpoint(session, str(server.make_url("/v1")), "small", "secret", 5.0)


async def test_vectors_have_length_one_and_come_in_the_order_of_the_texts() -> None:
    asked: list[int] = []

    def answer(texts: list[str]) -> tuple[int, Any]:
        asked.append(len(texts))
        return 200, rows(texts)

    async with serving(answer) as endpoint:
        found = await endpoint.embed(["x" * (i + 1) for i in range(BATCH + 3)])
    assert asked == [BATCH, 3]
    assert [one.tolist() for one in found if one is not None] == [pytest.approx([0.6, 0.8])] * (BATCH + 3)


async def test_a_refused_text_does_not_cost_the_others_theirs_and_a_long_one_is_cut() -> None:
    def answer(texts: list[str]) -> tuple[int, Any]:
        assert max(map(len, texts)) <= LONG
        return (400, {"error": {}}) if any("bad" in text or len(text) > SHORT for text in texts) else (200, rows(texts))

    async with serving(answer) as endpoint:
        found = await endpoint.embed(["one", "bad", "long" * LONG])
    assert [one is not None for one in found] == [True, False, True]


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_an_endpoint_that_is_away_is_waited_for(status: int) -> None:
    async with serving(lambda texts: (status, {})) as endpoint:
        with pytest.raises(EmbeddingUnavailable, match=str(status)):
            await endpoint.embed(["one"])


async def test_no_answer_is_waited_for() -> None:
    async with aiohttp.ClientSession() as session:
        endpoint = EmbeddingEndpoint(session, "http://127.0.0.1:9/v1", "small", None, 5.0)
        with pytest.raises(EmbeddingUnavailable, match="no answer"):
            await endpoint.embed(["one"])


@pytest.mark.parametrize(
    "document",
    [{}, [], {"data": []}, {"data": [{"index": 0, "embedding": [0, 0]}]}, {"data": [{"index": 0, "embedding": "x"}]}],
)
async def test_what_is_no_embedding_is_none(document: Any) -> None:
    async with serving(lambda texts: (200, document)) as endpoint:
        assert await endpoint.embed(["one"]) == [None]


async def test_a_prompt_is_read_and_its_words_need_the_key() -> None:
    cipher = Fernet(Fernet.generate_key())
    reader = PromptReader(FakeEmbedder(refused=["hm"]), cipher)
    one, other = await reader.read(["Where is my order from last week?", "hm"])
    assert (one.model, one.language, one.words) == ("words", "en", 7)
    assert one.embedding is not None
    assert np.array_equal(vector_of(one.embedding), embedding("Where is my order from last week?"))
    assert read_terms(cipher, one.terms) == {"where", "order", "from", "last", "week"}
    assert b"order" not in one.terms
    assert read_terms(Fernet(Fernet.generate_key()), one.terms) == frozenset()
    assert (other.model, other.embedding, other.language, other.words) == (None, None, None, 1)


@pytest.mark.parametrize(
    ("language", "prompt"),
    [
        ("en", "how do I reset my password"), ("en", "what is the capital of France"), ("en", "summarize this email for me"),
        ("de", "wie setze ich mein passwort zurück"), ("de", "Wo ist meine Bestellung?"), ("fr", "où est ma commande"),
        ("es", "quiero cancelar mi suscripción"), ("it", "come posso cambiare la password"), ("pt", "como cancelo minha assinatura"),
        ("nl", "waar is mijn bestelling"), ("ja", "パスワードを忘れました"), ("zh", "如何重置密码"), ("ru", "как сменить пароль"),
        ("pl", "gdzie jest moje zamówienie"), ("ar", "كيف أغير كلمة المرور"), ("ko", "비밀번호를 잊어버렸어요"),
        (None, ""), (None, "hi"), (None, "refund?"), (None, "danke"), (None, "12345"), (None, "cancel subscription"),
    ],
)  # fmt: skip
def test_a_language_is_named_where_it_is_sure(language: str | None, prompt: str) -> None:
    assert language_of(prompt) == language


def test_words_are_counted_also_where_no_spaces_are() -> None:
    assert [words_of(text) for text in ("", "don't panic, it's 42", "如何重置密码", "reset 密码 now")] == [0, 4, 6, 4]


def test_no_word_of_a_number_or_an_address_is_kept() -> None:
    prompt = (
        "Mail jane.doe@example.com or www.example.com about order-4711, IBAN DE02X, https://x.org/jane: Straße größer"
    )
    assert terms_of(prompt) == ["mail", "about", "iban", "strasse", "grösser"]
    assert terms_of("密码重置") == ["密码", "码重", "重置"]
    assert len(terms_of(" ".join(f"{a}{b}word" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop"))) == 200
