"""Ray Serve LLM's engine for a laptop's Ray: the model's files lie on this machine already. Named by `local_ray` in Ray's environment
(`RAYLLM_VLLM_ENGINE_CLS`), loaded by the replica in the engine's environment; nothing else imports it.

Ray starts a process on every node of an engine to fetch the model's files. With a local folder there is nothing to fetch, but that
process imports all of vLLM first: a quarter of the time that a small engine needs to start.
"""

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine


class LocalEngine(VLLMEngine):  # type: ignore[misc]  # Ray is untyped here
    """Ray's engine, without the fetching."""

    async def start(self) -> None:
        """Start vLLM at once."""
        self.llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().start()
