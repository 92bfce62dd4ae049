"""A LoRA adapter's folder as PEFT saves one, written by hand: what is checked of it, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(
    folder: Path, *, rank: int = 4, tensors: dict[str, Sequence[int]] | None = None, **config: Any
) -> Path:
    """Writes the folder. `tensors`: names and shapes, all zero; `config` replaces fields of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    shapes = {f"{LAYER}.lora_A.weight": (rank, 8), f"{LAYER}.lora_B.weight": (8, rank)} if tensors is None else tensors
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return folder
