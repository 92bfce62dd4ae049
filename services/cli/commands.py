"""Leaves a person's order in the store and waits for the controller's answer. Used by `understudy abort | promote | ...`.

The controller alone decides what comes of an order; this module refuses none but those that have nothing to act on. Asking twice is
harmless: an order of the same kind that still waits is joined, not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from services.cli.errors import NotFound
from services.common.identifiers import uuid7
from services.store.rows import Command, Verb

if TYPE_CHECKING:
    from services.store import Store


class Waiter(Protocol):
    """Time as those who wait need it: the module `time` is one."""

    def time(self) -> float: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Given:
    """An order and what the controller said; `answer` is None where it has not answered in time, `id` where no order was needed."""

    id: str | None
    service: str
    rollout: str | None
    verb: Verb
    answer: str | None

    @property
    def refused(self) -> bool:
        """Whether the controller would not do it."""
        return self.answer is not None and self.answer.startswith("refused")


LOOK_SECONDS: Final = 0.2
ENDS_WITH: Final = {"abort": "abort", "promote": "advance"}
"""The verdict that an order asks for; a rollout that has ended with it needs no order."""
DONE: Final = {"abort": "aborted", "promote": "promoted"}


def give(store: Store, service: str, verb: Verb, *, actor: str, reason: str, wait: float, clock: Waiter) -> Given:
    """Adds the order (or joins the same one that waits) and returns with the answer, or after `wait` seconds without.

    Raises:
        NotFound: the service is unknown, or there never was a rollout of it.
    """
    rollouts = store.rollouts(service, limit=1)
    if not rollouts:
        known = sorted({row.service for row in store.rollouts()} | set(store.routes()))
        if service not in known:
            raise NotFound(f"no service {service!r} in this store; it knows {', '.join(known) or 'none'}")
        raise NotFound(
            f"service {service!r} has had no rollout yet, so there is nothing to {verb}; set the challenger alias to start one"
        )
    newest, rollout = rollouts[0], rollouts[0].id
    if newest.stage == "finished" and newest.verdict == ENDS_WITH.get(verb):
        return Given(None, service, rollout, verb, f"{newest.revision} is {DONE[verb]} already")
    waiting = [one for one in store.commands(service) if one.verb == verb and one.rollout == rollout]
    if waiting:
        order = waiting[0]
    else:
        order = Command(
            id=uuid7(), service=service, rollout=rollout, verb=verb, actor=actor, note=reason, at=store.now()
        )
        store.add_command(order)
    return Given(order.id, service, rollout, verb, _answer(store, service, order.id, wait, clock))


def _answer(store: Store, service: str, order: str, wait: float, clock: Waiter) -> str | None:
    until = clock.monotonic() + wait
    while True:
        for one in store.commands(service, pending=False):
            if one.id == order and one.handled_at is not None:
                return one.answer or "done"
        left = until - clock.monotonic()
        if left <= 0:
            return None
        clock.sleep(min(LOOK_SECONDS, left))
