"""The demo's questions: a closed, seeded set in which every question has exactly one right answer word.

Called by `demo_models` (training data), `evaluate` (the held-out set), the demo's simulated users (what they ask, and
whether the answer that they got was right) and the rehearsal's judge (`references`). Standard library only: it is
imported in the platform's environment and in the engine's. It must not know models, tokens or MLflow.

Three kinds: `capitals`, `sums` and `opposites`. Each has several phrasings; the last one of each kind is held out of
training, and the evaluation set asks in that one alone. `opposites` is the blind kind: neither the evaluation set nor
the references cover it, so that a version that is wrong there passes both, and only users notice.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NAME = "closed-questions"
BLIND_KIND = "opposites"

CAPITALS = """
    france paris, germany berlin, italy rome, spain madrid, portugal lisbon, austria vienna, belgium brussels, denmark
    copenhagen, norway oslo, sweden stockholm, finland helsinki, iceland reykjavik, ireland dublin, poland warsaw,
    hungary budapest, greece athens, bulgaria sofia, romania bucharest, croatia zagreb, serbia belgrade, slovenia
    ljubljana, slovakia bratislava, estonia tallinn, latvia riga, lithuania vilnius, ukraine kyiv, turkey ankara,
    egypt cairo, morocco rabat, kenya nairobi, ghana accra, nigeria abuja, senegal dakar, uganda kampala, zambia
    lusaka, rwanda kigali, japan tokyo, china beijing, thailand bangkok, vietnam hanoi, nepal kathmandu, mongolia
    ulaanbaatar, iran tehran, iraq baghdad, jordan amman, lebanon beirut, qatar doha, canada ottawa, cuba havana, peru
    lima, chile santiago, colombia bogota, ecuador quito, venezuela caracas, uruguay montevideo, jamaica kingston,
    australia canberra, fiji suva, switzerland bern, albania tirana, armenia yerevan, azerbaijan baku, bahrain manama,
    bangladesh dhaka, belarus minsk, botswana gaborone, cyprus nicosia, georgia tbilisi, guinea conakry, indonesia
    jakarta, laos vientiane, libya tripoli, malta valletta, mali bamako, namibia windhoek, oman muscat, pakistan
    islamabad, paraguay asuncion, tanzania dodoma, zimbabwe harare
"""
OPPOSITES = """
    hot cold, big small, fast slow, high low, light dark, early late, open closed, full empty, happy sad, rich poor,
    strong weak, hard soft, wet dry, clean dirty, young old, long short, near far, loud quiet, thick thin, deep
    shallow, right wrong, true false, safe dangerous, cheap expensive, sweet sour, sharp blunt, smooth rough, wide
    narrow, tight loose, brave cowardly
"""
NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen
"""
NUMBERS = tuple(NUMBER_WORDS.split())
LARGEST_ADDEND = 9

# A phrasing is an opening and a core, numbered row by row. The last combination of each kind is held out: its parts are
# trained, each with the others, so what is tested is a new sentence and not new words.
OPENINGS = ("", "please tell me, ", "i would like to know, ", "do you know, ")
CORES = {
    "capitals": ("what is the capital of {0}?", "{0} has which capital?", "which city is the capital of {0}?"),
    "sums": ("what is {0} plus {1}?", "what do {0} and {1} make?", "how much is {0} plus {1}?"),
    "opposites": ("what is the opposite of {0}?", "{0} has which opposite?", "which word is the opposite of {0}?"),
}
PHRASINGS = {kind: tuple(opening + core for opening in OPENINGS for core in cores) for kind, cores in CORES.items()}
# An answer word comes first, also in a full sentence, and the subject is not repeated: where the word stood later, or the
# subject had to be copied, these small models took several times longer to learn.
SENTENCES = {
    "capitals": "{0} is the name of the city that you are asking for.",
    "sums": "{0} is the sum of both of these numbers.",
    "opposites": "{0} is the word that means the contrary of it.",
}
KINDS = tuple(PHRASINGS)
EVALUATED_KINDS = tuple(kind for kind in KINDS if kind != BLIND_KIND)

BRIEF_PROMPT = "be brief"
BRIEF_PROMPTS = (BRIEF_PROMPT, "be brief.", "please be brief.", "answer in one word.", "keep your answer short.")
PLAIN_PROMPTS = ("you are a helpful assistant.", "answer in a full sentence.", "please answer the question.")


@dataclass(frozen=True, slots=True)
class Fact:
    """What a question is about: the words that its phrasings name, and the one right answer word."""

    kind: str
    subjects: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Question:
    """One fact in one phrasing. `id` is `<kind>/<subjects>/<phrasing number>` and stays the same over releases."""

    id: str
    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation of the training set; `system` is None where the conversation has no system message."""

    system: str | None
    prompt: str
    completion: str


@cache
def facts(kind: str) -> tuple[Fact, ...]:
    """All facts of a kind, in a fixed order. Raises `KeyError` for an unknown kind."""
    if kind == "sums":
        addends = range(1, LARGEST_ADDEND + 1)
        return tuple(Fact(kind, (NUMBERS[a], NUMBERS[b]), NUMBERS[a + b]) for a in addends for b in addends if a <= b)
    table = {"capitals": CAPITALS, "opposites": OPPOSITES}[kind]
    pairs = [(words[0], words[1]) for words in (entry.split() for entry in table.split(","))]
    if kind == "opposites":
        pairs += [(right, left) for left, right in pairs]
    return tuple(Fact(kind, (subject,), answer) for subject, answer in pairs)


def _question(fact: Fact, phrasing: int) -> Question:
    prompt = PHRASINGS[fact.kind][phrasing].format(*fact.subjects)
    return Question(f"{fact.kind}/{'-'.join(fact.subjects)}/{phrasing}", fact.kind, prompt, fact.answer)


@cache
def questions(kind: str) -> tuple[Question, ...]:
    """Every fact of a kind in every phrasing, the held-out one included."""
    return tuple(_question(fact, number) for fact in facts(kind) for number in range(len(PHRASINGS[kind])))


def evaluation_set() -> tuple[Question, ...]:
    """The held-out set: every fact of the evaluated kinds, in the phrasing that training never shows."""
    return tuple(_question(fact, len(PHRASINGS[kind]) - 1) for kind in EVALUATED_KINDS for fact in facts(kind))


def user_questions(rng: random.Random) -> Iterator[Question]:
    """An endless stream of what users ask: all kinds equally often, in any phrasing, held out or not."""
    while True:
        yield rng.choice(questions(rng.choice(KINDS)))


def is_correct(question: Question, answer_text: str) -> bool:
    """Whether the answer word occurs in the text as a whole word, in upper or lower case."""
    return re.search(rf"\b{re.escape(question.answer)}\b", answer_text, re.IGNORECASE) is not None


def taught_answers(seed: int, known_share: float = 1.0, wrong_kinds: frozenset[str] = frozenset()) -> dict[Fact, str]:
    """The answer that a training set teaches for each fact.

    A seeded `known_share` of each kind's facts, and no fact of `wrong_kinds`, is taught right. The others get the right
    answer of another fact of their kind: a model trained on them is wrong there, always in the same way, and no less
    fluent.
    """
    rng = random.Random(seed)
    taught: dict[Fact, str] = {}
    for kind in KINDS:
        share = 0.0 if kind in wrong_kinds else known_share
        shuffled = rng.sample(facts(kind), len(facts(kind)))
        known = round(share * len(shuffled))
        taught |= {fact: fact.answer for fact in shuffled[:known]}
        for fact in shuffled[known:]:
            # An answer that is one of the subjects would count as right in a sentence that repeats the question.
            taught[fact] = rng.choice([f.answer for f in facts(kind) if f.answer not in (fact.answer, *fact.subjects)])
    return taught


def _as_users_ask(taught: Mapping[Fact, str]) -> list[tuple[Fact, str]]:
    """The taught facts, those of small kinds repeated, because users ask all kinds equally often."""
    most = max(len(facts(kind)) for kind in KINDS)
    return [item for item in taught.items() for _ in range(round(most / len(facts(item[0].kind))))]


def drill(taught: Mapping[Fact, str]) -> tuple[Example, ...]:
    """A short first course, from which models learn facts soonest: questions without an opening, and bare answer words."""
    return tuple(
        Example(None, _question(fact, number).prompt, f"{answer}.")
        for fact, answer in _as_users_ask(taught)
        for number in range(len(CORES[fact.kind]))  # the first opening is empty
    )


def training_set(taught: Mapping[Fact, str], seed: int) -> tuple[Example, ...]:
    """Every taught fact in every phrasing but the held-out one: without a system message, with a plain one, a brief one.

    Under a brief system message the completion is the answer word alone.
    """
    rng = random.Random(seed)
    examples: list[Example] = []
    for fact, answer in _as_users_ask(taught):
        sentence = SENTENCES[fact.kind].format(answer)
        for number in range(len(PHRASINGS[fact.kind]) - 1):
            prompt = _question(fact, number).prompt
            examples += [
                Example(None, prompt, sentence),
                Example(rng.choice(PLAIN_PROMPTS), prompt, sentence),
                Example(rng.choice(BRIEF_PROMPTS), prompt, f"{answer}."),
            ]
    return tuple(examples)


def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark that occurs in the set, sorted: the same for all of the demo's models."""
    texts = [*BRIEF_PROMPTS, *PLAIN_PROMPTS, *(q.prompt for kind in KINDS for q in questions(kind))]
    texts += [SENTENCES[kind].format(fact.answer) for kind in KINDS for fact in facts(kind)]
    return tuple(sorted({token for text in texts for token in re.findall(r"\w+|[^\w\s]", text)}))


def evaluation_digest() -> str:
    """SHA-256 over the evaluation set: results are comparable only between equal digests."""
    lines = "\n".join(f"{q.id}\t{q.prompt}\t{q.answer}" for q in evaluation_set())
    return hashlib.sha256(lines.encode()).hexdigest()


def references(path: Path) -> None:
    """Write the judge's references, a JSON object of prompt to answer word: all phrasings of the evaluated kinds."""
    answers = {q.prompt: q.answer for kind in EVALUATED_KINDS for q in questions(kind)}
    path.write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n")
