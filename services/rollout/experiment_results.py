"""What one comparison of an experiment says: a claim, its numbers, and about when there would be one. Pure; used by `experiment_fold`.

Bounds hold at every look at once, so a claim may be made as soon as they allow it:
`better`, `worse`: a difference from the control is shown. `equal`: that there is none as large as the margin. `open`: nothing is shown yet.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from services.evidence import Reading
from services.rollout.resources_experiment import Comparison
from services.rollout.resources_metrics import METRICS
from services.rollout.status import Document

Claim = Literal["better", "worse", "equal", "open"]
NEVER: Final = 1_000.0
"""Times as many users as there were: no forecast goes further."""


class Result(Document):
    """One group against the control in one metric. Values and effect as in a rollout's readings."""

    variant: str
    metric: str
    claim: Claim
    quantile: float | None = None
    margin: float | None
    relative: bool
    higher_is_better: bool
    users: int
    users_control: int
    value: float | None
    control: float | None
    effect: float | None
    lower: float | None
    upper: float | None
    e_better: float | None
    e_worse: float | None
    threshold: float
    """The e-value at which a difference is shown."""
    users_factor: float | None = None
    """How many times the users of now it would take to a claim if the estimate stayed; None: there is one, or nothing can be said."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return self.model_dump(mode="json", by_alias=True)


def conclude(group: str, goal: Comparison, *, rise: Reading, fall: Reading, enough: bool) -> Result:
    """`rise`, `fall`: readings of the tests that the group's value has risen above the control's, or fallen below it. Their other sides
    bound the effect. `enough`: every group has as many users as the resource wants before anything is said.
    """
    higher = METRICS[goal.metric].higher
    better, worse = (rise, fall) if higher else (fall, rise)
    lower, upper = fall.lower, rise.upper
    claim: Claim = "open"
    if enough:
        if better.harmful != worse.harmful:
            claim = "better" if better.harmful else "worse"
        elif within(lower, upper, goal.margin):
            claim = "equal"
    factor = None
    if claim == "open" and rise.effect is not None:
        factor = users_factor(rise.effect, lower, upper, goal.margin)
    return Result(
        variant=group,
        metric=goal.metric,
        claim=claim,
        quantile=goal.quantile,
        margin=goal.margin,
        relative=rise.relative,
        higher_is_better=higher,
        users=rise.n_candidate,
        users_control=rise.n_control,
        value=rise.candidate,
        control=rise.control,
        effect=rise.effect,
        lower=lower,
        upper=upper,
        e_better=better.e_harm,
        e_worse=worse.e_harm,
        threshold=rise.harm_threshold,
        users_factor=factor,
    )


def within(lower: float | None, upper: float | None, margin: float | None) -> bool:
    """Whether the bounds leave no difference as large as the margin."""
    return margin is not None and lower is not None and upper is not None and -margin < lower and upper < margin


def users_factor(effect: float, lower: float | None, upper: float | None, margin: float | None) -> float | None:
    """How many times as many users bring a claim, if the estimate stays and the bounds close in on it as one over the root of the users.

    Rough: bounds close in a little more slowly. None where a bound is missing, or it would take more than a thousand times as many.
    """
    if lower is None or upper is None or not lower < effect < upper:
        return None
    below, above = effect - lower, upper - effect
    shrink = abs(effect) / (below if effect > 0 else above)  # the bounds part from 0
    if margin is not None and abs(effect) < margin:
        shrink = max(shrink, min((margin - effect) / above, (margin + effect) / below))
    factor = max(1.0, shrink**-2) if shrink > 0 else NEVER
    return factor if factor < NEVER else None
