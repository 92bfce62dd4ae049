"""What a stage still lacks, and when it would be there at today's traffic: one sentence for people who wait. Pure; called by `stages`.

Rough by nature: it takes the pace and the effect seen so far to go on as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from services.common.clock import DAY
from services.evidence import GuardrailPlan, Reading, quantile_ranks
from services.evidence.means import BURN_IN
from services.rollout.plans import plans
from services.rollout.power import COMPARING, paired_users_lacking, users_needed
from services.rollout.resources import GuardedStage, LLMService
from services.rollout.status import RolloutStatus

NEVER_SECONDS: Final = 3650 * DAY


def forecast(
    rules: LLMService,
    rollout: RolloutStatus,
    readings: Iterable[Reading],
    elapsed: float,
    users_per_day: float | None = None,
) -> str | None:
    """What the present stage (step) lacks before it may end, and about when that would be there. None in other stages, and where nothing
    is missing.

    Args:
        rules: the resource that the rollout began under.
        rollout: where it stands, with its counts.
        readings: of this look.
        elapsed: seconds on the stage's clock.
        users_per_day: of the service; used until the step has a pace of its own.
    """
    if rollout.stage == "rehearsal":
        return _rehearsal(rules, rollout, readings, elapsed, users_per_day)
    if rollout.stage == "canary":
        return _canary(rules, rollout, readings, elapsed, users_per_day)
    return None


def lasting(seconds: float) -> str:
    """A duration for people, in one unit: `40 min`, `17 h`, `3 d`."""
    for size, name in ((2 * DAY, "d"), (5_400.0, "h"), (90.0, "min")):
        if seconds >= size:
            return f"{seconds / {'d': DAY, 'h': 3_600.0, 'min': 60.0}[name]:.0f} {name}"
    return f"{max(1.0, seconds):.0f} s"


def pace_text(per_second: float, what: str) -> str:
    """Users (or pairs) an hour; a day where they are few, a second where they are many."""
    for size, name in ((1.0, "second"), (60.0, "minute"), (3_600.0, "hour")):
        if per_second * size >= 10:
            return f"{per_second * size:,.0f} {what} a{'n' if name == 'hour' else ''} {name}"
    return f"{per_second * DAY:,.0f} {what} a day"


def _rehearsal(
    rules: LLMService,
    rollout: RolloutStatus,
    readings: Iterable[Reading],
    elapsed: float,
    users_per_day: float | None,
) -> str | None:
    stage, settle = rules.spec.rollout.rehearsal, 2 * rules.spec.rollout.settle
    only_here = {g.metric for g in rules.spec.rollout.guarded("rehearsal") if g.stages == ("rehearsal",)}
    unproven = [r for r in readings if r.metric in only_here and r.mode == "nonInferior" and not r.non_inferior]
    pairs = rollout.counts.pairs
    expected = None if users_per_day is None else users_per_day / DAY * stage.share
    pace = _pace(pairs, elapsed - settle, expected)
    lacking = _lacking(rules, rollout, "rehearsal", unproven)
    counted = (pairs, stage.min_pairs, "mirrored pairs", "pairs")
    return _sentence(counted, lacking, pace, elapsed, stage.min_duration, stage.max_duration, settle)


def _canary(
    rules: LLMService,
    rollout: RolloutStatus,
    readings: Iterable[Reading],
    elapsed: float,
    users_per_day: float | None,
) -> str | None:
    spec = rules.spec.rollout
    step, last = spec.canary.steps[rollout.step], rollout.step == len(spec.canary.steps) - 1
    settle = spec.horizon + spec.settle
    users = min(rollout.counts.step_control, rollout.counts.step_candidate)
    expected = None if users_per_day is None else users_per_day / DAY * step.weight / 100
    pace = _pace(users, elapsed - settle, expected)
    unproven = [r for r in readings if r.mode == "nonInferior" and not r.non_inferior] if last else []
    lacking = _lacking(rules, rollout, "canary", unproven)
    counted = (users, step.min_units, "users an arm", "users")
    return _sentence(counted, lacking, pace, elapsed, step.min_duration, step.max_duration, settle)


def _pace(closed: int, seconds: float, expected: float | None) -> float | None:
    """Units an arm and second: the step's own pace once ten have closed, what the service's traffic gives before."""
    if seconds > 0 and (closed >= 10 or (closed and expected is None)):
        return closed / seconds
    return expected


def _sentence(
    counted: tuple[int, int, str, str],
    lacking: dict[str, float],
    pace: float | None,
    elapsed: float,
    least: float,
    most: float,
    settle: float,
) -> str | None:
    have, wanted, what, short = counted
    missing = [f"{have:,} of {wanted:,} {what}"] if have < wanted else []
    if elapsed < least:
        missing.append(f"{lasting(elapsed)} of {lasting(least)}" if elapsed >= 1 else f"at least {lasting(least)}")
    finite = {metric: more for metric, more in lacking.items() if more < math.inf}
    people = finite.pop("preference", None)  # who compares answers comes at no pace of the traffic
    missing += [f"{metric} needs about {rounded(more)} more {what}" for metric, more in finite.items()]
    if people is not None:
        missing.append(f"preference needs about {rounded(people)} more people who compare answers")
    hopeless = [metric for metric, more in lacking.items() if more == math.inf]
    if hopeless:
        effects = "effects" if len(hopeless) > 1 else "effect"
        missing.append(f"{' and '.join(hopeless)} cannot be shown with the {effects} seen so far")
    if not missing:
        return None
    return "; ".join(missing) + _when(
        max(float(wanted - have), *finite.values(), 0.0) if finite else max(float(wanted - have), 0.0),
        None if hopeless or people is not None else pace,
        elapsed,
        least,
        most,
        settle,
        short,
    )


def _when(
    units: float, pace: float | None, elapsed: float, least: float, most: float, settle: float, short: str
) -> str:
    """When that would be there, and whether the stage's time suffices; nothing where that cannot be known."""
    if pace is None:
        return ""
    if pace <= 0:
        return f"; no {short} come" if units > 0 else ""
    wait = units / pace + (max(0.0, settle - elapsed) if units > 0 else 0.0)
    seconds = max(wait, least - elapsed)
    if seconds > NEVER_SECONDS:
        return f"; at today's {pace_text(pace, short)} an arm that takes years" if short == "users" else ""
    at = f"at today's {pace_text(pace, short)}{' an arm' if short == 'users' else ''} " if units > 0 else ""
    left = most - elapsed
    late = f", but the time of this stage is up in {lasting(left)}" if 0 < left < seconds else ""
    return f"; {at}in about {lasting(seconds)}{late}"


def rounded(units: float) -> str:
    """Two digits are more than such an estimate holds."""
    size = 10 ** max(0, math.floor(math.log10(max(units, 1.0))) - 1)
    return f"{math.ceil(units / size) * size:,}"


def _lacking(
    rules: LLMService, rollout: RolloutStatus, stage: GuardedStage, unproven: Iterable[Reading]
) -> dict[str, float]:
    """Metric -> further units an arm until it is shown; infinite where the effect seen so far would never show it."""
    known = plans(rules, stage, rollout.baseline)
    return {r.metric: _units_lacking(known[r.metric], r) for r in unproven if r.metric in known}


def _units_lacking(plan: GuardrailPlan, reading: Reading) -> float:
    users = min(reading.n_control, reading.n_candidate)
    if plan.metric == "preference" and users == 0:
        return users_needed(plan, COMPARING)
    if plan.kind in ("rate", "boundedMean"):
        return paired_users_lacking(plan, reading)
    if reading.effect is None:
        return float(_first_bound(plan))
    bad_end = reading.upper if reading.direction == "lower" else reading.lower
    if bad_end is None:
        return float(max(_first_bound(plan) - users, 1))
    room = plan.margin - plan.sign * reading.effect
    width = plan.sign * (bad_end - reading.effect)
    if room <= 0:
        return math.inf
    return max(1.0, users * ((width / room) ** 2 - 1))  # a bound's distance falls with the root of the users


def _first_bound(plan: GuardrailPlan) -> int:
    """Users an arm below which there is no bound at all."""
    if plan.quantile is None:
        return BURN_IN
    far = max(plan.quantile, 1 - plan.quantile)
    users = BURN_IN
    while quantile_ranks(users, far, plan.alpha_promote / 2)[1] > users:
        users = math.ceil(users * 1.1)
    return users
