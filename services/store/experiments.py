"""A/B experiments as the controller keeps them. Units, evidence and readings lie in the tables that rollouts have, under the experiment's
id, so that one machinery closes, folds, prunes and erases them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from services.store.database import Database
from services.store.rows import ExperimentRow
from services.store.schema import evidence as states
from services.store.schema import experiments
from services.store.schema import readings as series


class Experiments:
    """The part of the store that keeps experiments."""

    _database: Database

    def experiments(self, service: str | None = None) -> list[ExperimentRow]:
        """Those of a service or of all, oldest first."""
        query = select(experiments).order_by(experiments.c.started_at, experiments.c.id)
        if service is not None:
            query = query.where(experiments.c.service == service)
        with self._database.read() as connection:
            return [ExperimentRow(**row._mapping) for row in connection.execute(query)]

    def commit_experiment(
        self,
        row: ExperimentRow,
        *,
        at: float,
        evidence: Mapping[str, Any] | None = None,
        readings: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Store what a look made of an experiment, or on an error nothing. Repeating it with the same `at` changes nothing.

        Args:
            row: the experiment as it stands now.
            at: time of the look.
            evidence: state from which the next look goes on; None keeps the last.
            readings: one a variant and metric, each with `variant` and `metric`; `at` is added.
        """
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        with self._database.write() as connection:
            self._database.upsert(connection, experiments, values)
            if evidence is not None:
                self._database.upsert(connection, states, {"rollout": row.id, "at": at, "document": evidence})
            if readings:
                rows = [
                    {
                        "rollout": row.id,
                        "at": at,
                        "stage": one["variant"],
                        "metric": one["metric"],
                        "document": {"at": at, **one},
                    }
                    for one in readings
                ]
                connection.execute(self._database.insert(series).on_conflict_do_nothing(), rows)
