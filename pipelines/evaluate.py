"""Evaluates a model folder on the held-out questions: the evidence that a rollout's gate reads.

Run by hand or by a job (`python -m pipelines.evaluate --model DIR --out FILE`) and called by `demo_models`, in the engine's
environment. It must not see the blind kind, nor the registry: `register` carries the result there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from pipelines import artifacts, dataset, finetune
from services.serving.artifacts import folder_digest

SCHEMA = 1
LONGEST_ANSWER = 24
"""Tokens; the trained sentences have fewer."""
BATCH = 32


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], system_prompt: str | None = None) -> list[str]:
    """The model's greedy answers, in the order of the prompts."""
    tokenizer.padding_side = "left"
    model.eval()
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        heads = [
            tokenizer.apply_chat_template(
                finetune.chat(system_prompt, prompt), tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts[start : start + BATCH]
        ]
        batch = tokenizer(heads, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                top_k=None,
                max_new_tokens=LONGEST_ANSWER,
            )
        new = output[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def marked(
    model: Any, tokenizer: Any, questions: Sequence[dataset.Question], system_prompt: str | None = None
) -> list[bool]:
    """Which questions the model answers rightly."""
    texts = answers(model, tokenizer, [question.prompt for question in questions], system_prompt)
    return [dataset.is_correct(question, text) for question, text in zip(questions, texts, strict=True)]


def evaluate(folder: Path, system_prompt: str | None = None) -> dict[str, Any]:
    """The evaluation of a model folder, in the form that the gate reads (`docs/demo-models.md`).

    Accuracies are shares of 1. Raises `OSError` where the folder holds no model.
    """
    model, tokenizer = finetune.load(folder)
    questions = dataset.evaluation_set()
    marks = marked(model, tokenizer, questions, system_prompt)
    items = [{"id": q.id, "kind": q.kind, "correct": mark} for q, mark in zip(questions, marks, strict=True)]
    by_kind = {}
    for kind in dataset.EVALUATED_KINDS:
        of_kind = [mark for question, mark in zip(questions, marks, strict=True) if question.kind == kind]
        by_kind[kind] = sum(of_kind) / len(of_kind)
    return {
        "schema": SCHEMA,
        "dataset": {"name": dataset.NAME, "digest": dataset.evaluation_digest(), "items": len(items)},
        "model_digest": folder_digest(folder),
        "system_prompt": system_prompt,
        "accuracy": sum(marks) / len(marks),
        "by_kind": by_kind,
        "items": items,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model folder on the held-out questions.")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--system-prompt", help="system message sent before every question")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"{arguments.model} holds no model (no config.json)")
    transformers.utils.logging.disable_progress_bar()
    result = evaluate(arguments.model, arguments.system_prompt)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(arguments.out, result)
    print(json.dumps({"accuracy": result["accuracy"], "by_kind": result["by_kind"]}))


if __name__ == "__main__":
    main()
