"""Where the commands get their documents and leave their orders: the platform's store, or the resources of a cluster. One seam, two
sources; `main` asks for one with `opened_source` and knows no difference.

Documents are those of `views`. What a source cannot know is None in them (see `cluster_views`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from services.cli import commands, connection, views
from services.cli.commands import Given
from services.cli.errors import NotFound, UsageFault
from services.cli.options import Where
from services.store.rows import Verb

if TYPE_CHECKING:
    from services.rollout.planning import Traffic
    from services.rollout.resources import LLMService
    from services.store import RolloutRow, Store


class Source(Protocol):
    """Every method may raise `NotFound`, `Away` and other `CliError`s."""

    def status(self, service: str | None) -> dict[str, Any]:
        """Every service or one."""
        ...

    def rollouts(self, service: str | None, limit: int) -> dict[str, Any]:
        """Rollouts of every service or of one, newest first."""
        ...

    def explain(self, what: str) -> dict[str, Any]:
        """A service's newest rollout, or the one of that id."""
        ...

    def draw(self, told: dict[str, Any], path: Path) -> None:
        """Write the evidence of a rollout (a document of `explain`) as a picture."""
        ...

    def progress(self, service: str, rollout: str | None) -> dict[str, Any]:
        """The service's rollout (None: its newest) as `explain` has it, cheap enough to be asked each second."""
        ...

    def resource(self, service: str) -> LLMService:
        """The service's resource, as it is in force."""
        ...

    def traffic(self, service: LLMService) -> tuple[Traffic, str] | None:
        """Its traffic of the last days, and over what time it was measured, in words; None: none is known here."""
        ...

    def give(self, service: str, verb: Verb, *, actor: str, reason: str, wait: float) -> Given:
        """Leave an order and wait up to `wait` seconds for its answer."""
        ...

    def pin(self, service: str, version: str, *, remove: bool, actor: str, reason: str, wait: float) -> Given:
        """Have a version run beside stable, or no more."""
        ...


class StoreSource:
    """The platform's store."""

    def __init__(self, store: Store, url: str) -> None:
        self._store, self._url = store, url
        self._told: tuple[RolloutRow, dict[str, Any]] | None = None

    def status(self, service: str | None) -> dict[str, Any]:
        return views.status(self._store, service)

    def rollouts(self, service: str | None, limit: int) -> dict[str, Any]:
        return views.rollouts(self._store, service, limit)

    def explain(self, what: str) -> dict[str, Any]:
        return views.explain(self._store, what)

    def draw(self, told: dict[str, Any], path: Path) -> None:
        from services.cli import plot

        row = self._store.rollout(told["id"])
        if row is not None:
            plot.draw(self._store, row, told, path)

    def progress(self, service: str, rollout: str | None) -> dict[str, Any]:
        # A day's rollout has tens of thousands of readings: they are read again only when the row says that there was a look.
        with connection.store_errors(self._url):
            if rollout is None or self._told is None:
                told = views.explain(self._store, rollout or service)
                row = self._store.rollout(told["id"])
            else:
                row = self._store.rollout(rollout)
                told = self._told[1] if row == self._told[0] else views.explain(self._store, rollout)
            if row is not None:
                self._told = (row, told)
            return told

    def resource(self, service: str) -> LLMService:
        """As the newest rollout began under it: the store knows no other."""
        from services.rollout.resources import LLMService

        newest = self._store.rollouts(service, limit=1)
        if not newest:
            raise NotFound(
                f"the store keeps no resource of {service!r} before its first rollout: name its file with --resource FILE"
            )
        return views.parsed(newest[0].id, newest[0].spec, LLMService)

    def traffic(self, service: LLMService) -> tuple[Traffic, str] | None:
        from services.rollout.forecast import lasting
        from services.rollout.observe import HISTORY_SECONDS
        from services.rollout.planning import traffic_of

        since = self._store.now() - HISTORY_SECONDS
        usage, route = self._store.usage(service.name, since), self._store.route(service.name)
        if usage is None:
            return None
        revision = route.stable.revision if route is not None else ""
        baseline = self._store.baseline(service.name, revision, since, service.spec.rollout.horizon)
        return traffic_of(usage, baseline), lasting(usage["seconds"])

    def give(self, service: str, verb: Verb, *, actor: str, reason: str, wait: float) -> Given:
        return commands.give(self._store, service, verb, actor=actor, reason=reason, wait=wait, clock=time)

    def pin(self, service: str, version: str, *, remove: bool, actor: str, reason: str, wait: float) -> Given:
        raise UsageFault(
            f"what is pinned stands in the service's resource, which no command changes outside a cluster: write '{version}' "
            f"{'out of' if remove else 'into'} spec.model.pinned of the file of {service}; a platform that runs reads the file again"
        )


@contextmanager
def opened_source(where: Where) -> Iterator[Source]:
    """The source that was asked for, closed at the end.

    Raises:
        Away: store or cluster did not answer.
        UsageFault: no store was given, or there is no such context.
    """
    if where.in_cluster:
        from services.cli.cluster import opened_cluster

        with opened_cluster(where) as cluster:
            yield cluster
        return
    url = connection.store_url(where.store)
    with connection.opened(url) as store:
        yield StoreSource(store, url)
