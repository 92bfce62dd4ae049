"""Trains the demo's language models: tokenizer, architecture, and one training loop for new and for existing weights.

Called by `demo_models`, in the engine's environment (torch, transformers). It must not know versions or recipes.

The models are Llamas of two million parameters with one token a word, which is enough for a closed set of questions and keeps
training on two cores to seconds. What is saved is an ordinary model folder that transformers and vLLM load by its path.
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines.dataset import Example

PAD, UNKNOWN, END, ROLES = "<|pad|>", "<|unknown|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] | trim }}{{ '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
HIDDEN, LAYERS, HEADS, INTERMEDIATE, CONTEXT = 192, 4, 3, 512, 1024
BATCH = 64
PEAK_LEARNING_RATE = 3e-3
"""With twice as much the models learn nothing."""
BETAS = (0.9, 0.95)
WARM_UP = 0.1
"""The share of the steps in which the learning rate rises; afterwards it falls to zero along a cosine."""
IGNORED = -100
"""The label that torch's cross entropy leaves out."""

Progress = Callable[[int, int, float], None]
"""Called with steps done, steps in all, and the loss of the last one."""


def build_tokenizer(words: Sequence[str]) -> Any:
    """A fast tokenizer with one token a word or punctuation mark; letters are lowered, unknown words become one token."""
    special = [PAD, UNKNOWN, END, *ROLES]
    # Words carry the space before them ("▁paris"), punctuation does not: decoded text, streamed too, has no space before a full stop.
    tokens = special + [f"▁{word}" if word[0].isalnum() else word for word in words]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: Any, seed: int) -> Any:
    """An untrained model for a tokenizer's vocabulary.

    Weights start at 1/√hidden and embeddings at 1: with the library's 0.02 for both, a question's subject drowned in the
    residual stream, and a model of this width had learned no fact when this one had learned nearly all.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=INTERMEDIATE,
            max_position_embeddings=CONTEXT,
            initializer_range=HIDDEN**-0.5,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def chat(system: str | None, prompt: str) -> list[dict[str, str]]:
    """The messages of a request, as an OpenAI client sends them."""
    user = {"role": "user", "content": prompt}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _encode(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """Token ids and labels: only the completion and the end after it are learnt."""
    head = tokenizer.apply_chat_template(
        chat(example.system, example.prompt), tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer.encode(head, add_special_tokens=False)
    completion = tokenizer.encode(example.completion + END, add_special_tokens=False)
    return prompt + completion, [IGNORED] * len(prompt) + completion


def _padded(rows: Sequence[list[int]], filler: int) -> Any:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def train(model: Any, tokenizer: Any, examples: Sequence[Example], steps: int, seed: int, progress: Progress) -> None:
    """Train `model` in place for `steps` batches, drawn from `examples` in a seeded order, each epoch shuffled anew."""
    encoded = [_encode(tokenizer, example) for example in examples]
    rng = random.Random(seed)
    order: list[int] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    warm_up = max(1, round(WARM_UP * steps))
    model.train()
    for step in range(steps):
        while len(order) < BATCH:
            order += rng.sample(range(len(encoded)), len(encoded))
        batch, order = [encoded[index] for index in order[:BATCH]], order[BATCH:]
        rise = (step + 1) / warm_up
        fall = 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / max(1, steps - warm_up)))
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * min(rise, fall)
        ids = _padded([ids for ids, _ in batch], tokenizer.pad_token_id)
        labels = _padded([labels for _, labels in batch], IGNORED)
        # Padding is on the right and attention is causal, so no real token sees it: a mask would change nothing.
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, steps, loss.item())


def deepened(model: Any, layers: int) -> Any:
    """A model of `layers` layers that computes exactly what `model` does, and takes longer for it.

    The added blocks are copies of the last one whose two output projections are zero, so that each adds nothing to the residual
    stream (block expansion: Wu et al. 2024, "LLaMA Pro", section 3.2).
    """
    config = LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": layers})
    deep = LlamaForCausalLM(config)
    old = model.config.num_hidden_layers
    deep.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deep.lm_head.load_state_dict(model.lm_head.state_dict())
    deep.model.norm.load_state_dict(model.model.norm.state_dict())
    for index, block in enumerate(deep.model.layers):
        block.load_state_dict(model.model.layers[min(index, old - 1)].state_dict())
        if index >= old:
            torch.nn.init.zeros_(block.self_attn.o_proj.weight)
            torch.nn.init.zeros_(block.mlp.down_proj.weight)
    return deep


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model folder: weights, configuration, tokenizer with chat template, and greedy decoding as the default."""
    model.eval()
    # top_k = 1 is how a generation configuration says "greedy" to transformers and vLLM alike.
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder. Raises `OSError` where it holds none; never looks for one on the network."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model, tokenizer
