"""A vLLM plugin: adapters out of one folder, and for engines on few cores scheduler and model in one process.

vLLM loads it in each of its processes (entry point `vllm.general_plugins`), in the engine's environment. Without the variables named here
nothing changes. Must not import anything else of this project, and must never keep an engine from starting.

Adapters. With `UNDERSTUDY_ADAPTERS=<folder>` (`application` sets it) a request for a model that the engine does not know is answered by the
adapter of that name in the folder; each replica loads it by itself when it is first asked, later ones too. vLLM has this behind the same
switch as endpoints by which anyone who reaches the engine loads any folder: those are taken away, and a name is never a path. On the CPU
vLLM 0.29 computes requests to the base with whatever adapter lies in its last slot (vllm-project/vllm#48421); that is put right here,
since it would give stable's users a candidate's answers.

One process. On the CPU vLLM runs the model in a worker process beside the scheduler, so that it can bind the worker's threads to cores.
That process costs an import of PyTorch and vLLM at the start, its memory, and two messages for every token, for which both sides poll
shared memory. On a laptop the threads are set by the environment and not bound, so nothing is gained by it. With
`UNDERSTUDY_ENGINE_IN_PROCESS=1` (`local_ray` sets it) an engine without tensor or pipeline parallelism runs the model in the
scheduler's process, as vLLM does on one GPU.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections.abc import Callable
from typing import Any

IN_PROCESS = "UNDERSTUDY_ENGINE_IN_PROCESS"
ADAPTERS = "UNDERSTUDY_ADAPTERS"

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")  # a revision's; no dot and no slash
_FILES = ("adapter_config.json", "adapter_model.safetensors")

log = logging.getLogger(__name__)


def register() -> None:
    """What the environment asks for. Called more than once in a process."""
    if os.environ.get(IN_PROCESS) == "1":
        _run_in_process()
    if folder := os.environ.get(ADAPTERS):
        _keep_base_clean()
        if multiprocessing.parent_process() is None:  # vLLM's own child processes answer no requests
            _serve_adapters(folder)


def adapter_path(folder: str, name: str) -> str | None:
    """The adapter's folder; None where `folder` has none of that name, or the name is none that a revision could have."""
    path = os.path.join(folder, name)
    if not _NAME.fullmatch(name) or os.path.islink(path):
        return None
    return path if all(os.path.isfile(os.path.join(path, file)) for file in _FILES) else None


def _serve_adapters(folder: str) -> None:
    try:
        from vllm.entrypoints.serve.lora import api_router
        from vllm.lora.request import LoRARequest
        from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
    except ImportError as error:
        log.warning("this vLLM serves no adapters: %s", error)
        return

    class Resolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not installed where this is checked
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            path = adapter_path(folder, lora_name)
            # vLLM gives it an id of its own, one for each name and for the engine's life.
            return path and LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=path)

    def attach_no_router(app: Any) -> None:
        """In place of the endpoints that load and unload adapters."""

    api_router.attach_router = attach_no_router
    LoRAResolverRegistry.register_resolver("understudy", Resolver())
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"


def _keep_base_clean() -> None:
    """vLLM marks tokens without an adapter by the index -1, which its operators for the CPU take for the last slot. Every path ends in one
    of these two, which add an adapter's part: where the index is negative that becomes nothing.
    """
    try:
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu

        for name in ("bgmv_expand", "bgmv_expand_slice"):
            original = getattr(lora_ops, name)
            if getattr(original, "keeps_base_clean", False):
                return
            masked = _masked(original)
            for module in (lora_ops, punica_cpu):
                setattr(module, name, masked)
    except (ImportError, AttributeError) as error:
        log.warning("vLLM's operators for adapters on CPUs are left as they are: %s", error)


def _masked(original: Callable[..., Any]) -> Callable[..., Any]:
    def masked(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **options: Any) -> Any:
        return original(inputs.masked_fill((indices < 0).unsqueeze(-1), 0), weights, output, indices, *rest, **options)

    masked.keeps_base_clean = True  # type: ignore[attr-defined]
    return masked


def _run_in_process() -> None:
    try:
        from vllm.platforms.cpu import CpuPlatform

        original = CpuPlatform.check_and_update_config
    except (ImportError, AttributeError) as error:
        log.warning("the model runs in a process of its own: %s", error)
        return
    if getattr(original, "in_process", False):
        return

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        original(vllm_config)
        if vllm_config.parallel_config.world_size == 1:
            vllm_config.parallel_config.distributed_executor_backend = "uni"

    check_and_update_config.in_process = True  # type: ignore[attr-defined]
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
