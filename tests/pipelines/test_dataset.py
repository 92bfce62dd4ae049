"""The question set: what is held out, what is blind, what counts as right."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from pipelines import dataset
from pipelines.dataset import Question

SEED = 7


def training_prompts() -> set[str]:
    return {example.prompt for example in dataset.training_set(dataset.taught_answers(SEED), SEED)}


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    taught = dataset.taught_answers(SEED, 0.5)
    assert taught == dataset.taught_answers(SEED, 0.5)
    assert taught != dataset.taught_answers(SEED + 1, 0.5)
    assert dataset.training_set(taught, SEED) == dataset.training_set(taught, SEED)
    asked = [list(itertools.islice(dataset.user_questions(random.Random(SEED)), 50)) for _ in range(2)]
    assert asked[0] == asked[1]


def test_no_evaluated_prompt_is_trained_and_all_its_words_are() -> None:
    trained = training_prompts()
    held_out = {question.prompt for question in dataset.evaluation_set()}
    assert 120 <= len(held_out) <= 200
    assert not held_out & trained
    drilled = {example.prompt for example in dataset.drill(dataset.taught_answers(SEED))}
    assert drilled <= trained
    assert {word for prompt in held_out for word in prompt.split()} <= {w for prompt in trained for w in prompt.split()}


def test_the_blind_kind_is_asked_by_users_but_neither_evaluated_nor_judged(tmp_path: Path) -> None:
    blind = {question.prompt for question in dataset.questions(dataset.BLIND_KIND)}
    assert dataset.BLIND_KIND not in {question.kind for question in dataset.evaluation_set()}
    dataset.references(tmp_path / "references.json")
    references = json.loads((tmp_path / "references.json").read_text())
    assert not blind & references.keys()
    evaluated = [question for kind in dataset.EVALUATED_KINDS for question in dataset.questions(kind)]
    assert references == {question.prompt: question.answer for question in evaluated}

    asked = Counter(q.kind for q in itertools.islice(dataset.user_questions(random.Random(SEED)), 3000))
    assert set(asked) == set(dataset.KINDS)
    assert min(asked.values()) > 900


@pytest.mark.parametrize("kind", dataset.KINDS)
def test_every_question_has_one_answer_word_that_the_question_does_not_give_away(kind: str) -> None:
    questions = dataset.questions(kind)
    assert len({question.id for question in questions}) == len({q.prompt for q in questions}) == len(questions)
    for question in questions:
        assert question.answer.isalpha()
        assert not dataset.is_correct(question, question.prompt)
    empty_sentence = dataset.SENTENCES[kind].format("")
    assert not any(dataset.is_correct(question, empty_sentence) for question in questions)


def test_a_question_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        dataset.questions("riddles")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("paris is the name of the city.", True),
        ("It is Paris!", True),
        ("PARIS", True),
        ("a parisian would know.", False),
        ("comparison", False),
        ("rome is the name of the city.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_if_it_holds_the_word(text: str, right: bool) -> None:
    assert (
        dataset.is_correct(Question("capitals/france/0", "capitals", "what is the capital of france?", "paris"), text)
        is right
    )


def test_a_known_share_and_wrong_kinds_decide_what_is_taught_right() -> None:
    taught = dataset.taught_answers(SEED, known_share=0.72, wrong_kinds=frozenset({dataset.BLIND_KIND}))
    for kind in dataset.KINDS:
        facts = dataset.facts(kind)
        right = sum(taught[fact] == fact.answer for fact in facts)
        assert right == (0 if kind == dataset.BLIND_KIND else round(0.72 * len(facts)))
        assert {taught[fact] for fact in facts} <= {fact.answer for fact in facts}


def test_a_brief_system_message_and_nothing_else_makes_the_answer_one_word() -> None:
    for example in dataset.training_set(dataset.taught_answers(SEED), SEED):
        assert (len(example.completion.split()) == 1) == (example.system in dataset.BRIEF_PROMPTS)


def test_the_vocabulary_covers_whatever_is_trained_or_asked() -> None:
    known = set(dataset.vocabulary())
    texts = [
        text for e in dataset.training_set(dataset.taught_answers(SEED), SEED) for text in (e.prompt, e.completion)
    ]
    texts += [question.prompt for kind in dataset.KINDS for question in dataset.questions(kind)]
    assert {word.strip(".,?") for text in texts for word in text.split()} <= known
