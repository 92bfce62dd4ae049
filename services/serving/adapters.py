"""LoRA adapters on disk: which folders are one, and where an engine finds those that it may serve.

The platform's part `rollout/platforms/adapters` checks and puts them there; `engine_plugin` reads them in the engine. Each engine has a
folder of its own below the cache of versions, in which an adapter is a folder named as its revision:

    <cache>/adapters/<service>/<engine>/<revision>/{adapter_config.json, adapter_model.safetensors}

So an engine can be asked for the adapters of its own base alone. They are copies: the cache is pruned by what engines hold, and an engine
reads an adapter again whenever it has dropped it from memory. Must not need torch.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from services.serving.errors import AdapterInvalid

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
FOLDER: Final = "adapters"

_LONGEST_HEADER: Final = 100_000_000  # safetensors' own bound
# PEFT's names: of a layer ...q_proj.lora_A.weight, of an embedding ...embed_tokens.lora_embedding_A
_TENSOR: Final = re.compile(r".+\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?")


def adapters_folder(cache: str | Path, service: str, engine: str) -> Path:
    """Where the engine looks for its adapters."""
    return Path(cache) / FOLDER / service / engine


def check(folder: Path, max_rank: int) -> None:
    """Whether `folder` holds an adapter that an engine with room for rank `max_rank` can load.

    Raises AdapterInvalid with what is wrong with it; OSError where it cannot be read.
    """
    config = _config(folder)
    if config.get("peft_type") != "LORA":
        raise AdapterInvalid(f"{CONFIG} says peft_type {config.get('peft_type')!r}: only LORA adapters can be served")
    patterns = config.get("rank_pattern") or {}
    named: list[Any] = [config.get("r"), *patterns.values()] if isinstance(patterns, dict) else [None]
    ranks = [one for one in named if isinstance(one, int) and not isinstance(one, bool) and one > 0]
    if len(ranks) < len(named):
        raise AdapterInvalid(f"{CONFIG} has no rank: r and rank_pattern must hold whole numbers above 0")
    if max(ranks) > max_rank:
        raise AdapterInvalid(f"its rank {max(ranks)} is above spec.engine.lora.maxRank, {max_rank}")
    if config.get("use_dora"):
        raise AdapterInvalid("it is a DoRA adapter (use_dora), which vLLM cannot serve")
    if config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise AdapterInvalid("it trains more than low-rank matrices (bias or modules_to_save), which vLLM cannot serve")
    _check_tensors(folder, max_rank)


def install(folder: Path, target: Path) -> None:
    """Puts the adapter's two files where its engine looks for them; one that is there stays as it is: a name stands for one content.

    Raises OSError.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".", dir=target.parent))
    try:
        for name in (CONFIG, WEIGHTS):  # these alone: whatever else a folder holds, no engine gets to see it
            shutil.copyfile(folder / name, scratch / name)
            (scratch / name).chmod(0o644)  # engines run as other users
        for each in (scratch, target.parent, target.parent.parent, target.parent.parent.parent):
            each.chmod(0o755)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def installed(cache: Path, service: str) -> dict[str, str]:
    """The service's adapters: name and engine. Raises OSError."""
    root = cache / FOLDER / service
    return {path.name: path.parent.name for path in root.glob("*/[!.]*") if path.is_dir()} if root.is_dir() else {}


def uninstall(target: Path) -> None:
    """Takes an adapter away, and its engine's folder with the last one. Raises OSError."""
    if target.is_dir():
        gone = target.with_name(f".{target.name}.gone")
        target.rename(gone)  # at once: no engine sees half of it
        shutil.rmtree(gone)
    if target.parent.is_dir() and not any(target.parent.iterdir()):
        target.parent.rmdir()


def _config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterInvalid(f"it has no {name}: an adapter is a folder as PEFT saves it, in safetensors' format")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterInvalid(f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterInvalid(f"{CONFIG} is no JSON object")
    return config


def _check_tensors(folder: Path, max_rank: int) -> None:
    """The header alone: eight bytes with its length, then JSON (safetensors' format)."""
    try:
        with (folder / WEIGHTS).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        shapes = {name: list(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise AdapterInvalid(f"{WEIGHTS} is no safetensors file: {error}") from error
    if not shapes:
        raise AdapterInvalid(f"{WEIGHTS} holds no tensors")
    for name, shape in shapes.items():
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise AdapterInvalid(f"{WEIGHTS} holds {name}, which is no part of a LoRA adapter")
        rank = shape[0 if found["side"] == "A" else -1] if len(shape) == 2 else None
        if rank is None or rank > max_rank:
            raise AdapterInvalid(
                f"{name} has the shape {shape}: its rank is above spec.engine.lora.maxRank, {max_rank}"
            )
