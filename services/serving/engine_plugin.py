"""A vLLM plugin for engines on few cores: their processes sleep between tokens instead of polling.

vLLM loads it in each of its processes (entry point `vllm.general_plugins`), in the engine's environment. A vLLM worker waits for its
next step by polling shared memory for a whole second before it sleeps. On GPU nodes that saves microseconds; on a laptop, where two
engines, the gateway and a third engine that is starting share two cores, the polling takes all of them. With
`UNDERSTUDY_ENGINE_RECHECK_MS` set (`local_ray` does), workers sleep at once and look again after so many milliseconds at the latest:
a notification can be lost, and vLLM's own interval for that case is five seconds. Without the variable nothing changes.
Must not import anything else of this project, and must never keep an engine from starting.
"""

from __future__ import annotations

import logging
import os

RECHECK_MS = "UNDERSTUDY_ENGINE_RECHECK_MS"


def register() -> None:
    """Let vLLM's workers sleep while they wait for their next step."""
    milliseconds = os.environ.get(RECHECK_MS)
    if milliseconds is None:
        return
    try:
        from vllm.distributed.device_communicators import shm_broadcast

        condition = shm_broadcast.SpinCondition
        if len(condition.__init__.__defaults__ or ()) != 1 or not hasattr(
            shm_broadcast, "SHM_READER_RECHECK_INTERVAL_MS"
        ):
            raise TypeError("vLLM waits in another way now")
        shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = int(milliseconds)
        condition.__init__.__defaults__ = (0.0,)  # busy_loop_s
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logging.getLogger(__name__).warning("engines go on polling for a second: %s", error)
