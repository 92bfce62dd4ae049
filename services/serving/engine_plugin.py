"""A vLLM plugin for engines on few cores: their processes sleep between tokens instead of polling.

vLLM loads it in each of its processes (entry point `vllm.general_plugins`), in the engine's environment. A vLLM worker waits for its
next step by polling shared memory for a whole second before it sleeps. On GPU nodes that saves microseconds; on a laptop, where two
engines, the gateway and a third engine that is starting share two cores, the polling takes all of them. With
`UNDERSTUDY_ENGINE_SPIN_SECONDS` set (`local_ray` does), workers poll for so long only; without it nothing changes.
Must not import anything else of this project, and must never keep an engine from starting.
"""

from __future__ import annotations

import logging
import os

SPIN = "UNDERSTUDY_ENGINE_SPIN_SECONDS"


def register() -> None:
    """Set how long vLLM's workers poll before they sleep, in seconds."""
    seconds = os.environ.get(SPIN)
    if seconds is None:
        return
    try:
        from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

        if len(SpinCondition.__init__.__defaults__ or ()) != 1:
            raise TypeError("SpinCondition's arguments have changed")
        SpinCondition.__init__.__defaults__ = (float(seconds),)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logging.getLogger(__name__).warning("engines go on polling for a second: %s", error)
