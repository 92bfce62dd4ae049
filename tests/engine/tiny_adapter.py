"""Writes a LoRA adapter with random weights for the model of `tiny_model.py`, as PEFT saves one: `tiny_adapter.py FOLDER SEED RANK`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

folder, seed, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(seed)
folder.mkdir(parents=True)
(folder / "adapter_config.json").write_text(
    json.dumps(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny",
            "r": rank,
            "lora_alpha": 4 * rank,
            "target_modules": ["q_proj", "v_proj", "o_proj"],
            "bias": "none",
        }
    )
)
save_file(
    {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight": torch.randn(shape)
        for layer in range(2)
        for module in ("q_proj", "v_proj", "o_proj")
        for side, shape in (("A", (rank, 64)), ("B", (64, rank)))
    },
    folder / "adapter_model.safetensors",
)
