"""What a rollout will take with a service's traffic: time per stage, the harm that each guardrail would see, what is out of reach. Called
by `understudy plan`, and by `observe` for the condition `Plan`. Pure.

Closed forms (`power`), so that a plan costs milliseconds. What is left out: engines that start, gateways, capacity and people that are
waited for, freeze windows. They stop a stage's clock, or put off its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from services.common.clock import DAY
from services.evidence import GuardrailPlan
from services.rollout import reasons
from services.rollout.forecast import lasting, rounded
from services.rollout.plans import plans
from services.rollout.power import (
    COMPARING,
    LIKELY,
    MOST_USERS,
    Stable,
    chance_of_alarm,
    harm_seen,
    least,
    margin_in_reach,
    most_harm,
    pair_share,
    users_needed,
)
from services.rollout.resources import GuardedStage, LLMService, split_key

ASSUMED: Final[Mapping[str, Stable]] = {
    "errors": Stable(rate=0.01),
    "rate": Stable(rate=0.05),
    "boundedMean": Stable(spread=0.5),
    "ratio": Stable(spread=0.3),
    "quantile": Stable(spread=0.5, missing=0.01),
    "rating": Stable(spread=0.4, share=0.05),
}
"""What stable is taken to be where nothing was measured: by metric, else by kind of metric."""
FEW_REQUESTS: Final = 100
"""Fewer say nothing of who sends them."""
OUTVOTED: Final = 0.5
"""Difference of the shares where three in four prefer the other's answers."""
BUSY: Final = 0.5
"""One unit with more than this share of the requests: clients name no users."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A service's users: different ones within t days are users_per_day · t^growth."""

    users_per_day: float
    growth: float = 1.0
    stable: Mapping[str, Stable] = field(default_factory=dict)
    """What was measured of stable, by metric."""
    baseline: Mapping[str, Any] = field(default_factory=dict)
    """Stable's history as a rollout freezes it at its start."""
    busiest_share: float = 0.0

    def users(self, seconds: float) -> float:
        """Different users within so many seconds."""
        return self.users_per_day * (seconds / DAY) ** self.growth if seconds > 0 else 0.0


def traffic_of(usage: Mapping[str, Any], baseline: Mapping[str, Any]) -> Traffic:
    """Traffic as the store has measured it (`Store.usage`, `Store.baseline`)."""
    stable: dict[str, Stable] = {}
    for metric, key in (("errors", "failure_rate"), ("feedback", "bad_feedback_rate")):
        if baseline.get(key) is not None:
            # Half a user towards one half: that nobody has failed yet does not mean that nobody will.
            stable[metric] = Stable(rate=(baseline[key] * baseline["units"] + 0.5) / (baseline["units"] + 1))
    if usage["ttft_spread"] is not None:
        stable["ttft"] = Stable(spread=usage["ttft_spread"], missing=usage["ttft_missing"])
    if usage["tokens_per_second_spread"] is not None:
        stable["tokensPerSecond"] = Stable(spread=usage["tokens_per_second_spread"])
    busiest = usage["busiest_share"] if usage["requests"] >= FEW_REQUESTS else 0.0
    return Traffic(usage["users_per_day"], usage["growth"], stable, baseline, busiest)


def given_traffic(users_per_day: float, users_per_week: float | None, measured: Traffic | None) -> Traffic:
    """So many different users a day, and a week (default: every day's are new); the rest as measured, where it was."""
    growth = 1.0
    if users_per_week is not None:
        growth = min(1.0, max(0.0, math.log(users_per_week / users_per_day) / math.log(7)))
    if measured is None:
        return Traffic(users_per_day, growth)
    return replace(measured, users_per_day=users_per_day, growth=growth if users_per_week else measured.growth)


def stable_of(kind: str, value: float) -> Stable:
    """What one number says of stable: a share of users for a rate, for other kinds of metric how far users' values lie apart.

    Raises:
        ValueError: there is no such value.
    """
    if kind == "rate":
        if not 0 <= value < 1:
            raise ValueError(f"a share of users lies between 0 and 1, not {value:g}")
        return Stable(rate=value)
    if not 0 < value < 100:
        raise ValueError(f"a spread is a positive number, not {value:g}")
    return replace(ASSUMED[kind], spread=value)


@dataclass(frozen=True, slots=True)
class StageForecast:
    """One stage or step. `harm`: metric -> the smallest badness that is seen by its end, from the stage's start on; None: none at all."""

    stage: GuardedStage
    step: int
    weight: float
    units: float
    """Users an arm whose values are final at its end; in rehearsal mirrored pairs."""
    seconds: float
    """With probability `LIKELY` it takes no longer."""
    typical_seconds: float
    waits_for: str
    """What takes longest: `minDuration`, `minPairs`, `minUnits` or a metric."""
    held: bool
    """Its maxDuration is over before: a person would have to decide."""
    harm: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """What maxDuration is too short for."""

    stage: GuardedStage
    step: int
    what: str
    """`minPairs`, `minUnits` or a metric."""
    asked: float
    """So many units, or this margin."""
    in_reach: float | None
    """So many units, or the smallest margin that could be shown; None: no margin."""
    users_per_day: float | None
    """Traffic that would suffice; None: more than can be told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout to come. Where a stage would be held, a person is taken to let it go on at the end of its maxDuration."""

    stages: tuple[StageForecast, ...]
    harm: Mapping[str, float | None]
    """Seen in one stage or another."""
    out_of_reach: tuple[OutOfReach, ...]
    assumed: Mapping[str, Stable]
    """Metrics of which nothing was measured, and what is assumed of them."""


@dataclass(frozen=True, slots=True)
class Caution:
    """Why a resource asks for more than its traffic gives."""

    reason: str
    message: str


def make_plan(service: LLMService, traffic: Traffic) -> Plan:
    """The plan of a rollout that begins now, of a candidate that does not differ from stable."""
    return _Planner(service, traffic).plan()


def caution(service: LLMService, traffic: Traffic) -> Caution | None:
    """Why a rollout under this resource would be held or learn nothing; None: it would not."""
    if traffic.busiest_share > BUSY:
        return Caution(
            reasons.USERS_UNNAMED,
            f"{traffic.busiest_share:.0%} of the requests come as one user: clients that send no `user` are one user per API key, and a "
            "rollout learns by users",
        )
    missing = _Planner(service, traffic).out_of_reach()
    if not missing:
        return None
    of_margins = any(one.what not in ("minPairs", "minUnits") for one in missing)
    return Caution(
        reasons.MARGIN_OUT_OF_REACH if of_margins else reasons.TRAFFIC_TOO_LOW,
        f"at {traffic.users_per_day:,.0f} users a day a rollout would be held: "
        + "; ".join(told(service, one) for one in missing),
    )


def told(service: LLMService, one: OutOfReach) -> str:
    """One thing that is out of reach, in words."""
    spec = service.spec.rollout
    where = "the rehearsal" if one.stage == "rehearsal" else f"step {one.step + 1}"
    limit = spec.rehearsal.max_duration if one.stage == "rehearsal" else spec.canary.steps[one.step].max_duration
    more = "" if one.users_per_day is None else f"; with {rounded(one.users_per_day)} users a day it could"
    if one.what in ("minPairs", "minUnits"):
        return f"{where} comes to {one.in_reach or 0:,.0f} of {one.what} {one.asked:,.0f} in {lasting(limit)}{more}"
    relative = plans(service, one.stage, {})[one.what].relative
    reach = "no margin at all" if one.in_reach is None else f"one of {margin_text(one.in_reach, relative)}"
    return (
        f"{where} cannot show {one.what} within the margin of {margin_text(one.asked, relative)} in {lasting(limit)}, "
        f"but {reach}{more}"
    )


def comparing(service: LLMService) -> str | None:
    """How many people must compare answers for what the resource asks of `preference`; None: it asks nothing."""
    asked = plans(service, "canary", {})
    goal, plan, stable = asked.get("goal:preference"), asked.get("preference"), COMPARING
    needs = []
    if plan is not None and plan.margin < OUTVOTED:
        seen = least(lambda people: chance_of_alarm(plan, stable, people, OUTVOTED) >= LIKELY, 1.0, MOST_USERS)
        needs.append(f"about {rounded(seen)} to see that three in four prefer stable's answers")
    if plan is not None and plan.mode == "nonInferior":
        needs.append(f"about {rounded(users_needed(plan, stable))} to show equal ones not worse")
    if goal is not None:
        needs.append("as many as it takes to show the goal")
    return f"people who compare answers, at most: {', '.join(needs)}" if needs else None


def margin_text(margin: float, relative: bool) -> str:
    """A margin as the resource means it: in per cent, or as a share."""
    return f"{margin:.0%}" if relative else f"{margin:.2g}"


class _Planner:
    """Walks through the stages; each begins when the one before has ended as is likely."""

    def __init__(self, service: LLMService, traffic: Traffic) -> None:
        self._rules, self._traffic = service.spec.rollout, traffic
        assumed = {"failure_rate": ASSUMED["errors"].rate, "bad_feedback_rate": ASSUMED["rate"].rate, "units": 1000}
        self._plans: dict[GuardedStage, dict[str, GuardrailPlan]] = {
            stage: {
                key: plan
                for key, plan in plans(service, stage, traffic.baseline or assumed).items()
                # Nobody knows a segment's share, what a goal will gain, or how many people will compare answers.
                if plan.mode != "goal" and split_key(key)[1] is None and key != "preference"
            }
            for stage in ("rehearsal", "canary")
        }
        self._starts: list[float] = []
        """When each step began, in seconds since the canary's start."""
        self._gathered: dict[GuardedStage, dict[str, float]] = {"rehearsal": {}, "canary": {}}
        """Metric -> users an arm (pairs, for bets) so far."""
        self._missing: list[OutOfReach] = []

    def plan(self) -> Plan:
        stages = tuple(self._walk())
        metrics = dict.fromkeys(metric for of in self._plans.values() for metric in of)
        return Plan(
            stages=stages,
            harm={metric: self._harm_overall(metric) for metric in metrics},
            out_of_reach=tuple(self._missing),
            assumed={
                metric: self._stable(plan)
                for of in self._plans.values()
                for metric, plan in of.items()
                if metric not in self._traffic.stable
            },
        )

    def out_of_reach(self) -> tuple[OutOfReach, ...]:
        for _ in self._walk(harm=False):
            pass
        return tuple(self._missing)

    def _stable(self, plan: GuardrailPlan) -> Stable:
        return self._traffic.stable.get(plan.metric) or ASSUMED.get(plan.metric) or ASSUMED[plan.kind]

    def _walk(self, *, harm: bool = True) -> Iterable[StageForecast]:
        rules = self._rules
        stage = rules.rehearsal
        only_here: list[str] = [g.metric for g in rules.guarded("rehearsal") if g.stages == ("rehearsal",)]
        shown = [m for m, p in self._plans["rehearsal"].items() if m in only_here and p.mode == "nonInferior"]
        yield (
            now := self._forecast(
                "rehearsal", 0, 0.0, lambda t: stage.share * self._traffic.users(t), 2 * rules.settle,
                ("minPairs", stage.min_pairs), shown, stage.min_duration, stage.max_duration, harm=harm,
            )
        )  # fmt: skip
        for number, step in enumerate(rules.canary.steps):
            self._starts.append(self._starts[-1] + now.seconds if self._starts else 0.0)
            last = number == len(rules.canary.steps) - 1
            shown = [m for m, p in self._plans["canary"].items() if p.mode == "nonInferior"] if last else []
            yield (
                now := self._forecast(
                    "canary", number, step.weight, self._newly_exposed, rules.horizon + rules.settle,
                    ("minUnits", step.min_units), shown, step.min_duration, step.max_duration, harm=harm,
                )
            )  # fmt: skip

    def _newly_exposed(self, seconds: float) -> float:
        """Users an arm first exposed within so many seconds of the newest step. Those whom an earlier step has exposed come again, and do
        not count: each share of the users that a step adds has met the rollout since that step's start.
        """
        shares = [step.weight / 100 for step in self._rules.canary.steps[: len(self._starts)]]
        added = [share - before for before, share in zip([0.0, *shares], shares, strict=False)]
        now = self._starts[-1]
        return sum(
            share * (self._traffic.users(now - start + seconds) - self._traffic.users(now - start))
            for share, start in zip(added, self._starts, strict=True)
        )

    def _forecast(
        self,
        stage: GuardedStage,
        step: int,
        weight: float,
        arrived: Callable[[float], float],
        settle: float,
        fewest: tuple[str, float],
        shown: Iterable[str],
        least_seconds: float,
        most: float,
        *,
        harm: bool,
    ) -> StageForecast:
        known = self._plans[stage]
        time = most - settle

        def until(metric: str | None, needed: float) -> float:
            """Seconds until so many units, or pairs of a metric's bets, are there."""
            if needed <= 0:
                return 0.0
            return least(lambda t: self._used(stage, metric, arrived(t), t) >= needed, 1.0, time) + settle

        waits: dict[str, tuple[float, float]] = {"minDuration": (least_seconds, least_seconds)}
        waits[fewest[0]] = (until(None, fewest[1]),) * 2
        needs = {metric: users_needed(known[metric], self._stable(known[metric])) for metric in shown}
        for metric, needed in needs.items():
            typical = users_needed(known[metric], self._stable(known[metric]), 0.5)
            waits[metric] = until(metric, needed), until(metric, typical)
        slowest = max(waits, key=lambda name: waits[name])
        held = waits[slowest][0] > most
        for name, (seconds, _) in waits.items():
            if seconds > most and name != "minDuration":
                self._missing.append(self._too_much(stage, step, name, fewest[1], needs.get(name), arrived, time))
        seconds = min(waits[slowest][0], most)
        users = arrived(max(seconds - settle, 0.0))
        gathered = self._gathered[stage]
        for metric in known:
            gathered[metric] = gathered.get(metric, 0.0) + self._used(stage, metric, users, max(seconds - settle, 1.0))
        return StageForecast(
            stage=stage,
            step=step,
            weight=weight,
            units=users,
            seconds=seconds,
            typical_seconds=min(max(typical for _, typical in waits.values()), most),
            waits_for=slowest,
            held=held,
            harm={m: harm_seen(p, self._stable(p), gathered[m]) for m, p in known.items()} if harm else {},
        )

    def _used(self, stage: GuardedStage, metric: str | None, users: float, seconds: float) -> float:
        """How many of so many users an arm a metric's test can use: bets in the canary need partners."""
        if metric is None or stage == "rehearsal" or seconds <= 0:
            return users
        plan = self._plans[stage][metric]
        users *= self._stable(plan).share
        return users * pair_share(plan, users / seconds)

    def _too_much(
        self,
        stage: GuardedStage,
        step: int,
        name: str,
        fewest: float,
        needed: float | None,
        arrived: Callable[[float], float],
        time: float,
    ) -> OutOfReach:
        metric = None if needed is None else name
        wanted = fewest if needed is None else needed
        users = arrived(time)
        factor = least(lambda f: self._used(stage, metric, f * users, time) >= wanted, 1.0, 1e6)
        in_reach: float | None = users
        if metric is not None:
            plan = self._plans[stage][metric]
            in_reach = margin_in_reach(plan, self._stable(plan), self._used(stage, metric, users, time))
        return OutOfReach(
            stage=stage,
            step=step,
            what=name,
            asked=fewest if metric is None else self._plans[stage][metric].margin,
            in_reach=in_reach,
            users_per_day=self._traffic.users_per_day * factor if factor < math.inf else None,
        )

    def _harm_overall(self, metric: str) -> float | None:
        """The smallest badness seen with probability `LIKELY` in one stage or the other."""
        watching = [
            (of[metric], self._gathered[stage].get(metric, 0.0)) for stage, of in self._plans.items() if metric in of
        ]

        def missed(effect: float) -> float:
            return math.prod(1 - chance_of_alarm(p, self._stable(p), units, effect) for p, units in watching)

        plan = watching[0][0]
        most = most_harm(plan, self._stable(plan))
        found = least(lambda effect: missed(effect) <= 1 - LIKELY, plan.margin, most)
        return found if found <= most else None
