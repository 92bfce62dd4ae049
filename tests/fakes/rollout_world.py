"""A world for `decide`: carries its actions out at once and shows the next look what came of them. Time moves by hand.

Used by the tests of decisions; what is outside (evidence, engines, aliases, gateways) is set by the test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from services.common.routing import Route
from services.evidence import Reading
from services.rollout.actions import (
    AnswerCommand,
    ApplyRevision,
    ClearChallenger,
    Emit,
    KeepExperiment,
    PublishRoute,
    RemoveRevision,
    ScaleRevision,
    SetChallenger,
    SetChampion,
    TagVersion,
)
from services.rollout.decide import Decision, decide
from services.rollout.experiment import versions
from services.rollout.observed import (
    Alarm,
    Aliases,
    Evaluation,
    Evaluations,
    EvidenceView,
    Identity,
    Observed,
    Refusal,
    VersionInfo,
)
from services.rollout.planning import Caution
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from services.rollout.scaling import FirstTokens
from services.rollout.status import RolloutStatus, ServiceStatus
from services.store import Command, ExperimentRow


def service(**rollout: Any) -> LLMService:
    """A service with two canary steps; `rollout` replaces fields of spec.rollout."""
    spec: dict[str, Any] = {
        "horizon": "10s",
        "settle": "5s",
        "look": "1s",
        "rehearsal": {"minPairs": 20, "minDuration": "10s", "maxDuration": "100s"},
        "canary": {
            "steps": [
                {"weight": 5, "minDuration": "10s", "minUnits": 10, "maxDuration": "100s"},
                {"weight": 50, "minDuration": "10s", "minUnits": 20, "maxDuration": "100s"},
            ]
        },
        "holdTimeout": "50s",
        "rollbackWindow": "30s",
        **rollout,
    }
    return LLMService.model_validate(
        {
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "assistant"},
            "spec": {"model": {"registeredModel": "assistant"}, "rollout": spec},
        }
    )


def reading(metric: str = "errors", **fields: Any) -> Reading:
    """A reading that shows nothing yet."""
    values: dict[str, Any] = {
        "metric": metric, "kind": "rate", "mode": "nonInferior", "margin": 0.01, "relative": False, "direction": "lower",
        "n_control": 100, "n_candidate": 100, "pairs": 90, "expired": 10, "excluded": {}, "control": 0.01, "candidate": 0.01,
        "effect": 0.0, "lower": -0.02, "upper": 0.02, "e_harm": 1.0, "harm_threshold": 100.0, "harmful": False,
        "e_promote": 1.0, "promote_threshold": 20.0, "non_inferior": False, "trustworthy": True,
    }  # fmt: skip
    return Reading(**{**values, **fields})


SHOWN = tuple(reading(metric, non_inferior=True) for metric in ("errors", "ttft"))
"""Everything that must be shown is shown."""
RIGHT = Evaluation("data", {f"item-{i}": True for i in range(100)})


class World:
    """Registry, platform, gateways and store as `decide` sees them."""

    def __init__(self, resource: LLMService | None = None) -> None:
        self.service = resource or service()
        self.now = 1_000.0
        self.versions: dict[str, VersionInfo] = {}
        self.evaluations: dict[str, Evaluation | None] = {}
        self.aliases: dict[str, str] = {}
        self.registry_away = False
        self.engines: dict[str, RevisionState] = {}
        self.platform_away = False
        self.ready_at_once = True
        self.refused: dict[str, Refusal] = {}
        self.gateways = 1
        self.acknowledges = True
        self.route: Route | None = None
        self.rollout: RolloutStatus | None = None
        self.rules: LLMService | None = None
        self.evidence = EvidenceView()
        self.commands: dict[str, Command] = {}
        self.answers: dict[str, str] = {}
        self.audit: list[Emit] = []
        self.removed: list[str] = []
        self.scaled: list[tuple[str, tuple[int, int]]] = []
        self.quiet = False
        self.experiments: dict[str, ExperimentRow] = {}
        self.first_tokens: FirstTokens | None = None
        self.caution: Caution | None = None
        self.drift: Alarm | None = None
        self.evaluated: str | None = None
        self.prompts: Alarm | None = None
        self.users_per_day: float | None = None
        self._status = ServiceStatus()
        self._seen: Aliases | None = None
        self.version("1")
        self.version("2")
        self.aliases["champion"] = "1"

    def version(self, number: str, evaluation: Evaluation | None = RIGHT, **tags: str) -> None:
        """Registers a version."""
        named = {f"understudy.{key.replace('_', '-')}": value for key, value in tags.items()}
        self.versions[number] = VersionInfo(number, f"models:/{number}", named, f"run-{number}")
        self.evaluations[number] = evaluation

    def observed(self) -> Observed:
        """What a look sees now."""
        if self.registry_away:
            self._seen = replace(self._seen, fresh=False) if self._seen else None
        else:
            self._seen = Aliases(self._alias("champion"), self._alias("challenger"))
        status = self.rollout
        evaluations = None
        if status is not None and status.stage == "gate" and not self.registry_away:
            evaluations = Evaluations(self.evaluations[status.version], self.evaluations[status.champion_version])
        tried = versions(self.service.spec.experiments, list(self.experiments.values()))
        tagged = status is not None and status.debt.tag and not self.registry_away
        return Observed(
            route=self.route,
            gateways=self.gateways,
            acknowledged=self.acknowledges and self.gateways > 0 and self.route is not None,
            rollout=status,
            rules=self.rules,
            conditions=self._status.conditions,
            aliases=self._seen,
            tags=self.versions[status.version].tags if tagged and status is not None else None,
            engines=None if self.platform_away else dict(self.engines),
            quiet=self.quiet,
            first_tokens=self.first_tokens,
            caution=self.caution,
            drift=self.drift,
            evaluated=self.evaluated,
            prompts=self.prompts,
            users_per_day=self.users_per_day,
            pinned={
                v: self.versions.get(v) for v in (*self.service.spec.model.pinned, *tried) if not self.registry_away
            },
            tried=tried,
            experiments=tuple(self.experiments.values()),
            refused=self.refused,
            evaluations=evaluations,
            commands=tuple(self.commands.values()),
            identity=Identity(f"rollout-{len(self.audit)}", "ab" * 16),
        )

    def look(self, after: float = 1.0, times: int = 1) -> Decision:
        """Time passes, one look decides (or several), and its actions are carried out."""
        for _ in range(times):
            self.now += after
            before = self.rollout.id if self.rollout else None
            decision = decide(self.service, self.observed(), self.evidence, self.now)
            self._status = decision.status
            self.rollout = decision.status.rollout
            if self.rollout is not None and self.rollout.id != before:
                self.rules = self.service
            for action in decision.actions:
                self._carry_out(action)
        return decision

    def order(self, verb: Any, rollout: str | None = None) -> str:
        """A person gives a command; returns its answer after one look."""
        id_ = f"command-{len(self.answers)}"
        self.commands[id_] = Command(id_, "assistant", rollout, verb, "ada", "", self.now)
        self.look()
        return self.answers[id_]

    def reach(self, stage: str, step: int = 0) -> None:
        """Plays a rollout of v2 on the happy path until its clock runs in a stage."""
        self.look(times=3)
        self.aliases["challenger"] = "2"
        self.evidence = EvidenceView(counts={"pairs": 50})
        for _ in range(100):
            status = self.rollout
            if (
                status is not None
                and status.stage == stage
                and status.step >= step
                and (stage == "gate" or status.stage_started_at)
            ):
                self.evidence = EvidenceView()
                return
            if status is not None and status.stage == "canary":
                self.evidence = EvidenceView(readings=SHOWN, counts={"step_control": 50, "step_candidate": 50})
            self.look()
        raise AssertionError(f"{stage} was not reached: {self.rollout}")

    @property
    def reasons(self) -> list[str]:
        """Reasons of all audit rows so far."""
        return [event.reason for event in self.audit]

    def _alias(self, name: str) -> VersionInfo | None:
        version = self.aliases.get(name)
        return self.versions[version] if version else None

    def _carry_out(self, action: Any) -> None:
        match action:
            case ApplyRevision(name=name, replicas=replicas):
                phase = "ready" if self.ready_at_once else "starting"
                address = f"http://{name}/v1" if self.ready_at_once else None
                self.engines[name] = RevisionState(
                    name, phase, replicas[0] if self.ready_at_once else 0, address, "loading", replicas=replicas
                )
            case ScaleRevision(name=name, replicas=replicas):
                self.scaled.append((name, replicas))
                ready = max(self.engines[name].ready_replicas, replicas[0]) if self.ready_at_once else 0
                self.engines[name] = replace(self.engines[name], replicas=replicas, ready_replicas=ready)
            case RemoveRevision(name=name):
                self.engines.pop(name)
                self.removed.append(name)
            case PublishRoute(route=route):
                self.route = msgspec.structs.replace(route, version=self.route.version + 1 if self.route else 1)
            case KeepExperiment(row=row):
                self.experiments[row.id] = row
            case Emit():
                self.audit.append(action)
            case AnswerCommand(id=id_, answer=answer):
                self.commands.pop(id_)
                self.answers[id_] = answer
            case _ if self.registry_away:
                pass
            case SetChampion(version=version, expected=expected):
                if self.aliases["champion"] == expected:
                    self.aliases["champion"] = version
            case SetChallenger(version=version):
                self.aliases["challenger"] = version
            case ClearChallenger(version=version):
                if self.aliases.get("challenger") == version:
                    del self.aliases["challenger"]
            case TagVersion(version=version, tags=tags):
                info = self.versions[version]
                self.versions[version] = replace(info, tags={**info.tags, **tags})
