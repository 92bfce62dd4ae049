"""Evaluation files as the gate reads them, and a registry that nobody answers for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.rollout.errors import EvaluationInvalid
from services.rollout.registry import parse_evaluation

ITEM = {"id": "q1", "kind": "capitals", "correct": True}


def _document(**changes: Any) -> str:
    return json.dumps({"schema": 1, "dataset": {"name": "qa", "digest": "d1", "items": 1}, "items": [ITEM], **changes})


def test_evaluation() -> None:
    evaluation = parse_evaluation(_document(items=[ITEM, {"id": "q2", "correct": False}]), "4")
    assert (evaluation.dataset, evaluation.accuracy) == ("d1", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", _document(items=[]), _document(items=[ITEM, ITEM]), _document(items=[{"id": "q1"}]),
        _document(items=[{"id": "q1", "correct": "yes"}]), _document(dataset={}), _document(items="all"),
    ],
)  # fmt: skip
def test_what_is_no_evaluation(text: str) -> None:
    with pytest.raises(EvaluationInvalid, match=r"of v4"):
        parse_evaluation(text, "4")
