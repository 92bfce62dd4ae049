"""Units of several stores or windows as one sequence. Used before `Guardrail.update` where a rollout's units lie in more than one place.

Counts and moments of disjoint units add up (`SampleRatio.merge`, `Moments.merged`). E-processes do not: the product, or the average, of two
of them that have seen the same hypothesis at different times is valid only if it was planned so, and bets on pairs depend on who was
paired. What can always be merged are the units themselves, in the order of the evidence: the same evidence as if one store had held them.
"""

import heapq
from collections.abc import Iterable
from operator import attrgetter

from services.evidence.errors import AssignmentFault, ValueFault
from services.evidence.summaries import UnitValue


def merge_units(*parts: Iterable[UnitValue]) -> list[UnitValue]:
    """The units of all parts, each once, in the order of the evidence, whatever the parts' order and overlap.

    Raises AssignmentFault for a unit in two arms, ValueFault for one whose records contradict each other otherwise: a value closes once.
    """
    by_order = attrgetter("closes_at", "unit")
    merged: dict[str, UnitValue] = {}
    for value in heapq.merge(*(sorted(part, key=by_order) for part in parts), key=by_order):
        known = merged.setdefault(value.unit, value)
        if known.arm != value.arm:
            raise AssignmentFault(f"unit {value.unit!r} is in {known.arm} and in {value.arm}")
        if known != value:
            raise ValueFault(f"unit {value.unit!r} has closed twice: {known!r} and {value!r}")
    return list(merged.values())
