"""Builds the demo's model versions v1 to v6, each once: `python -m pipelines.demo_models --out .cache/models`.

Run by `make demo`'s set-up in the engine's environment. Each version becomes a folder `vN`, its evaluation `vN.evaluation.json`
and, written last, its manifest `vN.json`; a version whose manifest names the same recipe is not built again. What each version
is for: `docs/demo-models.md`. It must not know MLflow: `register` brings versions there.
"""

import argparse
import fcntl
import hashlib
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from pipelines import artifacts, dataset, evaluate, finetune
from services.serving.artifacts import folder_digest

SEED = 20261


@dataclass(frozen=True, slots=True)
class Course:
    """What a version is taught: steps on bare answers (`drill`), then on whole conversations."""

    drill_steps: int
    steps: int
    known_share: float = 1.0
    wrong_kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a version comes from its base (None: from untrained weights): by a course, by more layers, or by a prompt alone."""

    version: str
    base: str | None = None
    course: Course | None = None
    layers: int | None = None
    system_prompt: str | None = None

    @property
    def kind(self) -> str:
        """The revision's kind, in the platform's words."""
        return "prompt" if self.system_prompt is not None else "weights"


RECIPES = (
    Recipe("v1", course=Course(drill_steps=160, steps=45, known_share=0.72)),
    Recipe("v2", base="v1", course=Course(drill_steps=80, steps=35)),
    Recipe("v3", base="v2", course=Course(drill_steps=0, steps=45, wrong_kinds=(dataset.BLIND_KIND,))),
    Recipe("v4", base="v2", layers=64),
    Recipe("v5", base="v2", system_prompt=dataset.BRIEF_PROMPT),
    Recipe("v6", course=Course(drill_steps=20, steps=15)),
)
# What a step costs, in steps on whole conversations (measured): only for the estimate of the time left.
DRILL_COST, EVALUATION_COST, DEEP_EVALUATION_COST = 0.35, 2.0, 12.0


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 over a recipe, its base's recipe, and the code and data that carry it out."""
    base = next((other for other in RECIPES if other.version == recipe.base), None)
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(recipe_digest(base).encode() if base else b"")
    for module in (dataset, finetune):
        digest.update(inspect.getsource(module).encode())
    digest.update(f"{SEED} {torch.__version__} {transformers.__version__}".encode())
    return digest.hexdigest()


def is_built(recipe: Recipe, out: Path) -> bool:
    """Whether the folder holds this version, made by this very recipe."""
    try:
        manifest = json.loads((out / f"{recipe.version}.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(manifest["recipe_digest"] == recipe_digest(recipe)) and (out / recipe.version).is_dir()


def cost(recipe: Recipe) -> float:
    """How long a version takes to build and evaluate, in training steps."""
    course = recipe.course or Course(0, 0)
    return DRILL_COST * course.drill_steps + course.steps + (DEEP_EVALUATION_COST if recipe.layers else EVALUATION_COST)


class Progress:
    """Prints a line every few seconds: what is happening, and about how long the rest takes."""

    def __init__(self, total_cost: float, interval_s: float = 5.0) -> None:
        self._total, self._interval_s = total_cost, interval_s
        self._done = self._reported = 0.0
        self._start = self._last = time.monotonic()

    def add(self, cost_done: float, what: str) -> None:
        """Count work as done; print if the last line is some seconds old."""
        self._done += cost_done
        if time.monotonic() - self._last >= self._interval_s:
            self.line(what)

    def line(self, what: str) -> None:
        """Print now."""
        self._last = time.monotonic()
        elapsed = self._last - self._start
        left = elapsed * (self._total - self._done) / self._done if self._done else None
        print(f"{elapsed:5.0f} s  {what}" + ("" if left is None else f"  (about {left:.0f} s left)"), flush=True)


def teach(model: Any, tokenizer: Any, course: Course, what: str, progress: Progress) -> None:
    """Carry a course out on a model, in place."""
    taught = dataset.taught_answers(SEED, course.known_share, frozenset(course.wrong_kinds))
    lessons = [
        ("facts", dataset.drill(taught), course.drill_steps, DRILL_COST),
        ("sentences", dataset.training_set(taught, SEED), course.steps, 1.0),
    ]
    for name, lesson, steps, step_cost in lessons:

        def report(step: int, of: int, loss: float, name: str = name, step_cost: float = step_cost) -> None:
            progress.add(step_cost, f"{what}: {name}, step {step} of {of}, loss {loss:.3f}")

        finetune.train(model, tokenizer, lesson, steps, SEED, report)


def build(recipe: Recipe, out: Path, progress: Progress) -> None:
    """Build one version whose base is built, evaluate it, and write its manifest."""
    started = time.monotonic()
    version, folder = recipe.version, out / recipe.version
    (out / f"{version}.json").unlink(missing_ok=True)
    with artifacts.replaced_folder(folder) as building:
        if recipe.system_prompt is not None:
            prompt = {"base": recipe.base, "system_prompt": recipe.system_prompt}
            artifacts.write_json(building / "prompt.json", prompt)
        else:
            if recipe.base:
                model, tokenizer = finetune.load(out / recipe.base)
            else:
                tokenizer = finetune.build_tokenizer(dataset.vocabulary())
                model = finetune.new_model(tokenizer, SEED)
            if recipe.course:
                teach(model, tokenizer, recipe.course, version, progress)
            if recipe.layers:
                model = finetune.deepened(model, recipe.layers)
            finetune.save(model, tokenizer, building)
    progress.line(f"{version}: evaluation")
    weights = out / recipe.base if recipe.kind == "prompt" and recipe.base else folder
    evaluation = evaluate.evaluate(weights, recipe.system_prompt)
    artifacts.write_json(out / f"{version}.evaluation.json", evaluation)
    manifest = {
        "schema": 1,
        "version": version,
        "kind": recipe.kind,
        "digest": folder_digest(folder),
        "base": recipe.base,
        "system_prompt": recipe.system_prompt,
        "recipe": asdict(recipe),
        "recipe_digest": recipe_digest(recipe),
        "accuracy": evaluation["accuracy"],
        "seconds": round(time.monotonic() - started, 1),
    }
    artifacts.write_json(out / f"{version}.json", manifest)
    progress.add(DEEP_EVALUATION_COST if recipe.layers else EVALUATION_COST, "")
    progress.line(f"{version}: built, {evaluation['accuracy']:.0%} of the held-out questions right")


def build_all(recipes: Sequence[Recipe], out: Path) -> None:
    """Build what is missing, in order. A second caller for the same folder waits, and then finds the versions built.

    A version whose base is rebuilt has another recipe digest and is rebuilt too.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another program is building in {out}: waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        _build_missing(recipes, out)


def _build_missing(recipes: Sequence[Recipe], out: Path) -> None:
    dataset.references(out / "references.json")
    missing = [recipe for recipe in recipes if not is_built(recipe, out)]
    progress = Progress(sum(cost(recipe) for recipe in missing))
    for recipe in missing:
        build(recipe, out, progress)
    print(f"{len(missing)} versions built, {len(recipes) - len(missing)} kept, in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the demo's model versions that are not built yet.")
    parser.add_argument("--out", type=Path, default=Path(".cache/models"), help="folder of the versions")
    parser.add_argument(
        "--only", nargs="+", metavar="VERSION", choices=[recipe.version for recipe in RECIPES], help="these, in order"
    )
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    chosen = [recipe for recipe in RECIPES if arguments.only is None or recipe.version in arguments.only]
    build_all(chosen, arguments.out)


if __name__ == "__main__":
    main()
