"""Judges: scores, order, contradictions, answers that are no grade; and the task that feeds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.fernet import Fernet

from services.common import telemetry
from services.rollout.errors import InvalidResource, JudgeUnavailable, Unparsable
from services.rollout.judge import ChatEndpoint, ExactMatchJudge, PairwiseJudge, RubricJudge, Scores
from services.rollout.judging import Judging
from services.rollout.metrics import Metrics
from services.store import JudgeMaterial, Store, migrate, open_store
from tests.fakes.rollout_rows import row


async def test_exact_match() -> None:
    judge = ExactMatchJudge({"Capital of France?": "paris"})
    assert await judge.score("capital  of france?", "It is Paris.", "It is parisian") == (1.0, 0.0)
    assert await judge.score("Capital of Spain?", "madrid", "madrid") is None


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}'])
def test_references_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InvalidResource, match=r"r\.json"):
        ExactMatchJudge.from_file(tmp_path / "r.json")


async def _scored(
    kind: type[RubricJudge] | type[PairwiseJudge], answer: Callable[[str], tuple[int, str]]
) -> Scores | None:
    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        assert request.headers["Authorization"] == "Bearer secret"
        status, text = answer(body["messages"][1]["content"])
        return web.json_response({"choices": [{"message": {"content": text}}]}, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        judge = kind(ChatEndpoint(session, str(server.make_url("/v1")), "m", "secret", 5.0))
        return await judge.score("a prompt", "good answer", "poor answer")


async def test_rubric() -> None:
    assert await _scored(
        RubricJudge, lambda text: (200, _grades(5 if "good" in text else 2, 5 if "good" in text else 1))
    ) == (
        1.0,
        pytest.approx(0.5 / 3),
    )


def _grades(relevance: int, other: int) -> str:
    return f"Because.\nRELEVANCE: {relevance}\nCOHERENCE: {relevance}\nCONCISENESS: {other}"


def _prefer_good(text: str) -> tuple[int, str]:
    return 200, f"...\nBETTER: {'A' if text.index('good') < text.index('poor') else 'B'}"


async def test_pairwise_in_both_orders() -> None:
    assert await _scored(PairwiseJudge, _prefer_good) == (1.0, 0.0)


async def test_a_judge_that_always_prefers_the_first_has_seen_no_difference() -> None:
    assert await _scored(PairwiseJudge, lambda _: (200, "The first.\nBETTER: A")) == (0.5, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Because.\nRELEVANCE: 6\nCOHERENCE: 5\nCONCISENESS: 5",
        "Because.\nRELEVANCE: 4 or so\nCOHERENCE: 5\nCONCISENESS: 5",
        "Because.\nRELEVANCE: 4\nCONCISENESS: 5",
        "Because.\nCOHERENCE: 4\nRELEVANCE: 4\nCONCISENESS: 5",
        "RELEVANCE: 4\nCOHERENCE: 4\nCONCISENESS: 5",
        "Because.\nRELEVANCE: 4\nCOHERENCE: 4\nCONCISENESS: 5\nbut on the other hand",
    ],
)
async def test_what_is_no_grade(text: str) -> None:
    with pytest.raises(Unparsable):
        await _scored(RubricJudge, lambda _: (200, text))


@pytest.mark.parametrize("text", ["BETTER: A", "Equal.\nBETTER: A or B", "Equal.\nBETTER: C", "A is better."])
async def test_what_is_no_preference(text: str) -> None:
    with pytest.raises(Unparsable):
        await _scored(PairwiseJudge, lambda _: (200, text))


async def test_a_judge_that_is_away() -> None:
    with pytest.raises(JudgeUnavailable):
        await _scored(RubricJudge, lambda _: (503, ""))


KEY = Fernet.generate_key()


def _material(pair: str, content: object, key: bytes = KEY) -> JudgeMaterial:
    return JudgeMaterial(pair, "r1", f"unit-{pair}", Fernet(key).encrypt(json.dumps(content).encode()), 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    migrate(url)
    return open_store(url)


async def test_material_is_scored_once_and_then_gone(store: Store) -> None:
    now = store.now()
    store.commit_look(row("r1", "2", started_at=now, stage="rehearsal"), evidence=None, at=now)
    known = {"prompt": "capital of france?", "candidate": "paris", "stable": "rome"}
    material = [
        _material("a", known),
        _material("b", known | {"prompt": "unknown"}),
        _material("c", known, Fernet.generate_key()),
        _material("d", {"prompt": "x"}),
    ]
    store.put_judge_material([JudgeMaterial(m.pair, m.rollout, m.unit, m.ciphertext, now) for m in material])
    metrics = Metrics()
    judge = ExactMatchJudge({"capital of france?": "paris"})
    judging = Judging("assistant", store, judge, KEY, 1.0, metrics.judged)
    for _ in range(2):
        await judging.judge_waiting()
    for result, count in {"judged": 1, "without_reference": 1, "undecipherable": 2}.items():
        labels = {"service": "assistant", "result": result}
        assert metrics.registry.get_sample_value(telemetry.JUDGEMENTS.name, labels) == count
    assert (
        metrics.registry.get_sample_value("understudy_judge_score_sum", {"service": "assistant", "arm": "candidate"})
        == 1
    )
    (judgement,) = store.judgements("r1", 0)
    assert (judgement.pair, judgement.candidate, judgement.stable) == ("a", 1.0, 0.0)
    assert "a" not in {one.pair for one in store.judge_material("r1", 10)}
    store.close()


class Fickle:
    """Prefers what comes first, and says so unreadably where the prompt asks for it."""

    async def ask(self, system: str, user: str) -> str:
        return "A, I guess" if "mumble" in user else "The first one.\nBETTER: A"


async def test_what_the_judge_could_not_say_is_counted_in_the_store(store: Store) -> None:
    now = store.now()
    store.commit_look(row("r1", "2", started_at=now, stage="rehearsal"), evidence=None, at=now)
    both = {"candidate": "paris", "stable": "rome"}
    material = [
        _material(name, both | {"prompt": prompt}) for name, prompt in {"a": "ask", "b": "ask", "c": "mumble"}.items()
    ]
    store.put_judge_material([JudgeMaterial(m.pair, m.rollout, m.unit, m.ciphertext, now) for m in material])
    for _ in range(2):  # the second as after a restart
        judge = PairwiseJudge(Fickle())  # type: ignore[arg-type]
        await Judging("assistant", store, judge, KEY, 1.0, lambda *_: None).judge_waiting()
    assert store.judge_counts("r1") == {"inconsistent": 2, "unparsable": 1}
    assert [(one.pair, one.candidate) for one in store.judgements("r1", 0)] == [("a", 0.5), ("b", 0.5)]
    assert store.judge_material("r1", 10) == []
    store.close()
