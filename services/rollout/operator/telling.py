"""What the cluster is told of one resource: its status, and an event for each thing that happened. Used by `resource`.

Told beside the looks, one thing at a time: an API server that is away, slow or throttling delays what is told, never a look. What could
not be told is told after a later look. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from services.common import events
from services.common.clock import Clock
from services.rollout.operator.api import LLM_SERVICE, KubernetesApi
from services.rollout.platforms.kubernetes_objects import KubernetesError, KubernetesRejected

log = logging.getLogger(__name__)

MANAGER: Final = "understudy"
"""The field manager of what is applied."""
TELL_SECONDS: Final = 15.0
"""How long one conversation with the API server may take."""
NUMBERS_SECONDS: Final = 10.0
"""Between two writes of a status in which only numbers and sentences have moved; every other change is written at once."""
GONE: Final = (404, 409)
"""There is no such object (any more), or another one of its name."""
_EVENTS: Final = 100  # that wait for the API server; of more, the oldest are never told


class Happening(NamedTuple):
    """What becomes a Kubernetes event."""

    type: str
    """Normal or Warning."""
    reason: str
    action: str
    message: str
    about: str
    """A rollout's id, or whatever else tells two of the same reason apart; the same again is counted."""


class Teller:
    """One resource's. `said`: the status that the resource has, None where it has none."""

    def __init__(self, api: KubernetesApi, clock: Clock, said: Mapping[str, Any] | None) -> None:
        self.said = said
        self.lost = False
        """The API server knows no such object (any more); set here, taken back by whoever has read the object again."""
        self._api, self._clock = api, clock
        self._said_at = float("-inf")
        self._events: deque[Happening] = deque(maxlen=_EVENTS)
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being told: what comes now waits for a later turn."""
        return self._task is not None and not self._task.done()

    def note(self, happening: Happening) -> None:
        """Will be told with the next status."""
        self._events.append(happening)

    def tell(self, body: Mapping[str, Any], status: Mapping[str, Any] | None = None) -> None:
        """Begins to tell the resource `body` its status, where that has changed, and what happened. Not while busy."""
        if not self.busy and (self._events or (status is not None and status != self.said)):
            self._task = asyncio.create_task(self._tell(body, status), name=f"telling {body['metadata']['name']}")

    async def told(self) -> None:
        """Returns when nothing is being told, whether or not it was heard."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """Breaks off; the next controller tells what it finds."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self, body: Mapping[str, Any], status: Mapping[str, Any] | None) -> None:
        name = body["metadata"]["name"]
        try:
            async with self._api.turns, asyncio.timeout(TELL_SECONDS):
                if status is not None:
                    await self._say(body, status)
                while self._events:
                    event = self._events[0]
                    await self._event(body, event)
                    if self._events[0] is event:  # else there were too many meanwhile, and it fell out
                        self._events.popleft()
        except TimeoutError:
            log.warning(events.RESOURCE_UNTOLD, {"service": name, "error": "the API server did not answer in time"})
        except KubernetesError as error:
            log.warning(events.RESOURCE_UNTOLD, {"service": name, "error": error})
            self.lost = isinstance(error, KubernetesRejected) and error.status in GONE
        except Exception:  # a fault in telling must not end it; it is told of at every look until it is gone
            log.exception(events.RESOURCE_CRASHED, {"service": name})

    async def _say(self, body: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        now = self._clock.monotonic()
        recent = self.said is not None and now < self._said_at + NUMBERS_SECONDS
        if status == self.said or (recent and _gist(status) == _gist(self.said or {})):
            return
        await self._api.apply_status(LLM_SERVICE, body, status, MANAGER)
        self.said, self._said_at = status, now

    async def _event(self, body: Mapping[str, Any], event: Happening) -> None:
        key = f"{event.about}/{event.reason}"
        await self._api.event(body, event.type, event.reason, event.action, event.message, key)


def _gist(status: Mapping[str, Any]) -> dict[str, Any]:
    """Of a status what people and programs wait for: everything but sentences and the evidence's numbers."""
    return {
        **_without_words(status),
        "rollout": _without_words(status.get("rollout", {})),
        "conditions": [_without_words(condition) for condition in status.get("conditions", ())],
        "evidence": [(reading["metric"], reading["stage"]) for reading in status.get("evidence", ())],
    }


def _without_words(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "message"}
