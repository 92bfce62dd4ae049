"""What users say of answers: `POST /v1/feedback`, by request id. Recorded like every other record; idempotent on an id the client sends."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Annotated, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from services.common.identifiers import uuid7, uuid7_time
from services.common.wire import BadRequest, NotFound, Unavailable
from services.gateway.assignment import Assigner
from services.gateway.auth import Caller
from services.gateway.metrics import Metrics
from services.gateway.recorder import Recorder
from services.gateway.tracing import Tracer
from services.store import Store, StoreError, is_bad_mark, is_good_mark
from services.store.records import Feedback, FeedbackKind, Observation

REMEMBERED: Final = 50_000
"""Answers whose feedback needs no look into the store."""

UNDER_WAY_SECONDS: Final = 3.0
"""How long the row of another gateway's answer may be on its way to the store; meanwhile feedback on it waits."""
LOOK_SECONDS: Final = 0.2
LONGEST_ANSWER_SECONDS: Final = 600.0
"""Ids tell when a request began; older ones were stored long ago, or never."""

_RANGES: Final[dict[FeedbackKind, tuple[float, float]]] = {
    "rating": (1.0, 5.0),
    "edit": (0.0, 1.0),
    "dwell": (0.0, 86_400.0),
}
_EVENTS: Final[frozenset[FeedbackKind]] = frozenset({"retry", "copy", "escalation"})


class FeedbackIn(BaseModel):
    """The body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: Annotated[str, Field(min_length=1, max_length=64, description="The answer's `x-request-id`.")]
    kind: FeedbackKind
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """thumb: -1 or 1. rating: 1 to 5. edit: share of the answer changed, 0 to 1. dwell: seconds. retry, copy, escalation: 1 or nothing."""
    comment: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")] | None = None
    user: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Who says it; where given, it must be the request's own user."""
    id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The client's own id of this feedback: sending it again changes nothing."""

    def checked_value(self) -> float | None:
        """The value to record.

        Raises:
            BadRequest: it is missing, not wanted, or out of range.
        """
        value = self.value
        if self.kind == "comment":
            if self.comment is None:
                raise BadRequest(
                    "Feedback of kind `comment` needs a `comment`.", param="comment", code="missing_comment"
                )
            if value is not None:
                raise BadRequest("Feedback of kind `comment` has no `value`.", param="value", code="out_of_range")
            return None
        if self.kind in _EVENTS:
            value = 1.0 if value is None else value
            if value != 1.0:
                raise BadRequest(f"The `value` of `{self.kind}` is 1 or left out.", param="value", code="out_of_range")
            return value
        if value is None:
            raise BadRequest(f"Feedback of kind `{self.kind}` needs a `value`.", param="value", code="missing_value")
        if self.kind == "thumb" and value not in (-1.0, 1.0):
            raise BadRequest("The `value` of `thumb` is -1 or 1.", param="value", code="out_of_range")
        low, high = _RANGES.get(self.kind, (-1.0, 1.0))
        if not low <= value <= high:
            raise BadRequest(
                f"The `value` of `{self.kind}` lies between {low:g} and {high:g}.", param="value", code="out_of_range"
            )
        return value


class FeedbackOut(BaseModel):
    """The answer."""

    id: str
    request_id: str


class _Answer(msgspec.Struct, frozen=True):
    service: str
    tenant: str
    unit: str
    revision: str
    arm: str


def _answer(row: Observation) -> _Answer:
    return _Answer(row.service, row.tenant, row.unit, row.revision, row.arm)


class Answered:
    """The last answers of this gateway, so that feedback finds its request before the store has the row."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def remember(self, row: Observation) -> None:
        self._answers[row.request_id] = _answer(row)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    def find(self, request_id: str) -> _Answer | None:
        return self._answers.get(request_id)


class FeedbackDesk:
    """Takes feedback in."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        recorder: Recorder,
        assigner: Assigner,
        answered: Answered,
        metrics: Metrics,
        store_time: Callable[[], float],
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._store = store
        self._executor = executor
        self._recorder = recorder
        self._assigner = assigner
        self._answered = answered
        self._metrics = metrics
        self._store_time = store_time

    async def take(self, given: FeedbackIn, caller: Caller) -> FeedbackOut:
        """Records one piece of feedback; it is on disk when this returns.

        Raises:
            BadRequest: a value out of range.
            NotFound: no such request of this tenant, or not of the named user.
            Unavailable: the request is not this gateway's and the store cannot be asked.
        """
        value = given.checked_value()
        answer = self._answered.find(given.request_id) or await self._from_store(given.request_id)
        if answer is None or answer.tenant != caller.tenant or not self._is_users(answer, given, caller):
            raise NotFound("No request with this id is known.", param="request_id", code="request_not_found")
        shown = given.id or uuid7()
        self._recorder.record(
            Feedback(
                id=_stored_id(caller.tenant, given.request_id, given.id) if given.id else shown,
                request_id=given.request_id,
                service=answer.service,
                kind=given.kind,
                value=value,
                comment=given.comment,
                at=self._store_time(),
                gateway=self._recorder.gateway,
                boot=self._recorder.boot,
                sequence=self._recorder.next_sequence(),
            )
        )
        mark = _mark(given.kind, value)
        self._metrics.feedback(answer.service, answer.revision, answer.arm, given.kind, mark)
        if self._tracer is not None:
            self._tracer.feedback(
                given.request_id, service=answer.service, revision=answer.revision, arm=answer.arm, kind=given.kind,
                value=value, mark=mark, comment=given.comment, source=answer.tenant, key=shown,
            )  # fmt: skip
        return FeedbackOut(id=shown, request_id=given.request_id)

    def _is_users(self, answer: _Answer, given: FeedbackIn, caller: Caller) -> bool:
        return given.user is None or self._assigner.unit(caller, given.user) == answer.unit

    async def _from_store(self, request_id: str) -> _Answer | None:
        loop = asyncio.get_running_loop()
        waits = round(UNDER_WAY_SECONDS / LOOK_SECONDS) if self._is_new(request_id) else 0
        for left in range(waits, -1, -1):
            try:
                row = await loop.run_in_executor(self._executor, self._store.request, request_id)
            except StoreError:
                raise Unavailable(
                    "The request cannot be looked up just now; send the feedback again later.", code="store_away"
                ) from None
            if row is not None:
                return _answer(row)
            if left:
                await asyncio.sleep(LOOK_SECONDS)
        return None

    def _is_new(self, request_id: str) -> bool:
        """Whether the id says that its answer may have ended a moment ago."""
        made = uuid7_time(request_id)
        return made is not None and abs(self._store_time() - made) < LONGEST_ANSWER_SECONDS


def _mark(kind: FeedbackKind, value: float | None) -> Literal["good", "bad", "neutral"]:
    if is_bad_mark(kind, value):
        return "bad"
    return "good" if is_good_mark(kind, value) else "neutral"


def _stored_id(tenant: str, request_id: str, client_id: str) -> str:
    """A client's id means something only beside its tenant and request."""
    return hashlib.sha256(f"{tenant}\0{request_id}\0{client_id}".encode()).hexdigest()[:32]
