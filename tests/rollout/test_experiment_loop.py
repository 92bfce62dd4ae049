"""Experiments on a real store: what truly differs is found, what does not is not claimed, whatever the looks and restarts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services.common.assignment import bucket_of, group_of
from services.rollout import reasons
from services.rollout.experiment import ExperimentStatus, status_of
from services.rollout.experiment_fold import ExperimentEvidence
from services.rollout.resources import LLMService
from services.rollout.resources_experiment import Experiment
from services.store import ClosedUnit, ExperimentRow
from tests.fakes.records import exposure, feedback, observation
from tests.fakes.rollout_stage import Stage
from tests.fakes.rollout_world import service
from tests.fakes.traffic import Behaviour, Traffic

ID = "assistant:tone"
RULES: dict[str, Any] = {
    "name": "tone",
    "variants": [{"name": "plain", "weight": 45, "version": "1"}, {"name": "warm", "weight": 45, "version": "2"}],
    "holdout": 5,
    "metrics": [{"metric": "errors", "margin": 0.1}, {"metric": "feedback", "margin": 0.3}],
    "minUnits": 10,
    "horizon": "10s",
    "settle": "5s",
}


def tried(**changes: Any) -> LLMService:
    document = service().model_dump(mode="json", by_alias=True)
    document["spec"]["experiments"] = [{**RULES, **changes}]
    return LLMService.model_validate(document)


@pytest.fixture
def stage(url: str) -> Iterator[Callable[..., Stage[Traffic]]]:
    made: list[Stage[Traffic]] = []

    def make(second: Behaviour = Behaviour(), resource: LLMService | None = None) -> Stage[Traffic]:  # noqa: B008
        given = resource or tried()
        behave = {"1": Behaviour(), "2": second}
        made.append(Stage(url, given, lambda store, clock: Traffic(store, clock, given, behave.__getitem__)))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


async def run(world: Stage[Traffic], looks: int, *, restart: bool = False, users: int = 40) -> ExperimentStatus:
    for _ in range(looks):
        if restart:
            world.restart()
        await world.look(users)
    return status_of(row(world))


def row(world: Stage[Traffic]) -> ExperimentRow:
    [found] = world.store.experiments("assistant")
    return found


def claims(status: ExperimentStatus) -> dict[str, str]:
    return {f"{result.variant} {result.metric}": result.claim for result in status.results}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_real_difference_is_found(stage: Callable[..., Stage[Traffic]], restart: bool) -> None:
    world = stage(Behaviour(failure=0.5))
    status = await run(world, 18, restart=restart)
    assert claims(status)["warm errors"] == "worse"
    assert claims(status)["holdout errors"] != "worse"
    assert claims(status)["warm feedback"] in ("open", "equal")
    worse = next(result for result in status.results if (result.variant, result.metric) == ("warm", "errors"))
    assert worse.effect == pytest.approx(0.49, abs=0.08)
    assert worse.lower is not None
    assert 0 < worse.lower < 0.49
    assert worse.threshold == pytest.approx(2 * 2 * 2 / 0.05)
    said = [entry for entry in world.store.audit(rollout=ID) if entry.reason == reasons.EXPERIMENT_CLAIM]
    assert len([entry for entry in said if "errors of warm" in entry.message]) == 1
    assert {(one["variant"], one["metric"]) for one in world.store.readings(ID)} == {
        (variant, metric) for variant in ("warm", "holdout") for metric in ("errors", "feedback")
    }
    assert world.registry.aliases == {"champion": "1"}


async def test_an_ended_experiment_is_measured_to_its_end(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    await run(world, 8)
    world.reconciler.service = service()
    await world.look()
    assert row(world).ended_at is not None
    before = status_of(row(world)).users
    await world.look(seconds=20.0)
    status = status_of(row(world))
    assert (status.state, status.reason) == ("finished", reasons.EXPERIMENT_REMOVED)
    assert row(world).finished_at is not None
    assert sum(status.users.values()) > sum(before.values())
    assert world.store.evidence(ID) == {}  # no digest of a user stays
    after = row(world)
    await world.look(seconds=20.0)
    assert row(world) == after


async def test_a_gateway_that_assigns_wrongly_voids_it(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    world.traffic.wrong_bucket = True
    status = await run(world, 15)
    assert status.fault is not None
    assert status.reason == reasons.ASSIGNMENT_FAULT
    assert row(world).ended_at is not None
    route = world.store.route("assistant")
    assert route is not None
    assert route.experiments == ()


async def test_a_deleted_services_experiments_end(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    await run(world, 5)
    await world.reconciler.retire()
    assert row(world).finished_at is not None
    assert status_of(row(world)).reason == reasons.SERVICE_DELETED


def users(experiment: Experiment, count: int, chances: dict[str, float], seed: int) -> Iterator[ClosedUnit]:
    """Closed users whose requests fail, and who complain, with their group's probability."""
    draw, names = random.Random(seed), [name for name, _ in experiment.groups()]
    shares = [share for _, share in experiment.groups()]
    for number in range(count):
        unit = f"{seed}-{number}"
        bucket = bucket_of(b"salt", ID, unit)
        index = group_of(bucket, shares)
        if index is None:
            continue
        name, at = names[index], 10.0 * number
        common = {"rollout": ID, "arm": name, "unit": unit, "bucket": bucket}
        failed = draw.random() < chances[name]
        request = observation(at, **common, outcome="error" if failed else "ok")
        marks = (feedback(request.request_id, at + 1),) if draw.random() < chances[name] else ()
        yield ClosedUnit(exposure(at, **common), (request,), marks)


def test_where_nothing_differs_claims_are_rare() -> None:
    """Tests latch at the user that crosses their threshold, so one fold sees what any number of looks would."""
    experiment = Experiment.model_validate({**RULES, "alpha": 0.2, "holdout": 0})
    false = 0
    for seed in range(20):
        evidence = ExperimentEvidence(experiment)
        evidence.fold(list(users(experiment, 250, {"plain": 0.2, "warm": 0.2}, seed)), ID, b"salt")
        false += any(result.claim in ("better", "worse") for result in evidence.results())
    assert false <= 0.2 * 20


def test_batches_and_saved_states_change_nothing() -> None:
    experiment = Experiment.model_validate(RULES)
    closed = list(users(experiment, 300, {"plain": 0.1, "warm": 0.3, "holdout": 0.1}, 7))
    whole = ExperimentEvidence(experiment)
    whole.fold(closed, ID, b"salt")
    pieces = ExperimentEvidence(experiment)
    for start in range(0, len(closed), 37):
        pieces = ExperimentEvidence.from_json(experiment, pieces.to_json())
        pieces.fold(closed[start : start + 37], ID, b"salt")
    assert pieces.users == whole.users

    def rounded(evidence: ExperimentEvidence) -> list[dict[str, Any]]:
        return [
            {
                key: pytest.approx(value) if isinstance(value, float) else value
                for key, value in result.to_json().items()
            }
            for result in evidence.results()
        ]

    assert [result.to_json() for result in pieces.results()] == rounded(whole)


def test_groups_of_wrong_sizes_are_no_chance() -> None:
    experiment = Experiment.model_validate(RULES)
    evidence = ExperimentEvidence(experiment)
    mine = list(users(experiment, 600, {"plain": 0, "warm": 0, "holdout": 0}, 3))
    evidence.fold([u for u in mine if u.exposure.arm != "warm" or u.exposure.bucket % 2], ID, b"salt")
    assert "of warm" in (evidence.mismatch() or "")
