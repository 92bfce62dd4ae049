"""Which of two answers a person prefers: what must hold before it counts for a rollout, and how it is recorded. Called by the feedback
desk, which has found both answers; no I/O. See docs/concepts/evidence.md for what becomes of it.

Both answers are of one service, one by the candidate of the rollout that is under way and one by its stable. Who compares is the unit;
the two answers may have been asked for by anybody of the tenant, a labelling tool under its own key included.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from services.common.routing import Route
from services.common.wire import BadRequest

Arm = Literal["candidate", "stable"]
Shown = Literal[Arm, "unknown"]
WORTH: Final = (0.0, 0.5, 1.0)
WHOLE: Final = frozenset({"ok", "filtered"})
"""Outcomes of which the client got something that can be compared; a refusal is an answer too."""


class Answer(msgspec.Struct, frozen=True):
    """What feedback needs to know of an answer."""

    service: str
    tenant: str
    unit: str
    revision: str
    arm: str
    outcome: str
    prompt: bytes | None = None
    """Digest of what was asked, where this gateway answered a pinned request; else None."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One person's word on two answers."""

    pair: str
    """As in `records.Preference`."""
    rollout: str
    candidate: float
    """1: the candidate's answer is preferred; 0: stable's is; 0.5: neither."""
    arms: tuple[Arm, Arm]
    """`candidate` or `stable`, of the two answers as they were given."""


def compared(
    ids: tuple[str, str], answers: tuple[Answer, Answer], value: float, shown_first: str | None, route: Route | None, unit: str
) -> Comparison:  # fmt: skip
    """`value`: of the first answer over the second. `unit`: the person who compares. `route`: of the answers' service.

    Raises:
        BadRequest: the two cannot be compared, with the code that says why.
    """
    first, second = answers
    if ids[0] == ids[1]:
        raise _refused("Two answers are compared, and both ids are the same.", "same_answer")
    if first.service != second.service:
        raise _refused("The two answers are of two services.", "other_service")
    for request_id, answer in zip(ids, answers, strict=True):
        if answer.outcome not in WHOLE:
            raise _refused(f"Request {request_id} was not answered in whole.", "not_answered")
    if first.prompt is not None and second.prompt is not None and first.prompt != second.prompt:
        raise _refused("The two requests asked for different things.", "different_prompts")
    if shown_first is not None and shown_first not in ids:
        raise BadRequest("`shown_first` is one of the two request ids.", param="shown_first", code="unknown_answer")
    if first.revision == second.revision:
        raise _refused(f"Both answers are of {first.revision}; one must be the candidate's.", "same_revision")
    if route is None or route.rollout is None or route.candidate is None:
        raise _refused(f"No rollout of `{first.service}` is under way that could count it.", "no_rollout")
    sides: dict[str, Arm] = {route.candidate.revision: "candidate", route.stable.revision: "stable"}
    for answer in answers:
        if answer.revision not in sides:
            known = " and ".join(sides)
            raise _refused(f"{answer.revision} is not in the rollout, which compares {known}.", "other_revision")
    arms = (sides[first.revision], sides[second.revision])
    candidate = value if arms[0] == "candidate" else 1 - value
    shown: Shown = "unknown" if shown_first is None else arms[ids.index(shown_first)]
    # Whatever id the client gives it, and at whichever gateway: one judgement a person, pair of answers and order.
    named = "\0".join((route.rollout, unit, *sorted(ids)))
    digest = hashlib.sha256(named.encode()).hexdigest()[:32]
    return Comparison(f"{digest}:{shown}", route.rollout, candidate, arms)


def _refused(message: str, code: str) -> BadRequest:
    return BadRequest(message, param="other_request_id", code=code)
