"""What is known of sampled answers of stable: the judge's score, where the prompt lies among others. Put in by the controller, which has
read the material (`judging`) that gateways left; asked for by its detectors and by the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import bindparam, delete, select

from services.common.clock import HOUR
from services.store.database import Database
from services.store.rows import Sample, SampleKey
from services.store.schema import judge_material, samples

_AT_ONCE: Final = 1_000
"""Names in one statement."""
_HOURLY: Final = 1_000


class Samples:
    """The part of the store that holds samples."""

    _database: Database

    def put_samples(self, found: Sequence[Sample]) -> None:
        """Store samples and delete their material, in one transaction; one that is there already is ignored."""
        if not found:
            return
        with self._database.write() as connection:
            connection.execute(
                self._database.insert(samples).on_conflict_do_nothing(), [dataclasses.asdict(one) for one in found]
            )
            gone = delete(judge_material).where(judge_material.c.pair == bindparam("looked_at"))
            connection.execute(gone, [{"looked_at": one.id} for one in found])

    def forget_samples(self, service: str) -> None:
        """Delete all of a service that is no more: nothing would prune them."""
        with self._database.write() as connection:
            connection.execute(delete(samples).where(samples.c.service == service))

    def scores(self, service: str, revision: str, since: float, until: float) -> list[Sample]:
        """What the judge scored of a revision's answers given in [since, until), in the order of (at, id), without what is kept of the
        prompts. Of every hour the first 1,000 by id, which is by hash: a week of a busy service costs no more than a week of a quiet one.
        """
        columns = [samples.c[name] for name in ("id", "service", "revision", "unit", "tenant", "at", "score", "judge")]
        theirs = samples.c.service == service, samples.c.revision == revision, samples.c.score.is_not(None)
        found: list[Sample] = []
        with self._database.read() as connection:
            for hour in range(int(since // HOUR), math.ceil(until / HOUR)):
                begin, end = max(since, hour * HOUR), min(until, (hour + 1) * HOUR)
                within = samples.c.at >= begin, samples.c.at < end
                query = select(*columns).where(*theirs, *within).order_by(samples.c.id).limit(_HOURLY)
                found += [Sample(**row._mapping) for row in connection.execute(query)]
        return sorted(found, key=lambda one: (one.at, one.id))

    def sample_keys(self, service: str, since: float, until: float, model: str) -> list[SampleKey]:
        """Of answers given in [since, until), those whose prompts this model has embedded, in the order of (at, id)."""
        query = (
            select(samples.c.id, samples.c.unit, samples.c.at)
            .where(samples.c.service == service, samples.c.at >= since, samples.c.at < until, samples.c.model == model)
            .order_by(samples.c.at, samples.c.id)
        )
        with self._database.read() as connection:
            return [SampleKey(*row) for row in connection.execute(query)]

    def samples_named(self, ids: Sequence[str]) -> dict[str, Sample]:
        """Samples by id, of those that are still there."""
        query = select(samples).where(samples.c.id.in_(bindparam("ids", expanding=True)))
        found: dict[str, Sample] = {}
        with self._database.read() as connection:
            for start in range(0, len(ids), _AT_ONCE):
                for row in connection.execute(query, {"ids": list(ids[start : start + _AT_ONCE])}):
                    found[row.id] = Sample(**row._mapping)
        return found


def material_of(service: str) -> str:
    """Where `JudgeMaterial.rollout` names a rollout, samples of a service have this, which is no rollout's id."""
    return f"samples:{service}"
