"""What users say of answers: `POST /v1/feedback`, by request id. Recorded like every other record; idempotent on an id the client sends.

A preference is about two answers: `preferences` says which count.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import Executor
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.common.identifiers import uuid7, uuid7_time
from services.common.wire import BadRequest, NotFound, Unavailable
from services.gateway.assignment import Assigner
from services.gateway.auth import Caller
from services.gateway.metrics import Metrics
from services.gateway.preferences import WORTH, Answer, compared
from services.gateway.recorder import Recorder
from services.gateway.routes import RoutingTable
from services.gateway.tracing import Tracer
from services.store import Store, StoreError, is_bad_mark, is_good_mark
from services.store.records import Feedback, FeedbackKind, Observation, Preference

REMEMBERED: Final = 50_000
"""Answers whose feedback needs no look into the store."""

UNDER_WAY_SECONDS: Final = 3.0
"""How long the row of another gateway's answer may be on its way to the store; meanwhile feedback on it waits."""
LOOK_SECONDS: Final = 0.2
LONGEST_ANSWER_SECONDS: Final = 600.0
"""Ids tell when a request began; older ones were stored long ago, or never."""

Kind = Literal[FeedbackKind, "preference"]
Mark = Literal["good", "bad", "neutral"]

_RANGES: Final[dict[Kind, tuple[float, float]]] = {
    "rating": (1.0, 5.0),
    "edit": (0.0, 1.0),
    "dwell": (0.0, 86_400.0),
}
_EVENTS: Final[frozenset[Kind]] = frozenset({"retry", "copy", "escalation"})


class FeedbackIn(BaseModel):
    """The body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: Annotated[str, Field(min_length=1, max_length=64, description="The answer's `x-request-id`.")]
    kind: Kind
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """thumb: -1 or 1. rating: 1 to 5. edit: share of the answer changed, 0 to 1. dwell: seconds. retry, copy, escalation: 1 or nothing.
    preference: 1 where the answer is preferred to the other one, 0 where the other one is, 0.5 where neither is."""
    comment: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")] | None = None
    user: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Who says it; where given, it must be the request's own user. Of a preference: who compared, whoever asked."""
    id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The client's own id of this feedback: sending it again changes nothing."""
    other_request_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """preference: the `x-request-id` of the answer that it was compared with."""
    shown_first: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """preference: the one of the two ids whose answer stood first (or left); left out: unknown."""

    def checked_value(self) -> float | None:
        """The value to record.

        Raises:
            BadRequest: it is missing, not wanted, or out of range.
        """
        value = self.value
        for name in ("other_request_id", "shown_first"):
            if getattr(self, name) is not None:
                raise BadRequest(f"`{name}` belongs to feedback of kind `preference`.", param=name, code="not_wanted")
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

    def checked_preference(self) -> tuple[str, float]:
        """The other answer's id, and which is preferred. Raises BadRequest as `checked_value`."""
        if self.other_request_id is None:
            raise BadRequest(
                "A preference needs `other_request_id`, the answer that was compared.", param="other_request_id",
                code="missing_answer",
            )  # fmt: skip
        if self.comment is not None:
            raise BadRequest(
                "A preference has no `comment`: send it as feedback of kind `comment`.",
                param="comment",
                code="not_wanted",
            )
        if self.value is None:
            raise BadRequest("Feedback of kind `preference` needs a `value`.", param="value", code="missing_value")
        if self.value not in WORTH:
            raise BadRequest("The `value` of `preference` is 1, 0.5 or 0.", param="value", code="out_of_range")
        return self.other_request_id, self.value


class FeedbackOut(BaseModel):
    """The answer."""

    id: str
    request_id: str


def _answer(row: Observation, prompt: str | None = None) -> Answer:
    digest = None if prompt is None else hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:8]
    return Answer(row.service, row.tenant, row.unit, row.revision, row.arm, row.outcome, digest)


class Answered:
    """The last answers of this gateway, so that feedback finds its request before the store has the row."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def remember(self, row: Observation, prompt: str | None = None) -> None:
        """`prompt`: what was asked, of a pinned request."""
        self._answers[row.request_id] = _answer(row, prompt)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    def find(self, request_id: str) -> Answer | None:
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
        table: RoutingTable,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._store = store
        self._executor = executor
        self._recorder = recorder
        self._assigner = assigner
        self._answered = answered
        self._metrics = metrics
        self._table = table
        self._store_time = table.store_time

    async def take(self, given: FeedbackIn, caller: Caller) -> FeedbackOut:
        """Records one piece of feedback; it is on disk when this returns.

        Raises:
            BadRequest: a value out of range, or two answers that cannot be compared.
            NotFound: no such request of this tenant, or not of the named user.
            Unavailable: the request is not this gateway's and the store cannot be asked.
        """
        shown = given.id or uuid7()
        if given.kind == "preference":
            return await self._prefer(given, caller, shown)
        value = given.checked_value()
        answer = await self._find("request_id", given.request_id, caller)
        if not self._is_users(answer, given, caller):
            raise _unknown("request_id")
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
        self._tell(given, given.request_id, answer, answer.arm, value, _mark(given.kind, value), shown)
        return FeedbackOut(id=shown, request_id=given.request_id)

    async def _prefer(self, given: FeedbackIn, caller: Caller, shown: str) -> FeedbackOut:
        """Records a preference, and tells of both answers. Raises as `take`."""
        other_id, value = given.checked_preference()
        ids = (given.request_id, other_id)
        first, second = (
            await self._find("request_id", ids[0], caller),
            await self._find("other_request_id", ids[1], caller),
        )
        person, route = self._person(given, (first, second), caller), self._table.route(first.service)
        found = compared(ids, (first, second), value, given.shown_first, route, person)
        self._recorder.record(
            Preference(
                pair=found.pair,
                rollout=found.rollout,
                unit=person,
                candidate=found.candidate,
                at=self._store_time(),
                gateway=self._recorder.gateway,
                boot=self._recorder.boot,
                sequence=self._recorder.next_sequence(),
            )
        )
        for request_id, answer, arm, worth in zip(ids, (first, second), found.arms, (value, 1 - value), strict=True):
            # That another answer was better does not make this one bad: objectives on bad marks are about users' own answers.
            self._tell(given, request_id, answer, arm, worth, "good" if worth == 1 else "neutral", shown)
        return FeedbackOut(id=shown, request_id=given.request_id)

    def _person(self, given: FeedbackIn, answers: tuple[Answer, Answer], caller: Caller) -> str:
        """Who compared: the named user, else the one who asked for both answers."""
        if given.user is not None:
            return self._assigner.unit(caller, given.user)
        if answers[0].unit != answers[1].unit:
            raise BadRequest(
                "Two users asked for these answers: name who compared them as `user`.",
                param="user",
                code="missing_user",
            )
        return answers[0].unit

    def _tell(
        self, given: FeedbackIn, request_id: str, answer: Answer, arm: str, value: float | None, mark: Mark, key: str
    ) -> None:  # fmt: skip
        """To metrics and traces."""
        self._metrics.feedback(answer.service, answer.revision, arm, given.kind, mark)
        if self._tracer is not None:
            self._tracer.feedback(
                request_id, service=answer.service, revision=answer.revision, arm=arm, kind=given.kind, value=value, mark=mark,
                comment=given.comment, source=answer.tenant, key=key,
            )  # fmt: skip

    async def _find(self, param: str, request_id: str, caller: Caller) -> Answer:
        answer = self._answered.find(request_id) or await self._from_store(request_id)
        if answer is None or answer.tenant != caller.tenant:
            raise _unknown(param)
        return answer

    def _is_users(self, answer: Answer, given: FeedbackIn, caller: Caller) -> bool:
        return given.user is None or self._assigner.unit(caller, given.user) == answer.unit

    async def _from_store(self, request_id: str) -> Answer | None:
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


def _unknown(param: str) -> NotFound:
    return NotFound("No request with this id is known.", param=param, code="request_not_found")


def _mark(kind: Kind, value: float | None) -> Mark:
    if is_bad_mark(kind, value):
        return "bad"
    return "good" if is_good_mark(kind, value) else "neutral"


def _stored_id(tenant: str, request_id: str, client_id: str) -> str:
    """A client's id means something only beside its tenant and request."""
    return hashlib.sha256(f"{tenant}\0{request_id}\0{client_id}".encode()).hexdigest()[:32]
