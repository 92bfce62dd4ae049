"""Scores the mirrored pairs of a rehearsal beside the controller's looks: decrypts what the gateways kept, asks the judge, stores the
scores, by which the material is deleted. Run by the controller, one task a judged service. Prompts and answers leave this module for the
judge alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

from services.common import events
from services.rollout.errors import JudgeUnavailable, Unparsable
from services.rollout.judge import Judge, PairwiseJudge
from services.store import JudgeMaterial, Judgement, Store, StoreError

log = logging.getLogger(__name__)

BATCH: Final = 2_000
"""Pairs read at once. Those that the judge has nothing to say on, or that the key does not open, stay until they are an hour old,
so a batch must hold more than these."""
AT_ONCE: Final = 8
"""Questions to the judge under way at once."""


Judged = Callable[[str, str, Mapping[str, float]], None]


class Judging:
    """The judge's work for one service."""

    def __init__(
        self, service: str, store: Store, judge: Judge, content_key: bytes, pause: float, judged: Judged
    ) -> None:
        """`pause`: seconds between two searches for new pairs. `judged` is told of each pair: service, what came of it (as in `counts`),
        scores by arm.
        """
        self._service, self._store, self._judge = service, store, judge
        self._cipher = Fernet(content_key)
        self._pause, self._judged = pause, judged
        self._passed: set[str] = set()
        self._unparsable: list[str] = []
        self.counts: Counter[str] = Counter()
        """judged, without_reference, unparsable, undecipherable: pairs so far; inconsistent: judged ones that turned with the order."""

    async def run(self) -> None:
        """Until cancelled. A store or judge that is away is waited for."""
        while True:
            try:
                await self.judge_waiting()
            except (StoreError, JudgeUnavailable) as error:
                log.warning(events.JUDGE_AWAY, {"service": self._service, "error": error})
            await asyncio.sleep(self._pause)

    async def judge_waiting(self) -> None:
        """Scores every pair that waits now. Raises StoreError, JudgeUnavailable (what was scored before it is stored)."""
        rows = await asyncio.to_thread(self._store.rollouts, self._service, 1)
        if not rows or rows[0].stage != "rehearsal":
            self._passed.clear()
            return
        rollout = rows[0].id
        material = await asyncio.to_thread(self._store.judge_material, rollout, BATCH)
        waiting = [one for one in material if one.pair not in self._passed]
        before = self.counts.copy()
        for start in range(0, len(waiting), AT_ONCE):
            inconsistent = self.counts["inconsistent"]
            scored = await asyncio.gather(
                *(self._score(one) for one in waiting[start : start + AT_ONCE]), return_exceptions=True
            )
            await asyncio.to_thread(self._store.put_judgements, [one for one in scored if isinstance(one, Judgement)])
            if isinstance(self._judge, PairwiseJudge):
                while self.counts["inconsistent"] < self._judge.inconsistent:
                    self._count("inconsistent", {})
            turned, unread = self.counts["inconsistent"] - inconsistent, self._unparsable
            if turned or unread:
                found = {"inconsistent": turned, "unparsable": len(unread)}
                await asyncio.to_thread(self._store.note_judging, rollout, found, unread)
                self._unparsable = []
            for one in scored:
                if isinstance(one, BaseException):
                    raise one
        if self.counts != before:
            told = {"service": self._service, "rollout": rollout, "counts": dict(self.counts)}
            log.info(events.JUDGED, told)

    async def _score(self, material: JudgeMaterial) -> Judgement | None:
        try:
            content = json.loads(self._cipher.decrypt(material.ciphertext))
            scores = await self._judge.score(content["prompt"], content["candidate"], content["stable"])
        except (InvalidToken, ValueError, KeyError):
            self._pass(material, "undecipherable")
            return None
        except Unparsable:
            self._unparsable.append(material.pair)
            self._count("unparsable", {})
            return None
        if scores is None:
            self._pass(material, "without_reference")
            return None
        candidate, stable = scores
        self._count("judged", {"candidate": candidate, "control": stable})
        return Judgement(
            material.pair, material.rollout, material.unit, candidate, stable, self._judge.name, material.at, 0
        )

    def _pass(self, material: JudgeMaterial, why: str) -> None:
        self._passed.add(material.pair)
        self._count(why, {})

    def _count(self, result: str, scores: Mapping[str, float]) -> None:
        self.counts[result] += 1
        self._judged(self._service, result, scores)
