"""What a judge needs and what it said. Gateways put material in encrypted; the controller's judge takes it out and puts scores in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import bindparam, delete, select

from services.store.database import Database
from services.store.rows import JudgeMaterial, Judgement
from services.store.schema import evidence, judge_material
from services.store.schema import judgements as scores

MATERIAL_SECONDS: Final = 3600.0
"""Prompts and answers wait no longer than this for the judge."""


class Judging:
    """The part of the store between gateways and judge."""

    _database: Database

    def put_judge_material(self, material: Sequence[JudgeMaterial]) -> None:
        """Keep encrypted pairs for the judge; a pair that is there already is ignored."""
        if material:
            with self._database.write() as connection:
                rows = [dataclasses.asdict(one) for one in material]
                connection.execute(self._database.insert(judge_material).on_conflict_do_nothing(), rows)

    def judge_material(self, rollout: str, limit: int) -> list[JudgeMaterial]:
        """What waits to be judged, oldest first, nothing older than an hour."""
        with self._database.read() as connection:
            oldest = self._database.now(connection) - MATERIAL_SECONDS
            query = (
                select(judge_material)
                .where(judge_material.c.rollout == rollout, judge_material.c.at > oldest)
                .order_by(judge_material.c.at, judge_material.c.pair)
                .limit(limit)
            )
            return [JudgeMaterial(**row._mapping) for row in connection.execute(query)]

    def put_judgements(self, judgements: Sequence[Judgement]) -> None:
        """Store scores and delete their material, in one transaction. A pair's first judgement stays; `sequence` is the store's."""
        if not judgements:
            return
        rows = [{n: v for n, v in dataclasses.asdict(one).items() if n != "sequence"} for one in judgements]
        pairs = [{"judged": one.pair} for one in judgements]
        with self._database.write() as connection:
            # Without turns a larger number could become visible first, and a reader's cursor would pass over the smaller.
            self._database.serialise(connection, "judgements")
            connection.execute(self._database.insert(scores).on_conflict_do_nothing(), rows)
            connection.execute(delete(judge_material).where(judge_material.c.pair == bindparam("judged")), pairs)

    def note_judging(self, rollout: str, counts: Mapping[str, int], given_up: Sequence[str]) -> None:
        """Add to what is counted of a rollout's judging, and delete the material of pairs on which the judge was asked in vain."""
        with self._database.write() as connection:
            self._database.serialise(connection, "judgements")
            now, name = self._database.now(connection), _counts_of(rollout)
            before = connection.scalar(select(evidence.c.document).where(evidence.c.rollout == name)) or {}
            after = {key: before.get(key, 0) + counts.get(key, 0) for key in {**before, **counts}}
            self._database.upsert(connection, evidence, {"rollout": name, "at": now, "document": after})
            if given_up:
                gone = delete(judge_material).where(judge_material.c.pair == bindparam("given_up"))
                connection.execute(gone, [{"given_up": pair} for pair in given_up])

    def judge_counts(self, rollout: str) -> Mapping[str, int]:
        """What `note_judging` has counted of a rollout."""
        with self._database.read() as connection:
            query = select(evidence.c.document).where(evidence.c.rollout == _counts_of(rollout))
            return connection.scalar(query) or {}

    def judgements(self, rollout: str, after: int, limit: int = 20_000) -> list[Judgement]:
        """Scores with a sequence above `after`, in that order."""
        query = (
            select(scores)
            .where(scores.c.rollout == rollout, scores.c.sequence > after)
            .order_by(scores.c.sequence)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Judgement(**row._mapping) for row in connection.execute(query)]


def _counts_of(rollout: str) -> str:
    """Beside the rollout's evidence."""
    return f"judge:{rollout}"
