"""Reads what gateways sampled of stable's answers: decrypts it, has it judged, places its prompt among others, and stores what is then
known, by which the content is deleted. Run by the controller, one task a service with samples. Prompts and answers leave this module for
the judge and the embedding's model alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cryptography.fernet import Fernet, InvalidToken

from services.common import events
from services.rollout.errors import EmbeddingUnavailable, JudgeUnavailable, Unparsable
from services.rollout.judge import Grader
from services.rollout.prompts import PromptRead, PromptReader
from services.store import MATERIAL_SECONDS, JudgeMaterial, Sample, Store, StoreError, material_of

log = logging.getLogger(__name__)

BATCH: Final = 16
"""Samples read at once, and questions to the judge under way at once."""
PATIENCE: Final = 0.75 * MATERIAL_SECONDS
"""Seconds after which a sample is stored without what its judge has not said: soon it would be gone."""

Judged = Callable[[str, str, Mapping[str, float]], None]
Opened = tuple[Sample, Mapping[str, Any]]
"""What is known of a sample so far; prompt and answer."""


class SampleReader:
    """One service's. `grader`: None where nobody can judge one answer; `prompts`: None where prompts are not looked at. `judged` as for
    `Judging`.
    """

    def __init__(
        self,
        service: str,
        store: Store,
        grader: Grader | None,
        prompts: PromptReader | None,
        content_key: bytes,
        pause: float,
        judged: Judged,
    ) -> None:
        self._service, self._store, self._grader, self._prompts = service, store, grader, prompts
        self._name = grader.name if grader is not None else None
        self._cipher = Fernet(content_key)
        self._pause, self._judged = pause, judged
        self._read: dict[str, PromptRead] = {}
        """Of samples whose judge is waited for: their prompts are embedded once."""

    async def run(self) -> None:
        """Until cancelled. Who is away is waited for."""
        while True:
            try:
                while await self.read_waiting() == BATCH:
                    pass
            except (StoreError, JudgeUnavailable, EmbeddingUnavailable) as error:
                log.warning(events.SAMPLES_WAIT, {"service": self._service, "error": error})
            await asyncio.sleep(self._pause)

    async def read_waiting(self) -> int:
        """Reads the oldest samples that wait; how many there were.

        Raises:
            StoreError: nothing is lost.
            JudgeUnavailable, EmbeddingUnavailable: what could be read is stored, what has waited for long too.
        """
        now = await asyncio.to_thread(self._store.now)
        material = await asyncio.to_thread(self._store.judge_material, material_of(self._service), BATCH)
        opened = {one.pair: self._opened(one) for one in material}
        known = [one for one in opened.values() if one is not None]
        away: BaseException | None = None
        try:
            known = await self._placed(known)
        except EmbeddingUnavailable as error:
            away = error
            known = [one for one in known if now - one[0].at > PATIENCE]  # the judge is asked once
        scores = await asyncio.gather(*(self._graded(content) for _, content in known), return_exceptions=True)
        ready: list[Sample] = []
        for (sample, _), score in zip(known, scores, strict=True):
            if not isinstance(score, BaseException):
                ready.append(sample if score is None else replace(sample, score=score, judge=self._name))
            else:
                away = score
                if now - sample.at > PATIENCE:
                    ready.append(sample)
        await asyncio.to_thread(self._store.put_samples, ready)
        stored = {one.id for one in ready}
        self._read = {name: self._read[name] for name in opened if name in self._read and name not in stored}
        if locked := [pair for pair, one in opened.items() if one is None]:
            counts = {"undecipherable": len(locked)}
            await asyncio.to_thread(self._store.note_judging, material_of(self._service), counts, locked)
        if away is not None:
            raise away
        return len(material)

    async def _placed(self, known: Sequence[Opened]) -> list[Opened]:
        """With what is kept of the prompts. Raises EmbeddingUnavailable."""
        if self._prompts is None or not known:
            return list(known)
        new = {sample.id: content["prompt"] for sample, content in known if sample.id not in self._read}
        self._read |= dict(zip(new, await self._prompts.read(list(new.values())), strict=True))
        return [(replace(sample, **dataclasses.asdict(self._read[sample.id])), content) for sample, content in known]

    def _opened(self, material: JudgeMaterial) -> Opened | None:
        """What is known so far, and prompt and answer; None: the key does not open it."""
        try:
            content = json.loads(self._cipher.decrypt(material.ciphertext))
            sample = Sample(
                id=material.pair, service=self._service, revision=content["revision"], unit=material.unit, tenant=content["tenant"],
                at=material.at,
            )  # fmt: skip
        except (InvalidToken, ValueError, KeyError):
            self._judged(self._service, "undecipherable", {})
            return None
        return sample, content

    async def _graded(self, content: Mapping[str, Any]) -> float | None:
        """The judge's score; None: there is no judge, or it has nothing to say on that prompt. Raises JudgeUnavailable."""
        if self._grader is None:
            return None
        try:
            score = await self._grader.grade(content["prompt"], content["answer"])
        except Unparsable:
            self._judged(self._service, "unparsable", {})
            return None
        self._judged(
            self._service,
            "without_reference" if score is None else "judged",
            {} if score is None else {"stable": score},
        )
        return score
