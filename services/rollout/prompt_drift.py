"""Whether users ask something else than they did: a classifier two-sample test on the embeddings of their prompts, against a week of the
service's own. Called with each look; asks the store once an hour; only tells.

The reference is the week before stable was promoted; where there are no samples of that week, and a week after an alarm, the last one. It
stays as it is. The time after it goes in rounds: one of a day, which is quick where many ask, and one of a week, which sees more. A round
pairs users' first prompts in it with users' first prompts in the same part of the reference, of the same four hours of the same day of the
week, at random, each once: nights and weekends ask other things, users who come often come early in a round, and neither is a drift. Why
that is valid:

- A user counts once a side, so that somebody who asks the same for days is one prompt. Both sides are drawn in the same way from times that
  begin at the same hour of the week. So, where nothing has changed, the two of a pair may be swapped, whatever the classifier has learned.
- A later round meets the same reference prompts, or at least the same users. Going on, the classifier would know them again; so each begins
  anew, at a smaller level: α/2 for days and for weeks, of that 1/(k(k+1)) in round k. All add up to α, the probability of any false alarm
  against one reference (the union bound asks nothing about how rounds depend on each other).
- Embeddings are condensed by a fixed random projection. It knows no data, so it is the same for both sides.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from services.common import events
from services.common import telemetry as names
from services.common.assignment import BUCKETS
from services.common.clock import DAY, HOUR, rfc3339, turn
from services.evidence import EvidenceError
from services.evidence.embeddings import EmbeddingDrift
from services.rollout.drift import served_since
from services.rollout.metrics import Sample as Measured
from services.rollout.observe import Sight
from services.rollout.observed import Alarm
from services.rollout.prompts import vector_of
from services.rollout.resources import LLMService
from services.rollout.topics import Asked, Topics, Trend, topics
from services.store import Sample, SampleKey, Store
from services.store.judging import MATERIAL_SECONDS

log = logging.getLogger(__name__)

SCHEMA: Final = 1
WEEK: Final = 7 * DAY
BLOCK: Final = 4 * HOUR
LENGTHS: Final = (DAY, WEEK)
"""Of rounds."""
ALPHA: Final = 0.02
"""Probability of any false alarm against one reference, which lasts till the next promotion and never longer than rows are kept."""
USERS: Final = 100
"""Different users that a reference needs."""
MOST: Final = 256
"""Pairs a block: beyond 1,500 a day more say the same."""
DIMENSIONS: Final = 64
"""That embeddings are condensed to. In `benchmarks.prompt_drift`'s cases 32 to 384 see as much; the state has 512 of them."""
LANGUAGES: Final = 10
"""That are exported by name."""
SHOWN: Final = 1_500
"""Users a side by whom topics are told."""


@dataclass(slots=True)
class Round:
    """The newest of its `length`, in seconds; `number` from 1."""

    length: float
    number: int = 1
    test: EmbeddingDrift | None = None

    @property
    def threshold(self) -> float:
        """E-value that alarms."""
        return 1 / level(self.number)

    @property
    def e_value(self) -> float:
        """1 where nothing is known yet."""
        return 1.0 if self.test is None else self.test.e_value


@dataclass(slots=True)
class PromptState:
    """One service's test. `since`: from when on samples are drawn and embedded alike; `reference`: the week's begin, None while there is
    none; `users`: of the reference; `done`: up to where blocks were looked at; `uneven`: till when a larger share was drawn.
    """

    revision: str
    model: str
    share: float
    since: float
    reference: float | None = None
    users: int = 0
    done: float = 0.0
    uneven: float = 0.0
    rounds: tuple[Round, ...] = field(default_factory=lambda: tuple(map(Round, LENGTHS)))
    alarmed_at: float | None = None

    @property
    def nearest(self) -> Round:
        """The round that has alarmed, or is nearest to it."""
        return max(self.rounds, key=lambda one: one.e_value / one.threshold)

    def alarm(self) -> Alarm | None:
        """What has been seen, in words and numbers."""
        of = self.nearest
        if self.alarmed_at is None or of.test is None or self.reference is None:
            return None
        begin, told = rfc3339(self.reference)[:10], float(of.test.accuracy or 0.0)
        message = (
            f"what users ask has changed since the week from {begin}: a classifier tells {told:.0%} of {of.test.pairs} users' prompts from "
            f"those of that week (no change: half; e-value {of.e_value:.3g} of {of.threshold:.3g})"
        )
        numbers = {"eValue": of.e_value, "threshold": of.threshold, "pairs": of.test.pairs, "accuracy": told}
        where = {"round": of.number, "days": of.length / DAY, "reference": self.reference, "model": self.model}
        return Alarm("prompts", message, numbers | where)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "revision": self.revision,
            "model": self.model,
            "share": self.share,
            "since": self.since,
            "reference": self.reference,
            "users": self.users,
            "done": self.done,
            "uneven": self.uneven,
            "rounds": [[one.number, one.test and one.test.to_json()] for one in self.rounds],
            "alarmedAt": self.alarmed_at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PromptState:
        state = cls(data["revision"], data["model"], data["share"], data["since"])
        state.reference, state.users, state.done = data["reference"], data["users"], data["done"]
        state.uneven = data["uneven"]
        for one, (number, test) in zip(state.rounds, data["rounds"], strict=True):
            one.number, one.test = number, test and EmbeddingDrift.from_json(test)
        state.alarmed_at = data["alarmedAt"]
        return state


def level(number: int) -> float:
    """Of a round, from 1."""
    return ALPHA / len(LENGTHS) / (number * (number + 1))


def kept(store: Store, service: str) -> PromptState | None:
    """The service's test as the store has it; None: there is none yet, or another program's, which begins anew."""
    saved = store.evidence(_key(service))
    try:
        return None if saved is None or saved["schema"] != SCHEMA else PromptState.from_json(saved)
    except (EvidenceError, KeyError) as fault:
        log.warning(events.PROMPTS_ANEW, {"service": service, "error": fault})
        return None


def pairs(past: Sequence[SampleKey], today: Sequence[SampleKey], number: int) -> list[tuple[str, str]]:
    """Ids of prompts of one block, at random, each once. `number`: the round's."""

    def drawn(keys: Sequence[SampleKey]) -> list[str]:
        return sorted((key.id for key in keys), key=lambda name: _drawn(name, number))

    return list(zip(drawn(past), drawn(today), strict=False))[:MOST]


def blocks(keys: Sequence[SampleKey], begin: float) -> dict[int, list[SampleKey]]:
    """Each user's first, by the number of its block since `begin`. `keys`: in order."""
    found: dict[int, list[SampleKey]] = defaultdict(list)
    seen: set[str] = set()
    for key in keys:
        if key.unit not in seen:
            seen.add(key.unit)
            found[int((key.at - begin) // BLOCK)].append(key)
    return found


def fold(test: EmbeddingDrift, past: Sequence[bytes], today: Sequence[bytes]) -> None:
    """Adds pairs of embeddings. Raises EvidenceError where they are of different models, and then nothing has been added."""
    if len(sizes := {len(one) for one in (*past, *today)}) != 1:
        raise EvidenceError(f"embeddings of one model in {len(sizes)} sizes")
    before, after = (np.array([vector_of(one) for one in side], np.float64) for side in (past, today))
    projection = _projection(before.shape[1])
    test.update(before @ projection, after @ projection)


class PromptKeeper:
    """The test of one service, kept in the store so that a restarted controller goes on with it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._due: float | None = None
        self._uneven = 0.0
        self._topics_of: tuple[float | None, ...] | None = None
        self.state: PromptState | None = None
        """Where the test of the last look's stable stands."""
        self.topics: Topics | None = None
        """What users asked about then and now, without words; told anew once a day and with an alarm."""

    async def look(self, service: LLMService, sight: Sight) -> Sight:
        """The look with what has changed. Raises StoreError."""
        route = sight.observed.route
        if service.spec.drift.prompts is None or route is None:
            self._due, self.state, self.topics = None, None, None
            return sight
        if self._due is None:
            self.state = await asyncio.to_thread(kept, self._store, service.name)
            if self.state is not None:
                await asyncio.to_thread(self._tell, service.name, self.state)
            self._due = sight.now + turn(service.name, HOUR)
        if route.sample is not None and abs(route.sample.share - service.spec.drift.sample * BUCKETS) > 1:
            self._uneven = sight.now  # an evaluation draws more
        if sight.now >= self._due:
            self._due = sight.now + HOUR
            await asyncio.to_thread(self._run, service, route.stable.revision, sight)
        state = self.state
        alarm = state.alarm() if state is not None and state.revision == route.stable.revision else None
        return sight if alarm is None else replace(sight, observed=replace(sight.observed, prompts=alarm))

    def measured(self) -> Iterator[Measured]:
        """What is exported of it; what is not known has no sample."""
        if self.state is not None and self.state.reference is not None:
            yield names.PROMPTS_E_VALUE, (), self.state.nearest.e_value
            yield names.PROMPTS_THRESHOLD, (), self.state.nearest.threshold
        if self.topics is not None:
            for trend in get_args(Trend):
                yield names.PROMPTS_TOPICS, (trend,), self.topics.share(trend)
            named = sorted(
                ((one.now, language or "unknown") for language, one in self.topics.languages.items()), reverse=True
            )
            for share, language in named[:LANGUAGES]:
                yield names.PROMPTS_LANGUAGES, (language,), share
            yield names.PROMPTS_LANGUAGES, ("other",), sum(share for share, _ in named[LANGUAGES:])
            for quantile, words in zip(("0.1", "0.5", "0.9"), self.topics.words[1], strict=True):
                yield names.PROMPTS_WORDS, (quantile,), float(words)

    def _run(self, service: LLMService, revision: str, sight: Sight) -> None:
        until = min(sight.now, sight.watermark) - MATERIAL_SECONDS  # then a sample is there or will never be
        state = self._state(service, revision, sight.now, until)
        state.uneven = max(state.uneven, self._uneven)
        try:
            self._fold(service.name, state, until, sight.now)
        except EvidenceError as fault:
            log.warning(events.PROMPTS_ANEW, {"service": service.name, "error": fault})
            state = PromptState(revision, state.model, state.share, until)
        self.state = state
        self._store.keep_state(_key(service.name), sight.now, state.to_json())
        self._tell(service.name, state)

    def _tell(self, service: str, state: PromptState) -> None:
        if self._topics_of != (known := (state.reference, state.done // DAY, state.alarmed_at)):
            self._topics_of = known
            self.topics = told(*shown(self._store, service, state), {})

    def _state(self, service: LLMService, revision: str, now: float, until: float) -> PromptState:
        spec, state = service.spec.drift, self.state
        assert spec.prompts is not None  # noqa: S101  checked by look
        alike = state is None or (state.model, state.share) == (spec.prompts.model, spec.sample)
        if state is None or not alike or state.revision != revision:
            since = 0.0 if state is None else state.since if alike else until
            state = PromptState(revision, spec.prompts.model, spec.sample, since)
            promoted = served_since(self._store, service.name, revision)
            if self._refer(service.name, state, promoted - WEEK):
                return state
        elif state.reference is None or _outdated(state, now, service.spec.retention.observations):
            state = PromptState(revision, state.model, state.share, state.since)
        if state.reference is None:
            self._refer(service.name, state, until - WEEK)
        return state

    def _refer(self, service: str, state: PromptState, begin: float) -> bool:
        """Takes the week from `begin` on as the reference, where it has enough samples."""
        if not state.since <= begin < math.inf:
            return False
        begin = math.floor(begin)  # sums of whole seconds are exact
        if not self._store.sample_keys(service, begin - DAY, begin + HOUR, state.model):
            return False  # nobody was sampled yet: users' first prompts would come later than in the rounds
        keys = self._store.sample_keys(service, begin, begin + WEEK, state.model)
        users = len({key.unit for key in keys})
        if users < USERS or keys[-1].at < begin + WEEK - DAY:
            return False
        state.reference, state.users, state.done = begin, users, begin + WEEK
        return True

    def _fold(self, service: str, state: PromptState, until: float, now: float) -> None:
        if state.reference is None or state.done + BLOCK > until:
            return
        past = self._store.sample_keys(service, state.reference, state.reference + WEEK, state.model)
        while state.done + BLOCK <= until:
            if state.alarmed_at is None:
                found = [self._block(service, state, one, past) for one in state.rounds]
                # All is read: nothing fails between the first of these and `done`, or the same pairs would count twice.
                for one, (number, both) in zip(state.rounds, found, strict=True):
                    if number != one.number:
                        one.number, one.test = number, None
                    if both:
                        one.test = one.test or EmbeddingDrift(DIMENSIONS, level(number))
                        fold(one.test, [a for a, _ in both], [b for _, b in both])
                if any(one.test is not None and one.test.drifted for one in state.rounds):
                    state.alarmed_at = now
            state.done += BLOCK

    def _block(
        self, service: str, state: PromptState, of: Round, past: Sequence[SampleKey]
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Of the block after `done`: the number of its round, and its pairs' embeddings."""
        assert state.reference is not None  # noqa: S101  checked by _fold
        begin = state.done - (state.done - state.reference) % of.length
        number = 1 + round((begin - state.reference - WEEK) / of.length)
        if begin < state.uneven:
            return number, []  # users' first prompts came sooner than in the reference
        then = state.reference + (begin - state.reference) % WEEK
        block = round((state.done - begin) / BLOCK)
        today = self._store.sample_keys(service, begin, state.done + BLOCK, state.model)
        before = [key for key in past if then <= key.at < then + of.length]
        found = pairs(blocks(before, then).get(block, ()), blocks(today, begin).get(block, ()), number)
        rows = self._store.samples_named([name for pair in found for name in pair])
        both = [(rows[a].embedding, rows[b].embedding) for a, b in found if a in rows and b in rows]
        return number, [(a, b) for a, b in both if a is not None and b is not None]


def told(then: Sequence[Sample], now: Sequence[Sample], terms: Mapping[str, frozenset[str]]) -> Topics | None:
    """What users asked about, of samples as `shown` finds them; None: too few. `terms`: their words by id, where the key is at hand."""
    size = next((len(row.embedding) for row in reversed(now) if row.embedding is not None), 0)
    return topics(_asked(then, terms, size), _asked(now, terms, size))


def shown(store: Store, service: str, state: PromptState) -> tuple[list[Sample], list[Sample]]:
    """A prompt a user, at random, then and now: of equally long times that begin at the same hour of the week, or whole weeks."""
    if state.reference is None:
        return [], []
    length = min(WEEK, state.done - state.reference - WEEK)
    then, now = (
        _one_each(store.sample_keys(service, begin, begin + length, state.model))
        for begin in (state.reference, state.done - length)
    )
    rows = store.samples_named([*then, *now])
    return [rows[name] for name in then if name in rows], [rows[name] for name in now if name in rows]


def _one_each(keys: Collection[SampleKey]) -> list[str]:
    of_unit: dict[str, str] = {}
    for key in sorted(keys, key=lambda one: _drawn(one.id, 0)):
        of_unit.setdefault(key.unit, key.id)
    return list(of_unit.values())[:SHOWN]


def _asked(rows: Sequence[Sample], terms: Mapping[str, frozenset[str]], size: int) -> list[Asked]:
    """`size`: of the embeddings, in bytes; an endpoint may have changed them under the same model's name."""
    return [
        Asked(vector_of(row.embedding), row.language, row.words or 0, terms.get(row.id, frozenset()))
        for row in rows
        if row.embedding is not None and len(row.embedding) == size
    ]


def _outdated(state: PromptState, now: float, retention: float) -> bool:
    """A week after an alarm it is how things are; and what is no longer kept is no reference."""
    if state.alarmed_at is not None:
        return now - state.alarmed_at > WEEK
    return state.reference is not None and state.reference < now - retention


def _drawn(name: str, number: int) -> bytes:
    return hashlib.blake2b(name.encode(), salt=number.to_bytes(16, "big"), digest_size=8).digest()


@lru_cache(maxsize=4)
def _projection(dimensions: int) -> NDArray[np.float64]:
    """Of a generator that numpy promises never to change: tests go on after an upgrade."""
    drawn: NDArray[np.float64] = np.random.RandomState(0).standard_normal((dimensions, DIMENSIONS))
    return drawn / math.sqrt(DIMENSIONS)


def _key(service: str) -> str:
    """Beside the evidence of rollouts and of `drift`."""
    return f"prompts:{service}"
