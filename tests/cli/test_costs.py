"""`understudy costs`, as people and programs meet it; the arithmetic is tested in `tests/rollout/test_costing`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import run
from services.store import Store
from tests.fakes.records import feedback, observation
from tests.fakes.rollout_rows import HandClock, gate, route, row

Capture = pytest.CaptureFixture[str]

DAY = 86_400.0
V1 = "assistant-v1-7c1f"
PRICE = {
    "perReplicaHour": 3.0, "budget": {"perDay": 10}, "comparedWith": [{"name": "closed-large", "input": 1000, "output": 2000}],
}  # fmt: skip


@pytest.fixture
def noon(store: Store, clock: HandClock) -> float:
    """Noon of the ninth day of one replica at 3 an hour, asked once a day by two users; v2 ran on its own engine for two hours and fell."""
    start = clock.now // DAY * DAY
    store.publish_route(route())
    store.note_prices("assistant", PRICE, start)
    store.note_replicas("assistant", {V1: 1}, {}, start)
    for day in range(9):
        asked: dict[str, Any] = {
            "revision": V1,
            "arm": "stable",
            "rollout": None,
            "tenant": "acme",
            "tokens_in": 1_000,
            "tokens_out": 500,
        }
        for number, (unit, key) in enumerate((("u1", "web"), ("u2", "app"))):
            at = start + day * DAY + 3_600 * 9
            store.write(
                [observation(at, request_id=f"q{day}{number}", unit=unit, key=key, duration=1.0 + 2 * number, **asked)]
            )
    clock.now = start + 8 * DAY + 3_600 * 10
    store.write(
        [feedback("q80", start + 8 * DAY + 3_600 * 10, value=1.0), feedback("q81", start + 8 * DAY + 3_600 * 10)]
    )
    fell: dict[str, Any] = {"stage": "finished", "verdict": "abort", "reason": "GateHarmful", "decided_in": "gate"}
    began = start + 8 * DAY
    one = row(
        "r2",
        "2",
        started_at=began,
        gate=gate(0.2),
        decided_at=began + 7_200,
        finished_at=began + 7_200,
        message="",
        **fell,
    )
    store.note_replicas("assistant", {V1: 1, "assistant-v2-7c1f": 1}, {}, began)
    store.note_replicas("assistant", {V1: 1}, {}, began + 7_200)
    clock.now = start + 8 * DAY + 12 * 3_600
    store.commit_look(one, evidence={}, at=clock.now)
    return clock.now


@pytest.fixture(autouse=True)
def _clock_of_the_store(monkeypatch: pytest.MonkeyPatch, clock: HandClock) -> None:
    monkeypatch.setattr("services.store.store.SystemClock", lambda: clock)
    monkeypatch.setattr("time.time", clock.time)


def told(arguments: list[str], url: str, capsys: Capture) -> dict[str, Any]:
    assert run(["costs", *arguments, "--store", url, "-o", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["services"]
    return dict(one)


def test_what_a_week_cost(noon: float, url: str, capsys: Capture) -> None:
    found = told(["assistant"], url, capsys)
    assert (found["currency"], found["until"] - found["since"]) == ("USD", 7 * DAY)
    assert found["spent"] == pytest.approx(7 * 72 + 6)
    assert found["today"] == pytest.approx(36 + 6)
    assert (found["answered"], found["tokens_in"]) == (14, 14_000)
    assert found["compared"][0]["amount"] == pytest.approx(14 * 2)  # 1,000 in and 500 out each
    assert found["compared"][0]["break_even"] == pytest.approx(510 / 7 / 2)
    assert found["month"]["days"] == 7
    assert (found["good_answers"]["rated"], found["good_answers"]["good"]) == (2, 1)
    assert [one["spent"] for one in found["rows"]][1:] == pytest.approx([72] * 6 + [42])


@pytest.mark.parametrize(
    ("by", "named", "spent"),
    [
        ("revision", [("assistant-v1-7c1f", "idle"), ("assistant-v1-7c1f", "stable"), ("assistant-v2-7c1f", "idle")], [483.0, 21.0, 6.0]),
        ("key", [("", "idle"), ("acme", "app"), ("acme", "web")], [489.0, 15.75, 5.25]),
        ("user", [("u2",), ("u1",)], [15.75, 5.25]),
        ("rollout", [("r2",)], [6.0]),
    ],
)  # fmt: skip
def test_by_whom(
    noon: float, url: str, capsys: Capture, by: str, named: list[tuple[str, ...]], spent: list[float]
) -> None:
    rows = told(["assistant", "--by", by], url, capsys)["rows"]
    heads = {"revision": ("revision", "arm"), "key": ("tenant", "key"), "user": ("user",), "rollout": ("rollout",)}[by]
    assert [tuple(row[head] for head in heads) for row in rows] == named
    assert [row["spent"] for row in rows] == pytest.approx(spent)
    assert run(["costs", "assistant", "--by", by, "--store", url]) == 0
    assert named[0][-1] in capsys.readouterr().out


def test_sentences_name_estimates(noon: float, url: str, capsys: Capture) -> None:
    assert run(["costs", "--store", url, "--limit", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "510.00 USD in 7", "42.00 USD of 10.00 USD a day", "closed-large: 28.00 USD for the same tokens",
        "estimate: 1 of 2 marked answers were good", "between", "more: --limit N",
    ):  # fmt: skip
        assert words in text


def test_other_prices_are_tried(noon: float, url: str, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "assistant.yaml"
    spec = {
        "model": {"registeredModel": "a"},
        "cost": {"currency": "EUR", "perMillionTokens": {"input": 1000, "output": 2000}},
    }
    resource = {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "assistant"},
        "spec": spec,
    }
    file.write_text(json.dumps(resource))
    found = told(["-f", str(file)], url, capsys)
    assert (found["currency"], found["spent"], found["idle"]) == ("EUR", pytest.approx(28.0), 0.0)
    spec.pop("cost")
    file.write_text(json.dumps(resource))
    assert run(["costs", "-f", str(file), "--store", url]) == 1
    assert "has no spec.cost: write spec.cost.perReplicaHour" in capsys.readouterr().err
    file.write_text(json.dumps({**resource, "spec": {**spec, "cost": {"perReplicaHour": -1}}}))
    assert run(["costs", "-f", str(file), "--store", url]) == 1
    assert "greater than or equal to 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["other"], 3, "no service 'other' in this store"),
        (["assistant", "--since", "2099-01-01"], 2, "lies in the future"),
        (["assistant", "--since", "soon"], 2, "write an age such as 7d"),
        (["assistant", "--context", "c"], 2, "name it with --store URL"),
    ],
)
def test_what_is_wrong_is_said(
    noon: float, url: str, capsys: Capture, arguments: list[str], code: int, words: str
) -> None:
    store = [] if "--context" in arguments else ["--store", url]
    assert run(["costs", *arguments, *store]) == code
    assert words in capsys.readouterr().err


def test_without_prices_the_field_is_named(store: Store, url: str, capsys: Capture) -> None:
    store.publish_route(route())
    assert run(["costs", "assistant", "--store", url]) == 1
    assert "assistant has no prices: set spec.cost.perReplicaHour, or .perMillionTokens" in capsys.readouterr().err
    assert run(["costs", "--store", url]) == 1
    assert "no service of this store has prices" in capsys.readouterr().err
    assert run(["costs", "--by", "key", "--store", url]) == 2


def test_a_service_of_which_nothing_is_known_yet(store: Store, url: str, capsys: Capture) -> None:
    store.note_prices("assistant", PRICE, 1.0)
    assert run(["costs", "assistant", "--store", url]) == 0
    assert "nothing is known of its costs yet" in capsys.readouterr().out
