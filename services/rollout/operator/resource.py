"""One `LLMService` resource as the cluster shows it, with the loop of its service: what each of its turns reads from the resource and tells
about it. Driven by `cluster`; decides nothing about rollouts.

An API server that is away delays what is told (`telling`), never a look: looks need the store alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from services.common import events
from services.common.clock import Clock
from services.common.manifest import explain
from services.rollout import loop as loops
from services.rollout import reasons
from services.rollout.actions import AnswerCommand, Emit
from services.rollout.decide import Decision
from services.rollout.loop import ServiceLoop
from services.rollout.operator.api import LLM_SERVICE, KubernetesApi
from services.rollout.operator.orders import COMMAND, COMMAND_BY, Order, pointer
from services.rollout.operator.telling import GONE, TELL_SECONDS, Happening, Teller
from services.rollout.platforms.kubernetes_objects import KubernetesError, KubernetesRejected
from services.rollout.reconcile import Look
from services.rollout.resource_status import HISTORY, refused_status, service_status
from services.rollout.resources import LLMService
from services.store import Command, RolloutRow, Store, StoreError

log = logging.getLogger(__name__)

FINALIZER: Final = "understudy.dev/drain"
REFUSED_SECONDS: Final = 10.0
"""Pause of a resource that is not acted on; a change wakes it."""

_CHANGED: Final = 422  # a JSON patch's test failed
_ALARMING: Final = frozenset({"abort", "error", "hold"})
_GOOD_NEWS: Final = frozenset({reasons.SERVING, reasons.SCALED_TO_ZERO, reasons.VERSION_PINNED, "Reachable"})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all resources share."""

    api: KubernetesApi
    store: Store
    loop: Callable[[LLMService, Mapping[str, Any]], ServiceLoop]
    """Makes the loop of a service; the mapping is an owner reference to its resource."""
    clock: Clock
    stamped: bool
    """Whether a webhook says who gave a command; without one the annotation that names them is anybody's."""
    address: str | None
    """The gateways' base URL."""


def parse(body: Mapping[str, Any]) -> LLMService:
    """The service that a resource describes. Raises pydantic.ValidationError."""
    metadata = {key: body["metadata"][key] for key in ("name", "namespace", "labels") if key in body["metadata"]}
    fields = {"apiVersion": body.get("apiVersion"), "kind": body.get("kind"), "spec": body.get("spec")}
    return LLMService.model_validate({**fields, "metadata": metadata})


class ServiceResource:
    """One resource. `body` is replaced whenever the cluster shows a newer one."""

    def __init__(self, body: Mapping[str, Any], around: Surroundings) -> None:
        self.body = body
        self._around = around
        self._loop: ServiceLoop | None = None
        self._valid: LLMService | None = None
        """The last version that was right; it stays in force."""
        self._wrong: str | None = None
        self._read_generation: int | None = None
        self._teller = Teller(around.api, around.clock, body.get("status"))
        self._history: list[RolloutRow] | None = None
        self._command: Command | None = None
        self._made_of: tuple[Any, ...] | None = None
        self._status: dict[str, Any] = {}
        """The last status made, and what of: most looks see what the last one saw."""
        self._awake = asyncio.Event()
        self.gone = False
        """Whether the cluster has no such resource any more."""

    @property
    def name(self) -> str:
        """The service's name."""
        return str(self.body["metadata"]["name"])

    def see(self, body: Mapping[str, Any]) -> None:
        """The cluster shows a newer body; a changed wish wakes the loop, our own status does not."""
        before, self.body = _wish(self.body), body
        if _wish(body) != before:
            self.wake()

    def wake(self) -> None:
        """The next turn is due now."""
        self._awake.set()
        if self._loop is not None:
            self._loop.wake()

    async def keep(self, holder: Callable[[], Mapping[str, Any]]) -> None:
        """Turn after turn until the resource is gone, or until cancelled. `holder`: the body of the resource that has the name."""
        try:
            while (pause := await self.turn(holder())) is not None:
                await self._rest(pause)
        finally:
            await self.close()

    async def turn(self, holder: Mapping[str, Any]) -> float | None:
        """One turn; seconds until the next. None: nothing of the resource is left here."""
        if self._teller.lost:
            self._teller.lost = False
            await self._read_again()
        metadata = self.body["metadata"]
        if self.gone or metadata.get("deletionTimestamp"):
            return await self._leave(holder)
        if holder["metadata"]["uid"] != metadata["uid"]:
            where = holder["metadata"]["namespace"]
            self._refuse(reasons.NAME_TAKEN, f"the older resource in namespace {where} has the name: rename this one")
            return REFUSED_SECONDS
        self._read()
        if self._valid is None:
            self._refuse(reasons.INVALID_RESOURCE, self._wrong or "")
            return REFUSED_SECONDS
        if not await self._hold():
            return loops.RETRY_SECONDS
        loop = self._running(self._valid)
        loop.follow(self._valid)
        await self._take_command()
        decision = await loop.look()
        if decision is None:
            return loops.RETRY_SECONDS
        self._note_events(decision)
        await self._report(decision)
        return loop.pause(decision)

    def _read(self) -> None:
        """What the resource wants, where that has changed."""
        generation = self._generation
        if generation == self._read_generation:
            return
        self._read_generation = generation
        try:
            self._valid, self._wrong = parse(self.body), None
        except ValidationError as error:
            self._wrong = explain(error, LLMService)

    @property
    def _generation(self) -> int:
        return int(self.body["metadata"]["generation"])

    async def close(self) -> None:
        """Ends what runs beside the turns."""
        await self._teller.close()
        if self._loop is not None:
            await self._loop.close()
            self._loop = None

    async def told(self) -> None:
        """Returns when nothing is being told."""
        await self._teller.told()

    async def _rest(self, pause: float) -> None:
        if self._loop is not None:
            await self._loop.rest(pause)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._awake.wait()
        self._awake.clear()

    def _running(self, service: LLMService) -> ServiceLoop:
        if self._loop is None:
            metadata = self.body["metadata"]
            owner = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "controller": True}
            owner |= {"name": metadata["name"], "uid": metadata["uid"], "blockOwnerDeletion": False}
            self._loop = self._around.loop(service, owner)
        return self._loop

    async def _hold(self) -> bool:
        """Nothing is made before the resource waits for us when it goes."""
        metadata = self.body["metadata"]
        finalizers = metadata.get("finalizers") or []
        if FINALIZER in finalizers:
            return True
        return await self._patch(
            [
                {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
                {"op": "add", "path": "/metadata/finalizers", "value": [*finalizers, FINALIZER]},
            ]
        )

    async def _let_go(self) -> bool:
        finalizers = self.body["metadata"].get("finalizers") or []
        if self.gone or FINALIZER not in finalizers:
            return True
        path = f"/metadata/finalizers/{finalizers.index(FINALIZER)}"
        return await self._patch([{"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path}])

    async def _patch(self, operations: list[dict[str, Any]]) -> bool:
        """Whether it was done; a resource that had changed under the patch is read again, for the next try."""
        metadata = self.body["metadata"]
        try:
            async with asyncio.timeout(TELL_SECONDS):
                self.body = await self._around.api.patch(
                    LLM_SERVICE, metadata["namespace"], metadata["name"], operations
                )
        except TimeoutError:
            silence = "the API server did not answer in time"
            log.warning(events.RESOURCE_UNTOLD, {"service": self.name, "error": silence})
            return False
        except KubernetesError as error:
            if isinstance(error, KubernetesRejected) and error.status in (*GONE, _CHANGED):
                await self._read_again()
            else:
                log.warning(events.RESOURCE_UNTOLD, {"service": self.name, "error": error})
            return False
        return True

    async def _read_again(self) -> None:
        """The resource as it is now, if the API server says so."""
        metadata = self.body["metadata"]
        try:
            async with asyncio.timeout(TELL_SECONDS):
                found = await self._around.api.get(
                    LLM_SERVICE.group, LLM_SERVICE.version, metadata["namespace"], LLM_SERVICE.plural, metadata["name"]
                )
        except (TimeoutError, KubernetesError) as error:
            log.warning(events.RESOURCE_UNREAD, {"service": self.name, "error": error})
            return
        if found is None or found["metadata"]["uid"] != metadata["uid"]:
            self.gone = True
        else:
            self.body = found

    async def _take_command(self) -> None:
        """From the annotation into the store, where it is obeyed like any other; then the annotation goes. Its id makes it happen once."""
        annotations = self.body["metadata"].get("annotations") or {}
        text = annotations.get(COMMAND)
        if text is None:
            return
        try:
            order = Order.model_validate_json(text)
        except ValidationError as error:
            why = explain(error, Order)
            log.warning(events.COMMAND_REFUSED, {"service": self.name, "annotation": COMMAND, "error": why})
            self._teller.note(Happening("Warning", reasons.COMMAND_REFUSED, "command", why, text))
        else:
            stamped = annotations.get(COMMAND_BY) if self._around.stamped else None
            actor = stamped or f"claimed:{order.by or 'nobody'}"
            try:
                await asyncio.to_thread(self._add_command, order, actor)
            except StoreError as error:
                log.warning(events.COMMAND_WAITS, {"service": self.name, "command": order.id, "error": error})
                return
        operations: list[dict[str, Any]] = [
            {"op": "test", "path": pointer(COMMAND), "value": text},
            {"op": "remove", "path": pointer(COMMAND)},
        ]
        if COMMAND_BY in annotations:
            operations.append({"op": "remove", "path": pointer(COMMAND_BY)})
        await self._patch(operations)

    def _add_command(self, order: Order, actor: str) -> None:
        store = self._around.store
        store.add_command(Command(order.id, self.name, order.rollout, order.verb, actor, order.note, store.now()))

    async def _report(self, decision: Decision) -> None:
        """Tells the resource's status after a look, and what happened."""
        look = self._loop.last if self._loop is not None else None
        if any(isinstance(action, Emit | AnswerCommand) for action in decision.actions):
            self._history = None
        if look is None or self._teller.busy:
            return
        try:
            if self._history is None:
                await asyncio.to_thread(self._remember)
        except StoreError as error:
            log.warning(events.STATUS_WAITS, {"service": self.name, "error": error})
            return
        said, generation = self._teller.said, self._generation
        seen = (decision.status, look.route, look.readings, generation)
        made_of = (*seen, said, self._wrong, self._history, self._command)
        if made_of != self._made_of:
            self._status, self._made_of = self._make_status(decision, look, said, generation), made_of
        self._teller.tell(self.body, self._status)

    def _make_status(
        self, decision: Decision, look: Look, said: Mapping[str, Any] | None, generation: int
    ) -> dict[str, Any]:
        status = service_status(
            decision.status,
            look.route,
            look.readings,
            self._history or [],
            generation,
            look.now,
            said,
            command=self._command,
            address=self._around.address,
        )
        if self._wrong is not None:
            wrong = refused_status(reasons.INVALID_RESOURCE, self._wrong, generation, look.now, said)["conditions"]
            refused = {
                condition["type"]: condition for condition in wrong if condition["reason"] == reasons.INVALID_RESOURCE
            }
            status["conditions"] = [refused.get(condition["type"], condition) for condition in status["conditions"]]
        return status

    def _remember(self) -> None:
        store = self._around.store
        self._history = store.rollouts(self.name, HISTORY)
        answered = [command for command in store.commands(self.name, pending=False) if command.handled_at is not None]
        self._command = max(answered, key=lambda command: (command.handled_at or 0.0, command.at), default=None)

    def _refuse(self, reason: str, message: str) -> None:
        """The resource is not acted on (any more), and says why."""
        if not self._teller.busy:
            said, now = self._teller.said, self._around.clock.time()
            self._teller.tell(self.body, refused_status(reason, message, self._generation, now, said))

    async def _leave(self, holder: Mapping[str, Any]) -> float | None:
        """A turn of a resource that is being deleted, or that was taken away from under us."""
        metadata = self.body["metadata"]
        ours = holder["metadata"]["uid"] == metadata["uid"]
        if ours and (self._loop is not None or FINALIZER in (metadata.get("finalizers") or ())):
            known = self._valid
            if known is None:
                known = await asyncio.to_thread(self._last_known)
            loop = self._running(known)
            retirement = await loop.retire()
            if retirement is None:
                return loops.RETRY_SECONDS
            self._note_events(retirement.decision)
            if retirement.waiting is not None:
                if not self.gone:
                    self._refuse(reasons.SERVICE_DELETED, f"deleted; waiting for {retirement.waiting}")
                return min(loops.RETRY_SECONDS, loop.service.spec.rollout.look)
            if not self.gone:
                await self._teller.told()
                self._teller.tell(self.body)
                await self._teller.told()
        return None if await self._let_go() else loops.RETRY_SECONDS

    def _last_known(self) -> LLMService:
        """What is to be ended where this process has never seen a valid version: as the newest rollout knew it, or by name and model."""
        with contextlib.suppress(ValidationError):
            return parse(self.body)
        for row in self._around.store.rollouts(self.name, 1):
            try:
                return LLMService.model_validate(row.spec)
            except ValidationError:
                break
        spec = self.body.get("spec") or {}
        model = spec.get("model") if isinstance(spec, Mapping) else None
        metadata = {"name": self.name, "namespace": self.body["metadata"]["namespace"]}
        try:
            return LLMService.model_validate({"metadata": metadata, "spec": {"model": model}})
        except ValidationError:
            return LLMService.model_validate({"metadata": metadata, "spec": {"model": {"registeredModel": self.name}}})

    def _note_events(self, decision: Decision) -> None:
        rollout = decision.status.rollout
        for action in decision.actions:
            if not isinstance(action, Emit):
                continue
            condition = action.action == "condition"
            alarming = action.action in _ALARMING or (condition and action.reason not in _GOOD_NEWS)
            about = rollout.id if rollout is not None and not condition else ""
            message = action.message if action.actor == "controller" else f"{action.message} (by {action.actor})"
            type_ = "Warning" if alarming else "Normal"
            self._teller.note(Happening(type_, action.reason, action.action, message, about))


def _wish(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a resource a person changes."""
    metadata = body["metadata"]
    command = (metadata.get("annotations") or {}).get(COMMAND)
    return metadata.get("generation"), metadata.get("deletionTimestamp"), command
