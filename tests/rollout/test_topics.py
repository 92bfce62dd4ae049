"""Topics: groups of prompts with names of their own words, what of them is new, and that chance alone is seldom told as a change."""

from __future__ import annotations

import random

from services.rollout.prompts import terms_of, words_of
from services.rollout.topics import Asked, Topics, topics
from tests.fakes.embedder import embedding

TALK = {
    "orders": "order parcel shipped tracking delivery arrive",
    "refunds": "refund money return broken damaged receipt",
    "code": "python function unit traceback list sort",
    "food": "recipe cook dinner garlic rice oven",
}
OUTAGE = "outage error unavailable status incident down"
FILLER = "please can you help with the for"


def prompts(rng: random.Random, number: int, new: float = 0.0, filler: str = FILLER) -> list[Asked]:
    return [ask(rng, OUTAGE if rng.random() < new else rng.choice(list(TALK.values())), filler) for _ in range(number)]


def ask(rng: random.Random, talk: str, filler: str = FILLER) -> Asked:
    text = " ".join([*rng.sample(talk.split(), 4), *rng.sample(filler.split(), 2)])
    return Asked(embedding(text), "en", words_of(text), frozenset(terms_of(text)))


def found(then: list[Asked], now: list[Asked]) -> Topics:
    seen = topics(then, now)
    assert seen is not None
    return seen


def test_topics_have_names_of_their_own_words() -> None:
    rng = random.Random(1)
    seen = found(prompts(rng, 300), prompts(rng, 300))
    for topic in seen.topics:
        assert any(set(topic.name) <= set(talk.split()) for talk in TALK.values()), topic.name
        assert topic.change.trend == "steady"
    assert sum(topic.change.now for topic in seen.topics) == 1


def test_a_new_topic_and_what_it_displaces() -> None:
    rng = random.Random(2)
    seen = found(prompts(rng, 250), prompts(rng, 250, new=0.3))
    new = [topic for topic in seen.topics if topic.change.trend == "new"]
    assert new
    assert all(set(topic.name) <= set(OUTAGE.split()) for topic in new)
    assert 0.25 < seen.share("new") < 0.35
    assert all(topic.change.lower < topic.change.now < topic.change.upper for topic in new)  # then: nobody
    assert found(prompts(rng, 250, new=0.3), prompts(rng, 250)).share("new") == 0


def test_chance_is_seldom_told_as_a_change() -> None:
    rng = random.Random(3)
    told = 0
    for _ in range(8):
        seen = found(prompts(rng, 150), prompts(rng, 150))
        told += any(topic.change.trend != "steady" for topic in seen.topics)
    assert told <= 1


def test_a_word_of_few_users_is_never_shown() -> None:
    rng = random.Random(4)
    secret = [ask(rng, "jane doe cancer diagnosis clinic letter") for _ in range(4)]
    seen = found(prompts(rng, 100), [*prompts(rng, 96), *secret])
    shown = {word for topic in seen.topics for word in topic.name}
    assert shown
    assert not shown & {"jane", "doe", "cancer", "diagnosis", "clinic", "letter"}


def test_languages_and_lengths() -> None:
    rng = random.Random(5)
    then = prompts(rng, 200)
    german = [Asked(one.vector, "de", 20, one.terms) for one in prompts(rng, 100)]
    seen = found(then, [*prompts(rng, 100), *german])
    assert (seen.languages["de"].then, seen.languages["de"].now, seen.languages["de"].trend) == (0.0, 0.5, "new")
    assert seen.languages["en"].trend == "shrinks"
    assert seen.words == ((6, 6, 6), (6, 6, 20))


def test_words_are_not_needed_and_too_few_users_say_nothing() -> None:
    rng = random.Random(6)
    blind = [Asked(one.vector, None, one.words) for one in prompts(rng, 60)]
    seen = found(blind, blind)
    assert {topic.name for topic in seen.topics} == {()}
    assert set(seen.languages) == {None}
    assert topics(blind[:9], blind) is None
    same = [blind[0]] * 30
    assert found(same, same).topics  # nothing divides by nothing
