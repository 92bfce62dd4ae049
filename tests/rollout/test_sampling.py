"""Samples of stable's answers: read, judged, stored; and what is done where one of these cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from services.rollout.errors import EmbeddingUnavailable, JudgeUnavailable, Unparsable
from services.rollout.judge import ExactMatchJudge, Grader, Scores
from services.rollout.prompts import PromptReader, read_terms
from services.rollout.sampling import BATCH, PATIENCE, SampleReader
from services.store import JudgeMaterial, Sample, Store, material_of, migrate, open_store
from tests.fakes.embedder import FakeEmbedder, embedding
from tests.fakes.recorded import samples as known

KEY = Fernet.generate_key()
CONTENT = {
    "request_id": "r",
    "revision": "assistant-v1-aaaa",
    "tenant": "shop",
    "prompt": "capital of france?",
    "answer": "It is Paris.",
}


class Moody:
    """A judge that cannot always say something."""

    name = "rubric"

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error

    async def score(self, prompt: str, candidate: str, stable: str) -> Scores | None:
        raise NotImplementedError

    async def grade(self, prompt: str, answer: str) -> float | None:
        if self.error is not None:
            raise self.error
        return 0.75


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    opened = open_store(url)
    yield opened
    opened.close()


def put(store: Store, *names: str, at: float | None = None, key: bytes = KEY, **changes: str) -> None:
    at = store.now() if at is None else at
    text = Fernet(key).encrypt(json.dumps(CONTENT | changes).encode())
    store.put_judge_material(
        [JudgeMaterial(name, material_of("assistant"), f"unit-{name}", text, at) for name in names]
    )


def reader(
    store: Store, grader: Grader | None, counts: list[str] | None = None, prompts: PromptReader | None = None
) -> SampleReader:
    told = counts if counts is not None else []
    return SampleReader("assistant", store, grader, prompts, KEY, 1.0, lambda _, result, __: told.append(result))


def waiting(store: Store) -> list[str]:
    return [one.pair for one in store.judge_material(material_of("assistant"), 100)]


async def test_a_sample_is_judged_and_its_content_is_gone(store: Store) -> None:
    put(store, "a")
    put(store, "b", prompt="what else?")
    counts: list[str] = []
    await reader(store, ExactMatchJudge({"Capital of France?": "paris"}), counts).read_waiting()
    judged, unknown = known(store)
    assert (judged.id, judged.score, judged.judge) == ("a", 1.0, "exactMatch")
    assert (judged.revision, judged.tenant, judged.unit) == ("assistant-v1-aaaa", "shop", "unit-a")
    assert (unknown.id, unknown.score, unknown.judge) == ("b", None, None)
    assert waiting(store) == []
    assert counts == ["judged", "without_reference"]


async def test_nobody_to_judge(store: Store) -> None:
    put(store, "a")
    await reader(store, None).read_waiting()
    assert [one.score for one in known(store)] == [None]


async def test_a_judge_that_is_away_is_waited_for_but_not_for_ever(store: Store) -> None:
    judge = Moody(JudgeUnavailable("away"))
    put(store, "old", at=store.now() - PATIENCE - 1)
    put(store, "new")
    with pytest.raises(JudgeUnavailable):
        await reader(store, judge).read_waiting()
    assert [(one.id, one.score) for one in known(store)] == [("old", None)]
    assert waiting(store) == ["new"]
    judge.error = None
    await reader(store, judge).read_waiting()
    assert [(one.id, one.score) for one in known(store)] == [("old", None), ("new", 0.75)]


async def test_of_a_prompt_its_place_language_and_words_are_kept(store: Store) -> None:
    put(store, "a", prompt="Where is the parcel that I ordered last week?")
    await reader(store, None, None, PromptReader(FakeEmbedder(), Fernet(KEY))).read_waiting()
    (sample,) = known(store)
    assert (sample.model, sample.language, sample.words) == ("words", "en", 9)
    assert sample.embedding == embedding("Where is the parcel that I ordered last week?").tobytes()
    assert sample.terms is not None
    assert b"parcel" not in sample.terms
    assert "parcel" in read_terms(Fernet(KEY), sample.terms)


async def test_embeddings_that_are_away_are_waited_for_and_the_judge_is_asked_once(store: Store) -> None:
    embedder, counts = FakeEmbedder(), list[str]()
    embedder.away = True
    put(store, "old", at=store.now() - PATIENCE - 1)
    put(store, "new")
    both = reader(store, ExactMatchJudge({CONTENT["prompt"]: "paris"}), counts, PromptReader(embedder, Fernet(KEY)))
    for _ in range(2):
        with pytest.raises(EmbeddingUnavailable):
            await both.read_waiting()
    assert [(one.id, one.score, one.embedding) for one in known(store)] == [("old", 1.0, None)]
    embedder.away = False
    await both.read_waiting()
    assert [(one.id, one.score, one.model) for one in known(store)] == [("old", 1.0, None), ("new", 1.0, "words")]
    assert counts == ["judged", "judged"]


async def test_what_cannot_be_read_goes_and_does_not_stand_in_the_way(store: Store) -> None:
    put(store, *(f"foreign-{i:02}" for i in range(BATCH)), at=store.now() - 10, key=Fernet.generate_key())
    put(store, "mumbled")
    mumbling = reader(store, Moody(Unparsable("no grade")))
    assert await mumbling.read_waiting() == BATCH
    await mumbling.read_waiting()
    assert [(one.id, one.score) for one in known(store)] == [("mumbled", None)]
    assert waiting(store) == []
    assert store.judge_counts(material_of("assistant")) == {"undecipherable": BATCH}


def test_samples_go_with_their_user_and_with_age(store: Store) -> None:
    now = store.now()
    store.put_samples(
        [
            Sample(name, "assistant", "v1", f"unit-{name}", "shop", at)
            for name, at in {"a": 5.0, "b": now, "c": now}.items()
        ]
    )
    assert store.erase_user("unit-b") == 1
    assert store.prune("assistant", now - 60, now - 60) == 1
    assert [one.id for one in known(store)] == ["c"]
    store.put_samples([Sample("other", "extra", "v1", "unit-c", "shop", now)])
    store.forget_samples("assistant")
    assert [one.id for one in known(store)] == ["other"]


def test_of_an_hour_a_thousand_scores_are_read(store: Store) -> None:
    hour = store.now() // 3600 * 3600
    many = [Sample(f"{i:05}", "assistant", "v1", f"u{i}", "t", hour + i / 10, 0.5, "rubric") for i in range(1_200)]
    store.put_samples([*many, Sample("later", "assistant", "v1", "u", "t", hour + 4000, 0.25, "rubric")])
    store.put_samples(
        [
            Sample("silent", "assistant", "v1", "u", "t", hour + 1),
            Sample("new", "assistant", "v2", "u", "t", hour + 1, 1.0),
        ]
    )
    found = store.scores("assistant", "v1", hour, hour + 7200)
    assert [one.id for one in found] == [*(f"{i:05}" for i in range(1_000)), "later"]
    assert store.scores("assistant", "v2", hour, hour + 3600)[0].score == 1.0
