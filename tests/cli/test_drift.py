"""`understudy drift`, as people and programs meet it; the detectors are tested in `tests/rollout/test_drift`."""

from __future__ import annotations

import json
import random

import pytest
from cryptography.fernet import Fernet

from services.cli.main import run
from services.evidence import ShiftDetector
from services.evidence.embeddings import EmbeddingDrift
from services.rollout.drift import DriftState
from services.rollout.prompt_drift import WEEK, PromptState
from services.rollout.watch_fold import Watch, Watched
from services.store import Sample, Store
from tests.fakes.embedder import embedding
from tests.fakes.rollout_rows import HandClock, route

Capture = pytest.CaptureFixture[str]


def keep(store: Store, clock: HandClock, revision: str) -> None:
    """Errors have drifted, ratings have not, late first tokens are fewer than before."""
    errors, rating, ttft = ShiftDetector(0.1, 1e4), ShiftDetector(0.6, 1e4, "downward"), ShiftDetector(0.5, 1e4)
    errors.update([1.0] * 60)
    rating.update([0.75] * 30)
    ttft.update([0.0] * 20)
    watched = [
        Watched("errors", errors, {}, None, 0.02, since=clock.now - 600),
        Watched("rating", rating, {}, None, 0.8),
        Watched("ttft", ttft, {}, 0.45, 0.3),
        Watched("shortAnswers[enterprise]", ShiftDetector(0.5, 1e4), {}, 1 / 12, 0.3),
    ]
    done = clock.now - 3_600
    told = "judged since: 0.41 of 200 users (0.35 to 0.47), 0.82 of 300 before (0.78 to 0.86): worse"
    state = DriftState(revision, Watch(watched, 52.0), done, done, clock.now, told)
    store.keep_state("drift:assistant", clock.now, state.to_json())


def test_what_has_drifted_is_told_with_its_numbers(store: Store, clock: HandClock, url: str, capsys: Capture) -> None:
    store.publish_route(route())
    keep(store, clock, route().stable.revision)
    assert run(["drift", "assistant", "--store", url, "-o", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["services"]
    assert (one["known"], one["weeks_to_false_alarm"], one["alarmed_at"]) == (True, 52.0, clock.now)
    errors, rating, ttft, _ = one["metrics"]
    assert (errors["alarmed"], errors["before"], errors["run"]["mean"], errors["run"]["since"]) == (
        True, 0.02, 1.0, clock.now - 600,
    )  # fmt: skip
    assert errors["e_value"] >= errors["threshold"]
    assert (rating["alarmed"], rating["before"], rating["limit"]) == (False, pytest.approx(4.2), pytest.approx(3.4))
    assert (ttft["late"], ttft["run"]) == (0.45, None)
    assert run(["drift", "--store", url]) == 0
    table = capsys.readouterr().out
    assert "100.0% of" in table
    assert table.count("drifted") == 1
    assert "later than 0.45 s" in table
    assert "in segment enterprise" in table
    assert "with fewer than 12 tokens" in table
    assert "judged since: 0.41" in table


def test_a_revision_without_history_says_so(store: Store, clock: HandClock, url: str, capsys: Capture) -> None:
    store.publish_route(route())
    keep(store, clock, "assistant-v0-0000")
    assert run(["drift", "--store", url]) == 0
    assert "no history yet" in capsys.readouterr().out
    assert run(["drift", "nobody", "--store", url]) == 3
    assert "no service 'nobody'" in capsys.readouterr().err


def test_a_cluster_has_no_detectors(capsys: Capture) -> None:
    assert run(["drift", "--namespace", "team"]) == 2
    assert "--store URL" in capsys.readouterr().err


def ask(store: Store, cipher: Fernet) -> float:
    """Two weeks; in the second a third of the users asks of an outage. The end of them."""
    rng, begin, found = random.Random(3), 2_000_000.0, []
    talk = {
        "order": "order parcel shipped tracking arrive",
        "refund": "refund money return broken receipt",
        "outage": "outage error incident status down",
    }
    for week, kinds in enumerate((["order", "refund"], list(talk))):
        for number in range(150):
            text = " ".join(rng.sample(talk[rng.choice(kinds)].split(), 3))
            name = f"{week}-{number}"
            found.append(
                Sample(
                    name, "assistant", "assistant-v1-aaaa", f"user-{name}", "", begin + (week + number / 150) * WEEK, model="words",
                    embedding=embedding(text).tobytes(), language="en", words=3, terms=cipher.encrypt(json.dumps(text.split()).encode()),
                )
            )  # fmt: skip
    store.put_samples(found)
    return begin


def test_what_users_ask_is_told_with_their_own_words_where_the_key_is(
    store: Store, clock: HandClock, url: str, capsys: Capture
) -> None:
    key = Fernet.generate_key()
    store.publish_route(route())
    begin = ask(store, Fernet(key))
    state = PromptState(route().stable.revision, "words", 0.2, 0.0)
    store.keep_state("prompts:assistant", clock.now, state.to_json())
    assert run(["drift", "--store", url]) == 0
    assert "no reference yet" in capsys.readouterr().out
    state.reference, state.users, state.done, state.alarmed_at = begin, 150, begin + 2 * WEEK, begin + 2 * WEEK
    state.rounds[1].test = EmbeddingDrift(2, 0.01)
    store.keep_state("prompts:assistant", clock.now, state.to_json())
    assert run(["drift", "--store", url, "--content-key", key.decode(), "-o", "json"]) == 0
    prompts = json.loads(capsys.readouterr().out)["services"][0]["prompts"]
    assert (prompts["users"], prompts["e_value"], prompts["threshold"]) == (150, 1.0, pytest.approx(200))
    asked = prompts["asked"]
    assert (asked["users"], asked["named"]) == ([150, 150], True)
    assert asked["lengths"] == {"then": [3, 3, 3], "now": [3, 3, 3]}
    new = [topic for topic in asked["topics"] if topic["trend"] == "new"]
    assert new
    assert all(set(topic["words"]) <= {"outage", "error", "incident", "status", "down"} for topic in new)
    assert run(["drift", "--store", url]) == 0
    table = capsys.readouterr().out
    assert "what users ask has changed" in table
    assert "topics have no names without the key" in table
    assert "outage" not in table
    assert run(["drift", "--store", url, "--content-key", "none"]) == 2
    assert "content key" in capsys.readouterr().err
