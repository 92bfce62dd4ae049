"""A vLLM plugin for engines on few cores: scheduler and model share one process.

vLLM loads it in each of its processes (entry point `vllm.general_plugins`), in the engine's environment. On the CPU vLLM runs the model in
a worker process beside the scheduler, so that it can bind the worker's threads to cores. That process costs an import of PyTorch and vLLM
at the start, its memory, and two messages for every token, for which both sides poll shared memory. On a laptop the threads
are set by the environment and not bound, so nothing is gained by it. With `UNDERSTUDY_ENGINE_IN_PROCESS=1` (`local_ray` sets it) an engine
without tensor or pipeline parallelism runs the model in the scheduler's process, as vLLM does on one GPU. Without the variable nothing
changes. Must not import anything else of this project, and must never keep an engine from starting.
"""

from __future__ import annotations

import logging
import os
from typing import Any

IN_PROCESS = "UNDERSTUDY_ENGINE_IN_PROCESS"


def register() -> None:
    """Let engines of one worker run it in process. Called more than once in a process."""
    if os.environ.get(IN_PROCESS) != "1":
        return
    try:
        from vllm.platforms.cpu import CpuPlatform

        original = CpuPlatform.check_and_update_config
    except (ImportError, AttributeError) as error:
        logging.getLogger(__name__).warning("the model runs in a process of its own: %s", error)
        return
    if getattr(original, "in_process", False):
        return

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        original(vllm_config)
        if vllm_config.parallel_config.world_size == 1:
            vllm_config.parallel_config.distributed_executor_backend = "uni"

    check_and_update_config.in_process = True  # type: ignore[attr-defined]
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
