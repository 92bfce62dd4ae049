"""What a mark says of an answer, for Python and for the database. Used by evidence, history, costs and the gateway's metrics."""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, and_, or_

from services.store.records import FeedbackKind
from services.store.schema import feedback


def is_good_mark(kind: FeedbackKind | str, value: float | None) -> bool:
    """Whether feedback says that the answer was good: thumb up, rating of 4 or more, a copy of the answer."""
    if kind == "thumb":
        return value is not None and value > 0
    if kind == "rating":
        return value is not None and value >= 4
    return kind == "copy"


def is_bad_mark(kind: FeedbackKind | str, value: float | None) -> bool:
    """Whether feedback says that the answer was bad: thumb down, rating of 2 or less, a repeat of the question, an escalation."""
    if kind == "thumb":
        return value is not None and value < 0
    if kind == "rating":
        return value is not None and value <= 2
    return kind in ("retry", "escalation")


GOOD: Final[ColumnElement[bool]] = or_(
    and_(feedback.c.kind == "thumb", feedback.c.value > 0),
    and_(feedback.c.kind == "rating", feedback.c.value >= 4),
    feedback.c.kind == "copy",
)
"""`is_good_mark`, for the database."""
BAD: Final[ColumnElement[bool]] = or_(
    and_(feedback.c.kind == "thumb", feedback.c.value < 0),
    and_(feedback.c.kind == "rating", feedback.c.value <= 2),
    feedback.c.kind.in_(("retry", "escalation")),
)
"""`is_bad_mark`, for the database."""
