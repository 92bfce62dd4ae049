"""docs/concepts/verdicts.md, row by row: each situation of its table is played, and must end in the verdict and reason that stand there.

A row without a case fails, and so does a case without a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from services.rollout import reasons
from services.rollout.observed import Ratio
from services.rollout.watch_fold import PROMPT, SAID
from tests.fakes.rollout_world import World, service
from tests.fakes.situations import (
    AMBITIOUS,
    APPROVED,
    OTHER,
    SLEEPY,
    WIDE,
    WRONG,
    Happens,
    alarm,
    alias,
    anew,
    asked_otherwise,
    away,
    begins,
    deleted,
    drifted,
    drifts_back,
    edited,
    engine,
    evaluated,
    falls_asleep,
    foreign,
    frozen,
    harm,
    held,
    improves,
    improves_nothing,
    judged_anew,
    judged_but_private,
    late,
    moved_while_starting,
    no_champion,
    nothing,
    obeyed,
    of,
    order,
    passes,
    passes_by,
    passes_unseen,
    pinned,
    refused,
    shows,
    tagged,
    takes_too_long,
    unpinned,
    unreadable,
    unready,
    warned,
    with_engine,
)

UNDECIDED = ("gate", "rehearsal", "canary")
COMPARED = ("rehearsal", "canary")


class Row(NamedTuple):
    """One row of the document."""

    stages: tuple[str, ...]
    situation: str
    verdict: str
    reason: str


class Case(NamedTuple):
    """How a row comes about: a world that stands at a stage and step, and what happens there."""

    row: Row
    happens: Happens
    world: Callable[[], World]
    at_once: bool = False
    """It is decided in the look that would begin the gate."""


def document() -> list[Row]:
    text = Path("docs/concepts/verdicts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z, ]+) \| (.+) \| (\w+) \| `(\w+)` \|$", text, re.MULTILINE)
    return [Row(tuple(stages.split(", ")), situation, verdict, reason) for stages, situation, verdict, reason in rows]


def case(
    stages: str | tuple[str, ...],
    situation: str,
    verdict: str,
    reason: str,
    happens: Happens = nothing,
    *,
    world: Callable[[], World] = World,
    at_once: bool = False,
) -> Case:
    return Case(
        Row((stages,) if isinstance(stages, str) else stages, situation, verdict, reason), happens, world, at_once
    )


CASES = [
    case("gate", "a person set `challenger`, or the engine's specification changed", "continue", reasons.ROLLOUT_STARTED),
    case(
        "gate", "candidate's and champion's evaluations agree within the margin: on to rehearsal", "continue", reasons.GATE_PASSED
    ),
    case(
        "gate", "the gate is disabled, or only the engine's specification changed: on to rehearsal", "continue",
        reasons.GATE_SKIPPED, world=of(service(gate={"enabled": False})),
    ),
    case("gate", "the registry is away", "continue", reasons.AWAITING_REGISTRY, away("registry")),
    case("gate", "shown worse than the champion by more than `gate.margin`", "abort", reasons.GATE_HARMFUL, evaluated(WRONG)),
    case(
        "gate", "accuracy below `gate.minimumAccuracy`", "abort", reasons.GATE_BELOW_MINIMUM, evaluated(WRONG),
        world=of(service(gate={"minimumAccuracy": 0.5})),
    ),
    case("gate", "a version has no `evaluation/evaluation.json`", "error", reasons.EVALUATION_MISSING, evaluated(None)),
    case("gate", "the two were evaluated on different data sets", "error", reasons.EVALUATION_MISMATCH, evaluated(OTHER)),
    case("gate", "an evaluation cannot be read", "error", reasons.EVALUATION_INVALID, unreadable),
    case(
        "gate", "a prompt or an adapter whose base's weights do not serve", "abort", reasons.BASE_NOT_CHAMPION,
        world=tagged(kind="prompt", base_version="7", system_prompt="x"), at_once=True,
    ),
    case(
        "gate", "an adapter, and the engine has no `lora`", "abort", reasons.ADAPTER_REFUSED,
        world=tagged(kind="adapter", base_version="1"), at_once=True,
    ),
    case("gate", "a kind that cannot be served", "abort", reasons.KIND_UNSUPPORTED, world=tagged(kind="adapter"), at_once=True),
    case("rehearsal", "the candidate's engine starts", "continue", reasons.AWAITING_ENGINE, begins),
    case("rehearsal", "the candidate's engine answers", "continue", reasons.ENGINE_READY),
    case(COMPARED[0], "the engine failed; the message has its last words", "abort", reasons.ENGINE_FAILED, engine("failed")),
    case(COMPARED[1], "the engine failed; the message has its last words", "abort", reasons.ENGINE_FAILED, engine("failed")),
    case(
        "rehearsal", "not ready within `startTimeout`", "abort", reasons.ENGINE_START_TIMEOUT,
        takes_too_long,
    ),
    case("rehearsal", "the registry names files that are not there", "abort", reasons.ARTIFACT_MISSING, refused(reasons.ARTIFACT_MISSING)),
    case("rehearsal", "the files are not those registered", "abort", reasons.ARTIFACT_MISMATCH, refused(reasons.ARTIFACT_MISMATCH)),
    case(
        "rehearsal", "files that are no adapter, or one of too high a rank", "abort", reasons.ADAPTER_REFUSED,
        refused(reasons.ADAPTER_REFUSED),
    ),
    case(COMPARED, "the platform is away", "continue", reasons.PLATFORM_UNAVAILABLE, away("platform")),
    case(COMPARED, "a gateway has not acknowledged the route: the clock stands", "continue", reasons.AWAITING_GATEWAYS, anew),
    case(COMPARED, "every gateway obeys: the clock runs", "continue", reasons.STAGE_RUNNING, obeyed),
    case(COMPARED, "too few users or too little time yet", "continue", reasons.AWAITING_EVIDENCE),
    case(COMPARED, "more users with failed requests", "abort", reasons.ERRORS_HARMFUL, harm("errors")),
    case(COMPARED, "more users who are refused an answer", "abort", reasons.REFUSALS_HARMFUL, harm("refusals")),
    case(COMPARED, "first token later", "abort", reasons.TTFT_HARMFUL, harm("ttft")),
    case(COMPARED, "fewer tokens per second", "abort", reasons.TOKENS_PER_SECOND_HARMFUL, harm("tokensPerSecond")),
    case(COMPARED, "longer gaps between tokens", "abort", reasons.INTER_TOKEN_GAP_HARMFUL, harm("interTokenGap")),
    case(COMPARED, "answers that take longer", "abort", reasons.DURATION_HARMFUL, harm("duration")),
    case(
        COMPARED, "any of these in a declared segment of the users; the message names it", "abort", reasons.ERRORS_HARMFUL,
        harm("errors[enterprise]"),
    ),
    case("canary", "more users who asked for a person", "abort", reasons.ESCALATIONS_HARMFUL, harm("escalations")),
    case("canary", "more users who asked again", "abort", reasons.RETRIES_HARMFUL, harm("retries")),
    case("canary", "lower ratings", "abort", reasons.RATING_HARMFUL, harm("rating")),
    case("canary", "more users with a bad mark", "abort", reasons.FEEDBACK_HARMFUL, harm("feedback")),
    case("rehearsal", "judged worse", "abort", reasons.JUDGE_HARMFUL, harm("judge")),
    case(COMPARED, "people who compare answers prefer stable's", "abort", reasons.PREFERENCE_HARMFUL, harm("preference")),
    case(
        "rehearsal", "a judge is asked for, but `privacy.content` is `never`: nothing is judged", "continue", reasons.JUDGE_OFF,
        world=of(judged_but_private()),
    ),
    case(
        "rehearsal", "`minPairs` and `minDuration` reached, nothing harmful: on to canary", "continue", reasons.REHEARSAL_PASSED, passes
    ),
    case("rehearsal", "`maxDuration` without `minPairs`", "hold", reasons.REHEARSAL_INCONCLUSIVE, late),
    case(
        COMPARED, "all is shown, but the ready replicas do not cover the next weight", "continue", reasons.AWAITING_CAPACITY, unready,
        world=of(WIDE),
    ),
    case(COMPARED, "all is shown, but a freeze window holds", "continue", reasons.FROZEN_WINDOW, frozen),
    case("canary", "`minUnits` and `minDuration` reached, nothing harmful: next step", "continue", reasons.STEP_PASSED, passes),
    case("canary", "the same, but the step asks for `approval`", "continue", reasons.AWAITING_APPROVAL, passes, world=of(APPROVED)),
    case("canary", "a person approves the step", "continue", reasons.APPROVED, order("approve"), world=of(APPROVED)),
    case(
        "last canary step", "the same, and every `nonInferior` guardrail shown at this moment", "advance", reasons.PROMOTED, passes
    ),
    case(
        "last canary step", "the same, but the registry is away", "continue", reasons.AWAITING_REGISTRY,
        passes_unseen,
    ),
    case("canary", "`maxDuration` without that", "hold", reasons.STEP_INCONCLUSIVE, late),
    case(
        "last canary step", "the same, and an improvement in the declared `goals`", "advance", reasons.PROMOTED, improves,
        world=of(AMBITIOUS),
    ),
    case(
        "last canary step", "`maxDuration`, and no declared goal is shown to have improved; the message names them", "hold",
        reasons.STEP_INCONCLUSIVE, improves_nothing, world=of(AMBITIOUS),
    ),
    case("held", "`holdTimeout` is over: weight 0", "hold", reasons.HOLD_EXPIRED, held),
    case(
        "canary", "numbers of exposed users per arm, over all gateways or at one, that chance does not give", "error",
        reasons.SAMPLE_RATIO_MISMATCH, shows(ratio=Ratio(5000.0, 1000.0, True)),
    ),
    case(
        "canary", "a user in two arms, or in an arm where the bucket does not belong", "error", reasons.ASSIGNMENT_FAULT,
        shows(fault="a unit in two arms", assignment=True),
    ),
    case(
        COMPARED, "values that cannot be (a clock ran backwards), or that one arm has and the other lacks", "error",
        reasons.EVIDENCE_FAULT, shows(fault="a clock ran backwards"),
    ),
    case(UNDECIDED, "paused by a person", "continue", reasons.PAUSED, order("pause")),
    case(COMPARED, "resumed by a person", "continue", reasons.RESUMED, order("pause", "resume")),
    case(UNDECIDED, "`abort` by a person", "abort", reasons.ABORTED_BY_COMMAND, order("abort")),
    case(
        UNDECIDED, "`challenger` moved to another version: that one starts anew", "abort", reasons.CHALLENGER_MOVED,
        alias("challenger", "3"),
    ),
    case(UNDECIDED, "`challenger` deleted", "abort", reasons.CHALLENGER_DELETED, alias("challenger", None)),
    case(UNDECIDED, "the resource is deleted", "abort", reasons.SERVICE_DELETED, deleted),
    case(
        (*UNDECIDED, "watch"), "`champion` moved by a person: stable serves on until that version is ready", "abort",
        reasons.CHAMPION_MOVED, alias("champion", "3"),
    ),
    case(COMPARED, "`promote` by a person, engine ready", "advance", reasons.PROMOTED_BY_COMMAND, order("promote")),
    case(
        "watch", "more users with failed requests than its predecessor had: the old revision serves at once", "abort",
        reasons.WATCH_ERRORS, alarm("errors"),
    ),
    case("watch", "the same of users who are refused an answer", "abort", reasons.WATCH_REFUSALS, alarm("refusals")),
    case("watch", "the same of first tokens that come later", "abort", reasons.WATCH_TTFT, alarm("ttft")),
    case("watch", "the same of gaps between tokens", "abort", reasons.WATCH_INTER_TOKEN_GAP, alarm("interTokenGap")),
    case("watch", "the same of answers that take longer", "abort", reasons.WATCH_DURATION, alarm("duration")),
    case("watch", "the same of users with a bad mark", "abort", reasons.WATCH_FEEDBACK, alarm("feedback")),
    case("watch", "the same of users who ask for a person", "abort", reasons.WATCH_ESCALATIONS, alarm("escalations")),
    case("watch", "the same of users who ask again", "abort", reasons.WATCH_RETRIES, alarm("retries")),
    case("watch", "the same of ratings that fall", "abort", reasons.WATCH_RATING, alarm("rating")),
    case(
        "watch", "`rollbackWindow` is over, or a new challenger comes", "advance", reasons.WATCH_ENDED, passes_by
    ),
    case("service", "stable answers", "none", reasons.SERVING),
    case(
        "service", "nobody asks, so no replica runs; requests wait for one", "none", reasons.SCALED_TO_ZERO, falls_asleep, world=of(SLEEPY)
    ),
    case("service", "no version has the alias `champion`: set it", "none", reasons.CHAMPION_MISSING, no_champion),
    case("service", "the champion's engine starts, and stable serves on", "none", reasons.ROLLING_TO_CHAMPION, moved_while_starting),
    case(
        "service", "the challenger is the champion: the alias is taken off", "none", reasons.ALREADY_CHAMPION, alias("challenger", "1")
    ),
    case("service", "another service or cluster owns the aliases", "none", reasons.ALIAS_CONFLICT, foreign),
    case(
        "service", "an edited specification was rolled out and ended badly: edit it again", "none", reasons.SPECIFICATION_REJECTED, edited
    ),
    case(
        "service", "the registry is away: its last known aliases stay in force", "none", reasons.REGISTRY_UNAVAILABLE, away("registry")
    ),
    case(
        "service", "with its traffic a rollout could not show a margin of the resource", "none", reasons.MARGIN_OUT_OF_REACH,
        warned(reasons.MARGIN_OUT_OF_REACH),
    ),
    case(
        "service", "with its traffic a rollout would not come to `minPairs` or `minUnits` in time", "none", reasons.TRAFFIC_TOO_LOW,
        warned(reasons.TRAFFIC_TOO_LOW),
    ),
    case(
        "service", "one user makes most of the requests: clients name no users", "none", reasons.USERS_UNNAMED,
        warned(reasons.USERS_UNNAMED),
    ),
    case(
        "service", "stable's users fare worse than a week before; the message says in what, how much and since when", "none",
        reasons.STABLE_DRIFTED, drifted,
    ),
    case(
        "service", "the same, and `drift.onAlarm: evaluate`: the judge has scored enough of stable's answers since", "none",
        reasons.DRIFT_EVALUATED, judged_anew,
    ),
    case(
        "service", "the same, and `drift.onAlarm: rollBack`: stable was promoted last, and `champion` is set back to the version before",
        "advance", reasons.DRIFT_ROLLED_BACK, drifts_back,
    ),
    case(
        "service", "users ask something else than in the week before the promotion; `understudy drift` shows what", "none",
        reasons.PROMPTS_DRIFTED, asked_otherwise,
    ),
    case("service", "a version is pinned, and serves keys with the scope `pin`", "none", reasons.VERSION_PINNED, pinned("3")),
    case("service", "a person took a pin away", "none", reasons.VERSION_UNPINNED, unpinned),
    case("service", "the registry has no such version to pin", "none", reasons.VERSION_MISSING, pinned("9")),
    case(
        "service", "fields of `spec.engine` that speak of pods do nothing on platform `serve`, which starts none", "none",
        reasons.ENGINE_FIELDS_IGNORED, world=of(with_engine(service(), nodeSelector={"a": "b"})),
    ),
]  # fmt: skip

ELSEWHERE = {
    Row(("resource",), "a field is wrong though admission let it pass: the last valid version stays in force", "none", "InvalidResource"):
        "operator/test_resource.py",
    Row(("resource",), "an older resource of another namespace has the name", "none", "NameTaken"): "operator/test_resource.py",
    Row(("resource",), "the annotation holds no command that can be read", "none", "CommandRefused"): "operator/test_resource.py",
    Row(
        ("resource",), "deleted, but platform or registry could not be reached in time: what it had there remains", "none", "LeftBehind"
    ): "operator/test_resource.py",
    Row(("experiment",), "no rollout compares, and every variant's engine answers: it begins", "none", "ExperimentStarted"):
        "test_experiment.py",
    Row(("experiment",), "users are shared out and compared", "none", "ExperimentRunning"): "test_experiment.py",
    Row(("experiment",), "a rollout is under way: it begins after that", "none", "AwaitingRollout"): "test_experiment.py",
    Row(("experiment",), "a difference, or that there is none beyond the margin, is shown", "none", "ExperimentClaim"):
        "test_experiment_loop.py",
    Row(("experiment",), "its `maxDuration` is over", "none", "ExperimentEnded"): "test_experiment.py",
    Row(("experiment",), "it was taken out of the resource", "none", "ExperimentRemoved"): "test_experiment.py",
    Row(("experiment",), "it was changed while it ran: the experiment that began stays in force", "none", "ExperimentChanged"):
        "test_experiment.py",
    Row(("notifications",), "events are sent from here on", "none", "NotificationsBegin"): "test_notify.py",
    Row(("notifications",), "the receiver took an event", "none", "NotificationSent"): "test_notify.py",
    Row(
        ("notifications",), "it refused one, or did not answer after several attempts: it is not sent again", "none", "NotificationFailed"
    ): "test_notify.py",
}  # fmt: skip
"""What comes about outside the decision, and the test of this folder that asserts it."""


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    rows = document()
    assert len(rows) == len(set(rows)) > 60
    assert sorted(rows) == sorted([one.row for one in CASES] + list(ELSEWHERE))


def test_every_reason_stands_in_the_document() -> None:
    every = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert {row.reason for row in document()} == every


def test_every_metric_has_its_reason() -> None:
    assert set(reasons.HARM.values()) == {one.row.reason for one in CASES if "Harmful" in one.row.reason} - {
        "GateHarmful"
    }
    watched = {one.row.reason for one in CASES if one.row.reason.startswith("Watch")} - {"WatchEnded"}
    assert set(reasons.WATCH.values()) == watched
    assert set(reasons.WATCH) == {*PROMPT, *SAID} == set(reasons.HARM) - {"judge", "preference", "tokensPerSecond"}


@pytest.mark.parametrize(("row", "file"), ELSEWHERE.items(), ids=lambda value: getattr(value, "reason", None))
def test_it_is_asserted_elsewhere(row: Row, file: str) -> None:
    text = (Path("tests/rollout") / file).read_text(encoding="utf-8")
    name = next(name for name, value in vars(reasons).items() if value == row.reason)
    assert f"reasons.{name}" in text or row.reason in text


@pytest.mark.parametrize(
    ("one", "stage"),
    [
        pytest.param(one, stage, id=f"{stage}: {one.row.reason}: {one.row.situation}")
        for one in CASES
        for stage in one.row.stages
    ],
)
def test_row(one: Case, stage: str) -> None:
    world = one.world()
    if stage == "service":
        world.look(times=3)
    elif one.at_once:
        world.look(times=3)
        world.aliases["challenger"] = "2"
        world.look(times=2)
    else:
        last = stage == "last canary step"
        place = {"held": "canary", "last canary step": "canary"}.get(stage, stage)
        world.reach(place, int(last))
    one.happens(world)
    if stage != "gate" or one.happens is not deleted:
        world.look()
    rollout = world.rollout
    if one.row.verdict in ("abort", "error", "hold"):
        assert rollout is not None
        assert (rollout.verdict, rollout.reason) == (one.row.verdict, one.row.reason), rollout.message
        assert one.row.verdict == "hold" or rollout.decided_in == stage
    elif one.row.verdict == "advance":
        assert rollout is not None
        assert rollout.verdict == "advance"
        assert one.row.reason in world.reasons
    else:
        waits = [condition.reason for condition in rollout.conditions] if rollout is not None else []
        assert one.row.reason in [*world.reasons, *waits]
        assert one.row.verdict == "none" or (rollout is not None and rollout.verdict == "continue")
